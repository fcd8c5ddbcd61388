//! A cuBLAS handle for each stream.
#![allow(unsafe_code)]

use super::{
    Gpu, GpuError,
    device::{Device, Stream},
    driver,
};
use cudarc::cublas::{
    CudaBlas,
    result::{CublasError, destroy_handle},
    sys::cublasStatus_t as Status,
};
use std::mem::ManuallyDrop;

/// A handle whose end cannot panic, as that of cudarc's does after a device's fault.
#[derive(Debug)]
pub(super) struct Blas(ManuallyDrop<CudaBlas>);

impl Blas {
    fn new(stream: &Stream) -> Result<Self, GpuError> {
        driver::require_cublas()?;
        stream.device().bind()?;
        let blas =
            CudaBlas::new(stream.raw().clone()).map_err(|error| failed(stream.device(), "cublasCreate", error))?;
        Ok(Blas(ManuallyDrop::new(blas)))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is not used again. The rest of it, a share in a stream that is never destroyed, stays.
        let _ = unsafe { destroy_handle(*self.0.handle()) };
    }
}

impl Gpu {
    /// cuBLAS on the session's stream. The first use of a stream makes its handle, which blocks for some milliseconds;
    /// later sessions on the stream have the same one. Leave its pointer mode as you found it.
    ///
    /// ```no_run
    /// # use outray::gpu::{Gpu, GpuError, cudarc::{cublas::{Gemm, GemmConfig, sys::cublasOperation_t::CUBLAS_OP_N}, driver::CudaSlice}};
    /// # fn f(gpu: &Gpu, a: &CudaSlice<f32>, b: &CudaSlice<f32>, c: &mut CudaSlice<f32>, n: i32) -> Result<(), GpuError> {
    /// let [transa, transb] = [CUBLAS_OP_N; 2];
    /// let square = GemmConfig { transa, transb, m: n, n, k: n, alpha: 1.0, lda: n, ldb: n, beta: 0.0, ldc: n };
    /// // SAFETY: all three have `n * n` elements.
    /// gpu.check_blas("cublasSgemm", unsafe { gpu.blas()?.gemm(square, a, b, c) })
    /// # }
    /// ```
    ///
    /// # Errors
    /// `MissingLibrary` where libcublas is not installed (see `OUTRAY_CUDA_PATH`), and cuBLAS's.
    pub fn blas(&self) -> Result<&CudaBlas, GpuError> {
        let stream = self.ordered();
        let slot = stream.blas();
        if slot.get().is_none() {
            // Two at once make two; the second goes.
            let _ = slot.set(Blas::new(stream)?);
        }
        slot.get().map(|blas| &*blas.0).ok_or(GpuError::MissingLibrary { library: "libcublas".into() })
    }

    /// What a call of cuBLAS said, with its error as this crate's: that of the device where it has a fault.
    ///
    /// # Errors
    /// The call's.
    pub fn check_blas<T>(&self, call: &str, result: Result<T, CublasError>) -> Result<T, GpuError> {
        result.map_err(|error| failed(self.ordered().device(), call, error))
    }
}

fn failed(device: &Device, call: &str, error: CublasError) -> GpuError {
    if let Err(fault) = device.look() {
        return fault;
    }
    match error.0 {
        Status::CUBLAS_STATUS_ALLOC_FAILED => device.out_of_memory(0),
        code => GpuError::Driver { call: call.into(), code: code as u32 },
    }
}
