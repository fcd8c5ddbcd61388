//! Opening the driver's libraries, and asking what the driver shows.
//!
//! cudarc panics where a library or one of its symbols is missing. So nothing of cudarc is called before [`probe`]
//! (for NVRTC and cuBLAS: [`require_nvrtc`], [`require_cublas`]) has found the library by the names that cudarc tries,
//! in its order, and in it every symbol that this crate comes to call.
#![allow(unsafe_code)]

use super::GpuError;
use cudarc::driver::{DriverError, result, sys};
use libloading::Library;
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Where else to look for libraries: files and folders, separated by colons.
const PATH: &str = "OUTRAY_CUDA_PATH";

/// What this crate calls, itself or through cudarc. One missing is a driver from before CUDA 12.
const DRIVER_SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSetFlags",
    "cuCtxSynchronize",
    "cuDeviceCanAccessPeer",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetDefaultMemPool",
    "cuDeviceGetName",
    if cfg!(feature = "gpu-cuda12") { "cuDeviceGetUuid" } else { "cuDeviceGetUuid_v2" },
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemPoolGetAttribute",
    "cuMemPoolSetAttribute",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyPeerAsync",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

const NVRTC_SYMBOLS: &[&str] = &[
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
];

/// What the driver shows this process.
#[derive(Debug)]
pub(crate) struct Driver {
    /// By CUDA's ordinal.
    devices: Vec<Visible>,
}

/// A device that CUDA shows this process.
#[derive(Debug)]
pub(crate) struct Visible {
    pub(crate) uuid: [u8; 16],
    pub(crate) handle: sys::CUdevice,
}

impl Driver {
    /// By CUDA's ordinal.
    pub(crate) fn devices(&self) -> &[Visible] {
        &self.devices
    }

    /// CUDA's number of the device with this UUID, written as NVML writes it. `None` where `CUDA_VISIBLE_DEVICES`
    /// hides it.
    pub(crate) fn ordinal(&self, uuid: &str) -> Option<usize> {
        let uuid = parse_uuid(uuid)?;
        self.devices.iter().position(|device| device.uuid == uuid)
    }
}

/// Opens libcuda and asks for its devices, once for this process. Blocks while the driver starts (up to some seconds).
///
/// # Errors
/// `NoDriver`, `DriverTooOld`, `NoDevice`, or another error of the first calls.
pub(crate) fn probe() -> Result<&'static Driver, GpuError> {
    static DRIVER: OnceLock<Result<Driver, GpuError>> = OnceLock::new();
    DRIVER.get_or_init(start).as_ref().map_err(Clone::clone)
}

fn start() -> Result<Driver, GpuError> {
    let library =
        open(&["cuda", "nvcuda"]).map_err(|detail| GpuError::NoDriver { library: "libcuda.so.1".into(), detail })?;
    if let Some(symbol) = missing(library, DRIVER_SYMBOLS) {
        return Err(GpuError::DriverTooOld { missing: format!("libcuda lacks {symbol}") });
    }
    result::init().map_err(|error| failed("cuInit", error))?;
    let count = result::device::get_count().map_err(|error| failed("cuDeviceGetCount", error))?;
    let visible = |ordinal| {
        let handle = result::device::get(ordinal).map_err(|error| failed("cuDeviceGet", error))?;
        let uuid = result::device::get_uuid(handle).map_err(|error| failed("cuDeviceGetUuid", error))?;
        Ok(Visible { uuid: uuid.bytes.map(|byte| byte as u8), handle })
    };
    let devices = (0..count).map(visible).collect::<Result<Vec<_>, GpuError>>()?;
    match devices.is_empty() {
        true => Err(GpuError::NoDevice),
        false => Ok(Driver { devices }),
    }
}

/// An error of a call that is about no device in particular. cudarc's error is never formatted: that calls into
/// libcuda.
pub(crate) fn failed(call: &str, error: DriverError) -> GpuError {
    use sys::CUresult as Code;
    let no_driver = |detail: &str| GpuError::NoDriver { library: "libcuda.so.1".into(), detail: detail.into() };
    match error.0 {
        Code::CUDA_ERROR_NO_DEVICE => GpuError::NoDevice,
        Code::CUDA_ERROR_STUB_LIBRARY => no_driver("what was found is the toolkit's stub, which is only for linking"),
        Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            no_driver("it is of another version than the kernel's driver: code 803")
        }
        code => GpuError::Driver { call: call.into(), code: code as u32 },
    }
}

