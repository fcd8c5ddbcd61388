//! How a function travels: as a place in the executable that both sides run.
//!
//! # Sender
//! [`FunctionId::of_task`] makes the compiler emit one constant [`Descriptor`] for each function
//! (and closure, and generic instance) that it is called with. The id says which executable this
//! is, how far behind the start of its image the descriptor lies, and what the function is called.
//!
//! # Receiver
//! The same executable has the same descriptors at the same offsets, wherever the loader puts it.
//! [`resolve`] trusts nothing that came over the network. It checks, in this order:
//!
//! ```text
//! content hash == that of this executable    the two agree on what lies where
//! offset inside the constant data            the memory is there, and nobody writes to it
//! all of the descriptor inside, aligned      so its words can be read
//! magic, mark, code pointers                 it is a descriptor (see below)
//! hash of its name == the id's               it is the function that was meant
//! ```
//!
//! Nothing is called before the fourth line holds, and only the descriptor's own `name` before the
//! fifth. Each mismatch is a [`FunctionError`].
//!
//! # What makes a descriptor
//! The magic alone would not do: it stands in the code that compares it, and anybody can write it
//! into a constant. The *mark* is the address of a private static, so behind a magic it
//! stands in descriptors and nowhere else: only this module can name the static, the loader
//! relocates its address at each start, and constant data does not change after that.
//!
//! # Where descriptors lie
//! They hold addresses, so in a position-independent executable the loader relocates them, and they
//! are in the part of the data that becomes read-only then (`PT_GNU_RELRO`). In an executable with
//! fixed addresses they are in a read-only segment. Both are found in the program headers that the
//! loader has in memory (`dl_iterate_phdr`, whose first object is the program itself). Compared with
//! `/proc/self/maps` this opens no file, parses no text, works without `/proc`, and knows
//! segments as the linker wrote them, not as the kernel has split and merged them.
//!
//! Shared libraries are left out: they are not covered by the executable's hash. A function in one,
//! such as a notebook's cell, runs locally only, and [`FunctionId::of_task`] says so.
//!
//! # The contract of re-creation
//! A function item or a closure without captures is a type of size 0; its value is not sent but
//! made from nothing in the worker. This is the one thing here that no check can cover; see
//! [`Remote::Function`].

use super::{
    image::{ContentHash, Image, ImageError},
    travel::{Arrival, TaskEntry},
    wire::Site,
};
use crate::{
    args::Value,
    error::{Error, Result},
    function::RemoteFn,
    object::Object,
    task::assert_captures_nothing,
};
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{c_int, c_void},
    fmt,
    mem::MaybeUninit,
    ops::Range,
    sync::OnceLock,
};

const MAGIC: [u64; 2] = [0x6f75_7472_6179_0066, 0xb1a5_3c0d_92e7_4f18];

