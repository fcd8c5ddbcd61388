//! The devices of one lease, as its bodies use them.

use super::{
    Gpu, GpuError, GpuLease,
    device::{Device, Event},
};
use crate::sync::Mutex;
use std::{fmt, sync::Arc};

/// What the streams of new sessions on a device come after: all that was given to it by those whose share was taken
/// over before it was free.
pub(crate) type After = Box<dyn Fn(usize) -> Vec<Event> + Send + Sync>;

/// A session for each leased device, made when a body first asks for it.
pub(crate) struct Sessions {
    leases: Vec<GpuLease>,
    after: After,
    /// `None`: the lease is over.
    made: Mutex<Option<Vec<Option<Arc<Gpu>>>>>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("leases", &self.leases).field("made", &self.made).finish_non_exhaustive()
    }
}

impl Sessions {
    /// `after` says of the lease at an index what its work comes after.
    pub(crate) fn new(leases: Vec<GpuLease>, after: After) -> Arc<Sessions> {
        let made = Mutex::new(Some(vec![None; leases.len()]));
        Arc::new(Sessions { leases, after, made })
    }

    /// The session on the leased device at this index. Others of the same lease wait while it is made.
    pub(crate) fn get(&self, index: usize) -> Result<Arc<Gpu>, GpuError> {
        let mut made = self.made.lock();
        let leased = made.as_ref().map_or(0, Vec::len);
        let not_leased = GpuError::NotLeased { wanted: index, leased };
        let (Some(slot), Some(lease)) = (made.as_mut().and_then(|made| made.get_mut(index)), self.leases.get(index))
        else {
            return Err(not_leased);
        };
        if let Some(gpu) = slot {
            return Ok(gpu.clone());
        }
        let device = Device::open(&lease.device)?;
        let gpu = Gpu::lease(&device, &(self.after)(index))?;
        Ok(slot.insert(Arc::new(gpu)).clone())
    }

    /// The lease is over: points behind all that was given to its streams and has not been done yet, and whether a
    /// device has failed, which does nothing more.
    pub(crate) fn finish(&self) -> (Vec<Event>, bool) {
        let (mut until, mut has_failed) = (Vec::new(), false);
        let made = self.made.lock().take();
        for gpu in made.into_iter().flatten().flatten() {
            match gpu.finish().and_then(|event| Ok((event.is_complete()?, event))) {
                Ok((true, _)) => {}
                Ok((false, event)) => until.push(event),
                Err(_) => has_failed = true,
            }
        }
        (until, has_failed)
    }

    /// The host waits for all that was given to the streams until now.
    ///
    /// # Errors
    /// What went wrong on a device meanwhile.
    pub(crate) fn synchronize(&self) -> Result<(), GpuError> {
        let made = self.made.lock().clone();
        made.into_iter().flatten().flatten().try_for_each(|gpu| gpu.synchronize())
    }
}
