//! A worker: this executable, started by a node, with the local runtime inside and the cluster beside it.

use super::{
    client::{Client, Post},
    pipe,
    wire::{Envelope, Letter},
};
use crate::local::{
    Config, Core,
    resources::{Amounts, WHOLE},
};
use std::{fs::File, io, process::exit, time::Duration};

/// How often the client is told the time.
const TICK: Duration = Duration::from_millis(100);

/// Serves a node until the pipe ends, and then ends the process: nobody waits for what it still does.
pub(crate) fn serve(input: File, output: File) -> io::Result<()> {
    let (mut input, mut received) = (input, pipe::Receiver::default());
    let first = loop {
        match received.next()? {
            Some(envelope) => break envelope,
            None if received.read(&mut input)? => {}
            None => return Err(io::Error::other("the node has ended")),
        }
    };
    let Envelope { letter: Letter::Welcome { you, node, job, cpus }, .. } = first else {
        return Err(io::Error::other("the node's first letter is not a welcome"));
    };
    let letters = pipe::Sender::waiting(output);
    let to_node = letters.clone();
    let post: Post = Box::new(move |envelope| to_node.send(&envelope));
    let core = Core::open(Config {
        // The node admits what comes from elsewhere; this bounds what tasks submit here.
        total: Amounts { cpu: cpus.max(WHOLE), ..Amounts::default() },
        check_serialization: false,
        observe: job.observe,
        stack_size: 2 << 20,
        deterministic: None,
        #[cfg(feature = "tokio")]
        tokio: None,
    });
    let client = Client::new(core, you, job, Some(you.station()), post);
    client.set_node_name(&node);
    let _ = core.client.set(client.clone()); // the core is new
    let ready = Letter::Ready { refused: None };
    letters.send(&Envelope { from: you, to: you.station(), letter: ready, payload: Vec::new() });
    let clock = client.clone();
    std::thread::Builder::new().name("outray-clock".into()).spawn(move || {
        loop {
            std::thread::sleep(TICK);
            clock.tick();
        }
    })?;
    loop {
        let more = loop {
            match received.next() {
                Ok(Some(envelope)) => client.receive(envelope),
                Ok(None) => break received.read(&mut input),
                Err(error) => break Err(error),
            }
        };
        match more {
            Ok(true) => {}
            Ok(false) => exit(0),
            Err(error) => {
                eprintln!("outray: the node cannot be understood: {error}");
                exit(1);
            }
        }
    }
}