/// What the mark of every descriptor points to. Not of size 0, so that nothing else has its address.
struct Mark(#[allow(dead_code)] u64);
static MARK: Mark = Mark(0);

/// What runs a function with what has arrived.
type Entry = fn(Arrival<'_>) -> Result<()>;

/// A function as it lies in the executable: five words, constant from the loader's last relocation
/// to the end of the process.
#[repr(C)]
pub struct Descriptor {
    magic: [u64; 2],
    mark: &'static Mark,
    name: fn() -> &'static str,
    entry: Entry,
}

/// Its words as they are checked before they are taken for a descriptor.
type Words = [u64; 5];
const _: () = assert!(size_of::<Words>() == size_of::<Descriptor>() && align_of::<Words>() == align_of::<Descriptor>());

impl Descriptor {
    /// The path of the function.
    pub fn name(&self) -> &'static str {
        (self.name)()
    }

    /// Hands the function what has arrived for it.
    ///
    /// # Errors
    /// Something of it cannot be serialized. The caller catches panics.
    pub fn run(&self, arrival: Arrival<'_>) -> Result<()> {
        (self.entry)(arrival)
    }

    pub(crate) fn of<R: Remote>() -> &'static Descriptor {
        const {
            assert_captures_nothing::<R::Function>();
            let function = MaybeUninit::<R::Function>::uninit();
            // SAFETY: as in `enter`. The compiler evaluates this, and stops at a type that has no values, so
            // that there is no descriptor, and hence no id, of a function that cannot exist.
            let _exists = unsafe { function.assume_init_ref() };
            &Descriptor { magic: MAGIC, mark: &MARK, name: R::name, entry: enter::<R> }
        }
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptor").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// What can run in another process: a kind of body, with the types of its function, arguments and result.
pub trait Remote: 'static {
    /// The function; its size is 0, or the code does not compile.
    ///
    /// # The contract
    /// The worker makes a value of this type from nothing, clones it and never drops it: as if the
    /// sender had cloned the function once more, leaked the clone, and sent it here. This is right when
    ///
    /// - **a value exists in the sender**, which only gives out an id for a value that it is shown.
    ///   Types without any value (a closure that has captured a `Void`) do not compile, so nobody can
    ///   forge an id for one;
    /// - **another copy of it may exist**: `Clone` says so. What must be unique is not `Clone`;
    /// - **on any thread, for ever**: `Send`, `Sync` and `'static` say so. Tokens that
    ///   are bound to a thread or to a lifetime do not compile;
    /// - **in another process**: nothing says so. Function items, methods and closures that capture
    ///   nothing are good everywhere. A closure may also have captured values of size 0, and such a value
    ///   may be the proof that something was done in *this* process, for example that a
    ///   library was initialized. In the worker the proof is there, and the thing was not done.
    ///   If unsafe code relies on the proof, that is undefined behaviour without a word of `unsafe` in the
    ///   caller. **So do not let a task's closure capture such a token; call what gives it out in the task.**
    type Function: Clone + Send + Sync + 'static;

    /// The path of the function.
    fn name() -> &'static str;

    /// Decodes what has arrived, and runs the function with it.
    ///
    /// # Errors
    /// Something of it cannot be serialized, or the worker gave up.
    fn run(function: Self::Function, arrival: Arrival<'_>) -> Result<()>;
}

fn enter<R: Remote>(arrival: Arrival<'_>) -> Result<()> {
    let function = MaybeUninit::<R::Function>::uninit();
    // SAFETY: a value of size 0 has no bytes that could be uninitialized (`Descriptor::of` does not
    // compile for others, nor for types without values), and `function` is aligned for it. That such a
    // value may be here at all is the contract of `Remote::Function`. It is only borrowed, so it is
    // not dropped.
    let function = unsafe { function.assume_init_ref() };
    R::run(function.clone(), arrival)
}

/// A function, as the processes of one executable name it to each other.
///
/// Two ids of one function may differ, because the compiler may emit its descriptor more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FunctionId {
    /// The executable.
    pub image: ContentHash,
    /// How many bytes its descriptor lies behind the address at which the executable is loaded.
    pub offset: i64,
    /// The hash of its path.
    pub name_hash: u64,
}

impl FunctionId {
    /// The id of a task's function. The value is the witness that there are values of its type
    /// (see [`Remote::Function`]).
    ///
    /// ```
    /// # use outray::cluster::function::FunctionId;
    /// let (nothing, double) = ((), |x: u32| 2 * x);
    /// FunctionId::of_task(&double)?;
    /// FunctionId::of_task(&move || {
    ///     let _captured_but_of_size_0 = &nothing;
    ///     7
    /// })?;
    /// # Ok::<(), outray::cluster::function::FunctionError>(())
    /// ```
    /// What captures something does not compile:
    /// ```compile_fail,E0080
    /// # use outray::cluster::function::FunctionId;
    /// let something = 1u8;
    /// FunctionId::of_task(&move || {
    ///     let _captured = &something;
    ///     7
    /// })?;
    /// # Ok::<(), outray::cluster::function::FunctionError>(())
    /// ```
    /// Nor does what cannot exist:
    /// ```compile_fail,E0080
    /// # use outray::cluster::function::FunctionId;
    /// #[derive(Clone)]
    /// enum Void {}
    /// fn never(void: Void) {
    ///     let _ = FunctionId::of_task(&move || {
    ///         let _captured = &void;
    ///         7
    ///     });
    /// }
    /// std::hint::black_box(never as fn(Void));
    /// ```
    ///
    /// # Errors
    /// [`FunctionError::NotInExecutable`] for what is in a shared library, [`FunctionError::NotConstant`] for
    /// an executable that was linked in an unusual way, [`FunctionError::Image`] if it cannot be read.
    pub fn of_task<F, Args, M>(_: &F) -> Result<FunctionId, FunctionError>
    where
        F: RemoteFn<Args, M>,
        Args: Object,
        M: 'static,
    {
        let site = Site::of::<TaskEntry<F, Value<Args>, Args, M>>()?;
        let image = Image::current().map_err(FunctionError::Image)?.hash;
        Ok(FunctionId { image, offset: site.offset, name_hash: site.name_hash })
    }
}

impl Site {
    /// Where the function is.
    ///
    /// # Errors
    /// As [`FunctionId::of_task`].
    pub(crate) fn of<R: Remote>() -> Result<Site, FunctionError> {
        thread_local! {
            /// By the descriptor's address: to hash a name takes longer than to submit a task.
            static KNOWN: RefCell<HashMap<usize, Site>> = RefCell::default();
        }
        let descriptor = Descriptor::of::<R>();
        let address = std::ptr::from_ref(descriptor).addr();
        if let Some(site) = KNOWN.with(|known| known.borrow().get(&address).copied()) {
            return Ok(site);
        }
        let site = Site::at(descriptor)?;
        KNOWN.with(|known| known.borrow_mut().insert(address, site));
        Ok(site)
    }

    fn at(descriptor: &'static Descriptor) -> Result<Site, FunctionError> {
        // Exposed, because `resolve` makes references from addresses.
        let address = std::ptr::from_ref(descriptor).expose_provenance();
        let program = Program::this();
        if !program.constant.iter().any(|range| range.contains(&address)) {
            let name = descriptor.name().to_owned();
            return Err(match program.loaded.iter().any(|range| range.contains(&address)) {
                true => FunctionError::NotConstant { name },
                false => FunctionError::NotInExecutable { name },
            });
        }
        let offset = address.wrapping_sub(program.base) as i64;
        Ok(Site { offset, name_hash: name_hash(descriptor.name()) })
    }
}

/// The function that an id names, if it is one of this executable.
///
/// # Errors
/// What is wrong with the id; see the head of this module.
pub fn resolve(id: &FunctionId) -> Result<&'static Descriptor, FunctionError> {
    let ours = Image::current().map_err(FunctionError::Image)?.hash;
    if id.image != ours {
        return Err(FunctionError::OtherExecutable { its: id.image, ours });
    }
    resolve_here(Site { offset: id.offset, name_hash: id.name_hash })
}

