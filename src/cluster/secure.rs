//! The cluster's key: who has it may talk, and nobody else can read, forge or repeat what is said.
//!
//! A channel is sans-IO: transport messages in, transport messages out. With a key it starts with a
//! Noise handshake, `NNpsk0` over X25519, AES-GCM and SHA-256; then every part of every message is one
//! AES-256-GCM record. Without a key, on loopback, messages pass as they are.
//!
//! # States
//! ```text
//! initiator:  start: send e --> Waiting --answer--> Open
//! responder:                    Waiting --e: send e, ee--> Confirming --first record--> Open
//! ```
//! A handshake message of another connection, played again, brings a responder to `Confirming` and no
//! further, because it takes the keys to send a record. `is_open` is what authentication rests on.
//!
//! # Invariants
//! - A key seals in one direction of one connection, and each counter once: the counters start at 0,
//!   count records, and are never sent, so a record that is repeated, missing or out of order does not
//!   open.
//! - A record's associated data is its place in its message and how many parts that has, so parts
//!   cannot be exchanged or left out.
//! - After an error the channel is of no use, and its owner closes the connection.
//! - No error and no `Debug` shows a key.

mod key;
#[cfg(test)]
mod tests;

pub(crate) use key::Key;

use bytes::{Bytes, BytesMut};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::fmt;

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";

/// What a connection is for. A handshake for one use is foreign to the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Messages,
    Bulk,
}

impl Purpose {
    /// Goes into the handshake's hash, and before its messages: what does not start with it is foreign.
    pub(crate) const fn prologue(self) -> &'static [u8; 8] {
        match self {
            Purpose::Messages => b"outray/1",
            Purpose::Bulk => b"outbulk1",
        }
    }
}

/// Bytes that sealing adds to a part.
pub(crate) const TAG: usize = 16;
/// Bytes of each handshake message: the prologue, an X25519 key and a tag.
pub(crate) const HANDSHAKE: usize = 8 + 32 + TAG;
/// After so many bytes one way a connection is replaced by one with new keys. TLS 1.3 allows about 2^38.5 for
/// AES-GCM.
pub(crate) const RENEW_AFTER: u64 = 1 << 38;

/// Why a channel is closed. What the peer did wrong is not told to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SecureError {
    /// What came is not a handshake of outray.
    NotAHandshake,
    /// It is one, and was made with another key.
    WrongKey,
    /// A record that was changed, repeated, left out or made with other keys.
    BadRecord,
    /// There is no randomness, or a counter is used up.
    Local,
}

impl fmt::Display for SecureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SecureError::NotAHandshake => {
                "it does not start with outray's handshake; either it is no outray process, or it has no cluster key: \
                 give every process of the cluster the same key file"
            }
            SecureError::WrongKey => "it has another cluster key: give every process of the cluster the same key file",
            SecureError::BadRecord => "a record does not open: it was changed or repeated on its way",
            SecureError::Local => "the handshake could not be made: the system gives no randomness",
        })
    }
}

impl std::error::Error for SecureError {}

/// One direction of a connection.
pub(crate) struct Direction {
    key: LessSafeKey,
    records: u64,
    bytes: u64,
}

impl Direction {
    fn new(key: &[u8; 32]) -> Result<Self, SecureError> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SecureError::Local)?;
        Ok(Direction { key: LessSafeKey::new(key), records: 0, bytes: 0 })
    }

    /// Bytes that it has sealed or opened. The fewer there are for one key, the less is left to chance.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Noise's nonce for AES-GCM: four zero bytes and the counter.
    fn nonce(&mut self, length: usize) -> Result<Nonce, SecureError> {
        self.bytes += length as u64;
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.records.to_be_bytes());
        self.records = self.records.checked_add(1).ok_or(SecureError::Local)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Encrypts a record that is no part of a message, and returns its tag.
    pub(crate) fn seal(&mut self, record: &mut [u8]) -> Result<[u8; TAG], SecureError> {
        let nonce = self.nonce(record.len())?;
        let tag = self.key.seal_in_place_separate_tag(nonce, place(0, 1), record).map_err(|_| SecureError::Local)?;
        tag.as_ref().try_into().map_err(|_| SecureError::Local)
    }

    /// Decrypts such a record. After an error what it holds means nothing.
    pub(crate) fn open(&mut self, record: &mut [u8], tag: [u8; TAG]) -> Result<(), SecureError> {
        let nonce = self.nonce(record.len())?;
        let opened = self.key.open_in_place_separate_tag(nonce, place(0, 1), tag.into(), record, 0..);
        opened.map(drop).map_err(|_| SecureError::BadRecord)
    }
}

impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direction").field("records", &self.records).finish_non_exhaustive()
    }
}

fn place(at: usize, of: usize) -> Aad<[u8; 8]> {
    let mut aad = [0; 8];
    aad[..4].copy_from_slice(&(at as u32).to_le_bytes());
    aad[4..].copy_from_slice(&(of as u32).to_le_bytes());
    Aad::from(aad)
}

/// The bytes to be changed in place: the same memory if nobody else has it.
fn owned(part: Bytes, spare: usize) -> BytesMut {
    part.try_into_mut().unwrap_or_else(|shared| {
        let mut copy = BytesMut::with_capacity(shared.len() + spare);
        copy.extend_from_slice(&shared);
        copy
    })
}

/// Both directions have keys.
struct Keys {
    sealing: Direction,
    opening: Direction,
    /// Whether the other side has used them. A responder does not know yet that the initiator lives.
    is_confirmed: bool,
}

enum State {
    /// There is no key: everything passes.
    Plain,
    /// For the other side's handshake message.
    Waiting(Purpose, Box<snow::HandshakeState>),
    Keyed(Box<Keys>),
    Failed,
}

/// How the sender's and the receiver's records are made; nothing without a key.
pub(crate) type Directions = Option<(Direction, Direction)>;

/// What a received message leads to.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Opened {
    /// A message of the other side's.
    Message(Vec<Bytes>),
    /// A part of the handshake, and what to answer.
    Handshake(Option<Vec<Bytes>>),
}

/// One end of a connection.
pub(crate) struct Channel {
    state: State,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("is_open", &self.is_open()).finish_non_exhaustive()
    }
}

impl Channel {
    /// The end that dialed, and its first message.
    pub(crate) fn initiator(purpose: Purpose, key: Option<&Key>) -> Result<(Self, Option<Vec<Bytes>>), SecureError> {
        let Some(key) = key else {
            return Ok((Channel { state: State::Plain }, None));
        };
        let builder = builder(purpose, key)?;
        let mut noise = builder.build_initiator().map_err(|_| SecureError::Local)?;
        let first = write(purpose, &mut noise)?;
        Ok((Channel { state: State::Waiting(purpose, Box::new(noise)) }, Some(first)))
    }

    /// The end that was dialed.
    pub(crate) fn responder(purpose: Purpose, key: Option<&Key>) -> Result<Self, SecureError> {
        let Some(key) = key else {
            return Ok(Channel { state: State::Plain });
        };
        let noise = builder(purpose, key)?.build_responder().map_err(|_| SecureError::Local)?;
        Ok(Channel { state: State::Waiting(purpose, Box::new(noise)) })
    }

    /// The directions apart, sealing first, for what is not made of messages. The handshake is done, and
    /// the first record that opens confirms it.
    pub(crate) fn split(self) -> Result<Directions, SecureError> {
        match self.state {
            State::Plain => Ok(None),
            State::Keyed(keys) => Ok(Some((keys.sealing, keys.opening))),
            State::Waiting(..) | State::Failed => Err(SecureError::BadRecord),
        }
    }

