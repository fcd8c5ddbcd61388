use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a device could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GpuError {
    /// This build has no GPU support.
    NotBuilt,
    /// A library of the driver could not be opened.
    NoDriver {
        /// What was looked for.
        library: String,
        /// What the loader said.
        detail: String,
    },
    /// The driver is older than what is asked of it.
    DriverTooOld {
        /// What it lacks.
        missing: String,
    },
    /// The driver is there and shows no device.
    NoDevice,
    /// No set of the devices here could ever satisfy the request.
    Infeasible {
        /// What is wanted, and how many qualify.
        reason: String,
    },
    /// The body asked for a device that it has no lease on.
    NotLeased {
        /// Which of its devices it asked for, from 0.
        wanted: usize,
        /// How many it has leased.
        leased: usize,
    },
    /// The device has no room, even after everything that nobody uses was moved to the host.
    OutOfMemory {
        /// The device's number in the inventory.
        device: u32,
        /// Bytes.
        requested: u64,
        /// Bytes.
        free: u64,
    },
    /// A kernel did what the hardware does not survive (an access out of bounds, for example). The device's context in
    /// this process is lost with all that was in it; other processes can still use the device.
    Poisoned {
        /// The device's number in the inventory.
        device: u32,
        /// The call that first said so.
        call: String,
        /// CUDA's code.
        code: u32,
    },
    /// The device fell off the bus or needs a reset.
    DeviceLost {
        /// The device's number in the inventory.
        device: u32,
    },
    /// The driver gives no context on the device: another process has it to itself, or its compute mode lets nobody
    /// use it.
    Unavailable {
        /// The device's number in the inventory.
        device: u32,
    },
    /// An optional library is not installed.
    MissingLibrary {
        /// Which.
        library: String,
    },
    /// The source of a kernel does not compile.
    Compile {
        /// What the compiler said.
        log: String,
    },
    /// A buffer could not be written to disk, or read back.
    Spill {
        /// What the system said.
        detail: String,
    },
    /// Another call into NVML or CUDA failed.
    Driver {
        /// The call.
        call: String,
        /// Its code.
        code: u32,
    },
}

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => write!(f, "this build has no GPU support: enable outray's feature `gpu`"),
            Self::NoDriver { library, detail } => write!(f, "no CUDA driver: {library} could not be loaded ({detail})"),
            Self::DriverTooOld { missing } => write!(f, "the CUDA driver is too old: {missing}"),
            Self::NoDevice => write!(f, "the CUDA driver shows no device"),
            Self::Infeasible { reason } => write!(f, "the GPU request can never be met here: {reason}"),
            Self::NotLeased { wanted, leased } => {
                write!(f, "GPU {wanted} of this task was asked for, and it has leased {leased}: ask with .gpus(n)")
            }
            Self::OutOfMemory { device, requested, free } => {
                write!(f, "GPU {device}: {requested} bytes requested, {free} free")
            }
            Self::Poisoned { device, call, code } => write!(
                f,
                "GPU {device} is lost to this process: {call} failed with CUDA's code {code}; use Isolation::Process for \
                 code that may do so"
            ),
            Self::DeviceLost { device } => write!(f, "GPU {device} is lost: it fell off the bus or needs a reset"),
            Self::Unavailable { device } => write!(
                f,
                "GPU {device} is not available: another process has it to itself, or its compute mode lets nobody use it"
            ),
            Self::MissingLibrary { library } => write!(f, "{library} is not installed, or the loader does not find it"),
            Self::Compile { log } => write!(f, "the kernel does not compile: {log}"),
            Self::Spill { detail } => write!(f, "a buffer that left its device could not be kept on disk: {detail}"),
            Self::Driver { call, code } => write!(f, "{call} failed with code {code}"),
        }
    }
}

impl std::error::Error for GpuError {}
