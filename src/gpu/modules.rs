//! Code for devices: loaded once for each device, compiled once for each architecture.

use super::{GpuError, device::Device, driver};
use crate::sync::Mutex;
use cudarc::{
    driver::{CudaFunction, CudaModule, DriverError, sys::CUresult},
    nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts},
};
use std::{borrow::Cow, collections::HashMap, fmt, hash::Hash, sync::Arc};

/// What a device can load: PTX, which the driver translates, or machine code for one architecture.
///
/// ```
/// use outray::gpu::Code;
/// let embedded: Code = ".version 8.0 …".into(); // with `include_str!`, say
/// let cubin: Code = vec![0x7f, b'E', b'L', b'F'].into();
/// # let _ = (embedded, cubin);
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Code(Kind);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Kind {
    Ptx(Cow<'static, str>),
    Binary(Cow<'static, [u8]>),
}

impl From<&'static str> for Code {
    fn from(ptx: &'static str) -> Self {
        Code(Kind::Ptx(ptx.into()))
    }
}

impl From<String> for Code {
    fn from(ptx: String) -> Self {
        Code(Kind::Ptx(ptx.into()))
    }
}

impl From<&'static [u8]> for Code {
    fn from(binary: &'static [u8]) -> Self {
        Code(Kind::Binary(binary.into()))
    }
}

impl From<Vec<u8>> for Code {
    fn from(binary: Vec<u8>) -> Self {
        Code(Kind::Binary(binary.into()))
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Ptx(ptx) => write!(f, "PTX of {} bytes", ptx.len()),
            Kind::Binary(binary) => write!(f, "machine code of {} bytes", binary.len()),
        }
    }
}

/// What is made once for each key, however many ask for it at the same time. What failed is tried again.
#[derive(Debug)]
struct Once<K, V>(Mutex<HashMap<K, Arc<Mutex<Option<V>>>>>);