/// The same, where it is known already that it is about this executable.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn resolve_here(site: Site) -> Result<&'static Descriptor, FunctionError> {
    let program = Program::this();
    let offset = site.offset;
    let address = isize::try_from(offset).ok().and_then(|offset| program.base.checked_add_signed(offset));
    let found = address.and_then(|address| {
        program.constant.iter().find(|range| range.contains(&address)).map(|range| (address, range.end - address))
    });
    let Some((address, left)) = found else { return Err(FunctionError::Outside { offset }) };
    if left < size_of::<Descriptor>() {
        return Err(FunctionError::CutOff { offset });
    }
    if !address.is_multiple_of(align_of::<Descriptor>()) {
        return Err(FunctionError::Misaligned { offset });
    }

    let place = std::ptr::with_exposed_provenance::<Words>(address);
    // SAFETY: all of it lies in one range of `constant` and it is aligned, as was just checked. The
    // loader has mapped that range from the executable, so each byte is initialized, and nobody
    // writes to it any more. Any bytes are valid as integers.
    let [magic, magic_too, mark, name, entry] = unsafe { place.read() };
    let is_code = |word: u64| program.code.iter().any(|range| range.contains(&(word as usize)));
    if [magic, magic_too] != MAGIC
        || mark as usize != std::ptr::from_ref(&MARK).addr()
        || !is_code(name)
        || !is_code(entry)
    {
        return Err(FunctionError::NotAFunction { offset });
    }
    // SAFETY: mapped, aligned and constant, as above. Only `Descriptor::of` puts the
    // address of `MARK` into a constant, so behind the magic it is part of a `Descriptor`, whose other two
    // words are then functions of their types. The executable is never unmapped.
    let descriptor: &'static Descriptor = unsafe { &*place.cast() };

    let name = descriptor.name();
    match name_hash(name) == site.name_hash {
        true => Ok(descriptor),
        false => Err(FunctionError::OtherName { offset, found: name.to_owned() }),
    }
}

