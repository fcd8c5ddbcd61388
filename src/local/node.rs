//! What the runtime knows of anything that has a result, whatever the result's type.

use super::{
    Core,
    resources::{Demand, Grant},
    slot::{Completed, Outcome, Slot, View, Waiter},
};
use crate::{
    error::{Error, Origin},
    gpu::GpuLease,
};
use parking_lot::Mutex;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// Options beyond the defaults; a plain submission has none and pays for none.
pub(crate) struct Options {
    pub(crate) name: Option<Arc<str>>,
    /// Until it ends; a demand may hold a placement group.
    pub(crate) demand: Mutex<Option<Demand>>,
    /// Whether it had one when it was submitted; then it runs with a grant only.
    pub(crate) demands: bool,
    /// What was taken for it, while it runs.
    pub(crate) grant: Mutex<Option<Grant>>,
    /// Further attempts after a panic.
    pub(crate) retries: u32,
    /// Further attempts after an `Err`, and the test for it.
    pub(crate) retry_errors: u32,
    pub(crate) is_err: Option<fn(&dyn Any) -> bool>,
    /// The pause before the second attempt; it doubles with each further one.
    pub(crate) backoff: Duration,
    pub(crate) deadline: Option<Duration>,
    /// The attempt that runs or ran last, from 1.
    pub(crate) attempt: AtomicU32,
    /// The actor's concurrency group (calls only).
    pub(crate) group: Option<Arc<str>>,
    /// Where it wants to be.
    #[cfg(feature = "cluster")]
    pub(crate) strategy: crate::resources::Strategy,
    #[cfg(feature = "cluster")]
    pub(crate) bundle: Mutex<Option<crate::cluster::groups::InBundle>>,
    #[cfg(feature = "cluster")]
    pub(crate) is_err_site: Option<fn() -> Result<crate::cluster::wire::Site, Error>>,
    /// It was submitted in another process.
    pub(crate) submitted: Option<Box<Submitted>>,
}

impl Options {
    /// What the node has taken for a task of another process.
    pub(super) fn use_lent(&mut self) {
        let Some((cpu, devices)) = self.submitted.as_ref().and_then(|s| Some((s.cpu?, s.devices.clone()))) else {
            return;
        };
        self.demands = true;
        *self.grant.get_mut() = Some(Grant::lent(cpu, devices));
    }
}

/// Of what was submitted in another process: what it is called there.
#[derive(Clone)]
#[cfg_attr(not(feature = "cluster"), allow(dead_code))] // there is no other process
pub(crate) struct Submitted {
    pub(crate) number: u64,
    pub(crate) location: Arc<str>,
    /// The node that this process is on.
    pub(crate) node: Arc<str>,
    /// Of a call: who calls.
    pub(crate) caller: u32,
    /// Of a task with a demand, which the node has met: the CPUs, in thousandths, and the devices.
    pub(crate) cpu: Option<u32>,
    pub(crate) devices: Vec<GpuLease>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            name: None,
            demand: Mutex::new(None),
            demands: false,
            grant: Mutex::new(None),
            retries: 0,
            retry_errors: 0,
            is_err: None,
            backoff: Duration::ZERO,
            deadline: None,
            attempt: AtomicU32::new(1),
            group: None,
            #[cfg(feature = "cluster")]
            strategy: crate::resources::Strategy::Default,
            #[cfg(feature = "cluster")]
            bundle: Mutex::new(None),
            #[cfg(feature = "cluster")]
            is_err_site: None,
            submitted: None,
        }
    }
}

/// The untyped part of every node.
pub(crate) struct Meta {
    pub(crate) core: &'static Core,
    pub(crate) id: u64,
    pub(crate) location: &'static Location<'static>,
    /// Handles to the result; at zero its value is dropped.
    pub(crate) handles: AtomicU32,
    /// Arguments that are not there yet.
    pub(crate) missing: AtomicU32,
    pub(crate) options: Option<Box<Options>>,
}

impl Meta {
    /// With one handle and no arguments missing.
    #[inline]
    pub(crate) fn new(
        core: &'static Core,
        location: &'static Location<'static>,
        options: Option<Box<Options>>,
    ) -> Meta {
        Meta {
            core,
            id: super::thread::next_id(),
            location,
            handles: AtomicU32::new(1),
            missing: AtomicU32::new(0),
            options,
        }
    }

    pub(crate) fn demand(&self) -> Option<Demand> {
        self.options.as_ref().and_then(|o| o.demand.lock().clone())
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.options.as_ref().map_or(1, |o| o.attempt.load(Ordering::Relaxed))
    }

