//! Map, shuffle, reduce: which words are the most frequent in the King James Bible?
//!
//! Each mapper counts the words of one part of the text and returns one table for each reducer, so that every
//! word always goes to the same reducer. [`submit_split`](outray::Task::submit_split) gives a handle to each of
//! these tables; a reducer takes its own tables of all mappers as one argument. The tables go from task to
//! task, never through this program. A plain loop must find the same.
//!
//! ```sh
//! cargo run --release --example word_count
//! ```

use std::{
    collections::HashMap,
    error::Error,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use outray::{ObjectRef, Runtime};
use serde::{Deserialize, Serialize};

const TEXT: &str = include_str!("data/kjv.txt");
/// With the reference before each verse.
const TOTAL_WORDS: u64 = 820_736;
const MAPPERS: usize = 4;
const REDUCERS: usize = 4;
const SHOWN: usize = 10;
const RUNS: usize = 5;

type Counts = HashMap<String, u64>;

/// Counts words in lower case, without the punctuation around them, in `TABLES` tables that share no word.
fn count_words<const TABLES: usize>(text: &str) -> [Counts; TABLES] {
    let mut tables = [(); TABLES].map(|()| Counts::new());
    let mut word = String::new();
    for written in text.split_ascii_whitespace() {
        word.clear();
        word.push_str(written.trim_matches(|letter: char| !letter.is_alphanumeric()));
        word.make_ascii_lowercase();
        let table = &mut tables[fnv1a(&word) as usize % TABLES];
        match table.get_mut(&word) {
            Some(count) => *count += 1,
            None => drop(table.insert(word.clone(), 1)),
        }
    }
    tables
}

/// A hash that is the same in every process, so that all mappers send a word to the same reducer.
fn fnv1a(word: &str) -> u32 {
    word.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Counts the words of one part of the text, in one table for each reducer.
fn map(text: Arc<String>, part: usize) -> (Counts, Counts, Counts, Counts) {
    count_words::<REDUCERS>(lines(&text, part)).into()
}

/// The lines that begin in one of `MAPPERS` equal parts of the text.
fn lines(text: &str, part: usize) -> &str {
    let start_of = |part: usize| {
        let before = &text.as_bytes()[..text.len() * part / MAPPERS];
        before.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1)
    };
    let end = if part + 1 == MAPPERS { text.len() } else { start_of(part + 1) };
    &text[start_of(part)..end]
}

/// Adds up the tables that all mappers made for one reducer.
fn reduce(tables: Vec<Counts>) -> Summary {
    let mut sum = Counts::new();
    for (word, count) in tables.into_iter().flatten() {
        *sum.entry(word).or_default() += count;
    }
    sum.into()
}

/// How many words were counted, and the most frequent of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Summary {
    total: u64,
    most_frequent: Vec<(String, u64)>,
}

impl From<Counts> for Summary {
    fn from(counts: Counts) -> Self {
        Summary { total: counts.values().sum(), most_frequent: most_frequent(counts.into_iter().collect()) }
    }
}

fn most_frequent(mut words: Vec<(String, u64)>) -> Vec<(String, u64)> {
    words.sort_unstable_by(|(word, count), (other, others)| others.cmp(count).then_with(|| word.cmp(other)));
    words.truncate(SHOWN);
    words
}

fn map_reduce(rt: &Runtime, text: &ObjectRef<String>) -> outray::Result<Summary> {
    let mut shuffled: [Vec<ObjectRef<Counts>>; REDUCERS] = Default::default();
    for part in 0..MAPPERS {
        let tables: [_; REDUCERS] = rt.task(map).submit_split((text, part)).into();
        for (inbox, table) in shuffled.iter_mut().zip(tables) {
            inbox.push(table);
        }
    }
    let reduced = shuffled.map(|tables| rt.submit(reduce, tables));
    let summaries = rt.get_all(&reduced)?;
    Ok(Summary {
        total: summaries.iter().map(|summary| summary.total).sum(),
        most_frequent: most_frequent(summaries.into_iter().flat_map(|summary| summary.most_frequent).collect()),
    })
}

/// What `work` returns, and the shortest time of `RUNS` that it took.
fn fastest<T>(work: impl Fn() -> T) -> (T, Duration) {
    let runs = (0..RUNS).map(|_| {
        let start = Instant::now();
        (work(), start.elapsed())
    });
    runs.min_by_key(|(_, elapsed)| *elapsed).expect("RUNS is positive")
}

fn run() -> Result<(), Box<dyn Error>> {
    let rt = Runtime::from_env()?;
    let text = rt.put(TEXT.to_owned());

    let (summary, parallel) = fastest(|| map_reduce(&rt, &text));
    let summary = summary?;
    let ([expected], sequential) = fastest(|| count_words::<1>(TEXT).map(Summary::from));

    println!("{} words; the {SHOWN} most frequent:", summary.total);
    for (word, count) in &summary.most_frequent {
        println!("  {word:<6} {count:>6}");
    }
    println!(
        "{MAPPERS} mappers and {REDUCERS} reducers on {} CPUs: {:.1} ms; a plain loop: {:.1} ms (best of {RUNS})",
        rt.stats().cpus,
        1e3 * parallel.as_secs_f64(),
        1e3 * sequential.as_secs_f64(),
    );
    if summary != expected {
        return Err(format!("the plain loop found something else: {expected:?}").into());
    }
    if summary.total != TOTAL_WORDS {
        return Err(format!("the text has {TOTAL_WORDS} words").into());
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("word_count: {error}");
            ExitCode::FAILURE
        }
    }
}