/// NVRTC can be called. Looked for once.
///
/// # Errors
/// `MissingLibrary`.
pub(crate) fn require_nvrtc() -> Result<(), GpuError> {
    static FOUND: OnceLock<Result<(), GpuError>> = OnceLock::new();
    let look = || {
        // NVRTC opens this one by name when it compiles.
        keep("nvrtc-builtins");
        require("nvrtc", NVRTC_SYMBOLS)
    };
    FOUND.get_or_init(look).clone()
}

/// cuBLAS can be called. Looked for once.
///
/// # Errors
/// `MissingLibrary`.
#[cfg(feature = "gpu-blas")]
pub(crate) fn require_cublas() -> Result<(), GpuError> {
    static FOUND: OnceLock<Result<(), GpuError>> = OnceLock::new();
    let look = || {
        keep("cublasLt");
        require("cublas", &["cublasCreate_v2", "cublasDestroy_v2", "cublasSetStream_v2", "cublasSgemm_v2"])
    };
    FOUND.get_or_init(look).clone()
}

fn require(name: &str, symbols: &[&str]) -> Result<(), GpuError> {
    let library = open(&[name]).map_err(|_| GpuError::MissingLibrary { library: format!("lib{name}") })?;
    match missing(library, symbols) {
        Some(symbol) => Err(GpuError::MissingLibrary { library: format!("lib{name} with {symbol}") }),
        None => Ok(()),
    }
}

/// What cudarc will find under one of these names, or why it will find nothing. Never closed: cudarc looks later.
fn open(names: &[&str]) -> Result<&'static Library, String> {
    names.iter().for_each(|name| keep(name));
    let mut reason = None;
    for candidate in names.iter().flat_map(|name| cudarc::get_lib_name_candidates(name)) {
        // SAFETY: NVIDIA's libraries run nothing when they are opened that other code could see.
        match unsafe { Library::new(&candidate) } {
            Ok(library) => return Ok(Box::leak(Box::new(library))),
            // "No such file" of the first name says less than that a file is there and does not open.
            Err(error) => {
                let error = error.to_string();
                if reason.is_none() || !error.contains("No such file") {
                    reason = Some(error);
                }
            }
        }
    }
    Err(reason.unwrap_or_else(|| "no name to look for".into()))
}

/// Opens what [`PATH`] holds of this name. cudarc asks for names without folders, and the loader gives it what is
/// already open under that name.
fn keep(name: &str) {
    let Some(paths) = std::env::var_os(PATH) else { return };
    for path in std::env::split_paths(&paths).flat_map(|path| files(&path, name)) {
        // SAFETY: as in `open`; the user named the file.
        match unsafe { Library::new(&path) } {
            Ok(library) => std::mem::forget(library),
            Err(error) => tracing::warn!("{PATH}: {} does not open: {error}", path.display()),
        }
    }
}

/// The files of a library: `path` itself if it is one, else those in that folder.
fn files(path: &Path, name: &str) -> Vec<PathBuf> {
    let is_it = |path: &Path| {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        let stem = file.split_once(".so").map_or("", |(stem, _)| stem);
        stem.strip_prefix("lib").is_some_and(|stem| stem == name || stem.ends_with(&format!("_{name}")))
    };
    let mut found: Vec<_> = match std::fs::read_dir(path) {
        Ok(folder) => folder.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![path.into()],
    };
    found.retain(|path| is_it(path));
    found.sort();
    found
}

fn missing<'a>(library: &Library, symbols: &[&'a str]) -> Option<&'a str> {
    // SAFETY: the symbol is only looked up, never called with this type.
    symbols.iter().copied().find(|symbol| unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_err())
}

/// The bytes of `GPU-…` or `MIG-…`.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let (_, digits) = text.split_once('-')?;
    let digits: Vec<u8> = digits.bytes().filter(|byte| *byte != b'-').collect();
    let mut uuid = [0; 16];
    if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(uuid)
}

/// A device's UUID as NVML writes it.
pub(crate) fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let part = |range: std::ops::Range<usize>| hex(&uuid[range]);
    format!("GPU-{}-{}-{}-{}-{}", part(0..4), part(4..6), part(6..8), part(8..10), part(10..16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_as_they_are_written() {
        let uuid: [u8; 16] = std::array::from_fn(|i| i as u8 * 17);
        let text = uuid_text(&uuid);
        assert_eq!(text, "GPU-00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(parse_uuid(&text), Some(uuid));
        assert_eq!(parse_uuid("MIG-00112233-4455-6677-8899-aabbccddeeff"), Some(uuid));
        for wrong in [
            "",
            "GPU-",
            "GPU-0011",
            "SIM-0",
            "GPU-00112233-4455-6677-8899-aabbccddeeffgg",
            "GPU-+1112233-4455-6677-8899-aabbccddeeff",
        ] {
            assert_eq!(parse_uuid(wrong), None, "{wrong}");
        }
    }
}