    /// An end that has sealed and opened nothing yet.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn with_keys(sealing: [u8; 32], opening: [u8; 32]) -> Channel {
        let direction = |key| Direction::new(&key).expect("a key of the right length");
        let keys = Keys { sealing: direction(sealing), opening: direction(opening), is_confirmed: false };
        Channel { state: State::Keyed(Box::new(keys)) }
    }

    /// Whether messages can be sent.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn can_seal(&self) -> bool {
        matches!(self.state, State::Plain | State::Keyed(_))
    }

    /// Whether the other side has shown that it has the key. Without a key nobody has to.
    pub(crate) fn is_open(&self) -> bool {
        match &self.state {
            State::Plain => true,
            State::Keyed(keys) => keys.is_confirmed,
            State::Waiting(..) | State::Failed => false,
        }
    }

    /// Bytes that were sealed with the connection's key.
    pub(crate) fn sealed(&self) -> u64 {
        match &self.state {
            State::Keyed(keys) => keys.sealing.bytes,
            State::Plain | State::Waiting(..) | State::Failed => 0,
        }
    }

    pub(crate) fn seal(&mut self, parts: Vec<Bytes>) -> Result<Vec<Bytes>, SecureError> {
        let sealing = match &mut self.state {
            State::Plain => return Ok(parts),
            State::Keyed(keys) => &mut keys.sealing,
            State::Waiting(..) | State::Failed => return Err(SecureError::BadRecord),
        };
        let of = parts.len();
        let sealed = parts.into_iter().enumerate().map(|(at, part)| {
            let mut part = owned(part, TAG);
            let nonce = sealing.nonce(part.len())?;
            let tag = sealing.key.seal_in_place_separate_tag(nonce, place(at, of), &mut part);
            part.extend_from_slice(tag.map_err(|_| SecureError::Local)?.as_ref());
            Ok(part.freeze())
        });
        sealed.collect()
    }

    /// After an error the connection must be closed: nothing that follows opens.
    pub(crate) fn open(&mut self, parts: Vec<Bytes>) -> Result<Opened, SecureError> {
        if let State::Plain = self.state {
            return Ok(Opened::Message(parts));
        }
        let (state, opened) = std::mem::replace(&mut self.state, State::Failed).open(parts)?;
        self.state = state;
        Ok(opened)
    }
}

impl State {
    fn open(self, parts: Vec<Bytes>) -> Result<(State, Opened), SecureError> {
        match self {
            State::Plain => Ok((State::Plain, Opened::Message(parts))),
            State::Failed => Err(SecureError::BadRecord),
            State::Waiting(purpose, mut noise) => {
                read(purpose, &mut noise, &parts)?;
                let is_initiator = noise.is_initiator();
                let answer = if is_initiator { None } else { Some(write(purpose, &mut noise)?) };
                let (forth, back) = noise.dangerously_get_raw_split();
                let (sealing, opening) = if is_initiator { (forth, back) } else { (back, forth) };
                let (sealing, opening) = (Direction::new(&sealing)?, Direction::new(&opening)?);
                let keys = Box::new(Keys { sealing, opening, is_confirmed: is_initiator });
                Ok((State::Keyed(keys), Opened::Handshake(answer)))
            }
            State::Keyed(mut keys) => {
                let opening = &mut keys.opening;
                let of = parts.len();
                if of == 0 {
                    return Err(SecureError::BadRecord);
                }
                let opened = parts.into_iter().enumerate().map(|(at, part)| {
                    let mut part = owned(part, 0);
                    let nonce = opening.nonce(part.len())?;
                    let plain = opening.key.open_in_place(nonce, place(at, of), &mut part);
                    let length = plain.map_err(|_| SecureError::BadRecord)?.len();
                    part.truncate(length);
                    Ok(part.freeze())
                });
                let opened = opened.collect::<Result<_, _>>()?;
                keys.is_confirmed = true;
                Ok((State::Keyed(keys), Opened::Message(opened)))
            }
        }
    }
}

fn builder(purpose: Purpose, key: &Key) -> Result<snow::Builder<'_>, SecureError> {
    let pattern = PATTERN.parse().map_err(|_| SecureError::Local)?;
    let builder = snow::Builder::new(pattern).psk(0, key.bytes()).map_err(|_| SecureError::Local)?;
    builder.prologue(purpose.prologue()).map_err(|_| SecureError::Local)
}

fn write(purpose: Purpose, noise: &mut snow::HandshakeState) -> Result<Vec<Bytes>, SecureError> {
    let mut message = [0; HANDSHAKE];
    let prologue = purpose.prologue();
    let (start, rest) = message.split_at_mut(prologue.len());
    start.copy_from_slice(prologue);
    noise.write_message(&[], rest).map_err(|_| SecureError::Local)?;
    Ok(vec![Bytes::copy_from_slice(&message)])
}

fn read(purpose: Purpose, noise: &mut snow::HandshakeState, parts: &[Bytes]) -> Result<(), SecureError> {
    let [part] = parts else { return Err(SecureError::NotAHandshake) };
    let Some(message) = part.strip_prefix(purpose.prologue()) else { return Err(SecureError::NotAHandshake) };
    if part.len() != HANDSHAKE {
        return Err(SecureError::NotAHandshake);
    }
    let mut payload = [0; HANDSHAKE];
    noise.read_message(message, &mut payload).map_err(|_| SecureError::WrongKey)?;
    Ok(())
}
