//! How functions travel: every call here runs in a child process, which is this test executable,
//! started again as a worker.

mod common;

use common::{until, watch};
use outray::{
    Error, Runtime,
    cluster::{
        entry::{CallError, LONGEST, OVER_PIPES, Process, VARIABLE},
        function::{FunctionError, FunctionId, resolve},
        image::{Cache, ContentHash, Image, ImageError},
    },
};
use proptest::{collection, prelude::*, test_runner::TestRunner};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, Permissions},
    future::poll_fn,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::Poll,
    time::{Duration, SystemTime},
};

fn worker() -> Process {
    Process::spawn().expect("a worker")
}

/// A directory of this test's own, which is gone after it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, SeqCst);
        let path = std::env::temp_dir().join(format!("outray-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory for the test");
        Directory(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// The names in `part` of it.
    fn names(&self, part: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(part)).expect("the directory");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// What runs.

fn add(x: i64, y: i64) -> i64 {
    x + y
}

fn wide<T>(x: i64) -> i64 {
    x + size_of::<T>() as i64
}

#[allow(clippy::too_many_arguments)] // as many as a task may have
fn eight(a: u8, b: u16, c: u32, d: u64, e: i8, f: String, g: Vec<f64>, h: Option<char>) -> String {
    format!("{a} {b} {c} {d} {e} {f} {g:?} {h:?}")
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    x: f64,
    y: f64,
}

impl Point {
    fn new(x: f64, y: f64) -> Self {
        Point { x, y }
    }

    fn plus(self, other: Point) -> Point {
        Point { x: self.x + other.x, y: self.y + other.y }
    }
}

trait Area {
    fn area(self) -> f64;
}

impl Area for Point {
    fn area(self) -> f64 {
        self.x * self.y
    }
}

/// Is pending until another thread wakes it.
async fn woken_from_elsewhere(x: u32) -> u32 {
    let mut waker = None;
    poll_fn(|context| match waker {
        Some(()) => Poll::Ready(()),
        None => {
            waker = Some(());
            let waker = context.waker().clone();
            std::thread::spawn(move || waker.wake());
            Poll::Pending
        }
    })
    .await;
    x + 1
}

/// In a worker of the test's own: it reports no panic on stderr any more.
fn be_quiet() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn process() -> u32 {
    std::process::id()
}

#[test]
fn functions_closures_and_generic_instances_run_in_another_process() {
    watch(|| {
        fn inside(x: i64) -> i64 {
            x * 3
        }
        let mut worker = worker();
        assert_eq!(worker.run(add, (1, 2)).unwrap(), 3);
        assert_eq!(worker.run(inside, (5,)).unwrap(), 15);
        assert_eq!(worker.run(|x: i64| x - 1, (5,)).unwrap(), 4);
        assert_eq!(worker.run(|| "nothing goes in".to_owned(), ()).unwrap(), "nothing goes in");
        assert_eq!(worker.run(|_: String| (), (String::new(),)).unwrap(), ());
        assert_eq!(worker.run(wide::<u64>, (1,)).unwrap(), 9);
        assert_eq!(worker.run(wide::<[u8; 100]>, (1,)).unwrap(), 101);
        let text = worker.run(eight, (1, 2, 3, 4, -5, "six".to_owned(), vec![7.5], Some('8'))).unwrap();
        assert_eq!(text, "1 2 3 4 -5 six [7.5] Some('8')");
        let there = worker.run(process, ()).unwrap();
        assert_ne!(there, std::process::id());
        assert_eq!(worker.run(process, ()).unwrap(), there, "one worker serves all calls");
    });
}

#[test]
fn methods_run_as_paths() {
    watch(|| {
        let mut worker = worker();
        let point = worker.run(Point::new, (1.0, 2.0)).unwrap();
        let point = worker.run(Point::plus, (point, Point::new(10.0, 10.0))).unwrap();
        assert_eq!(point, Point::new(11.0, 12.0));
        assert_eq!(worker.run(Point::area, (point.clone(),)).unwrap(), 132.0);
        assert_eq!(worker.run(<Point as Area>::area, (point,)).unwrap(), 132.0);
        assert_eq!(worker.run(String::into_bytes, ("ab".to_owned(),)).unwrap(), b"ab");
        assert_eq!(worker.run(Vec::<u8>::with_capacity, (7,)).unwrap(), Vec::<u8>::new());
        assert_eq!(worker.run(i32::checked_add, (i32::MAX, 1)).unwrap(), None);
        assert_eq!(worker.run(Some::<u8>, (7,)).unwrap(), Some(7), "a variant is a function too");
    });
}

#[test]
fn async_functions_are_driven_to_their_end() {
    watch(|| {
        async fn sum(values: Vec<u32>) -> u32 {
            let mut sum = 0;
            for value in values {
                sum += woken_from_elsewhere(value).await;
            }
            sum
        }
        let mut worker = worker();
        assert_eq!(worker.run(woken_from_elsewhere, (1,)).unwrap(), 2);
        assert_eq!(worker.run(sum, (vec![1, 2, 3],)).unwrap(), 9);
        assert_eq!(worker.run(|x: u32| async move { x * 2 }, (4,)).unwrap(), 8);
        assert_eq!(worker.run(async |x: u32| woken_from_elsewhere(x).await, (4,)).unwrap(), 5);
    });
}

#[test]
fn closures_in_closures_run_and_workers_have_workers() {
    watch(|| {
        let twice = |x: i64| {
            let inner = |y: i64| y * 2;
            inner(x)
        };
        let mut worker = worker();
        assert_eq!(worker.run(twice, (21,)).unwrap(), 42);
        // The inner closure is named to a worker of the worker.
        let elsewhere = |x: i64| -> (u32, u32, i64) {
            let inner = |y: i64| (std::process::id(), y * 2);
            let (process, y) = Process::spawn().unwrap().run(inner, (x,)).unwrap();
            (std::process::id(), process, y)
        };
        let (child, grandchild, y) = worker.run(elsewhere, (21,)).unwrap();
        assert_eq!(y, 42);
        assert!(child != grandchild && child != std::process::id() && grandchild != std::process::id());
    });
}

/// A function with a value of size 0 in it.
#[test]
fn what_a_closure_captures_of_size_0_is_cloned_and_never_dropped_without_a_clone() {
    static BALANCE: AtomicU64 = AtomicU64::new(0);
    struct Counted;
    impl Clone for Counted {
        fn clone(&self) -> Self {
            BALANCE.fetch_add(1, SeqCst);
            Counted
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            BALANCE.fetch_sub(1, SeqCst);
        }
    }
    watch(|| {
        let counted = Counted;
        std::mem::forget(Counted);
        BALANCE.store(1, SeqCst);
        let function = move |x: i64| {
            let _counted = &counted;
            x + BALANCE.load(SeqCst) as i64
        };
        let mut worker = worker();
        // In the worker one clone lives while the function runs, and none after it.
        assert_eq!(worker.run(function.clone(), (1,)).unwrap(), 2);
        assert_eq!(worker.run(function, (1,)).unwrap(), 2);
        assert_eq!(worker.run(|| BALANCE.load(SeqCst), ()).unwrap(), 0);
    });
}

#[test]
fn a_panic_is_an_error_and_the_worker_lives_on() {
    watch(|| {
        fn broken(x: i64) -> i64 {
            panic!("no luck with {x}")
        }
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("the payload panics too");
            }
        }
        async fn later() -> u32 {
            woken_from_elsewhere(1).await;
            panic!("no luck later")
        }
        let mut worker = worker();
        worker.run(be_quiet, ()).unwrap();
        let line = line!() + 1;
        let error = worker.run(broken, (7,)).unwrap_err();
        let CallError::Failed(Error::Panicked { origin, message }) = error else { panic!("{error}") };
        assert_eq!(message, "no luck with 7");
        assert!(origin.name.ends_with("::broken"), "{origin}");
        assert!(origin.location.starts_with(&format!("{}:{line}:", file!())), "{origin}");

        let error = worker.run(later, ()).unwrap_err().to_string();
        assert!(error.contains("no luck later"), "{error}");
        let error = worker.run(|| -> u8 { std::panic::panic_any(Bomb) }, ()).unwrap_err().to_string();
        assert!(error.contains("(no message)"), "{error}");
        let error = worker.run(|| -> u8 { panic!("{}", "long ".repeat(100_000)) }, ()).unwrap_err().to_string();
        assert!(error.len() > 500_000);
        assert_eq!(worker.run(add, (1, 2)).unwrap(), 3);
    });
}

