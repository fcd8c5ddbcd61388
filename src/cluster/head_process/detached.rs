//! Actors that outlive the program that has started them: the head owns them, and keeps what they are made of.
//!
//! They run in workers of a job of their own, one for each executable, which no program's end ends. The head has
//! the executable, for nodes that are to run them when the program is gone. Arguments that are handles stay with the
//! program: while it is there an actor can be started again with them, and not after.

use super::HeadProcess;
use crate::{
    cluster::{
        actors::died,
        control_store::{Detached, Named},
        driver::{new_station, read_part},
        image::Image,
        owner::{Owner, Value},
        protocol::{Effects, HEAD, Message, ObjectId, ProcessId},
        wire::{Blob, Detach, Envelope, Job, Letter},
    },
    error::{Error, Origin},
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A job without actors is kept so long: others may be about to fetch what its workers have made.
const IDLE: Duration = Duration::from_secs(10);

/// The owner of the detached actors.
pub(super) struct Keeper {
    owner: Owner,
    /// Those who want to know where an actor is.
    asked_by: BTreeMap<u64, BTreeSet<ProcessId>>,
    names: Arc<Mutex<BTreeMap<u64, String>>>,
    /// Executables that are arriving, by their jobs.
    fetching: BTreeMap<ProcessId, Fetching>,
}

struct Fetching {
    from: ProcessId,
    content: BytesMut,
    /// Who waits for it, to start actors.
    waiting: Vec<(ProcessId, u64, Detach)>,
}

impl Keeper {
    fn new(out: &mut Effects) -> Keeper {
        let names = Arc::<Mutex<BTreeMap<u64, String>>>::default();
        let known = names.clone();
        let origins = Box::new(move |object: ObjectId| {
            Box::new(Origin {
                kind: "actor".into(),
                name: known.lock().get(&object.number).cloned().unwrap_or_default(),
                id: object.number,
                attempt: 1,
                location: "a program that detached it".into(),
                node: "head".into(),
            })
        });
        let mut owner = Owner::new(HEAD, None, origins, out);
        // No number comes again in a later life of the head.
        owner.count_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() << 20);
        Keeper { owner, asked_by: BTreeMap::new(), names, fetching: BTreeMap::new() }
    }
}

/// Whether a message is for an owner, and not for a head.
pub(super) fn is_for_owner(message: &Message) -> bool {
    match message {
        Message::Placed { task, .. }
        | Message::Finished { task, .. }
        | Message::Ended { task, .. }
        | Message::Lacks { task, .. }
        | Message::Cancel { task, .. } => task.owner == HEAD,
        Message::Locate { object, .. }
        | Message::Holds { object, .. }
        | Message::Claim { object }
        | Message::Unclaim { object } => object.owner == HEAD,
        Message::Anew => true,
        _ => false,
    }
}

impl HeadProcess {
    /// Takes up the actors that were there in the last life.
    pub(super) fn restore_detached(&mut self) {
        if self.saved.detached.is_empty() {
            return;
        }
        let mut out = Effects::default();
        let mut keeper = Keeper::new(&mut out);
        for (number, kept) in &self.saved.detached {
            keeper.names.lock().insert(*number, kept.name.clone());
            let there = kept.there.as_ref().map(|(node, value)| (*node, Arc::from(&value.0[..])));
            keeper.owner.restore(*number, kept.work(), (kept.attempt, kept.uncounted), there);
        }
        keeper.owner.join_again(&mut out);
        self.keeper = Some(keeper);
        self.owner_did(out);
    }

    pub(super) fn with_owner(&mut self, work: impl FnOnce(&mut Owner, &mut Effects)) {
        let mut out = Effects::default();
        work(&mut self.keeper.get_or_insert_with(|| Keeper::new(&mut out)).owner, &mut out);
        self.owner_did(out);
    }

    fn owner_did(&mut self, out: Effects) {
        for (to, message) in out.sends {
            if to == HEAD {
                let mut more = Effects::default();
                self.head.handle(self.now(), HEAD, message, &mut more);
                self.carry_out(more);
                continue;
            }
            let value = match (&message, &self.keeper) {
                (Message::Pushed { object, .. }, Some(keeper)) => keeper.owner.value(*object),
                _ => None,
            };
            let payload = match value {
                Some(Value::Inline(value)) => vec![Bytes::from_owner(value)],
                _ => Vec::new(),
            };
            self.station.post(&Envelope { from: HEAD, to, letter: Letter::Control(message), payload });
        }
        for (actor, _) in out.ended {
            self.with_owner(|owner, out| {
                owner.restart(actor, out);
            });
            self.has_changed(actor);
        }
        for (actor, _) in out.done {
            self.has_changed(actor);
        }
    }

