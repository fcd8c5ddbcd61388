//! Admission: who may start, given what it asks for.
//!
//! A plain task asks for one CPU, which its worker's seat is, and never comes here. Every other
//! demand waits in the ledger until all of it is free at once, first come first served; a demand
//! that lacks something else than CPUs lets later ones pass. A demand that lacks only CPUs, and
//! would have them if the running tasks ended, *reserves*: free seats are kept for it until there
//! are enough, so that a stream of plain tasks cannot starve a task that needs two CPUs.

use super::{Core, Job, idle::Place};
use crate::{
    error::{Error, Origin},
    gpu::{
        GpuError, GpuLease, GpuRequest,
        placement::{Devices, Part},
    },
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};
#[cfg(feature = "gpu-unversioned")]
use {super::draining::Draining, crate::gpu::sessions::Sessions};

/// Amounts are counted in thousandths, so that shares add up exactly.
pub(crate) const WHOLE: u32 = 1000;

/// What a task or an actor asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Demand {
    /// Thousandths of CPUs.
    pub(crate) cpu: u32,
    pub(crate) gpu: Option<Arc<GpuRequest>>,
    /// Bytes.
    pub(crate) memory: u64,
    /// Thousandths.
    pub(crate) custom: BTreeMap<Arc<str>, u64>,
    /// Take it from this bundle instead of from what is free.
    pub(crate) bundle: Option<(Arc<Group>, usize)>,
}

impl Demand {
    pub(crate) fn plain() -> Self {
        Demand { cpu: WHOLE, ..Demand::default() }
    }

    pub(crate) fn is_plain(&self) -> bool {
        *self == Demand::plain()
    }

    pub(crate) fn is_nothing(&self) -> bool {
        *self == Demand::default()
    }
}

impl std::fmt::Display for Demand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = wanted(self.cpu, self.gpu.as_deref(), self.memory, &self.custom);
        if let Some((_, bundle)) = &self.bundle {
            parts.push(format!("in bundle {bundle} of its placement group"));
        }
        f.write_str(&parts.join(", "))
    }
}

/// What is asked for, in words.
pub(crate) fn wanted(cpu: u32, gpu: Option<&GpuRequest>, memory: u64, custom: &BTreeMap<Arc<str>, u64>) -> Vec<String> {
    let mut parts = Vec::new();
    if cpu > 0 {
        parts.push(format!("{} CPUs", f64::from(cpu) / 1e3));
    }
    parts.extend(gpu.map(GpuRequest::to_string));
    if memory > 0 {
        parts.push(format!("{memory} bytes of memory"));
    }
    parts.extend(custom.iter().map(|(name, amount)| format!("{} of {name:?}", *amount as f64 / 1e3)));
    if parts.is_empty() {
        parts.push("nothing".into());
    }
    parts
}

/// What there is, or what of it is free.
#[derive(Clone, Debug, Default)]
pub(crate) struct Amounts {
    pub(crate) cpu: u32,
    pub(crate) gpus: Devices,
    pub(crate) memory: u64,
    pub(crate) custom: BTreeMap<Arc<str>, u64>,
}

impl Amounts {
    /// The devices for `demand`, if nothing is missing, CPUs aside.
    pub(super) fn place(&self, demand: &Demand) -> Option<Vec<Part>> {
        let has = |(name, wanted): (&Arc<str>, &u64)| self.custom.get(name).copied().unwrap_or(0) >= *wanted;
        if demand.memory > self.memory || !demand.custom.iter().all(has) {
            return None;
        }
        demand.gpu.as_ref().map_or(Some(Vec::new()), |request| self.gpus.place(request))
    }

    /// What is missing for `demand`, as a sentence; `None` if nothing is.
    pub(crate) fn missing(&self, demand: &Demand) -> Option<String> {
        let lack = |what: &str, wanted: u64, there: u64, unit: f64| {
            (wanted > there).then(|| format!("{} {what} wanted, {} there", wanted as f64 / unit, there as f64 / unit))
        };
        let custom = demand.custom.iter().filter_map(|(name, wanted)| {
            lack(&format!("of {name:?}"), *wanted, self.custom.get(name).copied().unwrap_or(0), 1e3)
        });
        let others = [
            lack("CPUs", demand.cpu.into(), self.cpu.into(), 1e3),
            demand.gpu.as_ref().and_then(|request| self.gpus.lack(request)).map(|lack| lack.to_string()),
            lack("bytes of memory", demand.memory, self.memory, 1.0),
        ];
        let all: Vec<_> = others.into_iter().flatten().chain(custom).collect();
        (!all.is_empty()).then(|| all.join(", and "))
    }

