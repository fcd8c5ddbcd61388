//! Actors that live in a worker: how they are started, found and called.
//!
//! An actor is a task that stays. The object that is its result, `()`, stands for it: handles to the actor are
//! handles to that, and it stops when nobody has one. A caller sends its calls to the actor's node itself; until
//! it is known where that is they wait here, in their order.
//!
//! It has its number, and its name, before it is submitted: of those who want one of the same name at the same time
//! one makes it, and the others find it.

use super::{
    client::{Client, Out, PATIENCE, State},
    function::Remote,
    groups::InBundle,
    owner::Value,
    protocol::{ObjectId, Outcome, ProcessId},
    travel::{Arrival, Arrived, Incoming, part, wrong_kind},
    wire::{ActorExtras, Extras, Handle, Letter, Question, Site},
};
use crate::{
    actor::{self, Actor, MethodBody, Sites, Unpack},
    args::{self, Deferred, Visitor},
    error::{Error, Result},
    function::{Constructor, Method},
    local::{
        actor::{ActorOptions, Checkpoint, Ended},
        node::{Options, Promise, contain},
        resources::Demand,
        thread,
    },
    object::{Object, ObjectRef},
    resources::{Isolation, Strategy},
    serial,
    task::or_failed,
};
use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    marker::PhantomData,
    panic::Location,
    sync::Arc,
};

/// What an actor died of that somebody has ended.
pub(super) const KILLED: &str = "it was killed";

/// A handle to an actor in a worker, which calls share that are under way.
#[derive(Clone)]
pub(crate) struct RemoteActor(Arc<About>);

struct About {
    client: Arc<Client>,
    /// Ready when the constructor has run.
    created: ObjectRef<()>,
    id: ObjectId,
    /// What it is called in the process that has started it.
    number: u64,
    name: Option<Arc<str>>,
    type_name: &'static str,
}

/// What a process knows of an actor.
#[derive(Default)]
pub(super) struct View {
    place: Option<ProcessId>,
    dead: Option<Arc<Error>>,
    /// This process has ended it.
    killed: Option<Arc<Error>>,
    /// Its owner was asked where it is.
    asked: bool,
    /// Until it is known.
    waiting: Vec<Letter>,
    /// Own actors: those who want to know.
    asked_by: BTreeSet<ProcessId>,
    /// Own actors: the name to give back.
    name: Option<Arc<str>>,
}

impl View {
    pub(super) fn place(&self) -> Option<ProcessId> {
        self.place
    }

    /// The node that it is on, if no letter waits for that to be known.
    pub(super) fn takes_at_once(&self) -> Option<ProcessId> {
        self.place.filter(|_| self.waiting.is_empty())
    }

    /// Its owner is asked before the next call.
    fn look_again(&mut self) {
        (self.place, self.asked) = (None, false);
    }

    pub(super) fn name(&self) -> Option<String> {
        self.name.as_deref().map(str::to_owned)
    }
}

/// What an actor is started with.
pub(crate) struct Setup<S> {
    pub(crate) options: ActorOptions<S>,
    pub(crate) sites: Sites,
    pub(crate) demand: Demand,
    pub(crate) strategy: Strategy,
    pub(crate) bundle: Option<InBundle>,
    /// One that has the name already will do.
    pub(crate) get_if_exists: bool,
    pub(crate) detached: bool,
    pub(crate) isolation: Isolation,
}

impl fmt::Debug for RemoteActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.name.as_deref().unwrap_or(self.0.type_name);
        write!(f, "Actor(actor `{name}` (#{}))", self.id())
    }
}

impl RemoteActor {
    pub(crate) fn id(&self) -> u64 {
        self.0.number
    }

    pub(super) fn object(&self) -> ObjectId {
        self.0.id
    }

