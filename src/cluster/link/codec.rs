//! The frames of a link: fixed little-endian headers, lengths checked before anything is allocated.
//!
//! A frame is one transport message. Its first part starts with the kind:
//! ```text
//! Intro  kind magic(4) version(2) incarnation(16)
//! Hello  kind epoch(8) known(8) received(8) credit(8 + 8)
//! Batch  kind received(8) credit(8 + 8) first(8) count(4), then for each message:
//!        parts(2), a length(4) for each part, the bytes of the parts that are inline
//! Bye    kind
//! ```
//! A part whose length has the top bit set is the next part of the transport message, so that a
//! large payload is never copied into the batch.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::fmt;

pub(crate) const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"oRay";

/// Parts from this length on travel as parts of the transport message.
const OUT_OF_BAND: usize = 16 * 1024;
const OUT_OF_BAND_BIT: u32 = 1 << 31;

/// Parts that a message may have at most.
pub(crate) const MAX_PARTS: usize = 1024;
/// Bytes that the parts of a message may have at most, together: a chunk of bulk data and its header.
pub(crate) const MAX_MESSAGE: usize = (1 << 20) + (64 << 10);
/// Messages are added to a batch until it has this many bytes.
pub(crate) const BATCH_BYTES: usize = 256 << 10;
/// Messages that a batch has at most.
pub(crate) const BATCH_MESSAGES: usize = 4096;
/// No frame of a link is larger, and none has more parts.
pub(crate) const MAX_FRAME: usize = BATCH_BYTES + MAX_MESSAGE + 64 * 1024;
pub(crate) const MAX_FRAME_PARTS: usize = 128;

/// What a message costs in credit and memory besides its bytes.
const PER_MESSAGE: usize = 64;
const PER_PART: usize = 32;

/// A process, or rather one life of it: random, so that a process that was started again is another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Incarnation(pub(crate) [u8; 16]);

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What the layer above sends: a header, and payloads that are not copied into it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Message {
    pub(crate) header: Bytes,
    pub(crate) payloads: Vec<Bytes>,
}

impl Message {
    pub(crate) fn new(header: impl Into<Bytes>) -> Self {
        Message { header: header.into(), payloads: Vec::new() }
    }

    fn parts(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.header).chain(&self.payloads)
    }

    /// Bytes of all parts.
    pub(crate) fn len(&self) -> usize {
        self.parts().map(Bytes::len).sum()
    }

    /// What it takes from a credit in bytes. Both sides must come to the same.
    pub(crate) fn cost(&self) -> usize {
        self.len() + PER_MESSAGE + PER_PART * self.payloads.len()
    }

    pub(crate) fn is_too_large(&self) -> bool {
        self.len() > MAX_MESSAGE || self.payloads.len() >= MAX_PARTS
    }

    fn out_of_band(&self) -> usize {
        self.parts().filter(|part| part.len() >= OUT_OF_BAND).count()
    }
}

/// How much may be sent, counted from the start of the link: a grant that is lost or repeated harms
/// nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Credit {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hello {
    /// The sender's link: another one after it has given this one up.
    pub(crate) epoch: u64,
    /// The receiver's epoch, as the sender knows it; 0 if it does not.
    pub(crate) known: u64,
    pub(crate) received: u64,
    pub(crate) credit: Credit,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Batch {
    /// The sender has all messages before this one.
    pub(crate) received: u64,
    pub(crate) credit: Credit,
    /// The number of the first message.
    pub(crate) first: u64,
    pub(crate) messages: Vec<Message>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Frame {
    /// The first thing that both say: who they are.
    Intro(Incarnation),
    Hello(Hello),
    Batch(Batch),
    /// The sender ends, and has received everything it will.
    Bye,
}

/// Why a frame makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Malformed {
    Empty,
    Truncated,
    TooLong,
    UnknownKind(u8),
    NotOutray,
    OtherVersion(u16),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Empty => write!(f, "a frame is empty"),
            Malformed::Truncated => write!(f, "a frame is shorter than its header says"),
            Malformed::TooLong => write!(f, "a frame is longer than its header says, or than is allowed"),
            Malformed::UnknownKind(kind) => write!(f, "a frame of unknown kind {kind}"),
            Malformed::NotOutray => {
                write!(f, "the peer does not speak outray's protocol, or has a cluster key where this process has none")
            }
            Malformed::OtherVersion(version) => write!(
                f,
                "the peer speaks version {version} of the protocol, this process version {VERSION}; use the same \
                 version of outray everywhere"
            ),
        }
    }
}

const INTRO: u8 = 1;
const HELLO: u8 = 2;
const BATCH: u8 = 3;
const BYE: u8 = 4;

/// Bytes of a batch before its messages.
const BATCH_HEADER: usize = 1 + 8 + 16 + 8 + 4;

fn put_credit(out: &mut BytesMut, credit: Credit) {
    out.put_u64_le(credit.messages);
    out.put_u64_le(credit.bytes);
}

