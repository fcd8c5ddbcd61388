//! One counter, `inc` with a reply: as an outray actor, by hand on tokio and on a thread, and in the actor crates.

use futures::future::join_all;
use outray::{Actor, ObjectRef, Runtime};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    contest::{Contest, Goal, Plan},
    tasks::tokio_runtime,
};

const TOKIO: &str = "tokio mpsc + oneshot";

struct Counter {
    value: i64,
}

impl Counter {
    fn new(value: i64) -> Self {
        Counter { value }
    }

    fn inc(&mut self, by: i64) -> i64 {
        self.value += by;
        self.value
    }
}

/// A message, and where its reply goes.
struct Inc<Reply> {
    by: i64,
    reply: Reply,
}

type TokioInc = Inc<tokio::sync::oneshot::Sender<i64>>;

pub fn call(plan: &Plan) {
    let (n, n_peer) = (plan.size(200_000), plan.size(20_000));
    let (rt, tokio) = (Runtime::local(), tokio_runtime());
    let ours: Actor<Counter> = rt.actor(Counter::new, 0);
    let by_hand = tokio_counter(&tokio);
    let kameo = tokio.block_on(async { kameo_counter::spawn() });
    let ractor = tokio.block_on(ractor_counter::spawn());
    let thread = thread_counter();
    let actix = actix::System::new();
    let addr = actix.block_on(async { actix_counter::spawn() });
    Contest::timed()
        .work("outray", n, || (0..n).for_each(|_| check(ours.call(Counter::inc, 1).get().unwrap())))
        .work(TOKIO, n_peer, || {
            tokio.block_on(async {
                for _ in 0..n_peer {
                    check(tokio_inc(&by_hand).await.unwrap());
                }
            });
        })
        .work("ractor", n_peer, || {
            tokio.block_on(async {
                for _ in 0..n_peer {
                    check(ractor.call(|reply| Inc { by: 1, reply }, None).await.unwrap().unwrap());
                }
            });
        })
        .work("kameo", n_peer, || {
            tokio.block_on(async {
                for _ in 0..n_peer {
                    check(kameo.ask(kameo_counter::Inc(1)).await.unwrap());
                }
            });
        })
        .work("actix (on the caller's thread)", n_peer, || {
            actix.block_on(async {
                for _ in 0..n_peer {
                    check(addr.send(actix_counter::Inc(1)).await.unwrap());
                }
            });
        })
        .work("std thread, mpsc + oneshot", n_peer, || {
            for _ in 0..n_peer {
                let (reply, result) = oneshot::channel();
                thread.send(Inc { by: 1, reply }).unwrap();
                check(result.recv().unwrap());
            }
        })
        .goal(0, Goal::Absolute { bar: 1_000.0, stretch: Some(300.0) })
        .run(plan);
}

pub fn pipelined(plan: &Plan) {
    let n = plan.size(200_000);
    let (rt, tokio) = (Runtime::local(), tokio_runtime());
    let ours: Actor<Counter> = rt.actor(Counter::new, 0);
    let by_hand = tokio_counter(&tokio);
    let kameo = tokio.block_on(async { kameo_counter::spawn() });
    let ractor = tokio.block_on(ractor_counter::spawn());
    let thread = thread_counter();
    Contest::timed()
        .work("outray", n, || {
            let results: Vec<ObjectRef<i64>> = (0..n).map(|_| ours.call(Counter::inc, 1)).collect();
            results.into_iter().for_each(|result| check(result.take().unwrap()));
        })
        .work(TOKIO, n, || {
            tokio.block_on(async {
                let results: Vec<_> = (0..n).map(|_| tokio_inc(&by_hand)).collect();
                for result in results {
                    check(result.await.unwrap());
                }
            });
        })
        .work("ractor", n, || {
            tokio.block_on(async {
                let (senders, results): (Vec<_>, Vec<_>) =
                    (0..n).map(|_| ractor::concurrency::oneshot::<i64>()).unzip();
                for sender in senders {
                    ractor.send_message(Inc { by: 1, reply: sender.into() }).unwrap();
                }
                for result in results {
                    check(result.await.unwrap());
                }
            });
        })
        .work("kameo", n, || {
            tokio.block_on(async {
                let results = join_all((0..n).map(|_| kameo.ask(kameo_counter::Inc(1)).enqueue())).await;
                for result in results {
                    check(result.unwrap().await.unwrap());
                }
            });
        })
        .work("std thread, mpsc + oneshot", n, || {
            let results: Vec<_> = (0..n)
                .map(|_| {
                    let (reply, result) = oneshot::channel();
                    thread.send(Inc { by: 1, reply }).unwrap();
                    result
                })
                .collect();
            results.into_iter().for_each(|result| check(result.recv().unwrap()));
        })
        .goal(0, Goal::Ratio { peer: TOKIO, bar: 1.0, stretch: Some(0.5) })
        .run(plan);
}