fn name_hash(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    hash.as_bytes().iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Where the program itself, without its libraries, lies in memory. Addresses.
#[derive(Debug, Default)]
pub(super) struct Program {
    /// What the addresses in the file are relative to; 0 if they are absolute.
    base: usize,
    /// All of its segments.
    loaded: Vec<Range<usize>>,
    /// What is read-only once the loader is done, and is not code.
    constant: Vec<Range<usize>>,
    code: Vec<Range<usize>>,
    /// What the linker tells the loader, if anything.
    dynamic: Option<Range<usize>>,
}

impl Program {
    pub(super) fn this() -> &'static Program {
        static THIS: OnceLock<Program> = OnceLock::new();
        THIS.get_or_init(|| {
            extern "C" fn first(object: *mut libc::dl_phdr_info, _: usize, out: *mut c_void) -> c_int {
                // SAFETY: `dl_iterate_phdr` passes a valid object for as long as this function runs.
                let object = unsafe { &*object };
                // SAFETY: that many headers are at that address, and stay there while the object is loaded.
                let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
                // SAFETY: this is the `program` below, which nobody else uses meanwhile.
                let program = unsafe { &mut *out.cast::<Program>() };
                *program = Program::from_headers(object.dlpi_addr as usize, headers);
                1 // enough: the first object is the program itself
            }
            let mut program = Program::default();
            // SAFETY: the function has the type that is asked for, does not unwind, and gets the pointer
            // to `program`, which outlives the call.
            unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut program).cast()) };
            program
        })
    }

    fn from_headers(base: usize, headers: &[libc::Elf64_Phdr]) -> Program {
        let mut program = Program { base, ..Program::default() };
        for header in headers {
            let start = base.wrapping_add(header.p_vaddr as usize);
            let range = start..start.saturating_add(header.p_memsz as usize);
            let (writable, executable) = (header.p_flags & libc::PF_W != 0, header.p_flags & libc::PF_X != 0);
            match header.p_type {
                libc::PT_LOAD => {
                    program.loaded.push(range.clone());
                    if executable {
                        program.code.push(range);
                    } else if !writable && header.p_flags & libc::PF_R != 0 {
                        program.constant.push(range);
                    }
                }
                libc::PT_GNU_RELRO => program.constant.push(range),
                libc::PT_DYNAMIC => program.dynamic = Some(range),
                _ => {}
            }
        }
        program
    }

    /// Whether something lies in the program itself, and not in a library.
    pub(super) fn contains<T>(&self, place: *const T) -> bool {
        self.loaded.iter().any(|range| range.contains(&place.addr()))
    }

    /// The addresses of the functions that run before `main`, as they lie in memory, if the program says
    /// where these are.
    pub(super) fn constructors(&self) -> Option<Range<usize>> {
        /// Entries of the dynamic section, of `elf.h`: its end, the array, and the array's length in bytes.
        const END: u64 = 0;
        const ARRAY: u64 = 25;
        const LENGTH: u64 = 27;
        let dynamic = self.dynamic.clone()?;
        let (mut array, mut length) = (None, None);
        for address in dynamic.step_by(size_of::<[u64; 2]>()) {
            let entry = std::ptr::with_exposed_provenance::<[u64; 2]>(address);
            // SAFETY: the linker makes this segment an aligned array of such pairs, and the loader, which
            // has read it before, keeps it mapped and does not write to it any more.
            match unsafe { entry.read() } {
                [END, _] => break,
                [ARRAY, value] => array = Some(self.base.wrapping_add(value as usize)),
                [LENGTH, value] => length = Some(value as usize),
                _ => {}
            }
        }
        let (array, length) = (array?, length?);
        Some(array..array.checked_add(length)?)
    }
}

