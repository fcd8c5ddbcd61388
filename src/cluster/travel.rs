//! What runs on another process than the one that submits it: how it is packed, and what its function
//! does with it where it arrives.
//!
//! A task travels as what it is: the function (its place in the executable) and its arguments as they were
//! passed, handles and all. The worker unpacks them into the same types, and submits the same body to its
//! own local runtime. So a task behaves there as it does in the caller's process.

use super::{
    client::Client,
    function::{Descriptor, Remote},
    protocol::ObjectId,
    wire::{Extras, Order, Site},
};
use crate::{
    actor::HostedActor,
    args::Deferred,
    error::{Error, Result},
    function::RemoteFn,
    gpu::GpuLease,
    local::{
        node::{Node, Options, Submitted, contain},
        slot::Waiter,
        task::{Body, Step, TaskCell, panic_message},
    },
    object::{Object, ObjectRef},
    parallel::MapBody,
    serial::{self, Imports, plain::Items},
    task::{Fallible, FnBody, Split},
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::{
    any::Any,
    fmt,
    future::Future,
    marker::PhantomData,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    pin::pin,
    sync::Arc,
};

/// What a function has around it in a process without a runtime.
pub trait Worker {
    /// Polls a future to its end, or gives up on it.
    ///
    /// # Errors
    /// Why it gave up.
    fn drive(&mut self, future: Pin<&mut (dyn Future<Output = ()> + Send)>) -> Result<()>;
}

/// What arrives for a function.
pub struct Arrival<'a>(pub(crate) Arrived<'a>);

impl fmt::Debug for Arrival<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival").finish_non_exhaustive()
    }
}

pub(crate) enum Arrived<'a> {
    /// Bytes for a single function, without a runtime, and the place of its result.
    Bare { worker: &'a mut dyn Worker, payload: &'a [u8], result: &'a mut Vec<u8> },
    /// A task, an actor's constructor, or a stream.
    Work(Incoming),
    /// A call of this actor's.
    Call(Incoming, &'a dyn HostedActor),
    /// Something of an order that is known to a type only; its place.
    Part(&'a mut dyn Any),
}

impl<'a> Arrival<'a> {
    /// A function by itself.
    pub fn bare(worker: &'a mut dyn Worker, payload: &'a [u8], result: &'a mut Vec<u8>) -> Self {
        Arrival(Arrived::Bare { worker, payload, result })
    }
}

pub(crate) fn wrong_kind(name: &str) -> Error {
    Error::Unsupported {
        reason: format!("`{name}` was sent as something that it is not; do all processes run this executable?"),
    }
}

/// Runs code of the user's on a thread of ours: a panic in it is an error.
pub(crate) fn guarded<R>(what: &str, run: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let message = format!("it panicked: {}", panic_message(&*panic));
        contain(|| drop(panic));
        Err(Error::Serialization { what: what.into(), message })
    })
}

/// An order that has arrived.
pub(crate) struct Incoming {
    pub(crate) client: Arc<Client>,
    pub(crate) order: Order,
    pub(crate) imports: Imports,
    pub(crate) reply: Reply,
    pub(crate) devices: Vec<GpuLease>,
    /// Who calls, as a number that is the same for all calls of one caller.
    pub(crate) caller: u32,
}

impl Incoming {
    pub(crate) fn decode<T: DeserializeOwned + 'static>(&self, what: &str) -> Result<T> {
        serial::unpack_there(&self.order.parcel.bytes, self.order.parcel.is_row, self.imports.clone(), what)
    }

    /// The arguments of a function that takes `Args`.
    pub(crate) fn arguments<Args: 'static, D: DeserializeOwned + 'static>(&self) -> Result<D> {
        serial::of_arguments::<Args, _>(self.decode("the arguments"))
    }

    /// Options of what was submitted elsewhere.
    pub(crate) fn options(&self) -> Result<Box<Options>> {
        let order = &self.order;
        let defaults = Extras::default();
        let extras = order.extras.as_deref().unwrap_or(&defaults);
        let mut is_err: Option<fn(&dyn Any) -> bool> = None;
        if let Some(site) = extras.is_err {
            part(site, &mut is_err)?;
        }
        Ok(Box::new(Options {
            name: order.name.clone(),
            retries: extras.retries,
            retry_errors: extras.retry_errors,
            is_err,
            backoff: extras.backoff,
            group: extras.group.clone(),
            submitted: Some(Box::new(Submitted {
                number: order.number,
                location: order.location.clone(),
                node: self.client.node_name(),
                caller: self.caller,
                cpu: extras.cpu,
                devices: self.devices.clone(),
            })),
            ..Options::default()
        }))
    }

    /// Hands it to its function. An error is for the caller to tell.
    pub(crate) fn arrive(self, function: &Descriptor) -> Result<()> {
        guarded("the arguments", || function.run(Arrival(Arrived::Work(self))))
    }

    /// Runs a task, and replies with its result.
    fn task<B: Body<Out: Object>>(self, body: B) -> Result<()> {
        let options = self.options()?;
        let cell = TaskCell::submit(self.client.core, Location::caller(), body, Some(options))?;
        let node: Arc<dyn Node> = cell.clone();
        let object = ObjectRef::first(cell);
        self.client.runs(self.reply.id, self.reply.attempt, &node, Some(Arc::new(object.clone())));
        self.reply.with(object);
        Ok(())
    }
}

/// Fetches something of an order that is known to a type only.
pub(crate) fn part<T: 'static>(site: Site, place: &mut T) -> Result<()> {
    super::function::resolve_here(site)?.run(Arrival(Arrived::Part(place)))
}

