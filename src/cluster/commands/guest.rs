//! Asks a head, as a station that is no part of the cluster.

use super::Failed;
use crate::cluster::{
    driver::{bind_for, new_station, not_listening},
    key_from_env,
    protocol::{HEAD, ProcessId},
    roles::silence,
    station::{Happening, Station},
    wire::{Envelope, Letter, Question, Role},
};
use crate::error::Error;
use serde_json::Value;
use std::{
    cell::Cell,
    net::{TcpStream, ToSocketAddrs},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long the head may take to say hello. Somebody waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// And to answer: nodes may be busy, or just be dying.
const ANSWER: Duration = Duration::from_secs(20);

pub(super) struct Guest {
    me: ProcessId,
    station: Arc<Station>,
    events: mpsc::Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

enum Event {
    Met,
    Refused(String),
    Lost(String),
    Answer(Vec<u8>),
}

impl Guest {
    pub(super) fn connect(address: &str) -> Result<Guest, Failed> {
        let reached = address
            .to_socket_addrs()
            .map(|mut all| all.next().is_some_and(|address| TcpStream::connect_timeout(&address, PATIENCE).is_ok()));
        let key = key_from_env()?;
        let has_key = key.is_some();
        if !reached.is_ok_and(|reached| reached) {
            return Err(Failed::Error(silence(address, has_key, PATIENCE)));
        }
        let me = new_station()?;
        let (station, incoming) = Station::start(me, Role::Guest, &bind_for(address)?, key)
            .map_err(|error| not_listening(&error, address))?;
        station.dial(address);
        let (tell, events) = mpsc::channel();
        let running = station.clone();
        let thread = std::thread::spawn(move || {
            let next = Cell::new(Instant::now());
            running.run(
                incoming,
                || next.get(),
                |happening| {
                    // The other end may have seen enough.
                    let _ = match happening {
                        Happening::Met { station, .. } if station == HEAD => tell.send(Event::Met),
                        Happening::Refused(reason) => tell.send(Event::Refused(reason)),
                        Happening::Lost { station, reason } if station == HEAD => tell.send(Event::Lost(reason)),
                        Happening::Letters(letters) => {
                            letters.into_iter().try_for_each(|Envelope { letter, payload, .. }| match letter {
                                Letter::Answer { .. } => tell.send(Event::Answer(payload.concat())),
                                _ => Ok(()),
                            })
                        }
                        Happening::Tick => {
                            next.set(Instant::now() + PATIENCE);
                            Ok(())
                        }
                        _ => Ok(()),
                    };
                },
            );
        });
        let guest = Guest { me, station, events, thread: Some(thread) };
        match guest.events.recv_timeout(PATIENCE) {
            Ok(Event::Refused(reason)) => Err(guest.refused(reason)),
            Ok(Event::Lost(reason)) => Err(guest.gone(&reason)),
            Ok(_) => Ok(guest),
            Err(_) => Err(Failed::Error(silence(address, has_key, PATIENCE))),
        }
    }

    fn refused(&self, reason: String) -> Failed {
        Failed::Error(format!("the head refuses this process: {reason}"))
    }

    fn gone(&self, reason: &str) -> Failed {
        Failed::Error(format!("the head is gone: {reason}"))
    }

    pub(super) fn ask(&self, question: Question) -> Result<Value, Failed> {
        let letter = Letter::Ask { number: 1, question };
        self.station.post(&Envelope { from: self.me, to: HEAD, letter, payload: Vec::new() });
        let late = || format!("the head did not answer within {ANSWER:?}; `outray status` may say why");
        loop {
            match self.events.recv_timeout(ANSWER) {
                Ok(Event::Answer(answer)) => {
                    let broken = |error| {
                        Failed::from(Error::Unsupported { reason: format!("the answer cannot be read: {error}") })
                    };
                    return serde_json::from_slice(&answer).map_err(broken);
                }
                Ok(Event::Refused(reason)) => return Err(self.refused(reason)),
                Ok(Event::Lost(reason)) => return Err(self.gone(&reason)),
                Ok(Event::Met) => {}
                Err(_) => return Err(Failed::Error(late())),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.station.close(Duration::from_secs(1));
        // It ends with the endpoint; what it still has to say nobody hears.
        drop(self.thread.take());
    }
}