    /// A message of another process to the owner.
    pub(super) fn tell_owner(&mut self, from: ProcessId, message: Message) {
        match message {
            Message::Cancel { task, .. } => {
                self.with_owner(|owner, out| owner.cancel(task, out));
                self.has_changed(task);
            }
            message => self.with_owner(|owner, out| owner.handle(from, message, out)),
        }
    }

    /// An actor has ended for good, as its node says.
    pub(super) fn has_died(&mut self, actor: ObjectId, error: Arc<Error>) {
        if actor.owner == HEAD {
            self.with_owner(|owner, out| owner.fail(actor, error, out));
            self.has_changed(actor);
        }
    }

    /// An actor is somewhere, or nowhere now, or dead.
    fn has_changed(&mut self, actor: ObjectId) {
        let Some(keeper) = &mut self.keeper else { return };
        let Some((attempt, uncounted, there)) = keeper.owner.kept(actor) else { return };
        let there = there.map(|(node, value)| (node, Blob(Bytes::from_owner(value))));
        let (place, failure) = (there.as_ref().map(|(node, _)| *node), keeper.owner.failure(actor));
        let dead = failure.map(|error| died(actor, &error));
        self.saved.detached_is(actor.number, attempt, uncounted, there);
        if dead.is_some() {
            self.saved.is_no_more(actor);
            keeper.names.lock().remove(&actor.number);
        }
        self.saved.flush();
        if place.is_none() && dead.is_none() {
            return;
        }
        for asker in keeper.asked_by.remove(&actor.number).unwrap_or_default() {
            self.post(asker, Letter::ActorIs { actor, place, dead: dead.clone() });
        }
        if dead.is_some() {
            self.with_owner(|owner, out| owner.release(actor, out));
        }
    }

    pub(super) fn where_is(&mut self, from: ProcessId, actor: ObjectId) {
        match &mut self.keeper {
            Some(keeper) if self.saved.detached.contains_key(&actor.number) => {
                keeper.asked_by.entry(actor.number).or_default().insert(from);
                self.has_changed(actor);
            }
            _ => {
                let dead = Some(crate::cluster::node_process::died(actor, "it has ended"));
                self.post(from, Letter::ActorIs { actor, place: None, dead });
            }
        }
    }

    /// Starts an actor, when the executable is here.
    pub(super) fn detach(&mut self, from: ProcessId, number: u64, detach: Detach) {
        if let Some(named) = self.saved.names.get(&detach.name) {
            let kept = self.saved.detached.get(&named.actor.number).filter(|_| named.actor.owner == HEAD);
            // It may have been started, and the answer lost with the last head.
            let answer = match kept.is_some_and(|kept| kept.ticket == detach.ticket) {
                true => id(named.actor),
                false => json!({ "free": false }),
            };
            return self.answer(from, number, &answer);
        }
        let job = match self.detached_job(&detach.job) {
            Ok(job) => job,
            Err(error) => return self.answer(from, number, &json!({ "error": error.to_string() })),
        };
        if self.executable(&job.image).is_some() {
            return self.start_detached(from, number, job.driver, detach);
        }
        if self.cache.is_none() {
            let why = "the head has no place for the program's executable: neither XDG_CACHE_HOME nor HOME is set";
            return self.answer(from, number, &json!({ "error": why }));
        }
        let mut out = Effects::default();
        let keeper = self.keeper.get_or_insert_with(|| Keeper::new(&mut out));
        let source = detach.job.source;
        let fetching = keeper.fetching.entry(job.driver).or_insert_with(|| Fetching {
            from: source,
            content: BytesMut::new(),
            waiting: Vec::new(),
        });
        fetching.waiting.push((from, number, detach));
        let (is_first, from) = (fetching.waiting.len() == 1, fetching.from);
        self.owner_did(out);
        if is_first {
            self.post(from, Letter::WantImage { driver: job.driver, offset: 0 });
        }
    }

    /// The job of the detached actors of a program.
    fn detached_job(&mut self, of: &Job) -> Result<Job, Error> {
        let known = self.jobs.values().find(|(job, _)| job.source == HEAD && job.image == of.image);
        if let Some((job, _)) = known {
            return Ok(job.clone());
        }
        let job = Job { driver: new_station()?, source: HEAD, observe: false, ..of.clone() };
        self.saved.job(job.clone());
        self.saved.flush();
        self.jobs.insert(job.driver, (job.clone(), Instant::now()));
        Ok(job)
    }

    fn executable(&self, image: &Image) -> Option<PathBuf> {
        if Image::current().is_ok_and(|ours| ours == image) {
            return Some("/proc/self/exe".into());
        }
        self.cache.as_ref()?.find(image).ok()?
    }