    /// What there is to be dropped, if no other shares it.
    pub(super) fn last(self) -> Option<Box<dyn Any + Send>> {
        Some(Box::new(Arc::into_inner(self.0)?))
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    pub(crate) fn ready(&self) -> ObjectRef<()> {
        let view = |state: &mut State| {
            let view = state.actors.get(&self.0.id)?;
            view.dead.clone().or_else(|| view.killed.clone())
        };
        match self.0.client.with(|state, _| view(state)) {
            Some(error) => {
                let error = died(self.0.id, &error);
                let promise = Promise::failed(self.0.client.core, Location::caller(), (*error).clone());
                ObjectRef::first(promise)
            }
            None => self.0.created.clone(),
        }
    }

    pub(crate) fn handle(&self) -> Handle {
        Handle::Actor { actor: self.0.id, name: self.0.name.clone(), number: self.0.number }
    }

    /// Asks the actor, behind the calls that this process has made. Those that have not left it wait here.
    pub(crate) fn pending_calls(&self) -> usize {
        let actor = self.0.id;
        let place = self.0.client.with(|state, _| {
            let view = state.actors.get(&actor).ok_or(0usize)?;
            let waiting = view.waiting.iter().filter(|letter| matches!(letter, Letter::Call { .. })).count();
            view.place.ok_or(waiting)
        });
        match place {
            Err(waiting) => waiting,
            Ok(place) => {
                let answer =
                    self.0.client.ask_within(place, PATIENCE, None, |number| Letter::Pending { actor, number });
                answer.ok().and_then(|answer| answer.parse().ok()).unwrap_or(0)
            }
        }
    }

    pub(crate) fn kill(&self) {
        let node = self.0.created.node();
        let error = Arc::new(Error::ActorDied { origin: node.origin(), cause: KILLED.into() });
        self.0.client.with(|state, out| self.0.client.kill_actor(state, self.0.id, &error, out));
    }

    /// Calls a method.
    pub(crate) fn call<S, F, D, Args, M>(
        &self,
        location: &'static Location<'static>,
        mut body: MethodBody<F, D, Args, M>,
        options: Option<Box<Options>>,
    ) -> ObjectRef<F::Out>
    where
        S: Send + Sync + 'static,
        F: Method<S, Args, M>,
        D: Deferred<Args>,
        Args: 'static,
        M: 'static,
    {
        let call = move || {
            let function = Site::of::<CallEntry<S, F, D, Args, M>>()?;
            let packed = args::pack::<Args, _>(body.args());
            contain(|| drop(body));
            let packed = packed?;
            let kind = ("call", std::any::type_name::<F>());
            self.0.client.call(self, location, kind, function, packed, options, caller())
        };
        or_failed(self.0.client.core, location, call())
    }
}

/// Who calls, in this process.
fn caller() -> u32 {
    thread::caller()
}

impl Client {
    /// Starts an actor on the cluster.
    pub(crate) fn start_actor<F, D, Args, S, T>(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        new: F,
        mut args: D,
        setup: Setup<S>,
    ) -> Result<RemoteActor>
    where
        F: Constructor<Args, State = T>,
        D: Deferred<Args>,
        Args: 'static,
        S: Send + Sync + 'static,
        T: Send + Sync + 'static,
    {
        let _ = new; // it has no value but its type
        let Setup { options, sites, demand, strategy, bundle, get_if_exists, detached, isolation } = setup;
        let type_name = std::any::type_name::<S>();
        let mut dependencies = Vec::new();
        args.dependencies(&mut Visitor(&mut |node| dependencies.push(node.clone())));
        let packed = args::pack::<Args, _>(&mut args)?;
        contain(|| drop(args)); // what they hold may have destructors that panic
        let actor = ActorExtras {
            max_restarts: options.max_restarts,
            checkpoint_every: options.checkpoint.as_ref().map(|checkpoint| checkpoint.every),
            checkpoint: sites.checkpoint.filter(|_| options.checkpoint.is_some()).map(|site| site()).transpose()?,
            unpack: sites.unpack.map(|site| site()).transpose()?,
            max_pending_calls: options.max_pending_calls,
            max_concurrency: options.max_concurrency,
            groups: options.groups.iter().map(|(name, calls)| (name.clone(), *calls)).collect(),
            is_isolated: isolation == Isolation::Process,
        };
        let cpu = (!demand.is_nothing()).then_some(demand.cpu);
        let extras = Extras { actor: Some(actor), cpu, ..Extras::default() };
        let function = Site::of::<ActorEntry<F, D, Args, S>>()?;
        let name = options.name.clone();
        let submitted = Options {
            name: name.clone(),
            demand: Some(demand).into(),
            strategy,
            bundle: bundle.into(),
            ..Options::default()
        };
        if detached {
            let what = (function, packed, &*dependencies);
            let restarts = options.max_restarts;
            let actor = match self.detach(location, what, Box::new(extras), &submitted, type_name, restarts) {
                Err(Error::NameTaken { name }) if get_if_exists => return self.named_actor(&name, type_name),
                actor => actor?,
            };
            let found = self.import_actor(&Handle::Actor { actor, name, number: actor.number }, type_name)?;
            self.claim_all(&[actor], None);
            return Ok(found);
        }
        let kind = ("actor", type_name);
        // It has its place and its name before it is made, so that of those who come at once one makes it, and the
        // others find that.
        let (created, order) =
            self.announce::<()>(location, kind, (function, packed), Some(Box::new(extras)), Some(Box::new(submitted)))?;
        let (id, number) = (self.id_of(&created), created.id());
        if let Some(name) = &name {
            let refused = match self.take_name(name, (id, number), type_name) {
                Ok(None) => None,
                Ok(Some(other)) if get_if_exists => Some(self.found(name, &other, type_name)),
                Ok(Some(_)) => Some(Err(Error::NameTaken { name: name.to_string() })),
                Err(error) => Some(Err(error)),
            };
            if let Some(other) = refused {
                let origin = created.node().origin();
                self.fail(id, Arc::new(Error::Cancelled { origin }));
                return other;
            }
        }
        self.start_announced(id, order, &dependencies, options.max_restarts);
        Ok(RemoteActor(Arc::new(About { client: self.clone(), created, id, number, name, type_name })))
    }