#[test]
fn what_cannot_be_serialized_is_an_error_and_the_worker_lives_on() {
    #[derive(Deserialize, Debug)]
    struct OneWay;
    impl Serialize for OneWay {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not this one"))
        }
    }
    watch(|| {
        let mut worker = worker();
        let failed = |result: Result<Vec<u8>, CallError>| match result {
            Err(CallError::Failed(error @ Error::Serialization { .. })) => error.to_string(),
            other => panic!("{other:?}"),
        };
        let id = FunctionId::of_task(&add).unwrap();
        for wrong in [&b""[..], b"\xc1", b"\x92\xa1a\xa1b", b"\x91\x01", b"\xdd\xff\xff\xff\xff", &[0x91; 100_000]] {
            let error = failed(worker.call(&id, wrong));
            assert!(error.contains("the arguments of type `(i64, i64)`"), "{error}");
        }
        let error = worker.run(|| OneWay, ()).unwrap_err().to_string();
        assert!(error.contains("the result of type") && error.contains("not this one"), "{error}");
        let error = worker.run(|_: OneWay| (), (OneWay,)).unwrap_err().to_string();
        assert!(error.contains("the arguments of type") && error.contains("not this one"), "{error}");
        assert_eq!(worker.run(add, (1, 2)).unwrap(), 3);
    });
}