    fn start_detached(&mut self, from: ProcessId, number: u64, job: ProcessId, detach: Detach) {
        let mut body = detach.order.0.to_vec();
        let Some(driver) = body.first_chunk_mut::<8>() else {
            return self.answer(from, number, &json!({ "error": "the actor that arrived cannot be read" }));
        };
        *driver = job.0.to_le_bytes();
        if self.saved.names.contains_key(&detach.name) {
            return self.answer(from, number, &json!({ "free": false }));
        }
        let mut actor = None;
        self.with_owner(|owner, _| actor = Some(owner.next().0));
        let Some(actor) = actor else { return };
        let Detach { ticket, name, type_name, demand, strategy, args, attempts, .. } = detach;
        let body = Blob(body.into());
        let (attempt, uncounted, there) = (0, 0, None);
        let kept = Detached { ticket, job, name, demand, strategy, args, attempts, body, attempt, uncounted, there };
        let work = kept.work();
        if let Some(keeper) = &self.keeper {
            keeper.names.lock().insert(actor.number, kept.name.clone());
        }
        self.saved.name(&kept.name, Named { actor, number: actor.number, type_name, detached: true });
        self.saved.detach(actor.number, kept);
        self.saved.flush();
        self.with_owner(|owner, out| {
            owner.submit(work, out);
        });
        self.answer(from, number, &id(actor));
    }

    /// The hash of the executable that a detached actor is of.
    pub(super) fn executable_of(&self, actor: ObjectId) -> Option<String> {
        let kept = self.saved.detached.get(&actor.number).filter(|_| actor.owner == HEAD)?;
        self.jobs.get(&kept.job).map(|(job, _)| job.image.hash.to_string())
    }

    /// A part of an executable, for a node.
    pub(super) fn send_image(&self, to: ProcessId, driver: ProcessId, offset: u64) {
        let path = self.jobs.get(&driver).and_then(|(job, _)| self.executable(&job.image));
        let part = path.and_then(|path| File::open(path).ok()).and_then(|file| read_part(&file, offset).ok());
        let letter = Letter::ImagePart { driver, offset };
        // The node takes nothing for a failure.
        let payload = vec![part.unwrap_or_default()];
        self.station.post(&Envelope { from: HEAD, to, letter, payload });
    }

    /// A part of an executable, from a program.
    pub(super) fn image_part(&mut self, driver: ProcessId, offset: u64, part: Bytes) {
        let Some(image) = self.jobs.get(&driver).map(|(job, _)| job.image.clone()) else { return };
        let Some(keeper) = &mut self.keeper else { return };
        let Some(fetching) = keeper.fetching.get_mut(&driver) else { return };
        let is_cut_off = part.is_empty() || offset != fetching.content.len() as u64;
        fetching.content.extend_from_slice(&part);
        let (from, offset) = (fetching.from, fetching.content.len() as u64);
        if !is_cut_off && offset < image.size {
            return self.post(from, Letter::WantImage { driver, offset });
        }
        let Some(fetching) = keeper.fetching.remove(&driver) else { return };
        let stored = match &self.cache {
            Some(cache) if !is_cut_off => cache.store(&image, &fetching.content[..]).map_err(|error| error.to_string()),
            _ => Err("the program could not send its executable; is the file still there?".into()),
        };
        for (from, number, detach) in fetching.waiting {
            match &stored {
                Ok(_) => self.start_detached(from, number, driver, detach),
                Err(error) => self.answer(from, number, &json!({ "error": error })),
            }
        }
    }

    /// A process is no more: it sends no executable.
    pub(super) fn sends_nothing(&mut self, process: ProcessId) {
        if let Some(keeper) = &mut self.keeper {
            keeper.fetching.retain(|_, fetching| fetching.from != process);
        }
    }

    /// Lets the owner do what is due, and ends the jobs that have no actors.
    pub(super) fn look_after_detached(&mut self) {
        let now = self.now();
        if self.keeper.is_some() {
            self.with_owner(|owner, out| owner.tick(now, out));
        }
        let used: BTreeSet<_> = self.saved.detached.values().map(|kept| kept.job).collect();
        let fetching = self.keeper.iter().flat_map(|keeper| keeper.fetching.keys());
        let used: BTreeSet<_> = used.into_iter().chain(fetching.copied()).collect();
        let unused = self.jobs.values().filter(|(job, _)| job.source == HEAD && !used.contains(&job.driver));
        let unused: BTreeSet<_> = unused.map(|(job, _)| job.driver).collect();
        self.idle.retain(|job, _| unused.contains(job));
        for job in unused {
            if self.idle.entry(job).or_insert_with(Instant::now).elapsed() > IDLE {
                let mut out = Effects::default();
                self.head.bury(now, job, &mut out);
                self.carry_out(out);
            }
        }
    }
}

fn id(actor: ObjectId) -> Json {
    json!({ "owner": actor.owner.0, "number": actor.number })
}
