//! Leases of devices that still work although the bodies have ended.
//!
//! A body returns when its work is given to its streams. The devices go back when that is done, which a timer looks
//! for while there are such leases. Who waits for devices takes them over before: what is free then is free in the
//! order of the device's work, and streams that are given to the next come after what the last has given to theirs. So
//! a chain of tasks on a device waits for it nowhere, and the device never has more to do at a time than was leased.

use super::{
    Core,
    resources::{Amounts, Demand, Grant},
    timer,
};
use crate::gpu::{
    device::Event,
    placement::Part,
    sessions::{After, Sessions},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How soon it is looked whether a device has done its work. It grows while nothing ends, also when nothing is left:
/// where bodies end all the time, few of them set the clock.
const FIRST: Duration = Duration::from_micros(50);
const LAST: Duration = Duration::from_millis(1);

#[derive(Default)]
pub(crate) struct Draining {
    leases: Vec<Lease>,
    next: u64,
    /// Of each device, by its place in the inventory: where the work of those ends whose leases were taken over.
    after: BTreeMap<usize, Vec<Event>>,
    is_watched: bool,
}

struct Lease {
    number: u64,
    /// The devices alone.
    grant: Grant,
    until: Vec<Event>,
}

impl Draining {
    /// The devices for `demand`, if those are counted that still work. They are given back to `free`.
    pub(super) fn take_over(&mut self, free: &mut Amounts, demand: &Demand) -> Option<Vec<Part>> {
        let is_ours = |lease: &Lease| lease.grant.demand.bundle == demand.bundle;
        if demand.gpu.is_none() || !self.leases.iter().any(is_ours) {
            return None;
        }
        let mut all = free.clone();
        for lease in self.leases.iter().filter(|lease| is_ours(lease)) {
            all.give(&lease.grant.demand, &lease.grant.gpus);
        }
        let parts = all.place(demand)?;
        let is_wanted = |lease: &Lease| {
            let mut places = lease.grant.gpus.iter().map(|part| part.place);
            is_ours(lease) && places.any(|place| parts.iter().any(|part| part.place == place))
        };
        for lease in self.leases.extract_if(.., |lease| is_wanted(lease)) {
            free.give(&lease.grant.demand, &lease.grant.gpus);
            for part in &lease.grant.gpus {
                self.after.entry(part.place).or_default().extend(lease.until.iter().cloned());
            }
        }
        Some(parts)
    }
}

impl Core {
    /// Sessions on the devices of a grant.
    pub(super) fn sessions(&'static self, grant: &Grant) -> Arc<Sessions> {
        let places: Vec<usize> = grant.gpus.iter().map(|part| part.place).collect();
        let after: After = Box::new(move |index| places.get(index).map_or(Vec::new(), |place| self.after(*place)));
        Sessions::new(grant.leases.clone(), after)
    }

    /// What new work on this device comes after.
    fn after(&self, place: usize) -> Vec<Event> {
        let mut events = self.ledger.lock().draining.after.get(&place).cloned().unwrap_or_default();
        // The driver is asked outside of the lock.
        let over: Vec<Event> = events.extract_if(.., |event| !matches!(event.is_complete(), Ok(false))).collect();
        if !over.is_empty()
            && let Some(known) = self.ledger.lock().draining.after.get_mut(&place)
        {
            known.retain(|event| !over.iter().any(|other| other.is(event)));
        }
        events
    }

    /// The devices of this grant go back when the work up to these points is done, or somebody takes them over.
    pub(super) fn drain_devices(&'static self, grant: Grant, until: Vec<Event>) {
        let is_watched = {
            let draining = &mut self.ledger.lock().draining;
            draining.next += 1;
            draining.leases.push(Lease { number: draining.next, grant, until });
            std::mem::replace(&mut draining.is_watched, true)
        };
        if !is_watched {
            timer::after(self, FIRST, move || self.look_at_drains(FIRST));
        }
    }

    fn look_at_drains(&'static self, pause: Duration) {
        let all: Vec<(u64, Vec<Event>)> = {
            let draining = &mut self.ledger.lock().draining;
            draining.is_watched = !draining.leases.is_empty() || pause < LAST;
            if !draining.is_watched {
                return;
            }
            draining.leases.iter().map(|lease| (lease.number, lease.until.clone())).collect()
        };
        // The driver is asked outside of the lock. A device that has failed does nothing more.
        let mut fault = None;
        let mut is_over = |event: &Event| match event.is_complete() {
            Ok(is_complete) => is_complete,
            Err(error) => {
                fault = Some(error);
                true
            }
        };
        let over: Vec<u64> =
            all.iter().filter(|(_, until)| until.iter().all(&mut is_over)).map(|(number, _)| *number).collect();
        let done: Vec<Lease> = {
            let leases = &mut self.ledger.lock().draining.leases;
            leases.extract_if(.., |lease| over.contains(&lease.number)).collect()
        };
        let pause = if done.is_empty() { (pause * 3 / 2).min(LAST) } else { FIRST };
        if let Some(error) = fault {
            tracing::error!("{error}");
            self.gpus.forget_the_look();
        }
        for lease in done {
            self.release(lease.grant);
        }
        timer::after(self, pause, move || self.look_at_drains(pause));
    }
}