/// Why a function cannot be named to another process, or an id names none here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FunctionError {
    /// This process's executable cannot be read.
    Image(ImageError),
    /// The function is in a shared library.
    NotInExecutable {
        /// The path of the function.
        name: String,
    },
    /// The executable keeps its constants where they can be written to.
    NotConstant {
        /// The path of the function.
        name: String,
    },
    /// The id is for another executable.
    OtherExecutable {
        /// The executable of the id.
        its: ContentHash,
        /// The one of this process.
        ours: ContentHash,
    },
    /// The offset leads out of the executable's constants.
    Outside {
        /// The offset in bytes.
        offset: i64,
    },
    /// The offset leads so near to the end of the constants that no descriptor fits.
    CutOff {
        /// The offset in bytes.
        offset: i64,
    },
    /// No descriptor starts at such an offset.
    Misaligned {
        /// The offset in bytes.
        offset: i64,
    },
    /// There is something else.
    NotAFunction {
        /// The offset in bytes.
        offset: i64,
    },
    /// There is another function.
    OtherName {
        /// The offset in bytes.
        offset: i64,
        /// The path of the function that is there.
        found: String,
    },
}

impl fmt::Display for FunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let damaged = "the id was damaged or made up; submit the task again, and report this if it comes back";
        match self {
            FunctionError::Image(error) => {
                write!(
                    f,
                    "functions cannot be named to other processes, because their executable is not known: {error}"
                )
            }
            FunctionError::NotInExecutable { name } => write!(
                f,
                "`{name}` runs locally only: it is in a shared library (a notebook's cell, a plug-in), which other processes do not have; move it into the program, or use `Runtime::local()`"
            ),
            FunctionError::NotConstant { name } => write!(
                f,
                "`{name}` runs locally only: this executable was linked without read-only relocations; build it without `-C relro-level=off` and `-z norelro`"
            ),
            FunctionError::OtherExecutable { its, ours } => write!(
                f,
                "the function is one of the executable {its}, and this process runs {ours}; start driver and workers from the same build"
            ),
            FunctionError::Outside { offset } => {
                write!(f, "no function can be at offset {offset}, outside of the executable's constants: {damaged}")
            }
            FunctionError::CutOff { offset } => {
                write!(f, "no function fits at offset {offset}, so near to the end of the constants: {damaged}")
            }
            FunctionError::Misaligned { offset } => {
                write!(f, "no function can be at offset {offset}, which is not a multiple of 8: {damaged}")
            }
            FunctionError::NotAFunction { offset } => write!(f, "there is no function at offset {offset}: {damaged}"),
            FunctionError::OtherName { offset, found } => {
                write!(f, "the function at offset {offset} is `{found}`, not the one that was meant: {damaged}")
            }
        }
    }
}

impl std::error::Error for FunctionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            FunctionError::Image(error) => Some(error),
            _ => None,
        }
    }
}

