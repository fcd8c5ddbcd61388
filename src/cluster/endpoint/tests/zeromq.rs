//! The same over the `zeromq` crate, and between both crates.

use super::*;
use crate::cluster::transport::zeromq::Zeromq;

fn zeromq(config: Config) -> Side {
    Endpoint::start(config, Zeromq::new).expect("it starts")
}

fn keyed() -> Config {
    Config { key: Some(Key::generate().expect("randomness")), ..impatient() }
}

#[test]
fn zeromq_endpoints_talk_and_drain() {
    for config in [impatient(), keyed()] {
        let (mut a, mut b) = (zeromq(config.clone()), zeromq(config));
        join(&mut a, &mut b);
        exchange(&mut a, &mut b, 5000);
        exchange(&mut b, &mut a, 5000);
        for at in 0..1000 {
            a.0.send(b.0.incarnation(), numbered(at)).expect("there is room");
        }
        let name = a.0.incarnation();
        a.0.close(LONG);
        for at in 0..1000 {
            assert_eq!(next_but_room(&mut b.1), Event::Message(name, numbered(at)));
        }
        assert!(matches!(next_but_room(&mut b.1), Event::Lost(lost, _) if lost == name));
    }
}

#[test]
fn zeromq_connections_that_break_lose_nothing() {
    let config = keyed();
    let (mut a, mut b) = (zeromq(config.clone()), zeromq(config));
    let proxy = Proxy::new(b.0.address());
    a.0.connect(&proxy.address);
    assert_eq!(next_up(&mut a.1), b.0.incarnation());
    assert_eq!(next_up(&mut b.1), a.0.incarnation());
    for _ in 0..5 {
        for at in 0..2000 {
            a.0.send(b.0.incarnation(), numbered(at)).expect("there is room");
            if at == 1000 {
                proxy.cut();
            }
        }
        for at in 0..2000 {
            assert_eq!(next_but_room(&mut b.1), Event::Message(a.0.incarnation(), numbered(at)));
        }
        exchange(&mut b, &mut a, 100);
    }
}

#[test]
fn endpoints_of_both_crates_talk() {
    let config = keyed();
    let mut a = start_with(config.clone());
    let mut b = zeromq(config);
    join(&mut a, &mut b);
    exchange(&mut a, &mut b, 5000);
    exchange(&mut b, &mut a, 5000);
    let config = keyed();
    let (mut a, mut b) = (zeromq(config.clone()), start_with(config));
    join(&mut a, &mut b);
    exchange(&mut a, &mut b, 5000);
    exchange(&mut b, &mut a, 5000);
}
