//! A stand-in libcublas for tests: products of matrices on the "device memory" of the stand-in libcuda, which is host
//! memory. The work goes to that library's streams, whose checker sees what it reads and writes.
//!
//! Only what cudarc's `CudaBlas` and `Gemm` call. Matrices are column-major, as in cuBLAS.

#![allow(non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]

use libloading::os::unix::{Library, RTLD_NOW};
use std::{
    ffi::{CStr, c_char, c_int, c_longlong, c_uint, c_void},
    ops::{Add, Mul},
    sync::OnceLock,
};

type Status = c_uint;
const SUCCESS: Status = 0;
const NOT_INITIALIZED: Status = 1;
const INVALID_VALUE: Status = 7;
const EXECUTION_FAILED: Status = 13;
const NOT_SUPPORTED: Status = 15;

/// `CUDA_R_32F`
const F32: c_uint = 0;

/// Memory that work uses, as the stand-in libcuda takes it.
#[repr(C)]
struct Access {
    address: u64,
    bytes: usize,
    write: bool,
}

type Run = unsafe extern "C" fn(*const u8);
type Submit = unsafe extern "C" fn(usize, *const c_char, *const Access, usize, Run, *const u8, usize) -> c_uint;

/// The stand-in libcuda's entrance for the work of other libraries, if that library is the one that is loaded.
fn submit() -> Option<Submit> {
    static SUBMIT: OnceLock<Option<Submit>> = OnceLock::new();
    *SUBMIT.get_or_init(|| {
        /// Only what the process has loaded already.
        const RTLD_NOLOAD: c_int = 4;
        // SAFETY: nothing is loaded that was not, so no initializers run.
        let library = unsafe { Library::open(Some("libcuda.so"), RTLD_NOW | RTLD_NOLOAD) }.ok()?;
        // SAFETY: the stand-in declares it so, and no other library has this name.
        let submit = *unsafe { library.get::<Submit>(b"fake_cuda_submit") }.ok()?;
        // Its function must stay.
        std::mem::forget(library);
        Some(submit)
    })
}

