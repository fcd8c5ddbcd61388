//! An object that is made or kept elsewhere, as this process sees it: a node like others.
//!
//! Its bytes arrive, or news of its failure does; the value is made of them when somebody first looks at it.
//! A large one stays where it is until somebody here wants it.

use super::{client::Client, protocol::ObjectId, travel::guarded, wire::Parcel};
use crate::{
    error::{Error, Result},
    local::{
        node::{Blocker, Help, Meta, Node, Options, Phase, Source, complete},
        slot::{Outcome, Slot, View, Waiter},
    },
    object::{Object, ObjectRef},
    serial::{self, Given, Imports},
};
use bytes::Bytes;
use std::{
    panic::Location,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// The bytes of a value, as they are kept.
#[derive(Clone)]
pub(crate) enum Received {
    /// By the owner, too, who is this process.
    Kept(Arc<[u8]>),
    Alone(Bytes),
}

impl Received {
    fn bytes(self) -> Bytes {
        match self {
            Received::Kept(bytes) => Bytes::from_owner(bytes),
            Received::Alone(bytes) => bytes,
        }
    }
}

pub(crate) struct RemoteCell<T> {
    meta: Meta,
    id: ObjectId,
    client: Arc<Client>,
    kind: &'static str,
    type_name: &'static str,
    /// Of a call: the number of its actor here.
    actor: AtomicU64,
    /// What has arrived.
    arrived: Slot<Received>,
    /// What it is, once somebody has looked.
    value: OnceLock<Slot<T>>,
    /// Somebody here wants the value.
    is_wanted: AtomicBool,
    /// No handle is left here.
    is_released: AtomicBool,
}

/// One of these, without its type.
pub(crate) trait Remote: Node {
    fn id(&self) -> ObjectId;
    fn arrive(&self, outcome: Outcome<Received>);
    /// The same if nothing but threads that sleep wait for it, so that no code of the user's is run.
    ///
    /// # Errors
    /// The outcome: others may wait, too.
    fn arrive_quietly(&self, outcome: Outcome<Received>) -> Result<(), Outcome<Received>> {
        Err(outcome)
    }
    fn is_wanted(&self) -> bool;
}

impl<T: Object> RemoteCell<T> {
    pub(crate) fn new(
        client: &Arc<Client>,
        id: ObjectId,
        (kind, type_name): (&'static str, &'static str),
        location: &'static Location<'static>,
        options: Option<Box<Options>>,
    ) -> Arc<Self> {
        Arc::new(RemoteCell {
            meta: Meta::new(client.core, location, options),
            id,
            client: client.clone(),
            kind,
            type_name,
            actor: AtomicU64::new(0),
            arrived: Slot::new(),
            value: OnceLock::new(),
            is_wanted: AtomicBool::new(false),
            is_released: AtomicBool::new(false),
        })
    }

    /// It is a call of this actor's.
    pub(super) fn is_of_actor(&self, number: u64) {
        self.actor.store(number, Ordering::Relaxed);
    }

    /// The value, or why there is none; once it has arrived.
    fn value(&self) -> Outcome<&Slot<T>> {
        if let Some(error) = self.arrived.failure() {
            return Err(error);
        }
        Ok(self.value.get_or_init(|| {
            let value = self
                .arrived
                .peek(Received::clone)
                .map_err(|error| (*error).clone())
                .and_then(|received| guarded("a value that arrived", || self.decode(received)));
            match value {
                Ok(value) => Slot::ready(value),
                Err(error) => {
                    let slot = Slot::new();
                    slot.complete(Err(Arc::new(error)));
                    slot
                }
            }
        }))
    }

    fn decode(&self, received: Received) -> Result<T> {
        let what = "a value that arrived";
        if let Received::Kept(bytes) = &received
            && let Some(value) = Parcel::bare(bytes)
        {
            return serial::from_bytes(value, what);
        }
        let parcel = Parcel::decode(&received.bytes())?;
        // Until this process has a claim of its own to what is inside, the whole keeps it alive.
        let inside = parcel.objects();
        let handles = parcel.handles.into_iter().map(|handle| (handle, Given::Nothing)).collect();
        let imports = Imports { client: self.client.clone(), handles };
        let value = serial::unpack_there(&parcel.bytes, parcel.is_row, imports, what);
        if !inside.is_empty() {
            self.client.claim_all(&inside, Some(self.id));
        }
        value
    }

    /// One more handle, unless there is none any more.
    pub(crate) fn retain(self: Arc<Self>) -> Option<ObjectRef<T>> {
        let handles = &self.meta.handles;
        let mut count = handles.load(Ordering::Acquire);
        while count > 0 {
            match handles.compare_exchange_weak(count, count + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(ObjectRef::first(self)),
                Err(now) => count = now,
            }
        }
        None
    }

    fn want(&self) {
        if !self.is_wanted.swap(true, Ordering::AcqRel) && !self.arrived.is_done() {
            self.client.want(self.id);
        }
    }

    fn release(&self) {
        if !self.is_released.swap(true, Ordering::AcqRel) {
            self.client.release(self.id, self.value.get().is_some());
        }
    }
}

impl<T> Drop for RemoteCell<T> {
    fn drop(&mut self) {
        if !*self.is_released.get_mut() {
            self.client.release(self.id, self.value.get().is_some());
        }
    }
}

impl<T: Object> Remote for RemoteCell<T> {
    fn id(&self) -> ObjectId {
        self.id
    }

    fn arrive(&self, outcome: Outcome<Received>) {
        complete(&self.meta, &self.arrived, outcome);
    }

    fn arrive_quietly(&self, outcome: Outcome<Received>) -> Result<(), Outcome<Received>> {
        self.arrived.complete_quietly(outcome)?;
        if self.meta.handles.load(Ordering::Acquire) == 0 {
            self.arrived.discard();
        }
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Acquire)
    }
}