    /// The same of what is free now, with what of each device that is.
    fn missing_now(&self, demand: &Demand) -> Option<String> {
        let why = self.missing(demand)?;
        Some(match demand.gpu.as_ref().filter(|request| self.gpus.place(request).is_none()) {
            Some(request) => format!("{why}; {}", self.gpus.free_of(request)),
            None => why,
        })
    }

    /// Takes everything but the CPUs; it must be there.
    fn take(&mut self, demand: &Demand, gpus: &[Part]) {
        self.gpus.hold(gpus);
        self.memory -= demand.memory;
        for (name, amount) in &demand.custom {
            *self.custom.entry(name.clone()).or_default() -= amount;
        }
    }

    pub(super) fn give(&mut self, demand: &Demand, gpus: &[Part]) {
        self.gpus.give(gpus);
        self.memory += demand.memory;
        for (name, amount) in &demand.custom {
            *self.custom.entry(name.clone()).or_default() += amount;
        }
    }
}

/// Resources set aside for a group of bundles.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) id: u64,
    pub(crate) bundles: Vec<Amounts>,
    free: Mutex<Vec<Amounts>>,
    core: &'static Core,
    grants: Vec<Grant>,
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for grant in std::mem::take(&mut self.grants) {
            self.core.ledger.lock().held -= grant.demand.cpu;
            self.core.release(grant);
        }
    }
}

/// What was taken for a task or an actor. Must be given back with [`Core::release`].
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) demand: Demand,
    /// As the ledger counts them.
    pub(super) gpus: Vec<Part>,
    /// The same for who has them.
    pub(crate) leases: Vec<GpuLease>,
    /// What they are used through, once the body has asked for that.
    #[cfg(feature = "gpu-unversioned")]
    sessions: Option<Arc<Sessions>>,
    /// It was taken from what another process counts, which takes it back itself.
    pub(crate) is_lent: bool,
}

impl Grant {
    fn new(demand: &Demand, gpus: Vec<Part>, all: &Devices) -> Self {
        Grant { demand: demand.clone(), leases: all.leases(&gpus), gpus, ..Grant::nothing() }
    }

    /// What a node has taken for a task of another process.
    pub(super) fn lent(cpu: u32, leases: Vec<GpuLease>) -> Self {
        Grant { demand: Demand { cpu, ..Demand::default() }, leases, is_lent: true, ..Grant::nothing() }
    }

    /// For one that will not run.
    pub(super) fn nothing() -> Self {
        Grant {
            demand: Demand::default(),
            gpus: Vec::new(),
            leases: Vec::new(),
            #[cfg(feature = "gpu-unversioned")]
            sessions: None,
            is_lent: false,
        }
    }

    /// What its devices are used through.
    #[cfg(feature = "gpu-unversioned")]
    pub(crate) fn sessions(&mut self, core: &'static Core) -> Option<Arc<Sessions>> {
        if self.leases.is_empty() {
            return None;
        }
        if self.sessions.is_none() {
            self.sessions = Some(core.sessions(self));
        }
        self.sessions.clone()
    }

    /// The same, if the body has asked for that.
    #[cfg(feature = "gpu-unversioned")]
    pub(crate) fn used(&self) -> Option<Arc<Sessions>> {
        self.sessions.clone()
    }

    /// Its devices, apart from the rest.
    #[cfg(feature = "gpu-unversioned")]
    fn take_devices(&mut self) -> Grant {
        let (gpu, bundle) = (self.demand.gpu.take(), self.demand.bundle.clone());
        let gpus = std::mem::take(&mut self.gpus);
        Grant { demand: Demand { gpu, bundle, ..Demand::default() }, gpus, ..Grant::nothing() }
    }
}

/// Why something can never start here.
pub(crate) enum Never {
    Lacking(String),
    Gpu(GpuError),
}

impl Never {
    pub(crate) fn of(self, origin: Box<Origin>) -> Error {
        match self {
            Never::Lacking(reason) => Error::Infeasible { origin, reason },
            Never::Gpu(error) => Error::Gpu { origin: Some(origin), error },
        }
    }
}

/// Something that waits for its resources.
pub(crate) trait Applicant: Send + Sync {
    /// Its resources were taken for it: the job to run now.
    fn granted(self: Arc<Self>, grant: Grant) -> Job;
    /// It will never have its resources.
    fn refused(self: Arc<Self>, why: Never);
    /// Whether it has been cancelled meanwhile.
    fn is_withdrawn(&self) -> bool;
}

#[derive(Default)]
pub(crate) struct Ledger {
    /// All of it; CPUs included.
    pub(crate) total: Amounts,
    /// What is free; the CPUs are in [`super::idle::Idle`].
    pub(crate) free: Amounts,
    /// CPUs held by actors and placement groups for their lifetime.
    pub(crate) held: u32,
    #[cfg(feature = "gpu-unversioned")]
    pub(super) draining: Draining,
    waiting: VecDeque<(Demand, Arc<dyn Applicant>)>,
}