    fn submitted(&self) -> Option<&Submitted> {
        self.options.as_ref()?.submitted.as_deref()
    }

    /// What its node has granted of the CPUs, in thousandths: nothing if it is not a task of another process.
    #[cfg(feature = "cluster")]
    pub(crate) fn lent_cpu(&self) -> u32 {
        let is_task = |submitted: &&Submitted| submitted.caller == 0;
        self.submitted().filter(is_task).map_or(0, |submitted| submitted.cpu.unwrap_or(super::resources::WHOLE))
    }

    /// Whether it was submitted in another process, which counts and lists it.
    #[inline]
    pub(crate) fn is_from_elsewhere(&self) -> bool {
        self.submitted().is_some()
    }

    /// Counts its end, where it was submitted.
    #[inline]
    pub(crate) fn count_ended(&self, succeeded: bool) {
        if !self.is_from_elsewhere() {
            self.core.count_ended(succeeded);
        }
    }

    /// Its number in the process that submitted it.
    pub(crate) fn number(&self) -> u64 {
        self.submitted().map_or(self.id, |submitted| submitted.number)
    }

    /// The node that it is on, unless that is the program's own process.
    pub(crate) fn node(&self) -> Option<&str> {
        let told = self.submitted().map(|submitted| &*submitted.node);
        // A worker also runs what its tasks submit.
        #[cfg(feature = "cluster")]
        let told = told.or_else(|| self.core.client.get()?.node_name().map(|name| &**name));
        told
    }
}

/// What a node is doing, for `explain`, the lists and the search for cycles.
pub(crate) enum Phase {
    /// Its arguments are not all there.
    WaitingForArguments,
    /// Its arguments are there, and it waits for resources.
    WaitingForResources,
    /// It waits for its turn: on a CPU, or in its actor's mailbox.
    Queued,
    /// Its body runs, or is an unfinished future.
    Running,
    /// It failed, and waits for its next attempt.
    Pausing,
    Done,
}

/// Why a node that does not run cannot.
pub(crate) enum Blocker {
    /// Another node must finish first.
    Node(Arc<dyn Node>),
    /// The actor must finish what it runs. `shared`: only calls that run alone are in the way.
    Actor { id: u64, shared: bool },
    /// One of the calls of the actor's concurrency group must end; `limit` of them run.
    Room { actor: u64, group: Option<Arc<str>>, limit: usize },
}

/// The result of an attempt to run a node on the calling thread.
pub(crate) enum Help {
    /// Something was run; look again.
    Ran,
    /// This one must finish first.
    First(Arc<dyn Node>),
    /// It runs elsewhere, or must not run here: block.
    Busy,
}

/// A task, a call, a `put` or a promise, without its type.
pub(crate) trait Node: Any + Send + Sync {
    fn meta(&self) -> &Meta;
    fn kind(&self) -> &'static str;
    /// The path of its function.
    fn type_name(&self) -> &'static str;
    fn is_done(&self) -> bool;
    fn add_waiter(&self, waiter: &Arc<dyn Waiter>) -> bool;
    fn remove_waiter(&self, waiter: &Arc<dyn Waiter>);
    fn failure(&self) -> Option<Arc<Error>>;
    /// Ends it with an error, unless it has ended; what has not started never will.
    fn fail(&self, error: Arc<Error>) -> bool;
    /// Ends it with an error if it has not started; another process runs it then.
    #[cfg(feature = "cluster")]
    fn give_back(&self, _why: Arc<Error>) {}
    /// Drops the value: the last handle is gone.
    fn discard(&self);
    fn phase(&self) -> Phase;
    /// Somebody asks whether the value is here: one that is elsewhere is fetched.
    fn wanted(&self) {}
    /// Nobody here waits any more for what another process does. It ends as that process says: cancelled, or well
    /// if it was done already.
    #[cfg(feature = "cluster")]
    fn withdraw(&self) {}
    /// Runs it on this thread if it is ready and not started.
    fn help(self: Arc<Self>) -> Help {
        Help::Busy
    }
    fn blockers(&self) -> Vec<Blocker> {
        Vec::new()
    }
    /// Whether it should stop, because nobody will see its result.
    fn is_cancelled(&self) -> bool {
        self.is_done()
    }
    fn demand(&self) -> Option<Demand> {
        None
    }
    /// Takes over what was taken for it, so that its end does not give it back.
    fn take_grant(&self) -> Option<Grant> {
        None
    }
    /// The devices leased to it.
    fn gpus(&self) -> Vec<GpuLease> {
        Vec::new()
    }
    /// What they are used through.
    #[cfg(feature = "gpu-unversioned")]
    fn sessions(&self) -> Option<Arc<crate::gpu::sessions::Sessions>> {
        None
    }
    /// What it is called on the cluster, if it is an object there.
    #[cfg(feature = "cluster")]
    fn remote_id(&self) -> Option<crate::cluster::protocol::ObjectId> {
        None
    }
    /// The actor it runs in, and whether side by side with others.
    fn actor(&self) -> Option<(u64, bool)> {
        None
    }
    /// The actor that it is a call of, wherever that runs.
    fn actor_number(&self) -> Option<u64> {
        self.actor().map(|(id, _)| id)
    }
}