    /// The actor with this name, wherever it is.
    pub(crate) fn named_actor(self: &Arc<Self>, name: &str, type_name: &'static str) -> Result<RemoteActor> {
        if self.core.is_stopping() {
            return Err(self.core.shutdown_error(format!("actor `{name}`")));
        }
        let answer = self.ask(Question::Named { name: name.to_owned() })?;
        self.found(name, &serde_json::from_str(&answer).unwrap_or_default(), type_name)
    }

    /// Gives an actor a name, unless another has it: then what is known of that.
    fn take_name(
        self: &Arc<Self>,
        name: &Arc<str>,
        (actor, number): (ObjectId, u64),
        type_name: &'static str,
    ) -> Result<Option<serde_json::Value>> {
        self.with(|state, _| state.actors.entry(actor).or_default().name = Some(name.clone()));
        let question = Question::Name { name: name.to_string(), actor, number, type_name: type_name.into() };
        let answer: serde_json::Value = serde_json::from_str(&self.ask(question)?).unwrap_or_default();
        Ok((answer["free"] != true).then_some(answer))
    }

    /// The actor that the head has named.
    fn found(self: &Arc<Self>, name: &str, answer: &serde_json::Value, type_name: &'static str) -> Result<RemoteActor> {
        let not_found = |detail: String| Error::ActorNotFound { name: name.to_owned(), detail };
        let (Some(owner), Some(number)) = (answer["owner"].as_u64(), answer["number"].as_u64()) else {
            let known: Vec<_> =
                answer["known"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
            return Err(not_found(format!("known names: {known:?}")));
        };
        if answer["executable"].as_str().is_some_and(|hash| hash != self.job.image.hash.to_string()) {
            return Err(not_found("one of a program with another executable has that name".into()));
        }
        if answer["type"] != type_name {
            return Err(not_found(format!(
                "an actor of `{}` has that name",
                answer["type"].as_str().unwrap_or_default()
            )));
        }
        let actor = ObjectId { owner: ProcessId(owner), number };
        let number = answer["id"].as_u64().unwrap_or(number);
        let handle = Handle::Actor { actor, name: Some(name.into()), number };
        let found = self.import_actor(&handle, type_name)?;
        self.claim_all(&[actor], None);
        Ok(found)
    }

    /// The handle in this process to an actor that is known by its number.
    pub(crate) fn import_actor(self: &Arc<Self>, handle: &Handle, type_name: &'static str) -> Result<RemoteActor> {
        let Handle::Actor { actor, name, number } = handle else {
            return Err(Error::Unsupported { reason: "an object's handle was sent as an actor's".into() });
        };
        let created = self.import::<()>(*actor, &serial::Given::Nothing)?;
        let (client, id, number, name) = (self.clone(), *actor, *number, name.clone());
        Ok(RemoteActor(Arc::new(About { client, created, id, number, name, type_name })))
    }

    /// Sends a letter to an actor's node, as soon as that is known.
    pub(super) fn to_actor(&self, state: &mut State, actor: ObjectId, letter: Letter, out: &mut Out) {
        let is_ours = actor.owner == self.me;
        let view = state.actors.entry(actor).or_default();
        if let (Some(place), true) = (view.place, view.waiting.is_empty()) {
            if let Letter::Call { call, .. } = &letter {
                state.owner.moved(*call, place); // it fails when that node dies
            }
            return out.letters.push((place, letter, Vec::new()));
        }
        view.waiting.push(letter);
        if !is_ours && !view.asked {
            view.asked = true;
            out.letters.push((actor.owner, Letter::WhereIsActor { actor }, Vec::new()));
        } else if let (false, Some(dead)) = (is_ours, view.dead.clone()) {
            return self.actor_is(state, actor, None, Some(dead), out);
        }
        self.look_after(state, actor, out);
    }

    /// Ends an actor, wherever it is, or before it is anywhere.
    pub(super) fn kill_actor(&self, state: &mut State, actor: ObjectId, error: &Arc<Error>, out: &mut Out) {
        let view = state.actors.entry(actor).or_default();
        view.killed.get_or_insert(error.clone());
        match view.place {
            Some(_) => self.to_actor(state, actor, Letter::Kill { actor }, out),
            None if actor.owner == self.me => {
                self.look_after(state, actor, out);
                match state.actors.get(&actor).and_then(|view| view.place) {
                    Some(_) => self.to_actor(state, actor, Letter::Kill { actor }, out),
                    None => state.owner.fail(actor, error.clone(), &mut out.effects),
                }
            }
            None => out.letters.push((actor.owner, Letter::Kill { actor }, Vec::new())),
        }
    }

    /// An own actor has died where it was.
    pub(super) fn actor_died(
        &self,
        state: &mut State,
        actor: ObjectId,
        from: ProcessId,
        error: Arc<Error>,
        out: &mut Out,
    ) {
        // One of an earlier attempt is not meant.
        if state.owner.place(actor) == Some(from) {
            state.owner.fail(actor, error, &mut out.effects);
            self.look_after(state, actor, out);
        }
    }

    /// An own call is not wanted any more, if it is one: it is not sent (`true`), or its actor is told.
    pub(super) fn stop_call(&self, state: &mut State, call: ObjectId, out: &mut Out) -> bool {
        let Some(actor) = state.calls.get(call.number).map(RemoteActor::object) else { return false };
        let Some(view) = state.actors.get_mut(&actor) else { return false };
        let before = view.waiting.len();
        view.waiting.retain(|letter| !matches!(letter, Letter::Call { call: other, .. } if *other == call));
        let was_sent = view.waiting.len() == before;
        if let (Some(place), true) = (view.place, was_sent) {
            out.letters.push((place, Letter::Stop { task: call, attempt: 0 }, Vec::new()));
        }
        !was_sent
    }

    /// The same, but the actor says how the call ends.
    pub(super) fn withdraw(self: &Arc<Self>, call: ObjectId) {
        self.with(|state, out| {
            if self.stop_call(state, call, out) {
                state.owner.cancel(call, &mut out.effects);
            }
        });
    }

    /// News of an own actor, or the first look at one.
    pub(super) fn look_after(&self, state: &mut State, actor: ObjectId, out: &mut Out) {
        if actor.owner == self.me && state.actors.contains_key(&actor) {
            let place = state.owner.place(actor);
            let dead = match state.owner.value(actor) {
                Some(Value::Failed(error)) => Some(error),
                _ => None,
            };
            self.actor_is(state, actor, place, dead, out);
        }
    }

    /// It is there, or dead, or again neither.
    pub(super) fn actor_is(
        &self,
        state: &mut State,
        actor: ObjectId,
        place: Option<ProcessId>,
        dead: Option<Arc<Error>>,
        out: &mut Out,
    ) {
        let Some(view) = state.actors.get_mut(&actor) else { return };
        (view.place, view.dead) = (place, dead.clone());
        // Its name is free for others from here on.
        if let Some(name) = view.name.take_if(|_| dead.is_some()) {
            let question = Question::Unname { name: name.to_string(), actor };
            out.letters.push((super::protocol::HEAD, Letter::Ask { number: 0, question }, Vec::new()));
        }
        if place.is_none() && dead.is_none() {
            return;
        }
        for asker in std::mem::take(&mut view.asked_by) {
            out.letters.push((asker, Letter::ActorIs { actor, place, dead: dead.clone() }, Vec::new()));
        }
        for letter in std::mem::take(&mut view.waiting) {
            match (place, &letter) {
                (Some(place), Letter::Call { call, .. }) => {
                    state.owner.moved(*call, place);
                    out.letters.push((place, letter, Vec::new()));
                }
                (Some(place), _) => out.letters.push((place, letter, Vec::new())),
                (None, Letter::Call { call, .. }) => {
                    let error = dead.clone().map(|error| died(actor, &error));
                    let error = error.unwrap_or_else(|| unreachable!("it is dead"));
                    state.owner.fulfil(*call, Outcome::Failed(error), &mut out.effects);
                }
                _ => {}
            }
        }
    }

    /// A process is dead: others' actors that were there may be started elsewhere.
    pub(super) fn actors_left(&self, state: &mut State, process: ProcessId) {
        let there = state.actors.iter_mut().filter(|(id, view)| id.owner != self.me && view.place == Some(process));
        there.for_each(|(_, view)| view.look_again());
    }

    /// A call has failed because its actor is not there: it may be elsewhere by now.
    pub(super) fn was_not_there(&self, state: &mut State, actor: ObjectId) {
        if let Some(view) = state.actors.get_mut(&actor).filter(|view| actor.owner != self.me && view.dead.is_none()) {
            view.look_again();
        }
    }

    /// Another process wants to know where an own actor is.
    pub(super) fn where_is(&self, state: &mut State, from: ProcessId, actor: ObjectId, out: &mut Out) {
        state.actors.entry(actor).or_default().asked_by.insert(from);
        self.look_after(state, actor, out);
    }

    /// An own actor's process is gone: it starts again, if it may.
    pub(super) fn actor_ended(&self, state: &mut State, actor: ObjectId, out: &mut Out) {
        let view = state.actors.entry(actor).or_default();
        view.place = None;
        match view.killed.clone() {
            Some(error) => state.owner.fail(actor, error, &mut out.effects),
            None if state.owner.restart(actor, &mut out.effects) => return,
            None => {}
        }
        self.look_after(state, actor, out);
    }

    /// Nobody has a handle to an own actor any more.
    pub(super) fn actor_freed(&self, state: &mut State, actor: ObjectId, out: &mut Out) {
        let Some(view) = state.actors.remove(&actor) else { return };
        if let Some(name) = view.name {
            let question = Question::Unname { name: name.to_string(), actor };
            out.letters.push((super::protocol::HEAD, Letter::Ask { number: 0, question }, Vec::new()));
        }
    }
}

/// What a failure to make an actor means for its calls.
pub(super) fn died(actor: ObjectId, error: &Arc<Error>) -> Arc<Error> {
    match &**error {
        Error::ActorDied { .. } => error.clone(),
        Error::Cancelled { origin } | Error::Lost { origin, .. } | Error::DependencyFailed { origin, .. } => {
            Arc::new(Error::ActorDied { origin: origin.clone(), cause: error.to_string() })
        }
        other => super::node_process::died(actor, &other.to_string()),
    }
}

/// A call of a method.
pub(crate) struct CallEntry<S, F, D, Args, M>(PhantomData<fn(S, F, D)>, PhantomData<fn(Args, M)>);

impl<S, F, D, Args, M> Remote for CallEntry<S, F, D, Args, M>
where
    S: Send + Sync + 'static,
    F: Method<S, Args, M>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    type Function = F;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn run(method: F, arrival: Arrival<'_>) -> Result<()> {
        let Arrived::Call(incoming, actor) = arrival.0 else { return Err(wrong_kind(Self::name())) };
        let Some(actor) = actor.any().downcast_ref::<Actor<S>>() else { return Err(wrong_kind(Self::name())) };
        let args: D = incoming.arguments::<Args, D>()?;
        let call = actor.take_call(MethodBody::new(method, args), incoming.options()?)?;
        let Incoming { client, reply, .. } = incoming;
        client.runs(reply.id, reply.attempt, &call.node(), None);
        reply.with(call);
        Ok(())
    }
}

/// The start of an actor.
pub(crate) struct ActorEntry<F, D, Args, S>(PhantomData<fn(F, D, Args) -> S>);

impl<F, D, Args, S> Remote for ActorEntry<F, D, Args, S>
where
    F: Constructor<Args>,
    D: Deferred<Args>,
    Args: 'static,
    S: Send + Sync + 'static,
{
    type Function = F;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn run(new: F, arrival: Arrival<'_>) -> Result<()> {
        let Arrived::Work(incoming) = arrival.0 else { return Err(wrong_kind(Self::name())) };
        let args: D = incoming.arguments::<Args, D>()?;
        let defaults = ActorExtras::default();
        let extras = incoming.order.extras.as_deref().and_then(|extras| extras.actor.as_ref()).unwrap_or(&defaults);
        let mut checkpoint: Option<Checkpoint<S>> = None;
        if let (Some(site), Some(every)) = (extras.checkpoint, extras.checkpoint_every) {
            part(site, &mut checkpoint)?;
            if let Some(checkpoint) = &mut checkpoint {
                checkpoint.every = every;
            }
        }
        let mut unpack: Option<Unpack<S>> = None;
        if let Some(site) = extras.unpack {
            part(site, &mut unpack)?;
        }
        // The state that is saved is in this process.
        let moves = extras.is_isolated && extras.max_restarts > 0 && checkpoint.is_none();
        let options = ActorOptions {
            name: incoming.order.name.clone(),
            max_restarts: if moves { 0 } else { extras.max_restarts },
            checkpoint,
            max_pending_calls: extras.max_pending_calls,
            max_concurrency: extras.max_concurrency,
            groups: extras.groups.iter().cloned().collect::<BTreeMap<_, _>>(),
        };
        let submitted = incoming.options()?;
        let Incoming { client, reply, .. } = incoming;
        let (id, attempt) = (reply.id, reply.attempt);
        let told = client.clone();
        let tell = Box::new(move |error, restarts| told.hosted_ended((id, attempt), error, restarts));
        let ended = Ended { tell, moves };
        let actor = actor::host(client.core, new, args, unpack, options, submitted, ended)?;
        client.hosts(id, Arc::new(actor.clone()));
        reply.with(actor.ready());
        Ok(())
    }
}

/// How to save a state.
pub(crate) struct CheckpointEntry<S>(PhantomData<fn() -> S>);

impl<S: Object> Remote for CheckpointEntry<S> {
    type Function = ();

    fn name() -> &'static str {
        std::any::type_name::<S>()
    }

    fn run((): (), arrival: Arrival<'_>) -> Result<()> {
        let Arrived::Part(place) = arrival.0 else { return Err(wrong_kind(Self::name())) };
        let place = place.downcast_mut::<Option<Checkpoint<S>>>().ok_or_else(|| wrong_kind(Self::name()))?;
        *place = Some(actor::checkpoint(1));
        Ok(())
    }
}

/// How to take a state out of a `Result`.
pub(crate) struct UnpackEntry<T, E>(PhantomData<fn() -> (T, E)>);

impl<T, E> Remote for UnpackEntry<T, E>
where
    T: Send + Sync + 'static,
    E: Display + Send + Sync + 'static,
{
    type Function = ();

    fn name() -> &'static str {
        std::any::type_name::<(T, E)>()
    }

    fn run((): (), arrival: Arrival<'_>) -> Result<()> {
        let Arrived::Part(place) = arrival.0 else { return Err(wrong_kind(Self::name())) };
        let place = place.downcast_mut::<Option<Unpack<T>>>().ok_or_else(|| wrong_kind(Self::name()))?;
        *place = Some(actor::unpack::<T, E>);
        Ok(())
    }
}
