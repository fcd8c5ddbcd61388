//! See `cluster::fuzzing`.

use super::{Answer, HANDSHAKE, Key, Request, greet, plain_greeting};
use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

/// What comes is all there, so nothing is waited for.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it waits for what does not come"),
    }
}

pub(crate) fn fuzz(input: &[u8]) {
    if let Some(bytes) = input.first_chunk() {
        let request = Request::decode(bytes);
        assert_eq!(request.encode(), *bytes);
        assert_eq!(Request::decode(&request.encode()), request);
    }
    if let Some(bytes) = input.first_chunk()
        && let Some(answer) = Answer::decode(bytes)
    {
        assert_eq!(Answer::decode(&answer.encode()), Some(answer));
    }
    let greeted = |key: Option<&Key>, dialed| {
        let mut stream = tokio::io::join(input, tokio::io::sink());
        now(greet(&mut stream, key, dialed)).is_ok()
    };
    let is_plain = input.first_chunk::<HANDSHAKE>() == Some(&plain_greeting());
    let key = Key::generate().expect("randomness");
    for dialed in [false, true] {
        assert_eq!(greeted(None, dialed), is_plain);
        assert!(!greeted(Some(&key), dialed));
    }
}
