//! The devices of a runtime: looked for at the first request for one, and looked at again when requests are admitted,
//! because other processes use them, too.

use super::{Core, flag, timer};
use crate::gpu::{self, DeviceSource, DeviceUsage, GpuError, GpuRequest, Inventory, Simulated, placement::Devices};
use parking_lot::Mutex;
use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// What was seen of a device counts for so long. Asking the driver takes longer than a short task.
const FRESH: Duration = Duration::from_millis(20);
/// So often it is looked whether other processes have left somebody enough.
const LOOK: Duration = Duration::from_millis(100);

/// Where a runtime's devices come from.
#[derive(Clone, Default)]
pub(crate) enum Origin {
    /// The machine.
    #[default]
    Machine,
    /// So many that exist only on paper.
    Simulated(u32),
    Given(Arc<dyn DeviceSource>),
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Machine => "those of the machine",
            Origin::Simulated(_) => "simulated",
            Origin::Given(_) => "given",
        })
    }
}

/// The devices as far as they are known.
#[derive(Default)]
pub(crate) struct Gpus {
    /// Since the first request. `None`: there are none, as was said.
    source: OnceLock<Result<Option<Arc<dyn DeviceSource>>, GpuError>>,
    /// When they were looked at last.
    looked: Mutex<Option<Duration>>,
    /// A look is due.
    is_watched: AtomicBool,
}

#[cfg(feature = "gpu-unversioned")]
impl Gpus {
    /// One of them has failed: whoever asks for one has them looked at before.
    pub(super) fn forget_the_look(&self) {
        *self.looked.lock() = None;
    }
}

/// What is seen of a device now.
type Seen = Result<DeviceUsage, GpuError>;

impl Devices {
    /// Notes what is seen of the devices of which this is free.
    fn see(&mut self, seen: &[Seen]) {
        for (place, (room, seen)) in self.rooms.iter_mut().zip(seen).enumerate() {
            if let Ok(usage) = seen {
                room.external = usage.external_bytes;
            }
            let device = self.inventory.devices.get(place).map_or(place as u32, |device| device.index);
            room.refused = match seen {
                Ok(usage) => usage.lost.then(|| GpuError::DeviceLost { device }.into()),
                Err(error @ (GpuError::DeviceLost { .. } | GpuError::Poisoned { .. })) => Some(error.clone().into()),
                Err(_) => room.refused.take(),
            };
        }
    }

    /// Notes what of it is for good: a device may come back, but not the context in this process.
    fn see_for_good(&mut self, seen: &[Seen]) {
        for (room, seen) in self.rooms.iter_mut().zip(seen) {
            if let Err(error @ GpuError::Poisoned { .. }) = seen {
                room.refused = Some(error.clone().into());
            }
        }
    }

    /// The error of the devices that this would need, if it is refused for good for no other reason.
    pub(super) fn refusal(&self, request: &GpuRequest) -> Option<GpuError> {
        let error = self.rooms.iter().find_map(|room| room.refused.as_deref())?;
        (self.place(request).is_none() && self.is_held_up(request)).then(|| error.clone())
    }
}

fn simulated(count: u32) -> Arc<dyn DeviceSource> {
    Arc::new(Simulated::new(Inventory::simulated(count)))
}

impl Core {
    /// Finds the devices, at the first call. No lock is held while the source is asked.
    pub(super) fn find_gpus(&self) -> Result<(), GpuError> {
        if let Some(known) = self.gpus.source.get() {
            return known.as_ref().map(drop).map_err(Clone::clone);
        }
        let origin = self.config(|config| config.gpus.clone()).unwrap_or(Origin::Simulated(0));
        let source = match origin {
            Origin::Machine => gpu::detect().map(Some),
            Origin::Simulated(0) => Ok(None),
            Origin::Simulated(count) => Ok(Some(simulated(count))),
            Origin::Given(source) => Ok(Some(source)),
        };
        let found = source.and_then(|source| {
            let inventory = source.as_ref().map(|source| source.inventory()).transpose()?;
            Ok((source, Devices::new(inventory.unwrap_or_default())))
        });
        // Of those who come at once the first counts.
        let known = self.gpus.source.get_or_init(|| {
            found.map(|(source, devices)| {
                self.ledger.lock().set_gpus(devices);
                source
            })
        });
        known.as_ref().map(drop).map_err(Clone::clone)
    }

    /// Asks how the devices are used, unless that was done just now. No lock is held meanwhile.
    pub(super) fn look_at_gpus(&self) {
        let Some(Ok(Some(source))) = self.gpus.source.get() else { return };
        let now = timer::now(self);
        {
            // Virtual time stands still while tasks run.
            let mut looked = self.gpus.looked.lock();
            if !self.has(flag::DETERMINISTIC) && looked.is_some_and(|looked| now < looked + FRESH) {
                return;
            }
            *looked = Some(now);
        }
        let inventory = self.ledger.lock().total.gpus.inventory.clone();
        let see = |device| gpu::known_fault(device).map_or_else(|| source.usage(device), Err);
        let seen: Vec<Seen> = inventory.devices.iter().map(see).collect();
        let ledger = &mut *self.ledger.lock();
        ledger.free.gpus.see(&seen);
        ledger.total.gpus.see_for_good(&seen);
    }

    /// Somebody waits for what other processes use, and they tell nobody when they stop.
    pub(super) fn watch_gpus(&'static self) {
        // In virtual time nobody else does anything.
        if self.has(flag::DETERMINISTIC) || self.gpus.is_watched.swap(true, Ordering::AcqRel) {
            return;
        }
        timer::after(self, LOOK, move || {
            self.gpus.is_watched.store(false, Ordering::Release);
            if !self.is_stopping() && self.has_applicants() {
                self.look_at_gpus();
                self.admit();
            }
        });
    }
}
