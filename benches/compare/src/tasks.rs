//! Tasks against `rayon::spawn` with a oneshot for the result, and against `tokio::spawn`.

use futures::future::BoxFuture;
use outray::{ObjectRef, Runtime};

use crate::contest::{Contest, Goal, Plan};

const RAYON: &str = "rayon::spawn + oneshot";
const TOKIO: &str = "tokio::spawn";

pub fn noop() {}

/// A tokio runtime with as many workers as cores.
pub fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("tokio starts its threads")
}

/// Waits for a task that is to run on a worker. `get` may run it on the calling thread, which would be one thread more
/// than the peers have, and not "inside a worker"; awaiting leaves it to the pool.
pub fn on_worker<T: Clone + Send + Sync + 'static>(tokio: &tokio::runtime::Runtime, task: ObjectRef<T>) -> T {
    tokio.block_on(async { task.await.unwrap() })
}

/// `n` no-op tasks from whichever thread calls, and all their results.
pub fn outray_noops(rt: &Runtime, n: usize) {
    let results: Vec<ObjectRef<()>> = (0..n).map(|_| rt.submit(noop, ())).collect();
    rt.get_all(&results).unwrap();
}

/// `rayon::spawn` has no result of its own: a channel carries it.
pub fn rayon_spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (sender, result) = oneshot::channel();
    rayon::spawn(move || {
        let _ = sender.send(work());
    });
    result
}

async fn tokio_noops(n: usize) {
    let tasks: Vec<_> = (0..n).map(|_| tokio::spawn(async { noop() })).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

pub fn noop_outside(plan: &Plan) {
    let n = plan.size(1_000_000);
    let (rt, tokio) = (Runtime::local(), tokio_runtime());
    Contest::timed()
        .work("outray", n, || outray_noops(&rt, n))
        .work(RAYON, n, || {
            let results: Vec<_> = (0..n).map(|_| rayon_spawn(noop)).collect();
            results.into_iter().for_each(|result| result.recv().unwrap());
        })
        .work(TOKIO, n, || tokio.block_on(tokio_noops(n)))
        .goal(0, Goal::Ratio { peer: RAYON, bar: 0.5, stretch: Some(0.25) })
        .run(plan);
}

pub fn noop_inside(plan: &Plan) {
    fn noops(n: usize) {
        outray_noops(&Runtime::current(), n);
    }
    let n = plan.size(1_000_000);
    let (rt, tokio) = (Runtime::local(), tokio_runtime());
    Contest::timed()
        .work("outray", n, || on_worker(&tokio, rt.submit(noops, n)))
        .work(TOKIO, n, || tokio.block_on(tokio.spawn(tokio_noops(n))).unwrap())
        .work("rayon scope spawn, no results", n, || rayon::scope(|s| (0..n).for_each(|_| s.spawn(|_| noop()))))
        .goal(0, Goal::Ratio { peer: TOKIO, bar: 0.5, stretch: Some(0.25) })
        .run(plan);
}

pub fn round_trip(plan: &Plan) {
    let (n, n_peer) = (plan.size(200_000), plan.size(20_000));
    let (rt, tokio) = (Runtime::local(), tokio_runtime());
    Contest::timed()
        .work("outray", n, || (0..n).for_each(|_| rt.submit(noop, ()).get().unwrap()))
        .work(RAYON, n_peer, || (0..n_peer).for_each(|_| rayon_spawn(noop).recv().unwrap()))
        .work(TOKIO, n_peer, || {
            tokio.block_on(async {
                for _ in 0..n_peer {
                    tokio::spawn(async { noop() }).await.unwrap();
                }
            });
        })
        .goal(0, Goal::Absolute { bar: 1_000.0, stretch: Some(300.0) })
        .run(plan);
}

pub fn fib(plan: &Plan) {
    fn outray_fib(n: u64) -> u64 {
        if n < 2 {
            return n;
        }
        let rt = Runtime::current();
        let (a, b) = (rt.submit(outray_fib, n - 1), rt.submit(outray_fib, n - 2));
        a.get().unwrap() + b.get().unwrap()
    }
    fn tokio_fib(n: u64) -> BoxFuture<'static, u64> {
        Box::pin(async move {
            if n < 2 {
                return n;
            }
            let (a, b) = (tokio::spawn(tokio_fib(n - 1)), tokio::spawn(tokio_fib(n - 2)));
            a.await.unwrap() + b.await.unwrap()
        })
    }
    let (n, result, calls) = if plan.quick { (18, 2_584, 8_361) } else { (25, 75_025, 242_785) };
    let (rt, tokio) = (Runtime::local(), tokio_runtime());
    Contest::timed()
        .work("outray", calls, || assert_eq!(on_worker(&tokio, rt.submit(outray_fib, n)), result))
        .work(TOKIO, calls, || assert_eq!(tokio.block_on(tokio.spawn(tokio_fib(n))).unwrap(), result))
        .goal(0, Goal::Ratio { peer: TOKIO, bar: 0.5, stretch: None })
        .goal(0, Goal::Absolute { bar: 150.0, stretch: None })
        .run(plan);
}

pub fn chain(plan: &Plan) {
    const LINKS: u64 = 1_000;
    fn next(x: u64) -> u64 {
        x + 1
    }
    let chains = plan.size(100);
    let ops = chains * LINKS as usize;
    let (rt, tokio) = (Runtime::local(), tokio_runtime());
    Contest::timed()
        .work("outray", ops, || {
            for _ in 0..chains {
                let first = rt.submit(next, 0);
                let last = (1..LINKS).fold(first, |previous, _| rt.submit(next, previous));
                assert_eq!(last.get().unwrap(), LINKS);
            }
        })
        .work(TOKIO, ops, || {
            for _ in 0..chains {
                let first = tokio.spawn(async { next(0) });
                let last = (1..LINKS).fold(first, |previous, _| tokio.spawn(async { next(previous.await.unwrap()) }));
                assert_eq!(tokio.block_on(last).unwrap(), LINKS);
            }
        })
        .goal(0, Goal::Absolute { bar: 500.0, stretch: Some(200.0) })
        .run(plan);
}