impl Ledger {
    /// Nothing runs in this process: the number is for those who divide work by it.
    #[cfg(feature = "cluster")]
    pub(crate) fn set_cpus(&mut self, thousandths: u32) {
        self.total.cpu = thousandths;
    }

    /// The devices, which nobody has asked for before.
    pub(super) fn set_gpus(&mut self, devices: Devices) {
        (self.total.gpus, self.free.gpus) = (devices.clone(), devices);
    }

    /// The devices for `demand`, if nothing is missing, CPUs aside.
    fn place(&mut self, demand: &Demand) -> Option<Vec<Part>> {
        let free = self.free.place(demand);
        #[cfg(feature = "gpu-unversioned")]
        let free = free.or_else(|| self.draining.take_over(&mut self.free, demand));
        free
    }

    fn take_from_bundle(&mut self, group: &Arc<Group>, bundle: usize, demand: &Demand) -> Option<Grant> {
        let free = &mut group.free.lock()[bundle];
        if demand.cpu > free.cpu {
            return None;
        }
        let gpus = free.place(demand);
        #[cfg(feature = "gpu-unversioned")]
        let gpus = gpus.or_else(|| self.draining.take_over(free, demand));
        let gpus = gpus?;
        free.cpu -= demand.cpu;
        free.take(demand, &gpus);
        Some(Grant::new(demand, gpus, &self.total.gpus))
    }

    pub(crate) fn new(total: Amounts) -> Self {
        Ledger { free: total.clone(), total, ..Ledger::default() }
    }
}

impl Core {
    /// Why `demand` can never be met here; `None` if it can. The first that asks for a GPU waits here until it is known
    /// what there are.
    pub(crate) fn infeasible(&self, demand: &Demand) -> Option<Never> {
        let why = match &demand.bundle {
            None => {
                if let Some(request) = &demand.gpu {
                    if let Err(error) = self.find_gpus() {
                        return Some(Never::Gpu(error));
                    }
                    if let Some(error) = self.ledger.lock().total.gpus.refusal(request) {
                        return Some(Never::Gpu(error));
                    }
                }
                self.ledger.lock().total.missing(demand).map(|why| format!("{why} on this machine"))
            }
            Some((group, bundle)) => match group.bundles.get(*bundle) {
                None => {
                    Some(format!("its placement group has {} bundles, and no bundle {bundle}", group.bundles.len()))
                }
                Some(amounts) => amounts.missing(demand).map(|why| format!("{why} in bundle {bundle}")),
            },
        };
        why.map(Never::Lacking)
    }

    /// Why `demand` has to wait now; `None` if it need not.
    pub(crate) fn lacking_now(&self, demand: &Demand) -> Option<String> {
        match &demand.bundle {
            None => {
                let free = Amounts { cpu: self.idle.free(), ..self.ledger.lock().free.clone() };
                free.missing_now(demand)
            }
            Some((group, bundle)) => group.free.lock()[*bundle].missing_now(demand),
        }
    }

    /// Starts `applicant` as soon as its demand can be met.
    pub(crate) fn apply(&'static self, demand: Demand, applicant: Arc<dyn Applicant>) {
        if demand.gpu.is_some() {
            self.look_at_gpus();
        }
        {
            let mut ledger = self.ledger.lock();
            ledger.waiting.push_back((demand, applicant));
            self.applicants.store(ledger.waiting.len(), Ordering::SeqCst);
        }
        self.admit();
    }

    /// Takes a demand at once, or says what is lacking.
    pub(crate) fn take_now(&self, demand: &Demand) -> Result<Grant, String> {
        if demand.gpu.is_some() {
            self.look_at_gpus();
        }
        let ledger = &mut *self.ledger.lock();
        let Some(gpus) = ledger.place(demand) else {
            let all_cpus = Demand { cpu: 0, ..demand.clone() };
            return Err(ledger.free.missing_now(&all_cpus).unwrap_or_default());
        };
        if demand.cpu > 0 && !self.idle.try_take(demand.cpu) {
            let (wanted, free) = (f64::from(demand.cpu) / 1e3, f64::from(self.idle.free()) / 1e3);
            return Err(format!("{wanted} CPUs wanted, {free} free"));
        }
        ledger.free.take(demand, &gpus);
        Ok(Grant::new(demand, gpus, &ledger.total.gpus))
    }

