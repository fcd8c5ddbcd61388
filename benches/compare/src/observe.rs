//! What it costs to look inside: the same tasks on a runtime that observes and on one that does not.

use std::hint::black_box;

use outray::{ObjectRef, Runtime};

use crate::{
    contest::{Contest, Goal, Plan},
    task_bench::kernel,
    tasks::outray_noops,
};

const OFF: &str = "observe(false)";

pub fn observe(plan: &Plan) {
    let off = Runtime::builder().observe(false).build().unwrap();
    let on = Runtime::builder().observe(true).build().unwrap();

    println!("tasks of about ten microseconds");
    let n = plan.size(20_000);
    Contest::timed()
        .work("observe(true)", n, || small_tasks(&on, n))
        .work(OFF, n, || small_tasks(&off, n))
        .goal(0, Goal::Ratio { peer: OFF, bar: 1.05, stretch: Some(1.02) })
        .run(plan);

    println!("no-op tasks, the worst case");
    let n = plan.size(200_000);
    Contest::timed().work("observe(true)", n, || outray_noops(&on, n)).work(OFF, n, || outray_noops(&off, n)).run(plan);
}

fn small_tasks(rt: &Runtime, n: usize) {
    fn small(iterations: u64) -> f64 {
        black_box(kernel(iterations))
    }
    let results: Vec<ObjectRef<f64>> = (0..n).map(|_| rt.submit(small, 5_500)).collect();
    rt.get_all(&results).unwrap();
}