/// Tells the one who sent an order how it ended, once.
pub(crate) struct Reply {
    pub(crate) client: Arc<Client>,
    pub(crate) id: ObjectId,
    pub(crate) attempt: u32,
    pub(crate) is_call: bool,
    /// It came in a pack.
    pub(crate) is_packed: bool,
    /// Objects of others that came with the order.
    pub(crate) inside: Vec<ObjectId>,
}

impl Reply {
    /// When the object is there, it is the reply.
    pub(crate) fn with<T: Object>(self, object: ObjectRef<T>) {
        self.when_done(object, |reply, result| {
            let result = result.and_then(|value| {
                let packed = guarded("the result", || serial::pack_shared(&value, "the result")).map_err(Arc::new);
                contain(|| drop(value));
                packed
            });
            reply.client.clone().ended(reply, result);
        });
    }

    /// What to say when the object is there, or has failed.
    fn when_done<T: Object>(self, object: ObjectRef<T>, say: fn(Reply, Result<Arc<T>, Arc<Error>>)) {
        let node = object.node();
        let told = Arc::new(Told { waits: Mutex::new(Some((object, self))), say });
        let waiter: Arc<dyn Waiter> = told;
        if !node.add_waiter(&waiter) {
            waiter.notify();
        }
    }

    pub(crate) fn fail(self, error: Error) {
        self.client.clone().ended(self, Err(Arc::new(error)));
    }
}

struct Told<T: 'static> {
    waits: Mutex<Option<(ObjectRef<T>, Reply)>>,
    say: fn(Reply, Result<Arc<T>, Arc<Error>>),
}

impl<T: Object> Waiter for Told<T> {
    fn notify(self: Arc<Self>) {
        let Some((object, reply)) = self.waits.lock().take() else { return };
        let result = object.source().share();
        contain(|| drop(object));
        (self.say)(reply, result);
    }
}

/// A task.
pub(crate) struct TaskEntry<F, D, Args, M>(PhantomData<fn(F, D, Args) -> M>);

impl<F, D, Args, M> Remote for TaskEntry<F, D, Args, M>
where
    F: RemoteFn<Args, M>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    type Function = F;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn run(function: F, arrival: Arrival<'_>) -> Result<()> {
        match arrival.0 {
            Arrived::Work(incoming) => {
                let args: D = incoming.arguments::<Args, D>()?;
                incoming.task(FnBody::new(function, args))
            }
            Arrived::Bare { worker, payload, result } => {
                let args: D = serial::of_arguments::<Args, _>(serial::from_bytes(payload, "the arguments"))?;
                let out = match function.invoke(args.resolve()?) {
                    Step::Value(out) => out,
                    Step::Future(future) => {
                        let mut out = None;
                        worker.drive(pin!(async { out = Some(future.await) }))?;
                        out.ok_or_else(|| Error::Unsupported {
                            reason: format!("the worker did not finish the future of `{}`", Self::name()),
                        })?
                    }
                };
                *result = serial::to_bytes(&out, "the result")?;
                Ok(())
            }
            _ => Err(wrong_kind(Self::name())),
        }
    }
}

/// A task whose result is taken apart.
pub(crate) struct SplitEntry<F, D, Args, M>(PhantomData<fn(F, D, Args) -> M>);

impl<F, D, Args, M> Remote for SplitEntry<F, D, Args, M>
where
    F: RemoteFn<Args, M, Out: Split>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    type Function = F;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn run(function: F, arrival: Arrival<'_>) -> Result<()> {
        let Arrived::Work(incoming) = arrival.0 else { return Err(wrong_kind(Self::name())) };
        let args: D = incoming.arguments::<Args, D>()?;
        let options = incoming.options()?;
        let Incoming { client, reply, .. } = incoming;
        let cell = TaskCell::submit(client.core, Location::caller(), FnBody::new(function, args), Some(options))?;
        let node: Arc<dyn Node> = cell.clone();
        client.runs(reply.id, reply.attempt, &node, None);
        reply.when_done(ObjectRef::first(cell), |reply, result: Result<Arc<F::Out>, _>| {
            let packed = result.and_then(|whole| {
                let packed = guarded("the result", || whole.pack_parts()).map_err(Arc::new);
                contain(|| drop(whole));
                packed
            });
            match packed {
                Ok(parts) => reply.client.clone().ended_in_parts(reply, parts),
                Err(error) => reply.client.clone().ended(reply, Err(error)),
            }
        });
        Ok(())
    }
}

/// A chunk of a map.
pub(crate) struct MapEntry<F, A, M>(PhantomData<fn(F, A) -> M>);

impl<F, A, M> Remote for MapEntry<F, A, M>
where
    F: RemoteFn<(A,), M>,
    A: Object,
    M: 'static,
{
    type Function = F;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn run(function: F, arrival: Arrival<'_>) -> Result<()> {
        match arrival.0 {
            Arrived::Work(incoming) => {
                let items: Items<A> = incoming.decode("the items of a map")?;
                incoming.task(MapBody::new(function, items))
            }
            _ => Err(wrong_kind(Self::name())),
        }
    }
}

/// Whether a result is an `Err`.
pub(crate) struct IsErrEntry<R>(PhantomData<fn() -> R>);

impl<R: Fallible> Remote for IsErrEntry<R> {
    type Function = ();

    fn name() -> &'static str {
        std::any::type_name::<R>()
    }

    fn run((): (), arrival: Arrival<'_>) -> Result<()> {
        match arrival.0 {
            Arrived::Part(place) => match place.downcast_mut::<Option<fn(&dyn Any) -> bool>>() {
                Some(place) => {
                    *place = Some(R::is_err);
                    Ok(())
                }
                None => Err(wrong_kind(Self::name())),
            },
            _ => Err(wrong_kind(Self::name())),
        }
    }
}