#[test]
fn what_is_too_long_for_the_pipes_is_an_error_and_the_worker_lives_on() {
    fn longer() -> String {
        "x".repeat(LONGEST[1] as usize)
    }
    watch(|| {
        let mut worker = worker();
        let error = worker.run(longer, ()).unwrap_err().to_string();
        assert!(error.contains("a result of 67108869 bytes"), "{error}");
        let error = worker.run(|_: String| (), (longer(),)).unwrap_err().to_string();
        assert!(error.contains("arguments of 67108870 bytes"), "{error}");
        worker.run(be_quiet, ()).unwrap();
        let error = worker.run(|| -> u8 { std::panic::panic_any(longer()) }, ()).unwrap_err().to_string();
        assert!(error.contains("an error of"), "{error}");
        assert_eq!(worker.run(add, (1, 2)).unwrap(), 3);
    });
}

#[test]
fn a_handle_inside_an_argument_or_a_result_is_refused() {
    watch(|| {
        let handle = Runtime::local().put(vec![1u8]);
        let mut worker = worker();
        let error = worker.run(|_: Vec<outray::ObjectRef<Vec<u8>>>| (), (vec![handle],)).unwrap_err();
        assert!(error.to_string().contains("pass the value itself"), "{error}");
        let error = worker.run(|| Runtime::local().put(1u8), ()).unwrap_err();
        assert!(error.to_string().contains("pass the value itself"), "{error}");
        // A number where a handle should be.
        let id = FunctionId::of_task(&|_: outray::ObjectRef<u8>| ()).unwrap();
        let error = worker.call(&id, b"\x91\x00").unwrap_err();
        assert!(error.to_string().contains("only by outray itself, with its value"), "{error}");
    });
}

#[test]
fn what_a_function_prints_and_reads_is_not_the_protocol() {
    watch(|| {
        fn noisy() -> (usize, bool) {
            println!("this line is a test's, and not a reply");
            io::stdout().flush().unwrap();
            let child = Command::new("echo").arg("nor is this one's child").status().unwrap();
            (io::stdin().read_to_end(&mut Vec::new()).unwrap(), child.success())
        }
        let mut worker = worker();
        assert_eq!(worker.run(noisy, ()).unwrap(), (0, true));
        assert_eq!(worker.run(add, (1, 2)).unwrap(), 3);
    });
}