impl dyn Node {
    pub(crate) fn name(&self) -> &str {
        let given = self.meta().options.as_ref().and_then(|o| o.name.as_deref());
        given.unwrap_or_else(|| self.type_name())
    }

    pub(crate) fn origin(&self) -> Box<Origin> {
        let meta = self.meta();
        Box::new(Origin {
            kind: self.kind().into(),
            name: self.name().into(),
            id: meta.number(),
            attempt: meta.attempt(),
            location: match meta.submitted() {
                Some(submitted) => submitted.location.to_string(),
                None => meta.location.to_string(),
            },
            node: meta.node().unwrap_or(crate::resources::LOCAL_NODE).into(),
        })
    }

    /// A short description for messages: `task `load` (#12)`.
    pub(crate) fn label(&self) -> String {
        format!("{} `{}` (#{})", self.kind(), self.name(), self.meta().number())
    }

    pub(crate) fn cancel(&self) {
        if !self.is_done() {
            self.fail(Arc::new(Error::Cancelled { origin: self.origin() }));
        }
    }
}

/// A node whose result is a `T`; these are its slot's functions of the same names.
pub(crate) trait Source<T>: Node {
    fn take(&self) -> Outcome<Result<T, Arc<T>>>;
    fn share(&self) -> Outcome<Arc<T>>;
    fn copy(&self) -> Outcome<T>
    where
        T: Clone;
    fn view(&self) -> Option<View>;
    fn keep_view(&self, view: View);
}

impl<T: 'static> dyn Source<T> {
    /// A part of the value, shared: computed once from the whole, then the same `Arc` for all.
    pub(crate) fn project<P, E>(&self, project: impl FnOnce(&T) -> Result<P, E>) -> Outcome<Result<Arc<P>, E>>
    where
        P: Send + Sync + 'static,
    {
        let whole = self.share()?;
        if let Some(part) = self.view().and_then(|view| view.downcast::<P>().ok()) {
            return Ok(Ok(part));
        }
        Ok(project(&whole).map(|part| {
            let part = Arc::new(part);
            self.keep_view(part.clone());
            part
        }))
    }
}

/// [`Source`] for a node with a `slot` field.
macro_rules! slot_source {
    ($T:ty) => {
        fn take(&self) -> crate::local::slot::Outcome<Result<$T, std::sync::Arc<$T>>> {
            self.slot.take()
        }
        fn share(&self) -> crate::local::slot::Outcome<std::sync::Arc<$T>> {
            self.slot.share()
        }
        fn copy(&self) -> crate::local::slot::Outcome<$T>
        where
            $T: Clone,
        {
            self.slot.copy()
        }
        fn view(&self) -> Option<crate::local::slot::View> {
            self.slot.view()
        }
        fn keep_view(&self, view: crate::local::slot::View) {
            self.slot.keep_view(view)
        }
    };
}
pub(crate) use slot_source;

/// The parts of [`Node`] that every node with a `slot` and a `meta` field has alike.
macro_rules! node_slot {
    () => {
        fn meta(&self) -> &crate::local::node::Meta {
            &self.meta
        }
        fn is_done(&self) -> bool {
            self.slot.is_done()
        }
        fn add_waiter(&self, waiter: &std::sync::Arc<dyn crate::local::slot::Waiter>) -> bool {
            self.slot.add_waiter(waiter)
        }
        fn remove_waiter(&self, waiter: &std::sync::Arc<dyn crate::local::slot::Waiter>) {
            self.slot.remove_waiter(waiter)
        }
        fn failure(&self) -> Option<std::sync::Arc<crate::error::Error>> {
            self.slot.failure()
        }
        fn discard(&self) {
            self.slot.discard()
        }
    };
}
pub(crate) use node_slot;

/// Completes a slot; if no handle is left the value goes at once.
///
/// The last handle's drop decrements the count and then looks at the slot; this completes the slot
/// and then looks at the count. The slot's lock orders the two, so at least one of them discards.
pub(crate) fn complete<T, B>(meta: &Meta, slot: &Slot<T, B>, outcome: Outcome<T>) -> Completed<B> {
    complete_with(meta, slot, outcome, || {})
}

