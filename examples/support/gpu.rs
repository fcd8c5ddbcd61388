//! What the GPU examples share: their kernels, and how they end where there is no GPU.

use outray::gpu::{self, GpuError};
use std::{error::Error, process::ExitCode};

/// The kernels of `kernels.cu`, for devices from compute capability 7.5 on and drivers from 525 on.
pub(crate) const KERNELS: &str = include_str!("kernels.ptx");

/// Runs the program if there is a device. Exit codes: 0, 1 if it failed, 3 if there is no device or one of CUDA's
/// libraries is missing.
pub(crate) fn main(program: &str, run: impl FnOnce() -> Result<(), Box<dyn Error>>) -> ExitCode {
    let result = match gpu::detect().and_then(|devices| devices.inventory()) {
        Ok(_) => run(),
        Err(error) => Err(error.into()),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("{program}: {error}");
    match cause(&*error) {
        Some(
            GpuError::NotBuilt
            | GpuError::NoDriver { .. }
            | GpuError::DriverTooOld { .. }
            | GpuError::NoDevice
            | GpuError::MissingLibrary { .. },
        ) => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}

/// The GPU's error that is behind this one.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a GpuError> {
    error.downcast_ref().or_else(|| error.source().and_then(cause))
}