struct Handle {
    stream: usize,
    pointer_mode: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasCreate_v2(handle: *mut *mut c_void) -> Status {
    if submit().is_none() {
        return NOT_INITIALIZED;
    }
    // SAFETY: the caller gives room for a handle.
    unsafe { *handle = Box::into_raw(Box::new(Handle { stream: 0, pointer_mode: 0 })).cast() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasDestroy_v2(handle: *mut c_void) -> Status {
    if handle.is_null() {
        return NOT_INITIALIZED;
    }
    // SAFETY: it is from `cublasCreate_v2`, and the caller's last use of it.
    drop(unsafe { Box::from_raw(handle.cast::<Handle>()) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSetStream_v2(handle: *mut c_void, stream: usize) -> Status {
    // SAFETY: it is from `cublasCreate_v2`, and no other thread uses it now.
    unsafe { (*handle.cast::<Handle>()).stream = stream };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSetPointerMode_v2(handle: *mut c_void, mode: c_uint) -> Status {
    // SAFETY: it is from `cublasCreate_v2`, and no other thread uses it now.
    unsafe { (*handle.cast::<Handle>()).pointer_mode = mode };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasGetPointerMode_v2(handle: *mut c_void, mode: *mut c_uint) -> Status {
    // SAFETY: it is from `cublasCreate_v2`, and the caller gives room for the mode.
    unsafe { *mode = (*handle.cast::<Handle>()).pointer_mode };
    SUCCESS
}

/// The stand-in computes without one.
#[unsafe(no_mangle)]
pub extern "C" fn cublasSetWorkspace_v2(_handle: *mut c_void, _workspace: u64, _bytes: usize) -> Status {
    SUCCESS
}

trait Number: Copy + Add<Output = Self> + Mul<Output = Self> + PartialEq {
    const ZERO: Self;
}

impl Number for f32 {
    const ZERO: Self = 0.0;
}

impl Number for f64 {
    const ZERO: Self = 0.0;
}

/// A column-major matrix, or its transpose, at a device address; one for each product of a batch.
#[derive(Clone, Copy)]
struct Matrix {
    address: u64,
    transposed: bool,
    leading: usize,
    stride: usize,
}

/// `C = alpha A B + beta C`, `A` with `m` rows and `k` columns, `B` with `k` rows and `n` columns.
#[derive(Clone, Copy)]
struct Gemm<T> {
    m: usize,
    n: usize,
    k: usize,
    batch: usize,
    alpha: T,
    beta: T,
    a: Matrix,
    b: Matrix,
    c: Matrix,
}

impl Matrix {
    fn offset(&self, product: usize, row: usize, column: usize) -> usize {
        let (row, column) = if self.transposed { (column, row) } else { (row, column) };
        product * self.stride + column * self.leading + row
    }

    fn access<T>(&self, batch: usize, rows: usize, columns: usize, write: bool) -> Option<Access> {
        let last = self.offset(batch.checked_sub(1)?, rows.checked_sub(1)?, columns.checked_sub(1)?);
        Some(Access { address: self.address, bytes: (last + 1) * size_of::<T>(), write })
    }
}

impl<T: Number> Gemm<T> {
    unsafe fn new(
        operations: (c_uint, c_uint),
        (m, n, k, batch): (c_int, c_int, c_int, c_int),
        (alpha, beta): (*const T, *const T),
        [a, b, c]: [(u64, c_int, c_longlong); 3],
    ) -> Option<Self> {
        let count = |n: c_int| usize::try_from(n).ok();
        let (m, n, k, batch) = (count(m)?, count(n)?, count(k)?, count(batch)?);
        let matrix = |(address, leading, stride): (u64, c_int, c_longlong), operation, rows: usize, columns: usize| {
            // On real numbers the conjugate transpose is the transpose.
            let transposed = match operation {
                0 => false,
                1 | 2 => true,
                _ => return None,
            };
            let (leading, stride) = (count(leading)?, usize::try_from(stride).ok()?);
            let stored = if transposed { columns } else { rows };
            (leading >= stored.max(1)).then_some(Matrix { address, transposed, leading, stride })
        };
        let (a, b) = (matrix(a, operations.0, m, k)?, matrix(b, operations.1, k, n)?);
        let c = matrix(c, 0, m, n)?;
        // SAFETY: the pointer mode is the host's, so the caller points to two numbers here.
        let (alpha, beta) = unsafe { (*alpha, *beta) };
        Some(Gemm { m, n, k, batch, alpha, beta, a, b, c })
    }

    /// Gives the product to the handle's stream.
    unsafe fn submit(self, handle: *mut c_void, name: &CStr) -> Status {
        let (Some(submit), false) = (submit(), handle.is_null()) else { return NOT_INITIALIZED };
        // SAFETY: it is from `cublasCreate_v2`.
        let handle = unsafe { &*handle.cast::<Handle>() };
        if handle.pointer_mode != 0 {
            return NOT_SUPPORTED;
        }
        let accesses: Vec<Access> = [
            self.a.access::<T>(self.batch, self.m, self.k, false),
            self.b.access::<T>(self.batch, self.k, self.n, false),
            self.c.access::<T>(self.batch, self.m, self.n, true),
        ]
        .into_iter()
        .flatten()
        .collect();
        let arguments = (&raw const self).cast();
        // SAFETY: the stand-in copies the arguments, which are plain bytes, if it runs them later.
        let code = unsafe {
            submit(
                handle.stream,
                name.as_ptr(),
                accesses.as_ptr(),
                accesses.len(),
                run::<T>,
                arguments,
                size_of::<Self>(),
            )
        };
        if code == 0 { SUCCESS } else { EXECUTION_FAILED }
    }
}

unsafe extern "C" fn run<T: Number>(arguments: *const u8) {
    // SAFETY: a copy of what `submit` gave, perhaps elsewhere.
    let g = unsafe { arguments.cast::<Gemm<T>>().read_unaligned() };
    // SAFETY: the caller of cuBLAS promises that the matrices are there; the stand-in has checked it.
    let read = |matrix: &Matrix, at: usize| unsafe { *(matrix.address as *const T).add(at) };
    for product in 0..g.batch {
        for row in 0..g.m {
            for column in 0..g.n {
                let at = g.c.offset(product, row, column);
                let mut sum = T::ZERO;
                for inner in 0..g.k {
                    let a = read(&g.a, g.a.offset(product, row, inner));
                    sum = sum + a * read(&g.b, g.b.offset(product, inner, column));
                }
                // As in cuBLAS, what C holds does not matter then, not even if it is no number.
                let rest = if g.beta == T::ZERO { T::ZERO } else { g.beta * read(&g.c, at) };
                // SAFETY: as above.
                unsafe { *(g.c.address as *mut T).add(at) = g.alpha * sum + rest };
            }
        }
    }
}

macro_rules! gemm {
    ($plain:ident, $strided:ident, $number:ty, $name:literal) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $plain(
            handle: *mut c_void,
            transa: c_uint,
            transb: c_uint,
            m: c_int,
            n: c_int,
            k: c_int,
            alpha: *const $number,
            a: u64,
            lda: c_int,
            b: u64,
            ldb: c_int,
            beta: *const $number,
            c: u64,
            ldc: c_int,
        ) -> Status {
            let matrices = [(a, lda, 0), (b, ldb, 0), (c, ldc, 0)];
            // SAFETY: the caller keeps to cuBLAS's rules.
            unsafe {
                match Gemm::new((transa, transb), (m, n, k, 1), (alpha, beta), matrices) {
                    Some(gemm) => gemm.submit(handle, $name),
                    None => INVALID_VALUE,
                }
            }
        }

        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $strided(
            handle: *mut c_void,
            transa: c_uint,
            transb: c_uint,
            m: c_int,
            n: c_int,
            k: c_int,
            alpha: *const $number,
            a: u64,
            lda: c_int,
            stride_a: c_longlong,
            b: u64,
            ldb: c_int,
            stride_b: c_longlong,
            beta: *const $number,
            c: u64,
            ldc: c_int,
            stride_c: c_longlong,
            batch: c_int,
        ) -> Status {
            let matrices = [(a, lda, stride_a), (b, ldb, stride_b), (c, ldc, stride_c)];
            // SAFETY: the caller keeps to cuBLAS's rules.
            unsafe {
                match Gemm::new((transa, transb), (m, n, k, batch), (alpha, beta), matrices) {
                    Some(gemm) => gemm.submit(handle, $name),
                    None => INVALID_VALUE,
                }
            }
        }
    };
}

gemm!(cublasSgemm_v2, cublasSgemmStridedBatched, f32, c"sgemm");
gemm!(cublasDgemm_v2, cublasDgemmStridedBatched, f64, c"dgemm");

/// Of single precision throughout.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasGemmEx(
    handle: *mut c_void,
    transa: c_uint,
    transb: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    a: u64,
    a_type: c_uint,
    lda: c_int,
    b: u64,
    b_type: c_uint,
    ldb: c_int,
    beta: *const c_void,
    c: u64,
    c_type: c_uint,
    ldc: c_int,
    _compute_type: c_uint,
    _algorithm: c_int,
) -> Status {
    if [a_type, b_type, c_type] != [F32; 3] {
        return NOT_SUPPORTED;
    }
    // SAFETY: the caller keeps to cuBLAS's rules.
    unsafe { cublasSgemm_v2(handle, transa, transb, m, n, k, alpha.cast(), a, lda, b, ldb, beta.cast(), c, ldc) }
}
