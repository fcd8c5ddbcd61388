//! Admission: who may start, given what it asks for.
//!
//! A plain task asks for one CPU, which its worker's seat is, and never comes here. Every other
//! demand waits in the ledger until all of it is free at once, first come first served; a demand
//! that lacks something else than CPUs lets later ones pass. A demand that lacks only CPUs, and
//! would have them if the running tasks ended, *reserves*: free seats are kept for it until there
//! are enough, so that a stream of plain tasks cannot starve a task that needs two CPUs.

use super::{Core, Job};
use crate::error::Error;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};

/// Amounts are counted in thousandths, so that shares add up exactly.
pub(crate) const WHOLE: u32 = 1000;

/// What a task or an actor asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Demand {
    /// Thousandths of CPUs.
    pub(crate) cpu: u32,
    /// Thousandths of GPUs: a share of one device, or whole devices.
    pub(crate) gpu: u32,
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
        let mut parts = wanted(self.cpu, self.gpu, self.memory, &self.custom);
        if let Some((_, bundle)) = &self.bundle {
            parts.push(format!("in bundle {bundle} of its placement group"));
        }
        f.write_str(&parts.join(", "))
    }
}

/// What is asked for, in words.
pub(crate) fn wanted(cpu: u32, gpu: u32, memory: u64, custom: &BTreeMap<Arc<str>, u64>) -> Vec<String> {
    let mut parts = Vec::new();
    if cpu > 0 {
        parts.push(format!("{} CPUs", f64::from(cpu) / 1e3));
    }
    if gpu > 0 {
        parts.push(format!("{} GPUs", f64::from(gpu) / 1e3));
    }
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
    /// Of each device.
    pub(crate) gpus: Vec<u32>,
    pub(crate) memory: u64,
    pub(crate) custom: BTreeMap<Arc<str>, u64>,
}

impl Amounts {
    /// What is missing for `demand`, CPUs aside; `None` if nothing is.
    fn lacks(&self, demand: &Demand) -> Option<String> {
        if place_gpus(&self.gpus, demand.gpu).is_none() {
            let shares: Vec<_> = self.gpus.iter().map(|g| f64::from(*g) / 1e3).collect();
            return Some(format!(
                "{} GPUs wanted, {} there with free shares {shares:?}",
                f64::from(demand.gpu) / 1e3,
                shares.len()
            ));
        }
        if demand.memory > self.memory {
            return Some(format!("{} bytes of memory wanted, {} there", demand.memory, self.memory));
        }
        demand.custom.iter().find_map(|(name, wanted)| {
            let there = self.custom.get(name).copied().unwrap_or(0);
            (*wanted > there)
                .then(|| format!("{} of {name:?} wanted, {} there", *wanted as f64 / 1e3, there as f64 / 1e3))
        })
    }

    /// What is missing for `demand`, as a sentence; `None` if nothing is.
    pub(crate) fn missing(&self, demand: &Demand) -> Option<String> {
        if demand.cpu > self.cpu {
            let (wanted, there) = (f64::from(demand.cpu) / 1e3, f64::from(self.cpu) / 1e3);
            return Some(format!("{wanted} CPUs wanted, {there} there"));
        }
        self.lacks(demand)
    }

    /// Takes everything but the CPUs; the caller has seen that nothing is lacking.
    fn take(&mut self, demand: &Demand) -> Vec<(usize, u32)> {
        let gpus = place_gpus(&self.gpus, demand.gpu).unwrap_or_default();
        for (device, share) in &gpus {
            self.gpus[*device] -= share;
        }
        self.memory -= demand.memory;
        for (name, amount) in &demand.custom {
            *self.custom.entry(name.clone()).or_default() -= amount;
        }
        gpus
    }

    fn give(&mut self, demand: &Demand, gpus: &[(usize, u32)]) {
        for (device, share) in gpus {
            self.gpus[*device] += share;
        }
        self.memory += demand.memory;
        for (name, amount) in &demand.custom {
            *self.custom.entry(name.clone()).or_default() += amount;
        }
    }
}

/// The devices and shares that serve a demand, given what is free of each: the fullest device with
/// room for a share, or the first free whole ones.
pub(crate) fn place_gpus(free: &[u32], wanted: u32) -> Option<Vec<(usize, u32)>> {
    if wanted == 0 {
        return Some(Vec::new());
    }
    if wanted < WHOLE {
        let room = free.iter().enumerate().filter(|(_, free)| **free >= wanted);
        return room.min_by_key(|(_, free)| **free).map(|(device, _)| vec![(device, wanted)]);
    }
    let whole = free.iter().enumerate().filter(|(_, free)| **free == WHOLE);
    let taken: Vec<_> = whole.take((wanted / WHOLE) as usize).map(|(device, _)| (device, WHOLE)).collect();
    (taken.len() as u32 * WHOLE == wanted).then_some(taken)
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
    pub(crate) gpus: Vec<(usize, u32)>,
    /// It was taken from what another process counts, which takes it back itself.
    pub(crate) is_lent: bool,
}