#[test]
fn children_of_a_function_are_no_workers() {
    watch(|| {
        fn variable() -> (Option<String>, String) {
            let children = Command::new("env").output().unwrap();
            (std::env::var(VARIABLE).ok(), String::from_utf8_lossy(&children.stdout).into_owned())
        }
        fn this_program() -> String {
            // A worker would wait for calls; a test executable answers.
            let output = Command::new("/proc/self/exe").arg("--list").stdin(Stdio::null()).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        let mut worker = worker();
        let (own, children) = worker.run(variable, ()).unwrap();
        assert_eq!(own, None);
        assert!(!children.contains(VARIABLE), "{children}");
        assert!(worker.run(this_program, ()).unwrap().contains("children_of_a_function_are_no_workers: test"));
    });
}

#[test]
fn a_worker_that_dies_is_an_error_that_says_how() {
    watch(|| {
        let mut leaving = worker();
        let error = leaving.run(|| -> u8 { std::process::exit(7) }, ()).unwrap_err().to_string();
        assert!(error.contains("ended without a reply") && error.contains("exit status: 7"), "{error}");
        let mut aborting = worker();
        let error = aborting.run(|| -> u8 { std::process::abort() }, ()).unwrap_err().to_string();
        assert!(error.contains("signal: 6"), "{error}");
    });
}

// Ids that name nothing.

static LOOKALIKE: [Lookalike; 1] =
    [Lookalike { magic: [1, 2], mark: &7, name: || "lookalike", entry: |_| panic!("a jump") }];

/// Laid out as a descriptor, where descriptors are.
#[repr(C)]
struct Lookalike {
    magic: [u64; 2],
    mark: &'static u64,
    name: fn() -> &'static str,
    entry: fn(&[u8]) -> Vec<u8>,
}

/// Where the executable is loaded: the lowest of its mappings.
fn base() -> usize {
    let program = fs::read_link("/proc/self/exe").unwrap().into_os_string().into_string().unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let first = maps.lines().find(|line| line.ends_with(&program)).expect("a mapping of the program");
    usize::from_str_radix(first.split('-').next().unwrap(), 16).unwrap()
}

#[test]
fn each_kind_of_wrong_id_is_refused_for_what_is_wrong() {
    watch(|| {
        let mut worker = worker();
        let good = FunctionId::of_task(&add).unwrap();
        let other = FunctionId::of_task(&wide::<u8>).unwrap();
        let args = b"\x92\x01\x02";
        assert_eq!(worker.call(&good, args).unwrap(), b"\x03");
        let mut refused = |id: FunctionId| match worker.call(&id, args) {
            Err(CallError::Refused(error)) => {
                assert_eq!(resolve(&id).unwrap_err(), error, "all processes of the executable agree");
                error
            }
            other => panic!("{other:?}"),
        };

        let mut image = good.image;
        image.0[31] ^= 1;
        let error = refused(FunctionId { image, ..good });
        assert_eq!(error, FunctionError::OtherExecutable { its: image, ours: good.image });
        let error = refused(FunctionId { image: ContentHash([0; 32]), offset: 1, name_hash: 0 });
        assert!(matches!(error, FunctionError::OtherExecutable { .. }), "the hash is checked first: {error}");

        for offset in [0, 1, -1, -8, 8, i64::MIN, i64::MAX, i64::MIN + 8, 1 << 40, -(1 << 40)] {
            let error = refused(FunctionId { offset, ..good });
            let is_refused = matches!(
                error,
                FunctionError::Outside { .. } | FunctionError::Misaligned { .. } | FunctionError::NotAFunction { .. }
            );
            assert!(is_refused, "{offset}: {error}");
        }
        for offset in [i64::MIN, i64::MAX, 1 << 40, -8] {
            assert_eq!(refused(FunctionId { offset, ..good }), FunctionError::Outside { offset });
        }
        for shift in [-7, -4, -1, 1, 2, 4, 7] {
            let offset = good.offset + shift;
            assert_eq!(refused(FunctionId { offset, ..good }), FunctionError::Misaligned { offset });
        }
        for shift in [8, 16, 24, 32] {
            let offset = good.offset + shift; // inside the descriptor
            assert_eq!(refused(FunctionId { offset, ..good }), FunctionError::NotAFunction { offset });
        }

        let name_hash = good.name_hash ^ 1;
        let error = refused(FunctionId { name_hash, ..good });
        assert!(matches!(&error, FunctionError::OtherName { found, .. } if found.ends_with("::add")), "{error}");
        let error = refused(FunctionId { offset: other.offset, ..good });
        assert!(matches!(&error, FunctionError::OtherName { found, .. } if found.ends_with("::wide<u8>")), "{error}");

        // Not functions: a constant, a variable, code, the stack, the heap.
        let at = |address: usize| FunctionId { offset: address.wrapping_sub(base()) as i64, ..good };
        let lookalike = at((&raw const LOOKALIKE).addr());
        assert_eq!(LOOKALIKE[0].magic.len() + *LOOKALIKE[0].mark as usize, 9); // it is used
        assert_eq!((LOOKALIKE[0].name)(), "lookalike");
        let _ = LOOKALIKE[0].entry;
        assert_eq!(refused(lookalike), FunctionError::NotAFunction { offset: lookalike.offset });
        static VARIABLE: AtomicU64 = AtomicU64::new(3);
        for outside in [(&raw const VARIABLE).addr(), process as fn() -> u32 as usize & !7] {
            let id = at(outside);
            assert_eq!(refused(id), FunctionError::Outside { offset: id.offset });
        }
        let (local, boxed) = (0u64, Box::new(0u64));
        for outside in [(&raw const local).addr(), (&raw const *boxed).addr()] {
            assert!(matches!(resolve(&at(outside)), Err(FunctionError::Outside { .. })));
        }
        assert_eq!(worker.call(&good, args).unwrap(), b"\x03", "it has survived all of them");
    });
}

/// Tries each offset in the executable: none is taken for a function but those that are, and those
/// only under their own names. Runs in a worker, so that a crash is one.
fn try_all_offsets(good: FunctionId, length: i64) -> (usize, usize) {
    let (mut functions, mut others) = (0, 0);
    for offset in -4096..length {
        match resolve(&FunctionId { offset, name_hash: 0, ..good }) {
            Ok(function) => panic!("{function:?} is taken for one with another name"),
            Err(FunctionError::OtherName { .. }) => functions += 1,
            Err(_) => others += 1,
        }
    }
    (functions, others)
}

#[test]
fn of_all_offsets_only_those_of_functions_are_taken_for_functions() {
    let good = FunctionId::of_task(&add).unwrap();
    // No watchdog: it reads all of the executable, and how long that takes is the machine's affair.
    let length = Image::current().unwrap().size as i64;
    let (functions, others) = worker().run(try_all_offsets, (good, length)).unwrap();
    assert!(functions >= 20, "{functions}"); // at least those named in this file
    assert!(functions < 1000 && others > 1_000_000, "{functions} {others}");
}

#[test]
fn random_ids_and_payloads_are_refused_and_never_crash_the_worker() {
    watch(|| {
        let good = FunctionId::of_task(&add).unwrap();
        let size = Image::current().unwrap().size as i64;
        let offset = prop_oneof![
            any::<i64>(),
            0..size,
            (0..size / 8).prop_map(|word| word * 8),
            (-4096i64..4096).prop_map(move |near| good.offset + near),
            Just(good.offset),
        ];
        let image = prop_oneof![1 => any::<[u8; 32]>().prop_map(ContentHash), 9 => Just(good.image)];
        let ids = (image, offset, prop_oneof![any::<u64>(), Just(good.name_hash)]);
        let payloads = collection::vec(any::<u8>(), 0..64);
        let mut worker = worker();
        let mut run = |id: &FunctionId, payload: &[u8]| worker.call(id, payload);
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 8192, failure_persistence: None, ..Default::default() });
        let run = std::cell::RefCell::new(&mut run);
        runner
            .run(&(ids, payloads), |((image, offset, name_hash), payload)| {
                let id = FunctionId { image, offset, name_hash };
                match (run.borrow_mut())(&id, &payload) {
                    Err(CallError::Refused(_)) => prop_assert_ne!(id, good),
                    // Random bytes may be two numbers.
                    Err(CallError::Failed(Error::Serialization { .. })) | Ok(_) => prop_assert_eq!(id, good),
                    Err(CallError::Failed(Error::Panicked { message, .. })) => {
                        prop_assert_eq!(id, good);
                        prop_assert!(message.contains("overflow"), "{}", message);
                    }
                    Err(error) => prop_assert!(false, "{}", error),
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(worker.run(add, (1, 2)).unwrap(), 3, "it is still the same worker");
    });
}

#[test]
fn random_payloads_for_a_rich_type_never_crash_the_worker() {
    #[derive(Debug, Serialize, Deserialize)]
    enum Rich {
        Empty,
        Text(String),
        Many(Vec<Rich>),
        Map(std::collections::BTreeMap<String, Option<Box<Rich>>>),
        Struct { bytes: Vec<u8>, wide: u128, letter: char, pair: (f32, f64) },
    }
    fn take(rich: Rich, _: Vec<Rich>) -> usize {
        format!("{rich:?}").len()
    }
    watch(|| {
        let id = FunctionId::of_task(&take).unwrap();
        let rich = (
            Rich::Struct { bytes: vec![1, 200], wide: 1 << 100, letter: 'x', pair: (0.5, 1.5) },
            vec![Rich::Empty, Rich::Text("t".into()), Rich::Many(vec![]), Rich::Map([("k".into(), None)].into())],
        );
        let bytes = rmp_serde::to_vec_named(&rich).unwrap();
        let mut worker = worker();
        worker.call(&id, &bytes).unwrap();
        let worker = std::cell::RefCell::new(worker);
        let damage = collection::vec((0..bytes.len(), any::<u8>()), 1..6);
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() });
        runner
            .run(&(damage, 0..=bytes.len()), |(damage, length)| {
                let mut bytes = bytes.clone();
                damage.iter().for_each(|&(place, byte)| bytes[place] = byte);
                bytes.truncate(length);
                match worker.borrow_mut().call(&id, &bytes) {
                    Ok(_) | Err(CallError::Failed(Error::Serialization { .. })) => Ok(()),
                    Err(error) => Err(TestCaseError::fail(error.to_string())),
                }
            })
            .unwrap();
    });
}

