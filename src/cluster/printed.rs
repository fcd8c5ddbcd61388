//! The last lines that the workers of a node have printed.

use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{self, BufRead, Read},
    sync::Arc,
};

/// So much is kept.
const LINES: usize = 10_000;
const BYTES: usize = 1 << 20;
/// A longer line is several.
const LONGEST: u64 = 16 << 10;

struct Line {
    /// Milliseconds since 1970.
    time: u64,
    pid: u32,
    job: Arc<str>,
    task: Arc<str>,
    text: Arc<str>,
}

#[derive(Default)]
pub(crate) struct Printed {
    lines: VecDeque<Line>,
    bytes: usize,
    /// How many there were, ever.
    count: u64,
}

impl Printed {
    pub(crate) fn push(&mut self, time: u64, pid: u32, job: Arc<str>, task: Arc<str>, text: Arc<str>) {
        self.count += 1;
        self.bytes += text.len();
        self.lines.push_back(Line { time, pid, job, task, text });
        while self.lines.len() > LINES || self.bytes > BYTES {
            let Some(line) = self.lines.pop_front() else { return };
            self.bytes -= line.text.len();
        }
    }

    /// Those after the line of this number, and the number of the last one.
    pub(crate) fn after(&self, number: u64) -> Value {
        let first = self.count - self.lines.len() as u64;
        let skip = number.saturating_sub(first) as usize;
        let lines: Vec<_> = self.lines.iter().skip(skip).map(|line| {
            json!({ "time_ms": line.time, "pid": line.pid, "job": &*line.job, "task": &*line.task, "text": &*line.text })
        }).collect();
        let missed = first.saturating_sub(number);
        json!({ "lines": lines, "last": self.count, "missed": missed })
    }
}

/// The next line, without its end; `None` after the last one.
pub(crate) fn read_line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    input.by_ref().take(LONGEST).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.ends_with(b"\n") {
        line.pop();
    }
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(answer: &Value) -> Vec<&str> {
        answer["lines"].as_array().unwrap().iter().map(|line| line["text"].as_str().unwrap()).collect()
    }

    #[test]
    fn who_asks_again_gets_what_is_new_and_hears_what_was_missed() {
        let mut printed = Printed::default();
        let push = |printed: &mut Printed, text: &str| printed.push(1, 2, "job".into(), "task".into(), text.into());
        push(&mut printed, "a");
        push(&mut printed, "b");
        let first = printed.after(0);
        assert_eq!((texts(&first), first["last"].as_u64()), (vec!["a", "b"], Some(2)));
        assert_eq!(texts(&printed.after(2)), Vec::<&str>::new());
        push(&mut printed, "c");
        assert_eq!(texts(&printed.after(2)), ["c"]);
        (0..LINES).for_each(|_| push(&mut printed, "x"));
        let later = printed.after(2);
        assert_eq!((texts(&later).len(), later["missed"].as_u64()), (LINES, Some(1)));
    }

    #[test]
    fn long_texts_make_room_for_themselves() {
        let mut printed = Printed::default();
        let text: Arc<str> = "x".repeat(BYTES / 4).into();
        (0..9).for_each(|_| printed.push(1, 2, "job".into(), "task".into(), text.clone()));
        assert_eq!((printed.lines.len(), printed.bytes), (4, BYTES));
    }

    #[test]
    fn lines_are_read_without_their_ends_and_endless_ones_in_pieces() {
        let long = vec![b'x'; LONGEST as usize + 1];
        let text = [b"one\n\n".as_slice(), b"t\xffo\n", &long].concat();
        let (mut input, mut lines) = (text.as_slice(), Vec::new());
        while let Some(line) = read_line(&mut input).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines[..3], ["one", "", "t\u{fffd}o"]);
        assert_eq!(lines[3..].iter().map(String::len).collect::<Vec<_>>(), [LONGEST as usize, 1]);
    }
}
