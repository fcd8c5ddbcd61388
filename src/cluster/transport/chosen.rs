//! The transport that the environment of this process chooses. Processes with different ones understand each other.

use super::{BindError, ConnectionId, Event, Parts, Refused, Transport, omq::Omq};
use std::{env, fmt};

/// `omq`, which is the default, or `zeromq`.
const VARIABLE: &str = "OUTRAY_TRANSPORT";

/// `VARIABLE` names no transport that is there.
#[derive(Debug)]
pub(crate) struct NoSuchTransport(String);

impl fmt::Display for NoSuchTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.0;
        match name.as_str() {
            "zeromq" => write!(
                f,
                "{VARIABLE} is `zeromq`, and this executable was built without it: \
                 build it with the feature `transport-zeromq`, or take `omq`"
            ),
            _ => write!(f, "{VARIABLE} is `{name}`: there are `omq`, which is the default, and `zeromq`"),
        }
    }
}

/// Which of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    Omq,
    #[cfg(feature = "transport-zeromq")]
    Zeromq,
}

impl Choice {
    pub(crate) fn from_env() -> Result<Choice, NoSuchTransport> {
        match env::var_os(VARIABLE) {
            Some(name) => Choice::named(&name.to_string_lossy()),
            None => Ok(Choice::Omq),
        }
    }

    fn named(name: &str) -> Result<Choice, NoSuchTransport> {
        match name {
            "" | "omq" => Ok(Choice::Omq),
            #[cfg(feature = "transport-zeromq")]
            "zeromq" => Ok(Choice::Zeromq),
            _ => Err(NoSuchTransport(name.into())),
        }
    }
}

pub(crate) enum Chosen {
    Omq(Omq),
    #[cfg(feature = "transport-zeromq")]
    Zeromq(super::zeromq::Zeromq),
}

impl Chosen {
    pub(crate) fn new(choice: Choice) -> Chosen {
        match choice {
            Choice::Omq => Chosen::Omq(Omq::new()),
            #[cfg(feature = "transport-zeromq")]
            Choice::Zeromq => Chosen::Zeromq(super::zeromq::Zeromq::new()),
        }
    }
}

/// The same of whichever it is.
macro_rules! each {
    ($self:ident, $transport:ident => $does:expr) => {
        match $self {
            Chosen::Omq($transport) => $does,
            #[cfg(feature = "transport-zeromq")]
            Chosen::Zeromq($transport) => $does,
        }
    };
}

impl Transport for Chosen {
    async fn bind(&mut self, address: &str) -> Result<String, BindError> {
        each!(self, transport => transport.bind(address).await)
    }

    fn dial(&mut self, address: &str) -> ConnectionId {
        each!(self, transport => transport.dial(address))
    }

    fn send(&mut self, connection: ConnectionId, parts: Parts) -> Result<(), Refused> {
        each!(self, transport => transport.send(connection, parts))
    }

    fn close(&mut self, connection: ConnectionId) {
        each!(self, transport => transport.close(connection));
    }

    async fn event(&mut self) -> Event {
        each!(self, transport => transport.event().await)
    }

    async fn shutdown(&mut self) {
        each!(self, transport => transport.shutdown().await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_none_says_which_there_are() {
        assert_eq!(Choice::named("").ok(), Some(Choice::Omq));
        assert_eq!(Choice::named("omq").ok(), Some(Choice::Omq));
        let error = Choice::named("nng").expect_err("there is none").to_string();
        assert!(error.contains("OUTRAY_TRANSPORT is `nng`") && error.contains("`omq`"), "{error}");
        #[cfg(not(feature = "transport-zeromq"))]
        assert!(Choice::named("zeromq").expect_err("it is not built").to_string().contains("`transport-zeromq`"));
        #[cfg(feature = "transport-zeromq")]
        assert_eq!(Choice::named("zeromq").ok(), Some(Choice::Zeromq));
    }
}