// What is not even a call.

/// A worker and its raw pipes; killed when it is dropped.
struct Raw(Child);

impl Raw {
    fn spawn(kind: &str) -> Raw {
        let mut command = Command::new("/proc/self/exe");
        command.env(VARIABLE, kind).stdin(Stdio::piped()).stdout(Stdio::piped());
        Raw(command.spawn().expect("a worker"))
    }

    /// What it answers to `input`, and how it ends.
    fn answer(mut self, input: &[u8]) -> (Vec<u8>, Option<i32>) {
        let mut pipe = self.0.stdin.take().expect("its stdin");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            let _ = pipe.write_all(&input); // it may stop reading
        });
        let mut output = Vec::new();
        self.0.stdout.take().expect("its stdout").read_to_end(&mut output).expect("its answer");
        writer.join().expect("the writer");
        (output, self.0.wait().expect("its end").code())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn frame(header: u32, payload: u32, content: &[u8]) -> Vec<u8> {
    [&header.to_le_bytes(), &payload.to_le_bytes(), content].concat()
}

#[test]
fn garbage_on_the_pipe_is_refused() {
    watch(|| {
        let cases = [
            (b"\x01".to_vec(), "ends inside a frame"),
            (frame(5, 5, b"123456789"), "ends inside a frame"),
            (frame(5, 0, b"12345"), "the header is not a call"),
            (frame(0, 0, b""), "the header is not a call"),
            (frame(LONGEST[0] + 1, 0, b""), "are the most"),
            (frame(0, LONGEST[1] + 1, b""), "are the most"),
            (frame(u32::MAX, u32::MAX, &[0xff; 100_000]), "are the most"),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "are the most"),
            // Announced, but not there.
            (frame(LONGEST[0], LONGEST[1], b"1"), "ends inside a frame"),
        ];
        for (input, reason) in cases {
            let (output, code) = Raw::spawn(OVER_PIPES).answer(&input);
            let text = String::from_utf8_lossy(&output).into_owned();
            assert!(text.contains("Garbage") && text.contains(reason), "{text:?} should say {reason:?}");
            assert_eq!(code, Some(0));
        }
        assert_eq!(Raw::spawn(OVER_PIPES).answer(b""), (Vec::new(), Some(0)), "no call, no answer");
        // Garbage of honest lengths is skipped.
        let (output, code) = Raw::spawn(OVER_PIPES).answer(&frame(3, 2, b"12345").repeat(100));
        assert_eq!(String::from_utf8_lossy(&output).matches("the header is not a call").count(), 100);
        assert_eq!(code, Some(0));
    });
}