/// Something that waits for its resources.
pub(crate) trait Applicant: Send + Sync {
    /// Its resources were taken for it: the job to run now.
    fn granted(self: Arc<Self>, grant: Grant) -> Job;
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
    waiting: VecDeque<(Demand, Arc<dyn Applicant>)>,
}

impl Ledger {
    /// Nothing runs in this process: the number is for those who divide work by it.
    #[cfg(feature = "cluster")]
    pub(crate) fn set_cpus(&mut self, thousandths: u32) {
        self.total.cpu = thousandths;
    }

    pub(crate) fn new(total: Amounts) -> Self {
        Ledger { free: total.clone(), total, held: 0, waiting: VecDeque::new() }
    }
}

impl Core {
    /// Why `demand` can never be met here; `None` if it can.
    pub(crate) fn infeasible(&self, demand: &Demand) -> Option<String> {
        match &demand.bundle {
            None => self.ledger.lock().total.missing(demand).map(|why| format!("{why} on this machine")),
            Some((group, bundle)) => match group.bundles.get(*bundle) {
                None => {
                    Some(format!("its placement group has {} bundles, and no bundle {bundle}", group.bundles.len()))
                }
                Some(amounts) => amounts.missing(demand).map(|why| format!("{why} in bundle {bundle}")),
            },
        }
    }

    /// Why `demand` has to wait now; `None` if it need not.
    pub(crate) fn lacking_now(&self, demand: &Demand) -> Option<String> {
        match &demand.bundle {
            None => {
                let free = Amounts { cpu: self.idle.free(), ..self.ledger.lock().free.clone() };
                free.missing(demand)
            }
            Some((group, bundle)) => group.free.lock()[*bundle].missing(demand),
        }
    }

    /// Starts `applicant` as soon as its demand can be met.
    pub(crate) fn apply(&'static self, demand: Demand, applicant: Arc<dyn Applicant>) {
        {
            let mut ledger = self.ledger.lock();
            ledger.waiting.push_back((demand, applicant));
            self.applicants.store(ledger.waiting.len(), Ordering::SeqCst);
        }
        self.admit();
    }

    /// Takes a demand at once, or says what is lacking.
    pub(crate) fn take_now(&self, demand: &Demand) -> Result<Grant, String> {
        let mut ledger = self.ledger.lock();
        if let Some(why) = ledger.free.lacks(demand) {
            return Err(why);
        }
        if demand.cpu > 0 && !self.idle.try_take(demand.cpu) {
            let (wanted, free) = (f64::from(demand.cpu) / 1e3, f64::from(self.idle.free()) / 1e3);
            return Err(format!("{wanted} CPUs wanted, {free} free"));
        }
        let gpus = ledger.free.take(demand);
        Ok(Grant { demand: demand.clone(), gpus, is_lent: false })
    }

    /// Starts whoever can start now.
    pub(crate) fn admit(&'static self) {
        let mut started = Vec::new();
        {
            let ledger = &mut *self.ledger.lock();
            let mut reserving = false;
            let mut waiting = std::mem::take(&mut ledger.waiting);
            waiting.retain(|(demand, applicant)| {
                if applicant.is_withdrawn() {
                    return false;
                }
                let grant = match &demand.bundle {
                    Some((group, bundle)) => take_from_bundle(group, *bundle, demand),
                    None if ledger.free.lacks(demand).is_some() => None,
                    None if demand.cpu > 0 && reserving => None,
                    None if demand.cpu == 0 || self.idle.try_take(demand.cpu) => {
                        Some(Grant { demand: demand.clone(), gpus: ledger.free.take(demand), is_lent: false })
                    }
                    None => {
                        reserving = demand.cpu + ledger.held <= ledger.total.cpu;
                        None
                    }
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
        self.notify_if_work();
    }

    /// Gives back what was taken, and starts whoever waited for it.
    pub(crate) fn release(&'static self, grant: Grant) {
        if grant.is_lent {
            return;
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
        let mut grants = Vec::new();
        let mut amounts = Vec::new();
        for (index, demand) in bundles.iter().enumerate() {
            match self.take_now(demand) {
                Ok(grant) => {
                    amounts.push(Amounts {
                        cpu: demand.cpu,
                        gpus: bundle_gpus(&grant.gpus),
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

/// A bundle's devices by their numbers on the machine: those it does not have have nothing free.
fn bundle_gpus(granted: &[(usize, u32)]) -> Vec<u32> {
    let mut gpus = vec![0; granted.iter().map(|(device, _)| device + 1).max().unwrap_or(0)];
    for (device, share) in granted {
        gpus[*device] = *share;
    }
    gpus
}

fn take_from_bundle(group: &Arc<Group>, bundle: usize, demand: &Demand) -> Option<Grant> {
    let mut free = group.free.lock();
    let free = &mut free[bundle];
    if free.missing(demand).is_some() {
        return None;
    }
    free.cpu -= demand.cpu;
    Some(Grant { demand: demand.clone(), gpus: free.take(demand), is_lent: false })
}