impl Frame {
    pub(crate) fn encode(&self) -> Vec<Bytes> {
        let mut out = BytesMut::with_capacity(64);
        match self {
            Frame::Intro(incarnation) => {
                out.put_u8(INTRO);
                out.put_slice(&MAGIC);
                out.put_u16_le(VERSION);
                out.put_slice(&incarnation.0);
            }
            Frame::Hello(hello) => {
                out.put_u8(HELLO);
                out.put_u64_le(hello.epoch);
                out.put_u64_le(hello.known);
                out.put_u64_le(hello.received);
                put_credit(&mut out, hello.credit);
            }
            Frame::Batch(batch) => {
                let mut encoder = BatchEncoder::new();
                for message in &batch.messages {
                    encoder.push(message);
                }
                return encoder.finish(batch.received, batch.credit, batch.first);
            }
            Frame::Bye => out.put_u8(BYE),
        }
        vec![out.freeze()]
    }

    pub(crate) fn decode(parts: Vec<Bytes>) -> Result<Frame, Malformed> {
        if parts.len() > MAX_FRAME_PARTS || parts.iter().map(Bytes::len).sum::<usize>() > MAX_FRAME {
            return Err(Malformed::TooLong);
        }
        let mut parts = parts.into_iter();
        let mut first = parts.next().unwrap_or_default();
        let kind = first.try_get_u8().map_err(|_| Malformed::Empty)?;
        let frame = match kind {
            INTRO => {
                let mut magic = [0; 4];
                first.try_copy_to_slice(&mut magic).map_err(truncated)?;
                if magic != MAGIC {
                    return Err(Malformed::NotOutray);
                }
                let version = first.try_get_u16_le().map_err(truncated)?;
                if version != VERSION {
                    return Err(Malformed::OtherVersion(version));
                }
                let mut incarnation = [0; 16];
                first.try_copy_to_slice(&mut incarnation).map_err(truncated)?;
                Frame::Intro(Incarnation(incarnation))
            }
            HELLO => Frame::Hello(Hello {
                epoch: first.try_get_u64_le().map_err(truncated)?,
                known: first.try_get_u64_le().map_err(truncated)?,
                received: first.try_get_u64_le().map_err(truncated)?,
                credit: get_credit(&mut first)?,
            }),
            BATCH => {
                let received = first.try_get_u64_le().map_err(truncated)?;
                let credit = get_credit(&mut first)?;
                let number = first.try_get_u64_le().map_err(truncated)?;
                let count = first.try_get_u32_le().map_err(truncated)? as usize;
                // Each message has at least its number of parts and one length.
                if count > BATCH_MESSAGES || count * 6 > first.len() {
                    return Err(Malformed::Truncated);
                }
                let mut messages = Vec::with_capacity(count);
                for _ in 0..count {
                    messages.push(get_message(&mut first, &mut parts)?);
                }
                Frame::Batch(Batch { received, credit, first: number, messages })
            }
            BYE => Frame::Bye,
            other => return Err(Malformed::UnknownKind(other)),
        };
        match first.is_empty() && parts.next().is_none() {
            true => Ok(frame),
            false => Err(Malformed::TooLong),
        }
    }
}

fn truncated(_: bytes::TryGetError) -> Malformed {
    Malformed::Truncated
}

fn get_credit(from: &mut Bytes) -> Result<Credit, Malformed> {
    let messages = from.try_get_u64_le().map_err(truncated)?;
    Ok(Credit { messages, bytes: from.try_get_u64_le().map_err(truncated)? })
}

fn get_message(from: &mut Bytes, out_of_band: &mut impl Iterator<Item = Bytes>) -> Result<Message, Malformed> {
    let count = usize::from(from.try_get_u16_le().map_err(truncated)?);
    if count == 0 || count > MAX_PARTS || count * 4 > from.len() {
        return Err(Malformed::Truncated);
    }
    let mut lengths = from.split_to(count * 4);
    let mut part = || {
        let length = lengths.get_u32_le();
        let is_out_of_band = length & OUT_OF_BAND_BIT != 0;
        let length = (length & !OUT_OF_BAND_BIT) as usize;
        if is_out_of_band {
            return out_of_band.next().filter(|part| part.len() == length).ok_or(Malformed::Truncated);
        }
        if length > from.len() {
            return Err(Malformed::Truncated);
        }
        Ok(from.split_to(length))
    };
    let header = part()?;
    let payloads = (1..count).map(|_| part()).collect::<Result<Vec<_>, _>>()?;
    let message = Message { header, payloads };
    match message.is_too_large() {
        true => Err(Malformed::TooLong),
        false => Ok(message),
    }
}

/// Builds a batch, message by message.
pub(crate) struct BatchEncoder {
    out: BytesMut,
    out_of_band: Vec<Bytes>,
    bytes: usize,
    count: usize,
}

impl BatchEncoder {
    pub(crate) fn new() -> Self {
        let mut out = BytesMut::with_capacity(512);
        out.resize(BATCH_HEADER, 0);
        BatchEncoder { out, out_of_band: Vec::new(), bytes: 0, count: 0 }
    }

