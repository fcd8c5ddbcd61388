//! What an attacker on the way, or without the key, can do to a channel: close it.

use super::*;
use proptest::prelude::*;

fn key() -> Key {
    Key::generate().expect("randomness")
}

/// A connection's two ends, the handshake done. The responder waits to be shown the keys.
fn pair(key: &Key) -> (Channel, Channel) {
    let (mut initiator, first) = Channel::initiator(Purpose::Messages, Some(key)).expect("it starts");
    let mut responder = Channel::responder(Purpose::Messages, Some(key)).expect("it starts");
    let answer = responder.open(first.expect("a first message")).expect("the same key");
    let Opened::Handshake(Some(answer)) = answer else { panic!("{answer:?}") };
    assert_eq!(initiator.open(answer), Ok(Opened::Handshake(None)));
    (initiator, responder)
}

fn parts(parts: &[&'static [u8]]) -> Vec<Bytes> {
    parts.iter().map(|part| Bytes::from_static(part)).collect()
}

#[test]
fn messages_pass_both_ways_and_are_not_readable_on_the_way() {
    let (mut a, mut b) = pair(&key());
    assert!(a.is_open() && b.can_seal() && !b.is_open());
    for round in 0..3 {
        for message in [parts(&[b"the quick brown fox"]), parts(&[b"", b"jumps", b"over the lazy dog"])] {
            let sealed = a.seal(message.clone()).expect("it seals");
            assert!(sealed.iter().zip(&message).all(|(sealed, plain)| sealed.len() == plain.len() + TAG));
            assert!(!sealed.concat().windows(5).any(|bytes| bytes == b"quick" || bytes == b"jumps"));
            assert_eq!(b.open(sealed), Ok(Opened::Message(message)), "round {round}");
        }
        assert!(b.is_open());
        std::mem::swap(&mut a, &mut b);
    }
}

#[test]
fn another_key_is_refused_by_the_responder() {
    let (_, first) = Channel::initiator(Purpose::Messages, Some(&key())).expect("it starts");
    let mut responder = Channel::responder(Purpose::Messages, Some(&key())).expect("it starts");
    assert_eq!(responder.open(first.expect("a first message")), Err(SecureError::WrongKey));
    assert!(!responder.is_open() && !responder.can_seal());
}

#[test]
fn one_side_without_a_key_is_refused() {
    let key = key();
    let mut responder = Channel::responder(Purpose::Messages, Some(&key)).expect("it starts");
    assert_eq!(responder.open(parts(&[b"hello"])), Err(SecureError::NotAHandshake));
    assert!(SecureError::NotAHandshake.to_string().contains("key file"));
}

/// The first message of a connection, sent again by somebody who recorded it, opens nothing.
#[test]
fn a_replayed_handshake_confirms_nothing() {
    let key = key();
    let (mut initiator, first) = Channel::initiator(Purpose::Messages, Some(&key)).expect("it starts");
    let first = first.expect("a first message");
    let mut honest = Channel::responder(Purpose::Messages, Some(&key)).expect("it starts");
    let Ok(Opened::Handshake(Some(answer))) = honest.open(first.clone()) else { panic!("the same key") };
    initiator.open(answer).expect("the same key");
    let record = initiator.seal(parts(&[b"intro"])).expect("it seals");

    let mut victim = Channel::responder(Purpose::Messages, Some(&key)).expect("it starts");
    assert!(matches!(victim.open(first), Ok(Opened::Handshake(Some(_)))));
    assert!(!victim.is_open());
    assert_eq!(victim.open(record), Err(SecureError::BadRecord));
    assert!(!victim.is_open());
}

#[test]
fn records_that_are_repeated_reordered_or_left_out_close_the_channel() {
    let sealed = |a: &mut Channel| -> Vec<Vec<Bytes>> {
        [&b"one"[..], b"two", b"three"].iter().map(|part| a.seal(parts(&[part])).expect("it seals")).collect()
    };
    for order in [&[0, 0][..], &[1], &[0, 2], &[0, 1, 0]] {
        let (mut a, mut b) = pair(&key());
        let records = sealed(&mut a);
        let (last, good) = order.split_last().expect("there are some");
        for at in good {
            b.open(records[*at].clone()).expect("in order");
        }
        assert_eq!(b.open(records[*last].clone()), Err(SecureError::BadRecord), "{order:?}");
        // What would have been right is refused too.
        assert_eq!(b.open(records[good.len()].clone()), Err(SecureError::BadRecord), "{order:?}");
        assert!(!b.is_open());
    }
}

#[test]
fn parts_cannot_be_left_out_added_or_exchanged() {
    let change: [fn(&mut Vec<Bytes>); 5] = [
        |parts| drop(parts.pop()),
        |parts| drop(parts.remove(0)),
        |parts| parts.swap(0, 1),
        |parts| parts.push(Bytes::from_static(&[0; TAG])),
        |parts| parts.clear(),
    ];
    for change in change {
        let (mut a, mut b) = pair(&key());
        let mut sealed = a.seal(parts(&[b"same", b"same", b"same"])).expect("it seals");
        change(&mut sealed);
        assert_eq!(b.open(sealed), Err(SecureError::BadRecord));
    }
}

#[test]
fn a_record_of_another_connection_or_sent_back_does_not_open() {
    let key = key();
    let ((mut a, mut b), (mut c, mut d)) = (pair(&key), pair(&key));
    let foreign = c.seal(parts(&[b"hello"])).expect("it seals");
    assert_eq!(b.open(foreign), Err(SecureError::BadRecord));
    let reflected = a.seal(parts(&[b"hello"])).expect("it seals");
    assert_eq!(a.open(reflected), Err(SecureError::BadRecord));
    let early = d.seal(parts(&[b"hello"])).expect("it seals");
    assert_eq!(c.open(early), Ok(Opened::Message(parts(&[b"hello"]))));
}

#[test]
fn nothing_shows_the_key() {
    let key = key();
    let (a, _) = pair(&key);
    assert_eq!(format!("{a:?}"), "Channel { is_open: true, .. }");
    for error in [SecureError::NotAHandshake, SecureError::WrongKey, SecureError::BadRecord, SecureError::Local] {
        let hex: String = key.bytes()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!format!("{error} {error:?}").contains(&hex));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_message_survives(message in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 1..5)) {
        let (mut a, mut b) = pair(&key());
        let message: Vec<Bytes> = message.into_iter().map(Bytes::from).collect();
        let sealed = a.seal(message.clone()).expect("it seals");
        prop_assert_eq!(b.open(sealed), Ok(Opened::Message(message)));
    }

    #[test]
    fn a_changed_bit_or_a_missing_end_is_seen(
        length in 0usize..200, at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>(),
    ) {
        let (mut a, mut b) = pair(&key());
        let sealed = a.seal(vec![Bytes::from(vec![7; length])]).expect("it seals");
        let mut changed = sealed[0].to_vec();
        let at = at.index(changed.len());
        match cut {
            true => changed.truncate(at),
            false => changed[at] ^= 1 << bit,
        }
        prop_assert_eq!(b.open(vec![changed.into()]), Err(SecureError::BadRecord));
        prop_assert!(!b.is_open());
    }

    #[test]
    fn a_changed_handshake_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let key = key();
        let (mut initiator, first) = Channel::initiator(Purpose::Messages, Some(&key)).expect("it starts");
        let flip = |message: &[Bytes]| {
            let mut changed = message[0].to_vec();
            let at = at.index(changed.len());
            changed[at] ^= 1 << bit;
            vec![Bytes::from(changed)]
        };
        let first = first.expect("a first message");
        let mut responder = Channel::responder(Purpose::Messages, Some(&key)).expect("it starts");
        let answer = responder.open(flip(&first));
        prop_assert!(matches!(answer, Err(SecureError::NotAHandshake | SecureError::WrongKey)));

        let mut responder = Channel::responder(Purpose::Messages, Some(&key)).expect("it starts");
        let Ok(Opened::Handshake(Some(answer))) = responder.open(first) else { panic!("the same key") };
        prop_assert!(initiator.open(flip(&answer)).is_err());
        prop_assert!(!initiator.is_open());
    }

    #[test]
    fn garbage_closes_the_channel_and_never_panics(
        garbage in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..4),
    ) {
        let key = key();
        let garbage: Vec<Bytes> = garbage.into_iter().map(Bytes::from).collect();
        let mut responder = Channel::responder(Purpose::Messages, Some(&key)).expect("it starts");
        prop_assert!(responder.open(garbage.clone()).is_err());
        let (mut a, _) = pair(&key);
        prop_assert!(a.open(garbage).is_err());
    }
}
