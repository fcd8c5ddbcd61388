//! Addresses that are to be connected, and when to try again.
//!
//! Each attempt that fails doubles the time to the next, up to a limit; one that reaches a peer sets it
//! back. While the peer's link has another connection there is nothing to do.

use super::Incarnation;
use crate::cluster::{link::Now, transport::ConnectionId};
use std::time::Duration;

struct Dial {
    address: String,
    connection: Option<ConnectionId>,
    /// Who was there last.
    peer: Option<Incarnation>,
    /// When to try again, if there is no connection.
    at: Now,
    wait: Duration,
}

pub(super) struct Dials {
    all: Vec<Dial>,
    /// The time to the next attempt: at first, and at most.
    retry: (Duration, Duration),
}

impl Dials {
    pub(super) fn new(retry: (Duration, Duration)) -> Self {
        Dials { all: Vec::new(), retry }
    }

    pub(super) fn add(&mut self, now: Now, address: String) {
        if self.all.iter().all(|dial| dial.address != address) {
            self.all.push(Dial { address, connection: None, peer: None, at: now, wait: self.retry.0 });
        }
    }

    /// Returns the connection that it has, or tries to have.
    #[cfg(test)]
    pub(super) fn remove(&mut self, address: &str) -> Option<ConnectionId> {
        let at = self.all.iter().position(|dial| dial.address == address)?;
        self.all.swap_remove(at).connection
    }

    /// Looks for nobody new.
    pub(super) fn keep_known(&mut self) {
        self.all.retain(|dial| dial.peer.is_some());
    }

    fn of(&mut self, id: ConnectionId) -> Option<&mut Dial> {
        self.all.iter_mut().find(|dial| dial.connection == Some(id))
    }

    /// Notes who is at a connection's address. Returns who was there before, and is no more.
    pub(super) fn introduced(&mut self, id: ConnectionId, peer: Incarnation) -> Option<Incarnation> {
        let wait = self.retry.0;
        let dial = self.of(id)?;
        dial.wait = wait;
        dial.peer.replace(peer).filter(|before| *before != peer)
    }

    pub(super) fn disconnected(&mut self, now: Now, id: ConnectionId) {
        let longest = self.retry.1;
        let Some(dial) = self.of(id) else { return };
        dial.connection = None;
        dial.at = now + dial.wait;
        dial.wait = (dial.wait * 2).min(longest);
    }

    /// When the next attempt is due.
    pub(super) fn next(&self) -> Option<Now> {
        self.all.iter().filter(|dial| dial.connection.is_none()).map(|dial| dial.at).min()
    }

    /// Makes the attempts that are due.
    pub(super) fn dial(
        &mut self,
        now: Now,
        is_attached: impl Fn(Incarnation) -> bool,
        mut connect: impl FnMut(&str) -> ConnectionId,
    ) {
        for dial in self.all.iter_mut().filter(|dial| dial.connection.is_none() && dial.at <= now) {
            match dial.peer.is_some_and(&is_attached) {
                true => dial.at = now + self.retry.1, // looks again then
                false => dial.connection = Some(connect(&dial.address)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn id(number: u64) -> ConnectionId {
        ConnectionId { dialed: true, number }
    }

    #[test]
    fn attempts_that_fail_come_ever_later_and_a_peer_sets_that_back() {
        let mut dials = Dials::new((50 * MS, 400 * MS));
        let mut now = Now::ZERO;
        dials.add(now, "a".into());
        dials.add(now, "a".into());
        let mut waits = Vec::new();
        for number in 1..7 {
            let mut attempts = 0;
            dials.dial(
                now,
                |_| false,
                |_| {
                    attempts += 1;
                    id(number)
                },
            );
            assert_eq!((attempts, dials.next()), (1, None));
            if number == 5 {
                assert_eq!(dials.introduced(id(5), Incarnation([1; 16])), None);
            }
            dials.disconnected(now, id(number));
            let next = dials.next().expect("it tries again");
            waits.push(next - now);
            now = next;
        }
        assert_eq!(waits, [50, 100, 200, 400, 50, 100].map(|wait| wait * MS));
        dials.dial(now, |_| true, |_| panic!("the peer has another connection"));
        dials.dial(now + 400 * MS, |_| false, |_| id(7));
        let (old, new) = (Incarnation([1; 16]), Incarnation([2; 16]));
        assert_eq!(dials.introduced(id(7), new), Some(old));
        assert_eq!(dials.introduced(id(7), new), None);
        assert_eq!(dials.remove("a"), Some(id(7)));
        assert_eq!(dials.remove("a"), None);
    }
}
