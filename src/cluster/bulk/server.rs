//! The side that has the objects.

use super::{
    Answer, Bytes, Config, Direction, NotNow, ObjectId, PullError, RECORD, Request, TAG, greet, read_record, within,
    write_record,
};
use crate::cluster::refusals::Refusals;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};

pub(super) type Lookup = dyn Fn(ObjectId) -> Result<Option<Bytes>, NotNow> + Send + Sync;

/// Until the next attempt, when the system has no descriptor for a connection.
const RETRY: Duration = Duration::from_millis(50);

struct Server {
    config: Config,
    lookup: Arc<Lookup>,
    /// Connections that may still come to be served.
    room: Arc<Semaphore>,
    /// Bytes of objects that have gone out.
    sent: Arc<AtomicU64>,
    start: Instant,
    refusals: Mutex<Refusals>,
}

/// A connection that has not shown the key, until the flag says so.
struct Stranger {
    is_known: Arc<AtomicBool>,
    task: AbortHandle,
}

/// Never ends by itself.
pub(super) async fn serve(config: Config, listener: TcpListener, lookup: Arc<Lookup>, sent: Arc<AtomicU64>) {
    let room = Arc::new(Semaphore::new(config.served));
    let server = Arc::new(Server { config, lookup, room, sent, start: Instant::now(), refusals: Mutex::default() });
    let mut connections = JoinSet::new();
    let mut strangers: VecDeque<Stranger> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, remote)) = accepted else {
            sleep(RETRY).await;
            continue;
        };
        strangers.retain(|stranger| !stranger.is_known.load(Relaxed) && !stranger.task.is_finished());
        while strangers.len() >= server.config.strangers {
            let Some(oldest) = strangers.pop_front() else { break };
            oldest.task.abort();
            server.refuse("a stranger", &"too many others came after it without showing the key");
        }
        let is_known = Arc::new(AtomicBool::new(false));
        let body = server.clone().connection(stream, remote.to_string(), is_known.clone());
        strangers.push_back(Stranger { is_known, task: connections.spawn(body) });
    }
}

impl Server {
    fn refuse(&self, remote: &str, why: &dyn std::fmt::Display) {
        self.refusals.lock().log(self.start.elapsed(), remote, why);
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, remote: String, is_known: Arc<AtomicBool>) {
        let Err(error) = self.answer(stream, &is_known).await else { return };
        match is_known.load(Relaxed) {
            true => tracing::debug!(remote, "bulk connection ended: {error}"),
            false => self.refuse(&remote, &error),
        }
    }

    async fn answer(&self, mut stream: TcpStream, is_known: &AtomicBool) -> Result<(), PullError> {
        stream.set_nodelay(true)?;
        let config = &self.config;
        let first = async {
            let mut directions = greet(&mut stream, config.key.as_ref(), false).await?;
            let request = read_request(&mut stream, directions.as_mut().map(|(_, opening)| opening)).await?;
            Ok::<_, PullError>((directions, request))
        };
        let (mut directions, mut request) = within(config.handshake, "the handshake", first).await?;
        is_known.store(true, Relaxed);
        let mut sealing = directions.as_mut().map(|(sealing, _)| sealing);
        let Ok(_room) = self.room.clone().try_acquire_owned() else {
            let busy = write_record(&mut stream, sealing, Answer::Busy.encode());
            return within(config.stall, "an answer", busy).await;
        };
        loop {
            let (answer, bytes) = self.find(request);
            let head = write_record(&mut stream, sealing.as_deref_mut(), answer.encode());
            within(config.stall, "an answer", head).await?;
            send(&mut stream, sealing, bytes, config.stall, &self.sent).await?;
            let opening = directions.as_mut().map(|(_, opening)| opening);
            request = within(config.idle, "the next request", read_request(&mut stream, opening)).await?;
            sealing = directions.as_mut().map(|(sealing, _)| sealing);
        }
    }

    fn find(&self, request: Request) -> (Answer, Bytes) {
        let mut bytes = match (self.lookup)(request.object) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return (Answer::Absent, Bytes::new()),
            Err(NotNow) => return (Answer::Busy, Bytes::new()),
        };
        let size = bytes.len() as u64;
        match request.offset.checked_add(request.length) {
            Some(end) if end <= size => {
                (Answer::Found, bytes.split_to(end as usize).split_off(request.offset as usize))
            }
            _ => (Answer::TooShort { size }, Bytes::new()),
        }
    }
}

async fn read_request(stream: &mut TcpStream, opening: Option<&mut Direction>) -> Result<Request, PullError> {
    let mut request = [0; Request::BYTES];
    read_record(stream, opening, &mut request).await?;
    Ok(Request::decode(&request))
}

async fn send(
    stream: &mut TcpStream,
    mut sealing: Option<&mut Direction>,
    bytes: Bytes,
    stall: Duration,
    sent: &AtomicU64,
) -> Result<(), PullError> {
    let mut sealed = Vec::new();
    for record in bytes.chunks(RECORD) {
        let length = record.len() as u64;
        let record = match &mut sealing {
            None => record,
            Some(sealing) => {
                sealed.reserve_exact((record.len() + TAG).saturating_sub(sealed.capacity()));
                sealed.clear();
                sealed.extend_from_slice(record);
                let tag = sealing.seal(&mut sealed)?;
                sealed.extend(tag);
                &sealed
            }
        };
        within(stall, "a record", stream.write_all(record)).await?;
        sent.fetch_add(length, Relaxed);
    }
    Ok(())
}
