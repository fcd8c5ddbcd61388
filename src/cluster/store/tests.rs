mod model;
mod processes;
mod speed;

use super::*;
use crate::{Array, serial};
use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    sync::atomic::{AtomicU32, Ordering},
};

const MIB: u64 = 1 << 20;

/// A directory for a test's stores, in memory. It is removed with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let memory = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
        let parent = memory.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let path = parent.join(format!("outray-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        Scratch(path)
    }

    fn config(&self, budget: u64) -> Config {
        Config { budget, memory: Some(self.0.join("memory")), spill: self.0.join("disk") }
    }

    fn store(&self, budget: u64) -> Store {
        Store::open(&self.config(budget)).expect("a store")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes that tell the object and the page.
fn content(seed: u64, size: u64) -> Vec<u8> {
    let mut page: Vec<u8> = (0..512_u64).flat_map(|word| (seed << 32 ^ word).to_le_bytes()).collect();
    let mut content = Vec::with_capacity(size as usize);
    for number in 0..size.div_ceil(4096) {
        page[..8].copy_from_slice(&(seed << 32 ^ number << 10).to_le_bytes());
        content.extend_from_slice(&page[..4096.min(size as usize - content.len())]);
    }
    content
}

fn put(store: &Store, id: Id, seed: u64, size: u64) -> Result<Object, StoreError> {
    let mut writer = store.create(id, size)?;
    writer.write_at(0, &content(seed, size))?;
    writer.seal()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => files.extend(self::files(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

/// The memory that the files in a directory really have.
fn memory(directory: &Path) -> u64 {
    files(directory).iter().map(|path| fs::symlink_metadata(path).expect("a file").blocks() * 512).sum()
}

#[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
struct Value {
    name: String,
    weights: Array<f64>,
    #[serde(with = "crate::buffer")]
    image: Bytes,
    ids: Array<u16>,
}

fn value() -> Value {
    Value {
        name: "a value".into(),
        weights: (0..100_000).map(f64::from).collect(),
        image: content(1, MIB).into(),
        ids: (0..1001).collect(),
    }
}

fn put_value(store: &Store, id: Id, value: &Value) -> Object {
    let packed = serial::pack(value, "a value").expect("it can be packed");
    let mut writer = store.create(id, packed.encoded_len() as u64).expect("room");
    writer.write(&packed).expect("it is as long");
    writer.seal().expect("it can be sealed")
}

#[test]
fn a_value_is_read_where_it_was_put() {
    let scratch = Scratch::new();
    let store = scratch.store(100 * MIB);
    let value = value();
    let object = put_value(&store, (1, 1), &value);
    let region = object.map().unwrap();
    let read: Value = serial::encoded::decode(&region, serial::Handles::default()).unwrap();
    assert_eq!(read, value);
    let inside = region.as_ptr_range();
    for start in [read.weights.as_ptr().cast(), read.image.as_ptr(), read.ids.as_ptr().cast()] {
        assert!(inside.contains(&start), "it was copied");
        assert_eq!(start.addr() % 64, 0);
    }
    // A part keeps the whole.
    let weights = read.weights;
    drop((region, read.image, read.ids));
    assert!(store.remove((1, 1)));
    drop((object, store));
    assert_eq!(weights, value.weights);
}

#[test]
fn what_is_not_sealed_is_not_there() {
    let scratch = Scratch::new();
    let store = scratch.store(10 * MIB);
    let mut writer = store.create((1, 1), 100).unwrap();
    writer.write_at(50, &[1; 50]).unwrap();
    assert!(store.get((1, 1)).unwrap().is_none());
    assert_eq!(store.size((1, 1)), None);
    assert!(matches!(map(writer.path(), 100), Err(StoreError::Foreign { .. })));
    assert!(matches!(store.create((1, 1), 5), Err(StoreError::Exists { .. })));
    assert!(matches!(store.adopt((1, 1)), Err(StoreError::NotReserved { .. })));
    drop(writer);
    assert_eq!(store.stats(), Stats::default());
    assert!(store.create((1, 1), 5).unwrap().seal().is_ok());
    assert_eq!(store.size((1, 1)), Some(5));
}

#[test]
fn a_writer_stays_inside_its_object() {
    let scratch = Scratch::new();
    let store = scratch.store(10 * MIB);
    let mut writer = store.create((1, 1), 100).unwrap();
    for (offset, length) in [(0, 101), (100, 1), (u64::MAX, 1), (1 << 40, 1)] {
        assert!(writer.write_at(offset, &vec![0; length]).is_err());
    }
    let packed = serial::pack(&"a text", "a text").unwrap();
    assert!(writer.write(&packed).is_err());
    writer.bytes().unwrap().copy_from_slice(&content(1, 100));
    writer.write_at(98, &[8, 9]).unwrap();
    let object = writer.seal().unwrap();
    let region = object.map().unwrap();
    assert_eq!((&region[..98], &region[98..]), (&content(1, 98)[..], &[8, 9][..]));
}

#[test]
fn an_object_of_no_bytes_is_an_object() {
    let scratch = Scratch::new();
    let store = scratch.store(4096);
    let object = store.create((1, 1), 0).unwrap().seal().unwrap();
    assert_eq!(object.map().unwrap(), Bytes::new());
    assert!(store.remove((1, 1)));
}

#[test]
fn what_is_removed_stays_for_those_who_have_it() {
    let scratch = Scratch::new();
    let store = scratch.store(8 * MIB);
    let object = put(&store, (1, 1), 1, 4 * MIB).unwrap();
    let region = object.map().unwrap();
    assert!(store.remove((1, 1)) && !store.remove((1, 1)));
    assert!(store.get((1, 1)).unwrap().is_none());
    // Its memory is in use, so there is room for as much again, and no more.
    let second = put(&store, (1, 1), 2, 4 * MIB).unwrap();
    assert!(matches!(put(&store, (1, 2), 3, 4 * MIB), Err(StoreError::Full { in_use, .. }) if in_use == 8 * MIB));
    assert_eq!(*region, content(1, 4 * MIB));
    drop((region, object));
    put(&store, (1, 2), 3, 4 * MIB).unwrap();
    assert_eq!((store.stats().used, store.stats().spilled), (8 * MIB, 0));
    assert_eq!(*second.map().unwrap(), content(2, 4 * MIB));
}

#[test]
fn a_file_that_nobody_needs_becomes_the_next_object() {
    let scratch = Scratch::new();
    let store = scratch.store(64 * MIB);
    let old = put(&store, (1, 0), 0, 4 * MIB).unwrap();
    let inode = fs::metadata(old.path()).unwrap().ino();
    store.remove((1, 0));
    // Larger, smaller, and again: through `write`, a new mapping, and a mapping that was kept.
    for (number, size) in [(1, 5 * MIB), (2, 3 * MIB + 17), (3, 3 * MIB), (4, 3 * MIB)] {
        let object = put(&store, (1, number), number, size).unwrap();
        assert_eq!(fs::metadata(object.path()).unwrap().ino(), inode);
        assert_eq!(*object.map().unwrap(), content(number, size));
        assert!(matches!(map(old.path(), 4 * MIB), Err(StoreError::Gone { .. })), "the old path leads nowhere");
        store.remove((1, number));
    }
    assert_eq!(store.stats().reused, 4);
    store.trim();
    assert_eq!(memory(&scratch.0), 0);
    assert_eq!(store.stats().used, 0);
}

#[test]
fn those_not_used_go_to_disk_and_come_back() {
    let scratch = Scratch::new();
    let store = scratch.store(4 * MIB);
    for number in 0..4 {
        put(&store, (1, number), number, MIB).unwrap();
    }
    store.get((1, 0)).unwrap();
    put(&store, (1, 4), 4, MIB).unwrap();
    let on_disk = |number| !store.0.index.lock().entries.peek(&(1, number)).is_some_and(|e| e.place == Place::Memory);
    assert_eq!((0..5).filter(|number| on_disk(*number)).collect::<Vec<_>>(), [1], "the least recently used");
    for round in 0..3 {
        for number in 0..5 {
            let object = store.get((1, number)).unwrap().unwrap();
            assert_eq!(*object.map().unwrap(), content(number, MIB), "round {round}");
        }
    }
    let stats = store.stats();
    assert_eq!((stats.objects, stats.on_disk), (5, MIB));
    assert!(stats.spilled <= 5 && stats.restored > 5, "each is written once: {stats:?}");
    assert_eq!(files(&scratch.0.join("disk")).len(), 1 + stats.spilled as usize);
    for file in files(&scratch.0) {
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o077, 0, "{file:?}");
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    }
    for number in 0..5 {
        store.remove((1, number));
    }
    assert_eq!(files(&scratch.0.join("disk")).len(), 1, "the lock");
}

#[test]
fn what_is_in_use_stays_in_memory() {
    let scratch = Scratch::new();
    let store = scratch.store(4 * MIB);
    let held = put(&store, (1, 0), 0, MIB).unwrap();
    let mapped = put(&store, (1, 1), 1, MIB).unwrap().map().unwrap();
    let written = store.create((1, 2), MIB).unwrap();
    store.reserve((1, 3), MIB).unwrap();
    let error = put(&store, (1, 4), 4, MIB).unwrap_err();
    assert!(matches!(error, StoreError::Full { needed: MIB, in_use, .. } if in_use == 4 * MIB), "{error}");
    assert!(matches!(put(&store, (1, 4), 4, 5 * MIB), Err(StoreError::TooLarge { .. })));
    drop(mapped);
    put(&store, (1, 4), 4, MIB).unwrap();
    drop(held);
    put(&store, (1, 5), 5, MIB).unwrap();
    drop(written);
    put(&store, (1, 6), 6, MIB).unwrap();
    assert_eq!(store.stats().spilled, 2);
    for number in [0, 1, 4, 5, 6] {
        assert_eq!(*store.get((1, number)).unwrap().unwrap().map().unwrap(), content(number, MIB));
    }
}

/// As it is where locks do not tell who maps a file.
#[test]
fn files_can_be_used_once_only() {
    let scratch = Scratch::new();
    let mut store = scratch.store(2 * MIB);
    Arc::get_mut(&mut store.0).unwrap().reuses = false;
    let mapped: Vec<Bytes> =
        (0..4).map(|number| put(&store, (1, number), number, MIB).unwrap().map().unwrap()).collect();
    assert_eq!((store.stats().used, store.stats().spilled), (2 * MIB, 2));
    for number in 0..4 {
        assert_eq!(*store.get((1, number)).unwrap().unwrap().map().unwrap(), content(number, MIB));
        assert!(store.remove((1, number)));
    }
    assert_eq!((store.stats().used, store.stats().reused), (0, 0));
    assert_eq!(memory(&scratch.0), 0);
    for (number, bytes) in mapped.iter().enumerate() {
        assert_eq!(**bytes, content(number as u64, MIB));
    }
}

#[test]
fn a_copy_on_disk_that_has_changed_is_not_believed() {
    let scratch = Scratch::new();
    let store = scratch.store(MIB);
    for damage in ["flipped", "shorter", "longer", "gone"] {
        put(&store, (1, 0), 0, MIB).unwrap();
        put(&store, (1, 1), 1, MIB).unwrap();
        let copy = files(&scratch.0.join("disk")).into_iter().find(|path| !path.ends_with("lock")).unwrap();
        let mut bytes = fs::read(&copy).unwrap();
        match damage {
            "flipped" => bytes[777_777] ^= 1,
            "shorter" => drop(bytes.pop()),
            _ => bytes.push(0),
        }
        fs::write(&copy, bytes).unwrap();
        if damage == "gone" {
            fs::remove_file(&copy).unwrap();
        }
        let error = store.get((1, 0)).unwrap_err();
        assert!(error.to_string().contains(copy.to_str().unwrap()), "{error}");
        assert_eq!(matches!(error, StoreError::Damaged { .. }), damage != "gone", "{error}");
        assert!(store.remove((1, 0)) && store.remove((1, 1)));
    }
    store.trim();
    assert_eq!(store.stats().used, 0);
}

#[test]
fn only_files_of_this_store_are_mapped() {
    let scratch = Scratch::new();
    let store = scratch.store(10 * MIB);
    let object = put(&store, (1, 1), 1, 5000).unwrap();
    let place = |name: &str| object.path().parent().unwrap().join(name);
    let foreign = |path: &Path, size, what: &str| {
        let error = map(path, size).unwrap_err();
        assert!(matches!(&error, StoreError::Foreign { reason, .. } if reason.contains(what)), "{what}: {error}");
    };
    foreign(object.path(), 4999, "5000 bytes");
    foreign(object.path(), 5001, "5000 bytes");
    symlink(object.path(), place("link")).unwrap();
    foreign(&place("link"), 5000, "a link");
    rustix::fs::mknodat(rustix::fs::CWD, place("pipe"), rustix::fs::FileType::Fifo, 0o400.into(), 0).unwrap();
    foreign(&place("pipe"), 5000, "not a regular file");
    foreign(&place(""), 5000, "not a regular file");
    fs::copy(object.path(), place("copy")).unwrap();
    fs::set_permissions(place("copy"), Permissions::from_mode(0o444)).unwrap();
    foreign(&place("copy"), 5000, "444");
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(place("copy"), Permissions::from_mode(0o400)).unwrap();
        std::os::unix::fs::chown(place("copy"), Some(12345), None).unwrap();
        foreign(&place("copy"), 5000, "user 12345");
    }
    assert!(matches!(map(&place("nothing"), 1), Err(StoreError::Gone { .. })));
    assert_eq!(*object.map().unwrap(), content(1, 5000));

    // A worker is to write to the file that it was given, and to no other.
    let path = store.reserve((1, 2), 5000).unwrap();
    assert!(matches!(Draft::open(&path, 4999), Err(StoreError::Foreign { .. })));
    fs::remove_file(&path).unwrap();
    symlink(object.path(), &path).unwrap();
    assert!(matches!(Draft::open(&path, 5000), Err(StoreError::Foreign { .. })));
    assert!(matches!(store.adopt((1, 2)), Err(StoreError::Foreign { .. })));
    fs::remove_file(&path).unwrap();
    fs::write(&path, content(2, 5000)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(store.adopt((1, 2)), Err(StoreError::Foreign { .. })));
    assert!(store.remove((1, 2)));

    let path = store.reserve((1, 3), 5000).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert!(matches!(store.adopt((1, 3)), Err(StoreError::Foreign { .. })));
    assert!(store.remove((1, 3)));
}

#[test]
fn a_directory_that_others_could_change_is_refused() {
    let scratch = Scratch::new();
    let config = scratch.config(MIB);
    fs::create_dir(config.memory.as_ref().unwrap()).unwrap();
    fs::set_permissions(config.memory.as_ref().unwrap(), Permissions::from_mode(0o777)).unwrap();
    let error = Store::open(&config).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    fs::set_permissions(config.memory.as_ref().unwrap(), Permissions::from_mode(0o1777)).unwrap();
    let store = Store::open(&config).unwrap();
    assert!(!files(&scratch.0).is_empty());
    drop(store);
    assert!(files(&scratch.0).is_empty());
}

#[test]
fn errors_say_what_to_do() {
    let error = StoreError::write(Path::new("/dev/shm/x"), 77, &std::io::Error::from_raw_os_error(28));
    let text = error.to_string();
    assert!(text.contains("77 bytes") && text.contains("/dev/shm/x") && text.contains("--shm-size"), "{text}");
    let text = StoreError::Full { needed: 1, budget: 2, in_use: 3 }.to_string();
    assert!(text.contains("larger budget"), "{text}");
}

/// Many threads, little room: each finds what it has put, and nothing else.
#[test]
fn threads_share_a_store() {
    let scratch = Scratch::new();
    let store = scratch.store(6 * MIB);
    let wait_for_room = |put: &dyn Fn() -> Result<Object, StoreError>| loop {
        match put() {
            Err(StoreError::Full { .. }) => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                let mut sizes = [None; 4];
                for _ in 0..100 {
                    let number = rng.u64(0..4);
                    let (id, seed) = ((thread, number), thread * 4 + number);
                    match &mut sizes[number as usize] {
                        size @ None => {
                            *size = Some(rng.u64(1..=MIB + MIB / 4));
                            drop(wait_for_room(&|| put(store, id, seed, size.unwrap_or(1))));
                        }
                        Some(size) if rng.bool() => {
                            let object = wait_for_room(&|| store.get(id).map(|object| object.expect("it was put")));
                            assert!(*object.map().unwrap() == content(seed, *size), "object {id:?}");
                        }
                        size => {
                            assert!(store.remove(id));
                            *size = None;
                        }
                    }
                    assert!(store.stats().used <= 6 * MIB);
                }
            });
        }
    });
    assert_eq!(memory(&scratch.0.join("memory")), store.stats().used);
    assert!(store.stats().spilled > 0);
}