    /// Whether there is room for a message; there always is for the first one.
    pub(crate) fn has_room(&self, message: &Message) -> bool {
        self.count == 0
            || self.bytes < BATCH_BYTES
                && self.count < BATCH_MESSAGES
                && self.bytes + message.cost() <= MAX_MESSAGE
                && self.out_of_band.len() + message.out_of_band() < MAX_FRAME_PARTS
    }

    pub(crate) fn push(&mut self, message: &Message) {
        self.count += 1;
        self.bytes += message.cost();
        self.out.put_u16_le(1 + message.payloads.len() as u16);
        for part in message.parts() {
            let is_out_of_band = part.len() >= OUT_OF_BAND;
            self.out.put_u32_le(part.len() as u32 | if is_out_of_band { OUT_OF_BAND_BIT } else { 0 });
        }
        for part in message.parts() {
            match part.len() >= OUT_OF_BAND {
                true => self.out_of_band.push(part.clone()),
                false => self.out.put_slice(part),
            }
        }
    }

    pub(crate) fn finish(mut self, received: u64, credit: Credit, first: u64) -> Vec<Bytes> {
        let mut header = &mut self.out[..BATCH_HEADER];
        header.put_u8(BATCH);
        header.put_u64_le(received);
        header.put_u64_le(credit.messages);
        header.put_u64_le(credit.bytes);
        header.put_u64_le(first);
        header.put_u32_le(self.count as u32);
        let mut parts = Vec::with_capacity(1 + self.out_of_band.len());
        parts.push(self.out.freeze());
        parts.append(&mut self.out_of_band);
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from)
    }

    fn message() -> impl Strategy<Value = Message> {
        let large = (OUT_OF_BAND - 2..OUT_OF_BAND + 2).prop_map(|length| Bytes::from(vec![7; length]));
        let part = prop_oneof![8 => bytes(200), 1 => large];
        (bytes(200), prop::collection::vec(part, 0..4)).prop_map(|(header, payloads)| Message { header, payloads })
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let credit = any::<(u64, u64)>().prop_map(|(messages, bytes)| Credit { messages, bytes });
        let hello = (any::<(u64, u64, u64)>(), credit.clone())
            .prop_map(|((epoch, known, received), credit)| Frame::Hello(Hello { epoch, known, received, credit }));
        let batch = (any::<(u64, u64)>(), credit, prop::collection::vec(message(), 0..20)).prop_map(
            |((received, first), credit, messages)| Frame::Batch(Batch { received, credit, first, messages }),
        );
        let intro = any::<[u8; 16]>().prop_map(|bytes| Frame::Intro(Incarnation(bytes)));
        prop_oneof![1 => intro, 1 => hello, 4 => batch, 1 => Just(Frame::Bye)]
    }

    proptest! {
        #[test]
        fn frames_survive_the_codec(frame in frame()) {
            prop_assert_eq!(Frame::decode(frame.encode()), Ok(frame));
        }

        #[test]
        fn garbage_is_an_error_or_a_frame_and_never_a_panic(parts in prop::collection::vec(bytes(300), 0..4)) {
            let _ = Frame::decode(parts);
        }

        #[test]
        fn a_damaged_frame_is_an_error_or_a_frame(frame in frame(), at in any::<prop::sample::Index>(), with in 1u8..) {
            let mut parts = frame.encode();
            let mut first = parts[0].to_vec();
            let at = at.index(first.len());
            first[at] ^= with;
            parts[0] = first.into();
            if let Ok(damaged) = Frame::decode(parts) {
                prop_assert!(damaged != frame);
            }
        }

        #[test]
        fn a_truncated_frame_is_an_error(frame in frame(), at in any::<prop::sample::Index>()) {
            let mut parts = frame.encode();
            let shorter = at.index(parts[0].len());
            parts[0].truncate(shorter);
            prop_assert!(Frame::decode(parts).is_err());
        }
    }

    /// The header promises four thousand million messages: nothing is allocated for them.
    #[test]
    fn declared_counts_are_checked_before_allocating() {
        let mut frame = BatchEncoder::new().finish(0, Credit::default(), 0)[0].to_vec();
        frame[BATCH_HEADER - 4..].fill(0xff);
        assert_eq!(Frame::decode(vec![frame.clone().into()]), Err(Malformed::Truncated));
        frame[BATCH_HEADER - 4..].copy_from_slice(&1u32.to_le_bytes());
        frame.extend([0xff; 64]);
        assert_eq!(Frame::decode(vec![frame.into()]), Err(Malformed::Truncated));
    }

    #[test]
    fn the_largest_message_fits_in_a_frame() {
        let half = Bytes::from(vec![0; MAX_MESSAGE / 2]);
        let mut payloads = vec![Bytes::new(); MAX_PARTS - 3];
        payloads.extend([half.clone(), half]);
        let message = Message { header: Bytes::new(), payloads };
        assert!(!message.is_too_large());
        let frame = Frame::Batch(Batch { received: 0, credit: Credit::default(), first: 0, messages: vec![message] });
        assert_eq!(Frame::decode(frame.encode()), Ok(frame));
    }
}