    /// Starts whoever can start now.
    pub(crate) fn admit(&'static self) {
        let (mut started, mut refused) = (Vec::new(), Vec::new());
        let mut is_held_up = false;
        {
            let ledger = &mut *self.ledger.lock();
            let mut reserving = false;
            let mut waiting = std::mem::take(&mut ledger.waiting);
            waiting.retain(|(demand, applicant)| {
                if applicant.is_withdrawn() {
                    return false;
                }
                let grant = match &demand.bundle {
                    Some((group, bundle)) => ledger.take_from_bundle(group, *bundle, demand),
                    None => match ledger.place(demand) {
                        None => {
                            if let Some(request) = &demand.gpu {
                                if let Some(error) = ledger.total.gpus.refusal(request) {
                                    refused.push((applicant.clone(), error));
                                    return false;
                                }
                                is_held_up |= ledger.free.gpus.is_held_up(request);
                            }
                            None
                        }
                        Some(_) if demand.cpu > 0 && reserving => None,
                        Some(gpus) if demand.cpu == 0 || self.idle.try_take(demand.cpu) => {
                            ledger.free.take(demand, &gpus);
                            Some(Grant::new(demand, gpus, &ledger.total.gpus))
                        }
                        Some(_) => {
                            reserving = demand.cpu + ledger.held <= ledger.total.cpu;
                            None
                        }
                    },
                };
                let granted = grant.map(|grant| started.push(applicant.clone().granted(grant)));
                granted.is_none()
            });
            ledger.waiting = waiting;
            self.applicants.store(ledger.waiting.len(), Ordering::SeqCst);
            self.idle.set_reserving(reserving);
        }
        for job in started {
            self.start(job);
        }
        for (applicant, error) in refused {
            applicant.refused(Never::Gpu(error));
        }
        if is_held_up {
            self.watch_gpus();
        }
        self.notify_if_work(Place::Elsewhere);
    }

    /// Gives back what was taken, and starts whoever waited for it. Devices that still work go back later.
    pub(crate) fn release(
        &'static self,
        #[cfg_attr(not(feature = "gpu-unversioned"), expect(unused_mut))] mut grant: Grant,
    ) {
        if grant.is_lent {
            return;
        }
        #[cfg(feature = "gpu-unversioned")]
        if let Some(sessions) = grant.sessions.take() {
            let (until, has_failed) = sessions.finish();
            if has_failed {
                self.gpus.forget_the_look();
            }
            if !until.is_empty() {
                self.drain_devices(grant.take_devices(), until);
            }
        }
        if !grant.gpus.is_empty() && self.has_applicants() {
            self.look_at_gpus();
        }
        match &grant.demand.bundle {
            Some((group, bundle)) => {
                let mut free = group.free.lock();
                free[*bundle].give(&grant.demand, &grant.gpus);
                free[*bundle].cpu += grant.demand.cpu;
            }
            None => {
                self.idle.give(grant.demand.cpu);
                self.ledger.lock().free.give(&grant.demand, &grant.gpus);
            }
        }
        self.admit();
    }

    pub(crate) fn cpus(&self) -> f64 {
        f64::from(self.ledger.lock().total.cpu) / f64::from(WHOLE)
    }

    /// Whether somebody waits for resources.
    pub(crate) fn has_applicants(&self) -> bool {
        self.applicants.load(Ordering::SeqCst) > 0
    }

    /// How many wait for resources, and what for.
    pub(crate) fn applicants(&self) -> Vec<Demand> {
        self.ledger.lock().waiting.iter().map(|(demand, _)| demand.clone()).collect()
    }

    /// Empties the ledger at shutdown; the caller runs the jobs, which fail.
    pub(crate) fn withdraw_applicants(&self) -> Vec<Arc<dyn Applicant>> {
        let mut ledger = self.ledger.lock();
        self.applicants.store(0, Ordering::SeqCst);
        ledger.waiting.drain(..).map(|(_, applicant)| applicant).collect()
    }

    /// Sets bundles aside, all or none.
    pub(crate) fn reserve_group(&'static self, bundles: Vec<Demand>) -> Result<Arc<Group>, Error> {
        if bundles.iter().any(|demand| demand.gpu.is_some()) {
            self.find_gpus().map_err(|error| Error::Gpu { origin: None, error })?;
        }
        let mut grants = Vec::new();
        let mut amounts = Vec::new();
        for (index, demand) in bundles.iter().enumerate() {
            match self.take_now(demand) {
                Ok(grant) => {
                    amounts.push(Amounts {
                        cpu: demand.cpu,
                        gpus: self.ledger.lock().total.gpus.part(&grant.gpus),
                        memory: demand.memory,
                        custom: demand.custom.clone(),
                    });
                    self.ledger.lock().held += demand.cpu;
                    grants.push(grant);
                }
                Err(why) => {
                    for grant in grants {
                        self.ledger.lock().held -= grant.demand.cpu;
                        self.release(grant);
                    }
                    return Err(Error::invalid(format!(
                        "the placement group cannot be set aside: bundle {index} lacks {why}; free some or ask for less"
                    )));
                }
            }
        }
        let id = super::thread::next_id();
        Ok(Arc::new(Group { id, free: Mutex::new(amounts.clone()), bundles: amounts, core: self, grants }))
    }
}