#[test]
fn random_bytes_on_the_pipe_end_in_an_answer_and_in_order() {
    watch(|| {
        let mut runner = TestRunner::new(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() });
        let small = (0u32..16, 0u32..16, collection::vec(any::<u8>(), 0..100)).prop_map(|(h, p, c)| frame(h, p, &c));
        let input = prop_oneof![collection::vec(any::<u8>(), 1..100), small];
        runner
            .run(&input, |input| {
                let (output, code) = Raw::spawn(OVER_PIPES).answer(&input);
                prop_assert!(String::from_utf8_lossy(&output).contains("Garbage"));
                prop_assert_eq!(code, Some(0));
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn an_unknown_kind_of_worker_is_refused_with_the_name_of_the_variable() {
    watch(|| {
        let output = Command::new("/proc/self/exe").env(VARIABLE, "1").stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(VARIABLE) && text.contains("unset it"), "{text}");
        assert_eq!(output.status.code(), Some(2));
    });
}

// Executables.

#[test]
fn an_executable_is_the_same_in_all_its_processes() {
    watch(|| {
        let ours = Image::current().unwrap();
        assert_eq!(&worker().run(|| Image::current().unwrap().clone(), ()).unwrap(), ours);
        assert_eq!(ours.size, fs::metadata("/proc/self/exe").unwrap().len());
        assert_eq!(ours.version, env!("CARGO_PKG_VERSION"));
        assert!(ours.platform.contains(std::env::consts::ARCH), "{ours:?}");
        ours.check_runs_here().unwrap();
        let error = Image { platform: "vax-vms-c".into(), ..ours.clone() }.check_runs_here().unwrap_err();
        assert!(
            matches!(error, ImageError::OtherPlatform { .. }) && error.to_string().contains("vax-vms-c"),
            "{error}"
        );
        let error = Image { version: "0.0.7".into(), ..ours.clone() }.check_runs_here().unwrap_err();
        assert!(matches!(error, ImageError::OtherVersion { .. }) && error.to_string().contains("0.0.7"), "{error}");
    });
}

fn own_executable() -> File {
    File::open("/proc/self/exe").expect("this executable")
}

/// An executable of a few bytes.
fn small(content: &[u8]) -> Image {
    let ours = Image::current().unwrap().clone();
    Image { hash: ContentHash(*blake3::hash(content).as_bytes()), size: content.len() as u64, ..ours }
}

#[test]
fn an_executable_from_the_cache_is_a_worker_for_the_same_functions() {
    watch(|| {
        let directory = Directory::new();
        let cache = Cache::open(directory.path().join("deep/cache")).unwrap();
        let path = cache.store(Image::current().unwrap(), own_executable()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o500);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        // A child that another test has just forked may hold the file open until its own `exec`.
        let started = std::cell::RefCell::new(None);
        until("nobody holds the file open for writing", || match Process::start(&mut Command::new(&path)) {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => false,
            result => started.replace(Some(result)).is_none(),
        });
        let mut worker = started.take().expect("a result").unwrap();
        assert_eq!(worker.run(add, (20, 22)).unwrap(), 42);
        let there = worker.run(|| std::fs::read_link("/proc/self/exe").unwrap(), ()).unwrap();
        assert_eq!(there, path.canonicalize().unwrap());
    });
}

#[test]
fn what_is_stored_is_found_and_not_fetched_again() {
    watch(|| {
        struct NotRead;
        impl Read for NotRead {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("it is here already")
            }
        }
        let directory = Directory::new();
        let cache = Cache::open(directory.path().join("cache")).unwrap();
        let image = small(b"#!/bin/true");
        assert_eq!(cache.find(&image).unwrap(), None);
        let path = cache.store(&image, &b"#!/bin/true"[..]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"#!/bin/true");
        assert_eq!(cache.store(&image, NotRead).unwrap(), path);
        let again = Cache::open(directory.path().join("cache")).unwrap();
        assert_eq!(again.find(&image).unwrap(), Some(path));
        assert_eq!(directory.names("cache"), [image.hash.to_string()]);
    });
}

#[test]
fn a_damaged_executable_is_not_found_and_is_replaced() {
    watch(|| {
        let directory = Directory::new();
        let cache = Cache::open(directory.path().join("cache")).unwrap();
        let image = small(b"0123456789");
        let path = cache.store(&image, &b"0123456789"[..]).unwrap();
        for damaged in [&b"012345678"[..], b"", b"01234567890", b"012345678x"] {
            fs::remove_file(&path).unwrap();
            fs::write(&path, damaged).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o500)).unwrap();
            assert_eq!(cache.find(&image).unwrap(), None);
            assert_eq!(cache.store(&image, &b"0123456789"[..]).unwrap(), path);
            assert_eq!(cache.find(&image).unwrap().as_deref(), Some(&*path));
        }
        // Whole, but somebody could write to it.
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(cache.find(&image).unwrap(), None);
        cache.store(&image, &b"0123456789"[..]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o500);
        assert_eq!(directory.names("cache"), [image.hash.to_string()]);
    });
}

