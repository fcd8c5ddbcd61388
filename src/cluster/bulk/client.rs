//! The side that wants an object.

use super::{
    Answer, Config, Directions, ObjectId, PullError, RECORD, Request, greet, mark::wake_at, read_record, within,
    write_record,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    net::TcpStream,
    runtime::Handle,
    sync::{Semaphore, oneshot},
    time::{Instant, sleep},
};

/// Bytes on their way. Whoever drops it wants them no more.
pub(crate) struct Pull<P>(oneshot::Receiver<Result<P, Stopped<P>>>);

/// Not all of the bytes have come.
pub(crate) struct Stopped<P> {
    pub(crate) why: PullError,
    /// So many of the first ones have, and where they are.
    pub(crate) part: Option<(P, usize)>,
}

impl<P> Stopped<P> {
    const CLOSED: Stopped<P> = Stopped { why: PullError::Closed, part: None };
}

impl<P> Pull<P> {
    /// Waits for all of them, or those that come; not on a thread of tokio's.
    pub(crate) fn wait_for_any(self) -> Result<P, Stopped<P>> {
        self.0.blocking_recv().unwrap_or(Err(Stopped::CLOSED))
    }

    /// Waits for them; not on a thread of tokio's.
    #[cfg(test)]
    pub(crate) fn wait(self) -> Result<P, PullError> {
        self.wait_for_any().map_err(|stopped| stopped.why)
    }
}

impl<P> Future for Pull<P> {
    type Output = Result<P, PullError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let pulled = Pin::new(&mut self.0).poll(context).map(|pulled| pulled.unwrap_or(Err(Stopped::CLOSED)));
        pulled.map(|pulled| pulled.map_err(|stopped| stopped.why))
    }
}

impl<P> fmt::Debug for Pull<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pull").finish_non_exhaustive()
    }
}

struct Connection {
    stream: TcpStream,
    directions: Directions,
    used: Instant,
}

struct Peer {
    /// Connections with nothing to do, the latest last.
    idle: Vec<Connection>,
    /// Pulls that may begin.
    room: Arc<Semaphore>,
}

pub(super) struct Client {
    config: Config,
    peers: Mutex<HashMap<String, Peer>>,
}

impl Client {
    pub(super) fn new(config: Config) -> Client {
        Client { config, peers: Mutex::default() }
    }

    /// Closes connections that are not used, now and then. Never ends by itself.
    pub(super) async fn close_idle(&self) {
        let limit = self.config.idle / 2;
        loop {
            sleep(limit / 2).await;
            self.peers.lock().retain(|_, peer| {
                peer.idle.retain(|connection| connection.used.elapsed() < limit);
                // Somebody who waits for room has a reference to it.
                !peer.idle.is_empty() || Arc::strong_count(&peer.room) > 1
            });
        }
    }

    /// To whom there are connections.
    #[cfg(test)]
    pub(super) fn peers(&self) -> usize {
        self.peers.lock().len()
    }

    /// Connections with nothing to do.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.peers.lock().values().map(|peer| peer.idle.len()).sum()
    }

    fn room(&self, address: &str) -> Arc<Semaphore> {
        let mut peers = self.peers.lock();
        let new = || Peer { idle: Vec::new(), room: Arc::new(Semaphore::new(self.config.per_peer)) };
        peers.entry(address.into()).or_insert_with(new).room.clone()
    }

    /// `got`: so many bytes have come.
    async fn pull(
        &self,
        address: &str,
        (object, offset): (ObjectId, u64),
        place: &mut [u8],
        got: &mut usize,
    ) -> Result<(), PullError> {
        let room = self.room(address);
        let _room = room.acquire().await.map_err(|_| PullError::Closed)?;
        let request = Request { object, offset, length: place.len() as u64 };
        let idle = self.peers.lock().get_mut(address).and_then(|peer| peer.idle.pop());
        let (mut connection, answer) = match idle {
            Some(mut connection) => match self.ask(&mut connection, request).await {
                Ok(answer) => (connection, answer),
                // The peer may just have closed it.
                Err(_) => self.dial_and_ask(address, request).await?,
            },
            None => self.dial_and_ask(address, request).await?,
        };
        let outcome = match answer {
            Answer::Busy => return Err(PullError::Busy),
            Answer::Absent => Err(PullError::Absent),
            Answer::TooShort { size } => Err(PullError::TooShort { size }),
            Answer::Found => {
                // A record at a time, as long as more than one is to come: to wake this side for each segment would take the
                // other a third of its time. Never for more than what will come.
                let marked = place.len().div_ceil(RECORD).saturating_sub(2);
                if marked > 0 {
                    wake_at(&connection.stream, RECORD);
                }
                for (at, record) in place.chunks_mut(RECORD).enumerate() {
                    if marked > 0 && at == marked {
                        wake_at(&connection.stream, 1);
                    }
                    let opening = connection.directions.as_mut().map(|(_, opening)| opening);
                    let length = record.len();
                    within(self.config.stall, "a record", read_record(&mut connection.stream, opening, record)).await?;
                    *got += length;
                }
                Ok(())
            }
        };
        connection.used = Instant::now();
        let brought = connection.directions.as_ref().map_or(0, |(_, opening)| opening.bytes());
        if brought < self.config.renew_after
            && let Some(peer) = self.peers.lock().get_mut(address)
        {
            peer.idle.push(connection);
        }
        outcome
    }

    async fn dial_and_ask(&self, address: &str, request: Request) -> Result<(Connection, Answer), PullError> {
        let connect = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let directions = greet(&mut stream, self.config.key.as_ref(), true).await?;
            Ok::<_, PullError>(Connection { stream, directions, used: Instant::now() })
        };
        let mut connection = within(self.config.handshake, "the handshake", connect).await?;
        let answer = self.ask(&mut connection, request).await?;
        Ok((connection, answer))
    }

    async fn ask(&self, connection: &mut Connection, request: Request) -> Result<Answer, PullError> {
        let Connection { stream, directions, .. } = connection;
        let asked = async {
            let sealing = directions.as_mut().map(|(sealing, _)| sealing);
            write_record(stream, sealing, request.encode()).await?;
            let mut answer = [0; Answer::BYTES];
            read_record(stream, directions.as_mut().map(|(_, opening)| opening), &mut answer).await?;
            Answer::decode(&answer).ok_or(PullError::Refused(super::SecureError::BadRecord))
        };
        within(self.config.stall, "the answer", asked).await
    }
}

pub(super) fn pull<P>(
    runtime: &Handle,
    client: &Arc<Client>,
    from: &str,
    object: ObjectId,
    offset: u64,
    mut place: P,
) -> Pull<P>
where
    P: AsMut<[u8]> + Send + 'static,
{
    let (mut done, pull) = oneshot::channel();
    let (client, from) = (client.clone(), from.to_string());
    runtime.spawn(async move {
        let mut got = 0;
        let pulled = tokio::select! {
            pulled = client.pull(&from, (object, offset), place.as_mut(), &mut got) => pulled,
            () = done.closed() => return,
        };
        let pulled = match pulled {
            Ok(()) => Ok(place),
            Err(why) => Err(Stopped { why, part: Some((place, got)) }),
        };
        let _ = done.send(pulled); // it may be wanted no more
    });
    Pull(pull)
}