impl From<FunctionError> for Error {
    fn from(error: FunctionError) -> Self {
        Error::Unsupported { reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::travel::Worker, serial};
    use std::{future::Future, pin::Pin};

    struct Nothing;
    impl Worker for Nothing {
        fn drive(&mut self, _: Pin<&mut (dyn Future<Output = ()> + Send)>) -> Result<()> {
            Err(Error::Unsupported { reason: "there is no executor".into() })
        }
    }

    fn run(function: &Descriptor, payload: &[u8]) -> Result<Vec<u8>> {
        let mut result = Vec::new();
        function.run(Arrival::bare(&mut Nothing, payload, &mut result))?;
        Ok(result)
    }

    fn here() -> FunctionId {
        FunctionId::of_task(&here).expect("a function of this executable")
    }

    #[test]
    fn a_function_is_found_by_its_id_and_runs() {
        let function = resolve(&FunctionId::of_task(&u8::checked_add).unwrap()).unwrap();
        assert_eq!(run(function, b"\x92\x01\x02").unwrap(), b"\x03");
        let function = resolve(&here()).unwrap();
        assert!(function.name().ends_with("::here"), "{function:?}");
        assert_eq!(serial::from_bytes::<FunctionId>(&run(function, b"\xc0").unwrap(), "it").unwrap(), here());
    }

    #[test]
    fn a_worker_may_give_up_on_a_future() {
        let function = resolve(&FunctionId::of_task(&async || 7u8).unwrap()).unwrap();
        let error = run(function, b"\xc0").unwrap_err();
        assert!(error.to_string().contains("no executor"), "{error}");
    }

    #[test]
    fn no_descriptor_is_read_across_the_end_of_the_constants() {
        let program = Program::this();
        assert!(!program.constant.is_empty());
        for range in &program.constant {
            let last = (range.end - size_of::<Descriptor>()) & !7;
            for address in [last, last + 8, last + 16, range.end - 1, range.end] {
                let offset = address as i64 - program.base as i64;
                let error = resolve(&FunctionId { offset, ..here() }).unwrap_err();
                if address + size_of::<Descriptor>() <= range.end {
                    assert_eq!(error, FunctionError::NotAFunction { offset });
                } else if address < range.end {
                    assert_eq!(error, FunctionError::CutOff { offset });
                } else {
                    // Another range may begin here.
                    assert_ne!(error, FunctionError::CutOff { offset });
                }
            }
        }
    }

    #[test]
    fn what_only_looks_like_a_descriptor_is_none() {
        static NEARLY: [Descriptor; 3] = [
            Descriptor { magic: [MAGIC[0], 0], mark: &MARK, name: || "nearly", entry: |_| panic!("a jump") },
            Descriptor { magic: MAGIC, mark: &OTHER, name: || "nearly", entry: |_| panic!("a jump") },
            Descriptor { magic: [0; 2], mark: &MARK, name: || "nearly", entry: |_| panic!("a jump") },
        ];
        static OTHER: Mark = Mark(1);
        for nearly in &NEARLY {
            let id = FunctionId { name_hash: name_hash("nearly"), offset: Site::at(nearly).unwrap().offset, ..here() };
            assert_eq!(resolve(&id).unwrap_err(), FunctionError::NotAFunction { offset: id.offset });
        }
        // A table of such words, as a file format's or a debugger's might be: code is where no code is.
        #[repr(C)]
        struct Table([u64; 2], &'static Mark, &'static Mark, &'static Mark);
        static TABLE: Table = Table(MAGIC, &MARK, &MARK, &MARK);
        let offset = (&raw const TABLE).addr() as i64 - Program::this().base as i64;
        assert_eq!(resolve(&FunctionId { offset, ..here() }).unwrap_err(), FunctionError::NotAFunction { offset });
    }

    #[test]
    fn a_function_outside_of_the_executable_says_that_it_runs_locally_only() {
        // On the heap, as if a library that was loaded later had it.
        let descriptor = Descriptor { magic: MAGIC, mark: &MARK, name: || "cell::f", entry: |_| Ok(()) };
        let error = Site::at(Box::leak(Box::new(descriptor))).unwrap_err();
        assert_eq!(error, FunctionError::NotInExecutable { name: "cell::f".into() });
        assert!(error.to_string().contains("runs locally only"), "{error}");
        assert!(Error::from(error).to_string().contains("`cell::f`"));
    }
}
