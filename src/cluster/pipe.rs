//! Letters over a pipe, between a node and one of its workers.
//!
//! ```text
//! frame = length of the header: u32, number of payloads: u32, length of each: u64, header, payloads   (little-endian)
//! ```
//!
//! Both ends are the same executable or trust each other with it; lengths are checked so that a worker that breaks
//! off in the middle of a frame, or writes garbage, costs its node nothing but that worker.

use super::wire::Envelope;
use bytes::Bytes;
use std::{
    io::{self, BufWriter, Read, Write},
    sync::mpsc,
};

/// The longest header, in bytes, and the most payloads.
const LONGEST: [u32; 2] = [256 << 20, 1 << 20];

/// Writes what is put into the channel, until that is closed or nobody reads the pipe any more.
pub(crate) fn write(output: impl Write, letters: &mpsc::Receiver<Envelope>) -> io::Result<()> {
    let mut output = BufWriter::with_capacity(64 << 10, output);
    while let Ok(first) = letters.recv() {
        let mut next = Some(first);
        while let Some(envelope) = next {
            write_one(&mut output, &envelope)?;
            next = letters.try_recv().ok();
        }
        output.flush()?;
    }
    Ok(())
}

fn write_one(output: &mut impl Write, envelope: &Envelope) -> io::Result<()> {
    let header = envelope.header();
    output.write_all(&(header.len() as u32).to_le_bytes())?;
    output.write_all(&(envelope.payload.len() as u32).to_le_bytes())?;
    for payload in &envelope.payload {
        output.write_all(&(payload.len() as u64).to_le_bytes())?;
    }
    output.write_all(&header)?;
    envelope.payload.iter().try_for_each(|payload| output.write_all(payload))
}

/// The next letter; `None` at the end.
pub(crate) fn read(input: &mut impl Read) -> io::Result<Option<Envelope>> {
    let mut lengths = [0; 8];
    let mut have = 0;
    while have < lengths.len() {
        match input.read(&mut lengths[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let (lengths, _) = lengths.as_chunks::<4>();
    let [header, count] = [0, 1].map(|at| u32::from_le_bytes(lengths[at]));
    if header > LONGEST[0] || count > LONGEST[1] {
        return Err(io::Error::other("a frame that is too long"));
    }
    let mut payload_lengths = Vec::new();
    for _ in 0..count {
        let mut length = [0; 8];
        input.read_exact(&mut length)?;
        payload_lengths.push(u64::from_le_bytes(length));
    }
    let header = read_bytes(input, header.into())?;
    let payload = payload_lengths.into_iter().map(|length| read_bytes(input, length)).collect::<io::Result<_>>()?;
    Envelope::parse(&header, payload).map(Some).ok_or_else(|| io::Error::other("a letter that cannot be read"))
}

/// So many bytes; memory is used only for what has arrived.
fn read_bytes(input: &mut impl Read, length: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(length.min(1 << 20) as usize);
    match input.take(length).read_to_end(&mut bytes)? as u64 == length {
        true => Ok(bytes.into()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{protocol::HEAD, wire::Letter};

    #[test]
    fn letters_come_as_they_were_sent_and_a_broken_pipe_is_an_error() {
        let (letters, queue) = mpsc::channel();
        for size in [0, 1, 100_000] {
            let payload = vec![Bytes::from(vec![7; size]), Bytes::new()];
            letters.send(Envelope { from: HEAD, to: HEAD, letter: Letter::Leaving, payload }).unwrap();
        }
        drop(letters);
        let mut bytes = Vec::new();
        write(&mut bytes, &queue).unwrap();
        let mut input = &bytes[..];
        for size in [0, 1, 100_000] {
            let envelope = read(&mut input).unwrap().unwrap();
            assert_eq!(envelope.payload.iter().map(Bytes::len).collect::<Vec<_>>(), [size, 0]);
        }
        assert!(read(&mut input).unwrap().is_none());
        for cut in [1, 7, 20, bytes.len() - 1] {
            let mut input = &bytes[..cut];
            let last = std::iter::repeat_with(|| read(&mut input)).find(|read| !matches!(read, Ok(Some(_)))).unwrap();
            assert!(last.is_err(), "cut at {cut}");
        }
    }
}