/// No reply is made up: a counter that only ever grows never answers zero.
fn check(value: i64) {
    assert!(value > 0);
}

fn tokio_counter(tokio: &tokio::runtime::Runtime) -> UnboundedSender<TokioInc> {
    let (sender, mut mailbox) = tokio::sync::mpsc::unbounded_channel::<TokioInc>();
    tokio.spawn(async move {
        let mut counter = Counter::new(0);
        while let Some(Inc { by, reply }) = mailbox.recv().await {
            let _ = reply.send(counter.inc(by));
        }
    });
    sender
}

fn tokio_inc(counter: &UnboundedSender<TokioInc>) -> tokio::sync::oneshot::Receiver<i64> {
    let (reply, result) = tokio::sync::oneshot::channel();
    assert!(counter.send(Inc { by: 1, reply }).is_ok(), "the counter runs");
    result
}

fn thread_counter() -> std::sync::mpsc::Sender<Inc<oneshot::Sender<i64>>> {
    let (sender, mailbox) = std::sync::mpsc::channel::<Inc<oneshot::Sender<i64>>>();
    std::thread::spawn(move || {
        let mut counter = Counter::new(0);
        for Inc { by, reply } in mailbox {
            let _ = reply.send(counter.inc(by));
        }
    });
    sender
}

mod kameo_counter {
    use std::convert::Infallible;

    use kameo::{
        actor::{Actor, ActorRef, Spawn},
        mailbox,
        message::{Context, Message},
    };

    use super::Counter;

    pub struct Inc(pub i64);

    impl Actor for Counter {
        type Args = Self;
        type Error = Infallible;

        async fn on_start(counter: Self, _: ActorRef<Self>) -> Result<Self, Infallible> {
            Ok(counter)
        }
    }

    impl Message<Inc> for Counter {
        type Reply = i64;

        async fn handle(&mut self, Inc(by): Inc, _: &mut Context<Self, i64>) -> i64 {
            self.inc(by)
        }
    }

    pub fn spawn() -> ActorRef<Counter> {
        Counter::spawn_with_mailbox(Counter::new(0), mailbox::unbounded())
    }
}

mod ractor_counter {
    use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

    use super::{Counter, Inc};

    struct Behaviour;

    impl Actor for Behaviour {
        type Msg = Inc<RpcReplyPort<i64>>;
        type State = Counter;
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<Counter, ActorProcessingErr> {
            Ok(Counter::new(0))
        }

        async fn handle(
            &self,
            _: ActorRef<Self::Msg>,
            Inc { by, reply }: Self::Msg,
            counter: &mut Counter,
        ) -> Result<(), ActorProcessingErr> {
            Ok(reply.send(counter.inc(by))?)
        }
    }

    pub async fn spawn() -> ActorRef<Inc<RpcReplyPort<i64>>> {
        Actor::spawn(None, Behaviour, ()).await.expect("the counter starts").0
    }
}

mod actix_counter {
    use actix::{Actor, Addr, Context, Handler, Message};

    use super::Counter;

    pub struct Inc(pub i64);

    impl Message for Inc {
        type Result = i64;
    }

    impl Actor for Counter {
        type Context = Context<Self>;
    }

    impl Handler<Inc> for Counter {
        type Result = i64;

        fn handle(&mut self, Inc(by): Inc, _: &mut Context<Self>) -> i64 {
            self.inc(by)
        }
    }

    pub fn spawn() -> Addr<Counter> {
        Counter::new(0).start()
    }
}