impl<K, V> Default for Once<K, V> {
    fn default() -> Self {
        Once(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash, V: Clone> Once<K, V> {
    /// `make` runs under the key's own lock: others that want the same wait for it.
    fn get(&self, key: K, make: impl FnOnce() -> Result<V, GpuError>) -> Result<V, GpuError> {
        let slot = self.0.lock().entry(key).or_default().clone();
        let mut slot = slot.lock();
        match &*slot {
            Some(made) => Ok(made.clone()),
            None => Ok(slot.insert(make()?).clone()),
        }
    }
}

/// A device's.
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// By address and length: text that lives as long as the program is not hashed for every launch.
    embedded: Mutex<HashMap<(usize, usize), Arc<Loaded>>>,
    loaded: Once<Code, Arc<Loaded>>,
    compiled: Once<(String, CompileOptions), Arc<Loaded>>,
}

#[derive(Debug)]
pub(super) struct Loaded {
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<Box<str>, CudaFunction>>,
}

impl Loaded {
    fn new(device: &Device, ptx: Ptx) -> Result<Arc<Self>, GpuError> {
        device.bind()?;
        let module = device.context().load_module(ptx).map_err(|error| refused(device, error))?;
        Ok(Arc::new(Loaded { module, functions: Mutex::new(HashMap::new()) }))
    }

    pub(super) fn module(&self) -> &Arc<CudaModule> {
        &self.module
    }

    pub(super) fn function(&self, device: &Device, name: &str) -> Result<CudaFunction, GpuError> {
        if let Some(function) = self.functions.lock().get(name) {
            return Ok(function.clone());
        }
        let none = |code| GpuError::Driver { call: format!("cuModuleGetFunction({name:?})"), code };
        if name.contains('\0') {
            return Err(none(CUresult::CUDA_ERROR_NOT_FOUND as u32));
        }
        device.bind()?;
        let function = self.module.load_function(name).map_err(|error| match error.0 {
            code @ CUresult::CUDA_ERROR_NOT_FOUND => none(code as u32),
            _ => device.error("cuModuleGetFunction", error),
        })?;
        self.functions.lock().insert(name.into(), function.clone());
        Ok(function)
    }
}

impl Modules {
    pub(super) fn load(&self, device: &Device, code: Code) -> Result<Arc<Loaded>, GpuError> {
        let place = match &code.0 {
            Kind::Ptx(Cow::Borrowed(ptx)) => Some((ptx.as_ptr() as usize, ptx.len())),
            Kind::Binary(Cow::Borrowed(binary)) => Some((binary.as_ptr() as usize, binary.len())),
            _ => None,
        };
        if let Some(loaded) = place.and_then(|place| self.embedded.lock().get(&place).cloned()) {
            return Ok(loaded);
        }
        let load = || match &code.0 {
            Kind::Ptx(ptx) if ptx.contains('\0') => Err(GpuError::Compile { log: "the PTX contains a NUL".into() }),
            Kind::Ptx(ptx) => Loaded::new(device, Ptx::from_src(ptx.clone())),
            Kind::Binary(binary) => Loaded::new(device, Ptx::from_binary(binary.to_vec())),
        };
        let loaded = self.loaded.get(code.clone(), load)?;
        if let Some(place) = place {
            self.embedded.lock().insert(place, loaded.clone());
        }
        Ok(loaded)
    }

    pub(super) fn compile(
        &self,
        device: &Device,
        source: &str,
        mut options: CompileOptions,
    ) -> Result<Arc<Loaded>, GpuError> {
        let says = |option: &String| option.starts_with("--gpu-architecture") || option.starts_with("-arch");
        if options.arch.is_none() && !options.options.iter().any(says) {
            let capability = device.info().capability;
            options.options.push(format!("--gpu-architecture=compute_{}{}", capability.major, capability.minor));
        }
        let key = (source.to_owned(), options);
        self.compiled.get(key.clone(), || Loaded::new(device, compile(key)?))
    }
}

/// PTX of a source in CUDA C++.
fn compile(key: (String, CompileOptions)) -> Result<Ptx, GpuError> {
    static COMPILED: std::sync::OnceLock<Once<(String, CompileOptions), Ptx>> = std::sync::OnceLock::new();
    driver::require_nvrtc()?;
    let (source, options) = &key;
    // cudarc panics at them.
    if source.contains('\0') || options.name.as_ref().is_some_and(|name| name.contains('\0')) {
        return Err(GpuError::Compile { log: "the source or its name contains a NUL".into() });
    }
    COMPILED.get_or_init(Once::default).get(key.clone(), || {
        compile_ptx_with_opts(&key.0, key.1.clone()).map_err(|error| match error {
            CompileError::CompileError { log, .. } => {
                GpuError::Compile { log: log.to_string_lossy().trim().to_owned() }
            }
            CompileError::CreationError(error) => nvrtc("nvrtcCreateProgram", error),
            CompileError::GetLogError(error) => nvrtc("nvrtcGetProgramLog", error),
            CompileError::GetPtxError(error) => nvrtc("nvrtcGetPTX", error),
            CompileError::DestroyError(error) => nvrtc("nvrtcDestroyProgram", error),
        })
    })
}

fn nvrtc(call: &str, error: cudarc::nvrtc::result::NvrtcError) -> GpuError {
    GpuError::Driver { call: call.into(), code: error.0 as u32 }
}

/// The driver's answer to code that it does not take.
fn refused(device: &Device, error: DriverError) -> GpuError {
    let why = match error.0 {
        CUresult::CUDA_ERROR_INVALID_IMAGE => "is neither PTX nor machine code",
        CUresult::CUDA_ERROR_INVALID_PTX => "is not valid PTX, or not for a device like this one",
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => "was made by a newer toolkit than the driver knows",
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => "has nothing for a device like this one",
        CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => "is PTX, and the driver's compiler for it is not installed",
        _ => return device.error("cuModuleLoadData", error),
    };
    GpuError::Compile { log: format!("the code {why} (CUDA's code {})", error.0 as u32) }
}
