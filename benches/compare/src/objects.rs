//! `put` hands a value over, it does not copy it: the size must not matter.

use std::hint::black_box;

use outray::Runtime;

use crate::contest::{Contest, Goal, Plan};

const MIB: usize = 1 << 20;

pub fn put(plan: &Plan) {
    let n = plan.size(20_000);
    let rt = Runtime::local();
    Contest::timed()
        .work("1 GiB", n, put_get_take(&rt, 1024 * MIB, n))
        .work("1 MiB", n, put_get_take(&rt, MIB, n))
        .goal(0, Goal::Ratio { peer: "1 MiB", bar: 1.2, stretch: None })
        .run(plan);
}

/// Puts one buffer of `bytes` that were touched, gets it shared and takes it back, `n` times over.
fn put_get_take(rt: &Runtime, bytes: usize, n: usize) -> impl FnMut() {
    let mut buffer = vec![1_u8; bytes];
    move || {
        for _ in 0..n {
            let address = buffer.as_ptr();
            let object = rt.put(std::mem::take(&mut buffer));
            assert_eq!(black_box(object.get_shared().unwrap()).as_ptr(), address, "get_shared copied");
            buffer = object.take().unwrap();
            assert_eq!(buffer.as_ptr(), address, "take copied");
        }
    }
}
