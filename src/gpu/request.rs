use super::ComputeCapability;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How much of each device's time the holder counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Share {
    /// All of it.
    Whole,
    /// So many thousandths: whole numbers, so that shares add up exactly.
    Thousandths(u16),
}

impl Share {
    /// As a number, at most 1,000.
    pub const fn thousandths(self) -> u32 {
        match self {
            Share::Whole => 1000,
            Share::Thousandths(share @ ..1000) => share as u32,
            Share::Thousandths(_) => 1000,
        }
    }
}

/// Whether several devices must be joined by NVLink, each with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NvLink {
    /// It does not matter.
    #[default]
    Any,
    /// If such devices are free, they are taken.
    Prefer,
    /// The request waits for such devices.
    Require,
}

/// Which of the devices with room are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spread {
    /// The fullest.
    #[default]
    Pack,
    /// The emptiest.
    Spread,
}

/// What a task or an actor asks of the GPUs of one node.
///
/// ```
/// use outray::gpu::{GpuRequest, NvLink, Spread};
/// let pair = GpuRequest::whole(2).named("H200").capability(9, 0).nvlink(NvLink::Require);
/// let quarter = GpuRequest::share(250).memory(20 << 30);
/// let by_memory_alone = GpuRequest::bytes(20 << 30).spread(Spread::Spread);
/// # let _ = (pair, quarter, by_memory_alone);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct GpuRequest {
    pub(crate) devices: u32,
    pub(crate) share: Share,
    /// Bytes on each device. Without, a whole device is reserved whole, and of a share the same part of the memory.
    pub(crate) memory: Option<u64>,
    pub(crate) capability: Option<ComputeCapability>,
    /// Part of the product's name; the case of ASCII letters does not matter.
    pub(crate) name: Option<String>,
    pub(crate) nvlink: NvLink,
    pub(crate) spread: Spread,
}

impl GpuRequest {
    /// So many whole devices.
    pub fn whole(devices: u32) -> Self {
        GpuRequest {
            devices,
            share: Share::Whole,
            memory: None,
            capability: None,
            name: None,
            nvlink: NvLink::Any,
            spread: Spread::Pack,
        }
    }

    /// A share of one device, in thousandths, and the same part of its memory unless [`memory`](Self::memory) says
    /// otherwise.
    pub fn share(thousandths: u16) -> Self {
        GpuRequest { share: Share::Thousandths(thousandths), ..GpuRequest::whole(1) }
    }

    /// So many bytes on one device; no share of its time is counted.
    pub fn bytes(bytes: u64) -> Self {
        GpuRequest { share: Share::Thousandths(0), memory: Some(bytes), ..GpuRequest::whole(1) }
    }

    /// Thousandths of devices: a share of one, or whole ones.
    pub(crate) fn amount(thousandths: u32) -> Self {
        match u16::try_from(thousandths) {
            Ok(share @ ..1000) => GpuRequest::share(share),
            _ => GpuRequest::whole(thousandths / Share::Whole.thousandths()),
        }
    }

    /// Thousandths of devices, all together.
    #[cfg_attr(not(feature = "cluster"), allow(dead_code))] // a runtime of its own need not know
    pub(crate) fn total(&self) -> u64 {
        u64::from(self.devices) * u64::from(self.share.thousandths())
    }

    /// What of it makes no sense, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        match (self.share, self.memory) {
            (Share::Thousandths(share @ 1001..), _) => {
                Some(format!("share({share}): a share is one of one device, at most 1,000 thousandths"))
            }
            (Share::Thousandths(0), None | Some(0)) => {
                Some("no share of a GPU and no memory: ask for some of either".into())
            }
            _ => None,
        }
    }

    /// So many bytes on each device.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Only devices with this in their product name; the case of ASCII letters does not matter.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Only devices that can do at least this.
    pub fn capability(mut self, major: u16, minor: u16) -> Self {
        self.capability = Some(ComputeCapability { major, minor });
        self
    }

    /// Whether several devices must be joined.
    pub fn nvlink(mut self, nvlink: NvLink) -> Self {
        self.nvlink = nvlink;
        self
    }

    /// Which devices are taken.
    pub fn spread(mut self, spread: Spread) -> Self {
        self.spread = spread;
        self
    }
}

impl fmt::Display for GpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.share, self.memory) {
            (Share::Thousandths(0), memory) => write!(f, "{} of a GPU", Size(memory.unwrap_or(0)))?,
            (Share::Thousandths(_), memory) => {
                write!(f, "{} GPUs", f64::from(self.share.thousandths()) / 1e3)?;
                memory.map_or(Ok(()), |bytes| write!(f, " with {}", Size(bytes)))?;
            }
            (Share::Whole, memory) => {
                write!(f, "{} GPUs", self.devices)?;
                memory.map_or(Ok(()), |bytes| write!(f, " with {} each", Size(bytes)))?;
            }
        }
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " named {name:?}"))?;
        self.capability.map_or(Ok(()), |least| write!(f, " of compute capability {least} or newer"))?;
        match self.nvlink == NvLink::Require && self.devices > 1 {
            true => write!(f, " joined by NVLink"),
            false => Ok(()),
        }
    }
}

/// A number of bytes, exactly, in the largest unit of which it is a whole number.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size(bytes) = *self;
        match [(30, "GiB"), (20, "MiB")].iter().find(|(shift, _)| bytes > 0 && bytes % (1 << shift) == 0) {
            Some((shift, unit)) => write!(f, "{} {unit}", bytes >> shift),
            None => write!(f, "{bytes} bytes"),
        }
    }
}
