//! A stand-in libnvrtc for tests. It compiles nothing: every source gives text that the stand-in libcuda takes for
//! PTX, except one with an `#error`, whose log says with which options it was compiled.

#![allow(clippy::missing_safety_doc)]
// Every function here is called as NVRTC documents it: programs are those that were created, and pointers to results
// have the room that their sizes ask for.
#![allow(unsafe_op_in_unsafe_fn)]

use std::{
    ffi::{CStr, CString, c_char, c_int},
    ptr, slice,
    sync::atomic::{AtomicUsize, Ordering},
};

/// `nvrtcResult`
type Code = c_int;
const SUCCESS: Code = 0;
const COMPILATION: Code = 6;

pub struct Program {
    source: CString,
    ptx: CString,
    log: CString,
}

static COMPILATIONS: AtomicUsize = AtomicUsize::new(0);

/// How many sources were compiled until now.
#[unsafe(no_mangle)]
pub extern "C" fn fake_nvrtc_compilations() -> usize {
    COMPILATIONS.load(Ordering::Relaxed)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> Code {
    (*major, *minor) = (13, 0);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvrtcGetErrorString(_code: Code) -> *const c_char {
    c"an error of the stand-in compiler".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcCreateProgram(
    program: *mut *mut Program,
    source: *const c_char,
    _name: *const c_char,
    _headers: c_int,
    _sources: *const *const c_char,
    _names: *const *const c_char,
) -> Code {
    let source = CStr::from_ptr(source).to_owned();
    *program = Box::into_raw(Box::new(Program { source, ptx: CString::default(), log: CString::default() }));
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcCompileProgram(
    program: *mut Program,
    count: c_int,
    options: *const *const c_char,
) -> Code {
    COMPILATIONS.fetch_add(1, Ordering::Relaxed);
    let options = match count {
        0 => &[],
        _ => slice::from_raw_parts(options, count as usize),
    };
    let options: Vec<_> = options.iter().map(|option| CStr::from_ptr(*option).to_string_lossy()).collect();
    let text = format!("// of a stand-in compiler, with {}\n", options.join(" "));
    let program = &mut *program;
    let source = program.source.to_string_lossy();
    let (ptx, log, code) = match source.lines().find(|line| line.starts_with("#error")) {
        Some(line) => (String::new(), format!("default_program(1): error: {line}\n{text}"), COMPILATION),
        None => (text, String::new(), SUCCESS),
    };
    program.ptx = CString::new(ptx).unwrap_or_default();
    program.log = CString::new(log).unwrap_or_default();
    code
}

unsafe fn put(text: &CStr, out: *mut c_char) -> Code {
    ptr::copy_nonoverlapping(text.as_ptr(), out, text.to_bytes_with_nul().len());
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetPTXSize(program: *const Program, size: *mut usize) -> Code {
    *size = (*program).ptx.to_bytes_with_nul().len();
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetPTX(program: *const Program, out: *mut c_char) -> Code {
    put(&(*program).ptx, out)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetProgramLogSize(program: *const Program, size: *mut usize) -> Code {
    *size = (*program).log.to_bytes_with_nul().len();
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetProgramLog(program: *const Program, out: *mut c_char) -> Code {
    put(&(*program).log, out)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcDestroyProgram(program: *mut *mut Program) -> Code {
    drop(Box::from_raw(*program));
    *program = ptr::null_mut();
    SUCCESS
}