impl<T: Object> Node for RemoteCell<T> {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn kind(&self) -> &'static str {
        self.kind
    }

    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn is_done(&self) -> bool {
        self.arrived.is_done()
    }

    fn add_waiter(&self, waiter: &Arc<dyn Waiter>) -> bool {
        self.want();
        self.arrived.add_waiter(waiter)
    }

    fn remove_waiter(&self, waiter: &Arc<dyn Waiter>) {
        self.arrived.remove_waiter(waiter);
    }

    fn failure(&self) -> Option<Arc<Error>> {
        self.arrived.failure().or_else(|| self.value.get()?.failure())
    }

    fn fail(&self, error: Arc<Error>) -> bool {
        let failed = complete(&self.meta, &self.arrived, Err(error.clone())).is_first();
        if failed {
            self.client.fail(self.id, error);
        }
        failed
    }

    fn discard(&self) {
        self.arrived.discard();
        if let Some(value) = self.value.get() {
            value.discard();
        }
        self.release();
    }

    fn phase(&self) -> Phase {
        match self.is_done() {
            true => Phase::Done,
            false => self.client.phase(self.id),
        }
    }

    fn wanted(&self) {
        self.want();
    }

    fn withdraw(&self) {
        self.client.withdraw(self.id);
    }

    fn help(self: Arc<Self>) -> Help {
        self.want();
        Help::Busy
    }

    fn remote_id(&self) -> Option<ObjectId> {
        Some(self.id)
    }

    fn blockers(&self) -> Vec<Blocker> {
        self.client.blockers(self.id)
    }

    fn actor_number(&self) -> Option<u64> {
        Some(self.actor.load(Ordering::Relaxed)).filter(|number| *number > 0)
    }
}

impl<T: Object> Source<T> for RemoteCell<T> {
    fn take(&self) -> Outcome<Result<T, Arc<T>>> {
        let value = self.value()?;
        match self.client.is_sole(self.id, &self.meta.handles) {
            true => value.take(),
            false => value.share().map(Err),
        }
    }

    fn share(&self) -> Outcome<Arc<T>> {
        self.value()?.share()
    }

    fn copy(&self) -> Outcome<T>
    where
        T: Clone,
    {
        self.value()?.copy()
    }

    fn view(&self) -> Option<View> {
        self.value().ok()?.view()
    }

    fn keep_view(&self, view: View) {
        if let Ok(value) = self.value() {
            value.keep_view(view);
        }
    }
}