/// The same for what was counted when it was submitted: counts its end, once.
#[inline]
pub(crate) fn complete_counted<T, B>(meta: &Meta, slot: &Slot<T, B>, outcome: Outcome<T>) -> Completed<B> {
    let succeeded = outcome.is_ok();
    complete_with(meta, slot, outcome, || meta.count_ended(succeeded))
}

#[inline]
fn complete_with<T, B>(meta: &Meta, slot: &Slot<T, B>, outcome: Outcome<T>, count: impl FnOnce()) -> Completed<B> {
    let completed = slot.complete_with(outcome, count);
    if completed.is_first() && meta.handles.load(Ordering::Acquire) == 0 {
        contain(|| slot.discard());
    }
    completed
}

/// Runs destructors of the user's on behalf of the runtime: a panic in one is logged and goes no
/// further.
pub(crate) fn contain(drops: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(drops)).is_err() {
        tracing::error!("a destructor panicked");
    }
}

/// A node with no body: its result is there from the start (`put`), or somebody else completes it.
#[allow(unreachable_pub, missing_debug_implementations)] // named in a hidden part of a public trait
pub struct Promise<T> {
    meta: Meta,
    slot: Slot<T>,
    /// Who will complete it.
    source: PromiseSource,
}

enum PromiseSource {
    None,
    Node(Arc<dyn Node>),
    /// Known after the promise was made.
    Later(Arc<OnceLock<Arc<dyn Node>>>),
}

impl<T: Send + Sync + 'static> Promise<T> {
    pub(crate) fn ready(core: &'static Core, location: &'static Location<'static>, value: T) -> Arc<Self> {
        let slot = Slot::ready(value);
        Arc::new(Promise { meta: Meta::new(core, location, None), slot, source: PromiseSource::None })
    }

    pub(crate) fn failed(core: &'static Core, location: &'static Location<'static>, error: Error) -> Arc<Self> {
        let promise = Promise::empty(core, location, None);
        promise.slot.complete(Err(Arc::new(error)));
        promise
    }

    pub(crate) fn empty(
        core: &'static Core,
        location: &'static Location<'static>,
        source: Option<Arc<dyn Node>>,
    ) -> Arc<Self> {
        let source = source.map_or(PromiseSource::None, PromiseSource::Node);
        Arc::new(Promise { meta: Meta::new(core, location, None), slot: Slot::new(), source })
    }

    /// One part of a result that `source` will make.
    pub(crate) fn part(
        core: &'static Core,
        location: &'static Location<'static>,
        source: Arc<OnceLock<Arc<dyn Node>>>,
    ) -> Arc<Self> {
        let source = PromiseSource::Later(source);
        Arc::new(Promise { meta: Meta::new(core, location, None), slot: Slot::new(), source })
    }

    pub(crate) fn id(&self) -> u64 {
        self.meta.id
    }

    /// Its failure, if it has failed.
    pub(crate) fn result(&self) -> Result<(), Error> {
        self.slot.failure().map_or(Ok(()), |error| Err((*error).clone()))
    }

    fn source(&self) -> Option<&Arc<dyn Node>> {
        match &self.source {
            PromiseSource::None => None,
            PromiseSource::Node(node) => Some(node),
            PromiseSource::Later(later) => later.get(),
        }
    }

    pub(crate) fn complete(&self, outcome: Result<T, Arc<Error>>) {
        complete(&self.meta, &self.slot, outcome);
    }
}

impl<T: Send + Sync + 'static> Node for Promise<T> {
    node_slot!();
    fn kind(&self) -> &'static str {
        "object"
    }
    fn type_name(&self) -> &'static str {
        std::any::type_name::<T>()
    }
    fn fail(&self, error: Arc<Error>) -> bool {
        if let Some(source) = self.source() {
            source.fail(error.clone());
        }
        complete(&self.meta, &self.slot, Err(error)).is_first()
    }
    fn phase(&self) -> Phase {
        match self.source() {
            _ if self.is_done() => Phase::Done,
            Some(source) => source.phase(),
            None => Phase::Running,
        }
    }
    fn help(self: Arc<Self>) -> Help {
        match self.source() {
            Some(source) if !source.is_done() => Help::First(source.clone()),
            _ => Help::Busy,
        }
    }
    fn blockers(&self) -> Vec<Blocker> {
        self.source().cloned().map(Blocker::Node).into_iter().collect()
    }
}

impl<T: Send + Sync + 'static> Source<T> for Promise<T> {
    slot_source!(T);
}