#[test]
fn only_the_announced_bytes_are_stored() {
    watch(|| {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the line is dead"))
            }
        }
        let directory = Directory::new();
        let cache = Cache::open(directory.path().join("cache")).unwrap();
        let image = small(b"0123456789");
        for wrong in [&b""[..], b"012345678", b"012345678x", b"01234567890", &[b'0'; 1 << 20]] {
            let error = cache.store(&image, wrong).unwrap_err();
            assert!(matches!(error, ImageError::WrongContent { expected, .. } if expected == image.hash), "{error}");
            assert!(error.to_string().contains("send it again"), "{error}");
        }
        // What never ends is given up after its size.
        assert!(matches!(cache.store(&image, io::repeat(0)), Err(ImageError::WrongContent { found_size: 11, .. })));
        let error = cache.store(&image, Failing).unwrap_err();
        assert!(error.to_string().contains("the line is dead"), "{error}");
        assert_eq!(directory.names("cache"), [""; 0], "nothing is left");
    });
}

#[test]
fn many_processes_store_the_same_executable_at_the_same_time() {
    fn store(directory: PathBuf) -> Result<PathBuf, String> {
        let cache = Cache::open(directory).map_err(|error| error.to_string())?;
        cache.store(Image::current().unwrap(), own_executable()).map_err(|error| error.to_string())
    }
    watch(|| {
        let directory = Directory::new();
        let together = Barrier::new(4);
        let paths: Vec<PathBuf> = std::thread::scope(|scope| {
            let one = || {
                let mut worker = worker();
                worker.run(add, (0, 0)).unwrap(); // it has started
                together.wait();
                worker.run(store, (directory.path().join("cache"),)).unwrap().unwrap()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let image = Image::current().unwrap();
        let found = Cache::open(directory.path().join("cache")).unwrap().find(image).unwrap();
        assert!(paths.iter().all(|path| Some(path) == found.as_ref()), "{paths:?}");
        assert_eq!(directory.names("cache"), [image.hash.to_string()]);
    });
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing() {
    #[allow(unsafe_code)]
    fn store_with_no_room(directory: PathBuf) -> String {
        let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
        // Writes beyond the limit then fail, as they do on a full disk.
        // SAFETY: this process is a worker of one test, and its other threads do not care.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
        let cache = Cache::open(directory).unwrap();
        cache.store(Image::current().unwrap(), own_executable()).unwrap_err().to_string()
    }
    watch(|| {
        let directory = Directory::new();
        let cache = directory.path().join("cache");
        let error = worker().run(store_with_no_room, (cache.clone(),)).unwrap();
        assert!(error.starts_with(&format!("cannot write {}/", cache.display())), "{error}");
        assert!(error.contains("too large"), "{error}");
        assert_eq!(directory.names("cache"), [""; 0]);
    });
}

#[test]
fn a_directory_that_cannot_hold_executables_is_refused_by_name() {
    watch(|| {
        let directory = Directory::new();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below"), PathBuf::from("/proc/outray")] {
            let error = Cache::open(&path).unwrap_err();
            assert!(error.to_string().starts_with(&format!("cannot create {}: ", path.display())), "{error}");
        }
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o770)).unwrap();
        let error = Cache::open(&open).unwrap_err();
        assert!(matches!(error, ImageError::NotPrivate { .. }), "{error}");
        assert!(error.to_string().contains("its mode is 770; make it 700"), "{error}");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        let error = Cache::open(&link).unwrap_err();
        assert!(error.to_string().contains("it is a link"), "{error}");

        // It was there when the cache was opened.
        let cache = Cache::open(directory.path().join("cache")).unwrap();
        fs::remove_dir(directory.path().join("cache")).unwrap();
        let error = cache.store(&small(b"x"), &b"x"[..]).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("cannot write {}/", directory.path().join("cache").display())),
            "{error}"
        );
    });
}

#[test]
fn what_a_crash_left_is_removed_when_nobody_writes_to_it_any_more() {
    watch(|| {
        let directory = Directory::new();
        let path = directory.path().join("cache");
        let cache = Cache::open(&path).unwrap();
        cache.store(&small(b"x"), &b"x"[..]).unwrap();
        let old = SystemTime::now() - Duration::from_secs(2 * 3600);
        for (name, time) in [(".a.1.0.part", old), (".b.1.0.part", SystemTime::now()), ("of-somebody", old)] {
            File::create(path.join(name)).unwrap().set_modified(time).unwrap();
        }
        Cache::open(&path).unwrap();
        let mut names = directory.names("cache");
        names.sort();
        assert_eq!(names, [".b.1.0.part".to_owned(), small(b"x").hash.to_string(), "of-somebody".to_owned()]);
    });
}
