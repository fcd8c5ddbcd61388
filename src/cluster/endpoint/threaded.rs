//! An endpoint with a thread that does nothing but its I/O, for tests that do one step after the other.

use super::{Command, Config, Credit, Endpoint, Event, Incarnation, Next, StartError};
use crate::cluster::transport::Transport;
use std::{collections::HashMap, mem, sync::mpsc, thread, time::Duration};
use tokio::sync::mpsc::UnboundedSender;

impl Endpoint {
    pub(crate) fn start<T: Transport>(
        config: Config,
        transport: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(Endpoint, Events), StartError> {
        let window = config.link.window;
        let (started, start) = mpsc::channel();
        let (happened, happens) = mpsc::channel();
        thread::spawn(move || {
            let mut pump = match Endpoint::open(config, transport) {
                Ok((endpoint, pump)) => {
                    started.send(Ok(endpoint)).expect("it waits");
                    pump
                }
                Err(error) => return started.send(Err(error)).expect("it waits"),
            };
            while let Next::Happened(event) = pump.next(None) {
                let _ = happened.send(event); // nobody may listen any more
            }
        });
        let endpoint = start.recv().expect("it starts, or says why not")?;
        let commands = endpoint.commands.clone();
        Ok((endpoint, Events { happens, commands, window, handed_out: HashMap::new() }))
    }
}

/// What happens. A message that is not taken from here uses up its sender's credit.
#[derive(Debug)]
pub(crate) struct Events {
    happens: mpsc::Receiver<Event>,
    commands: UnboundedSender<Command>,
    window: Credit,
    /// Not yet reported as consumed.
    handed_out: HashMap<Incarnation, Credit>,
}

impl Events {
    /// Waits for the next event; `None` once the endpoint is closed.
    pub(crate) fn recv(&mut self) -> Option<Event> {
        let event = self.happens.recv().ok()?;
        Some(self.taken(event))
    }

    /// As `recv`; `None` also when nothing came in time.
    pub(crate) fn recv_timeout(&mut self, timeout: Duration) -> Option<Event> {
        let event = self.happens.recv_timeout(timeout).ok()?;
        Some(self.taken(event))
    }

    /// Reports what was handed out, an eighth of a window at a time.
    fn taken(&mut self, event: Event) -> Event {
        match &event {
            Event::Message(peer, message) => {
                let credit = self.handed_out.entry(*peer).or_default();
                credit.messages += 1;
                credit.bytes += message.cost() as u64;
                if credit.messages >= self.window.messages / 8 || credit.bytes >= self.window.bytes / 8 {
                    let _ = self.commands.send(Command::Consumed(*peer, mem::take(credit)));
                }
            }
            Event::Lost(peer, _) => drop(self.handed_out.remove(peer)),
            _ => {}
        }
        event
    }
}
