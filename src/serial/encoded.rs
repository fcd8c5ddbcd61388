//! A packed value as one row of bytes: what an object is in a store, and on the way between nodes.
//!
//! ```text
//!   0  "outray\0\1"
//!   8  the length of the MessagePack
//!  16  the number of buffers
//!  24  their lengths
//!      the MessagePack
//!      each buffer, at the next multiple of 64
//! ```
//!
//! Numbers are little-endian and of 8 bytes. What lies between is zero. It ends with the last buffer,
//! or with the MessagePack if there is none. A buffer is read where it stands, so it is aligned as
//! well as the row itself is.

use super::Packed;
use bytes::Bytes;
use std::io::{self, Write};

const MAGIC: [u8; 8] = *b"outray\0\x01";

/// What buffers are aligned to: a cache line, and the widest vector.
pub(crate) const ALIGNMENT: usize = 64;

impl Packed {
    /// How long it is, encoded.
    pub(crate) fn encoded_len(&self) -> usize {
        let head = MAGIC.len() + 8 * (2 + self.buffers.len()) + self.bytes.len();
        self.buffers.iter().fold(head, |end, buffer| end.next_multiple_of(ALIGNMENT) + buffer.len())
    }

    /// Writes it. No byte is written twice, and those of a buffer are not copied on the way.
    pub(crate) fn encode(&self, to: &mut impl Write) -> io::Result<()> {
        let mut head = MAGIC.to_vec();
        let lengths = self.buffers.iter().map(Bytes::len);
        for number in [self.bytes.len(), self.buffers.len()].into_iter().chain(lengths) {
            head.extend_from_slice(&(number as u64).to_le_bytes());
        }
        to.write_all(&head)?;
        to.write_all(&self.bytes)?;
        let mut at = head.len() + self.bytes.len();
        for buffer in &self.buffers {
            let start = at.next_multiple_of(ALIGNMENT);
            to.write_all(&[0; ALIGNMENT][..start - at])?;
            to.write_all(buffer)?;
            at = start + buffer.len();
        }
        Ok(())
    }
}

/// The MessagePack, and the buffers.
pub(super) fn split(encoded: &Bytes) -> Option<(Bytes, Vec<Bytes>)> {
    fn number(from: &[u8]) -> Option<(usize, &[u8])> {
        let (number, rest) = from.split_first_chunk()?;
        Some((u64::from_le_bytes(*number).try_into().ok()?, rest))
    }
    let rest = encoded.strip_prefix(&MAGIC)?;
    let (length, rest) = number(rest)?;
    let (count, rest) = number(rest)?;
    let (mut lengths, rest) = rest.split_at_checked(count.checked_mul(8)?)?;

    let part = |start: usize, length| {
        let end = start.checked_add(length)?;
        (end <= encoded.len()).then(|| (encoded.slice(start..end), end))
    };
    let (bytes, mut at) = part(encoded.len() - rest.len(), length)?;
    let mut buffers = Vec::with_capacity(count);
    while !lengths.is_empty() {
        let (length, others) = number(lengths)?;
        let (buffer, end) = part(at.checked_next_multiple_of(ALIGNMENT)?, length)?;
        buffers.push(buffer);
        (lengths, at) = (others, end);
    }
    (at == encoded.len()).then_some((bytes, buffers))
}

/// The value that was encoded.
#[cfg(test)]
pub(crate) fn decode<T: serde::de::DeserializeOwned + 'static>(
    encoded: &Bytes,
    handles: super::Handles,
) -> crate::error::Result<T> {
    let (bytes, buffers) = split(encoded).ok_or_else(|| super::failed::<T>("a value", "not an encoded one"))?;
    let beside = super::Beside { handles, buffers: Some(buffers), ..super::Beside::default() };
    super::from_message_pack(&bytes, beside, "a value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Array,
        error::Result,
        serial::{Handles, pack},
    };
    use proptest::prelude::*;

    type Value = (String, Vec<Array<u64>>, Array<u8>);

    fn encode(value: &Value) -> Vec<u8> {
        let packed = pack(value, "a value").unwrap();
        let mut encoded = Vec::new();
        packed.encode(&mut encoded).unwrap();
        assert_eq!(encoded.len(), packed.encoded_len());
        encoded
    }

    /// The bytes at an address that is so far from a multiple of 64.
    fn at(offset: usize, bytes: &[u8]) -> Bytes {
        let mut room = vec![0; bytes.len() + 128];
        let start = room.as_ptr().align_offset(64) + offset;
        room[start..start + bytes.len()].copy_from_slice(bytes);
        Bytes::from(room).slice(start..start + bytes.len())
    }

    fn decode(bytes: &Bytes) -> Result<Value> {
        super::decode(bytes, Handles::default())
    }

    proptest! {
        #[test]
        fn values_survive_wherever_they_stand(
            text in ".{0,20}",
            arrays in prop::collection::vec(prop::collection::vec(any::<u64>(), 0..20), 0..6),
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            offset in 0..64_usize,
        ) {
            let value: Value = (text, arrays.into_iter().map(Array::from).collect(), bytes.into());
            let encoded = at(offset, &encode(&value));
            let read = decode(&encoded).unwrap();
            prop_assert_eq!(&read, &value);
            for array in read.1.iter().filter(|array| !array.is_empty()) {
                let is_inside = encoded.as_ptr_range().contains(&array.as_ptr().cast());
                prop_assert_eq!(is_inside, offset.is_multiple_of(8), "copied if it must be, and only then");
                prop_assert!(offset != 0 || array.as_ptr().addr().is_multiple_of(ALIGNMENT));
            }
        }

        #[test]
        fn other_bytes_are_errors(cut in 0..400_usize, index in 0..400_usize, byte: u8, noise: Vec<u8>) {
            let value: Value = ("text".into(), vec![vec![1; 9].into(), vec![2; 7].into()], vec![3; 70].into());
            let encoded = encode(&value);
            prop_assert!(decode(&encoded[..cut.min(encoded.len() - 1)].to_vec().into()).is_err());
            prop_assert!(decode(&[&encoded[..], &[0]].concat().into()).is_err());
            prop_assert!(decode(&noise.into()).is_err());
            let mut changed = encoded.clone();
            changed[index.min(encoded.len() - 1)] = byte;
            let _ = decode(&changed.into()); // anything but a panic
        }
    }

    #[test]
    fn lengths_are_not_believed() {
        let head = |length: u64, count: u64, lengths: &[u64]| {
            let numbers = [length, count].into_iter().chain(lengths.iter().copied());
            let bytes: Vec<u8> = MAGIC.into_iter().chain(numbers.flat_map(u64::to_le_bytes)).collect();
            Bytes::from(bytes)
        };
        for (length, count, lengths) in [
            (u64::MAX, 0, vec![]),
            (0, u64::MAX, vec![]),
            (0, 1 << 61, vec![]),
            (0, 1, vec![u64::MAX]),
            (1, 1, vec![0]),
        ] {
            assert!(decode(&head(length, count, &lengths)).is_err(), "{length} {count} {lengths:?}");
        }
    }

    #[test]
    fn handles_stay_beside_it() {
        let rt = crate::Runtime::deterministic(1);
        let value = (rt.put(5_u64), Array::from(vec![1.0, 2.0]));
        let packed = pack(&value, "a value").unwrap();
        let mut encoded = Vec::new();
        packed.encode(&mut encoded).unwrap();
        let read: (crate::ObjectRef<u64>, Array<f64>) =
            super::decode(&encoded.into(), Handles::Here(packed.handles.clone())).unwrap();
        assert_eq!((read.0.get(), read.1), (Ok(5), value.1));
    }
}
