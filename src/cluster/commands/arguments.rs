//! The command line, word by word. What is wrong is said with what would be right.

use lexopt::{Arg, Parser, ValueExt};
use std::{fmt, path::PathBuf, str::FromStr};

/// What is wrong with a command line.
pub(super) struct Wrong {
    command: &'static str,
    what: String,
}

impl Wrong {
    pub(super) fn new(command: &'static str, what: impl Into<String>) -> Wrong {
        Wrong { command, what: what.into() }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.command.is_empty() { "" } else { " " };
        write!(f, "{}\nFor help: outray{space}{} --help", self.what, self.command)
    }
}

pub(super) struct Arguments {
    parser: Parser,
    command: &'static str,
}

/// A file that may be left out.
pub(super) enum File {
    Help,
    Given(PathBuf),
    None,
}

impl Arguments {
    pub(super) fn of_process() -> Arguments {
        Arguments { parser: Parser::from_env(), command: "" }
    }

    #[cfg(test)]
    pub(super) fn of(words: &[&str]) -> Arguments {
        Arguments { parser: Parser::from_args(words), command: "" }
    }

    fn wrong(&self, what: impl Into<String>) -> Wrong {
        Wrong::new(self.command, what)
    }

    fn next(&mut self) -> Result<Option<Arg<'_>>, Wrong> {
        let command = self.command;
        self.parser.next().map_err(|error| Wrong::new(command, error.to_string()))
    }

    /// The next word, one of these; `None` for a wish for help, or if there is none at the first place.
    pub(super) fn command(&mut self, after: &'static str, known: &[&str]) -> Result<Option<String>, Wrong> {
        self.command = after;
        let what = match self.next()? {
            None if after.is_empty() => return Ok(None),
            None => format!("`outray {after}` needs one more word: {}", one_of(known)),
            Some(Arg::Long("help") | Arg::Short('h')) => return Ok(None),
            Some(Arg::Long("version") | Arg::Short('V')) if after.is_empty() => return Ok(Some("version".into())),
            Some(Arg::Value(word)) => {
                let word = word.to_string_lossy().into_owned();
                if known.contains(&word.as_str()) {
                    return Ok(Some(word));
                }
                format!("`{word}` is not known here; known are {}", one_of(known))
            }
            Some(option) => format!("`{}` is not known here; first comes {}", shown(&option), one_of(known)),
        };
        Err(self.wrong(what))
    }

    /// The next option, one of these or `--help`; `None` at the end.
    pub(super) fn option(&mut self, command: &'static str, known: &[&str]) -> Result<Option<String>, Wrong> {
        self.command = command;
        let option = match self.next()? {
            None => return Ok(None),
            Some(Arg::Long("help") | Arg::Short('h')) => return Ok(Some("--help".into())),
            Some(option) => shown(&option),
        };
        if known.contains(&option.as_str()) {
            return Ok(Some(option));
        }
        let options = match known {
            [] => "it has no options".into(),
            known => format!("its options are {}", one_of(known)),
        };
        Err(self.wrong(format!("`outray {command}` does not know `{option}`; {options}")))
    }

    /// A file; `None` for a wish for help.
    pub(super) fn file(&mut self, command: &'static str, name: &str) -> Result<Option<PathBuf>, Wrong> {
        match self.file_if_any(command)? {
            File::Help => Ok(None),
            File::Given(path) => Ok(Some(path)),
            File::None => Err(self.wrong(format!("`outray {command}` needs {name}"))),
        }
    }

    pub(super) fn file_if_any(&mut self, command: &'static str) -> Result<File, Wrong> {
        self.command = command;
        let option = match self.next()? {
            None => return Ok(File::None),
            Some(Arg::Long("help") | Arg::Short('h')) => return Ok(File::Help),
            Some(Arg::Value(path)) => return Ok(File::Given(path.into())),
            Some(option) => shown(&option),
        };
        Err(self.wrong(format!("`outray {command}` wants a file before `{option}`")))
    }

    pub(super) fn text(&mut self, option: &str) -> Result<String, Wrong> {
        let command = self.command;
        let value = self.parser.value().and_then(|value| value.string());
        match value {
            Ok(text) if !text.is_empty() => Ok(text),
            Ok(_) => Err(Wrong::new(command, format!("`{option}` needs a value"))),
            Err(lexopt::Error::MissingValue { .. }) => Err(Wrong::new(command, format!("`{option}` needs a value"))),
            Err(error) => Err(Wrong::new(command, error.to_string())),
        }
    }

    /// What `parse` takes.
    fn parsed<T>(&mut self, option: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, Wrong> {
        let text = self.text(option)?;
        parse(&text).ok_or_else(|| self.wrong(format!("`{option} {text}`: {wanted}")))
    }

    pub(super) fn address(&mut self, option: &str) -> Result<String, Wrong> {
        let is_good = |text: &str| {
            let (host, port) = text.rsplit_once(':')?;
            let is_ip6 = host.starts_with('[') && host.ends_with(']');
            (!host.is_empty() && (is_ip6 || !host.contains(':')) && u16::from_str(port).is_ok()).then(|| text.into())
        };
        self.parsed(option, "an address is HOST:PORT, for example 10.0.0.1:6380 or [fd00::1]:6380", is_good)
    }

    pub(super) fn host(&mut self, option: &str) -> Result<String, Wrong> {
        let is_good = |text: &str| {
            let is_ip6 = text.starts_with('[') && text.ends_with(']');
            (is_ip6 || !text.contains(':')).then(|| text.into())
        };
        self.parsed(option, "a host is a name or an address without a port, for example 10.0.0.1 or [fd00::1]", is_good)
    }

    pub(super) fn amount(&mut self, option: &str) -> Result<f64, Wrong> {
        let text = self.text(option)?;
        amount(option, &text).map_err(|wrong| self.wrong(wrong.what))
    }

    pub(super) fn count(&mut self, option: &str) -> Result<u32, Wrong> {
        let most = 1024;
        self.parsed(option, "wanted is a whole number up to 1024", |text| {
            text.parse().ok().filter(|count| *count <= most)
        })
    }

    pub(super) fn bytes(&mut self, option: &str) -> Result<u64, Wrong> {
        self.parsed(option, "wanted is a number of bytes, or one with KiB, MiB, GiB, TiB, kB, MB, GB or TB", bytes)
    }

    /// Two texts with `=` between.
    pub(super) fn pair(&mut self, option: &str, form: &str) -> Result<(String, String), Wrong> {
        self.parsed(option, &format!("wanted is {form}"), |text| {
            let (name, value) = text.split_once('=')?;
            (!name.is_empty() && !value.is_empty()).then(|| (name.into(), value.into()))
        })
    }
}

/// An amount of a resource: thousandths count.
pub(super) fn amount(option: &str, text: &str) -> Result<f64, Wrong> {
    let amount = text.parse().ok().filter(|amount: &f64| amount.is_finite() && (0.0..=1e6).contains(amount));
    amount.ok_or_else(|| {
        Wrong::new(
            "node",
            format!("`{option}`: `{text}` is no amount; wanted is a number from 0 to 1000000, for example 4 or 0.5"),
        )
    })
}

fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "tib" | "t" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    let bytes = f64::from_str(number).ok()? * unit as f64;
    (bytes >= 1.0 && bytes < (1u64 << 60) as f64).then_some(bytes as u64)
}

fn shown(option: &Arg<'_>) -> String {
    match option {
        Arg::Long(name) => format!("--{name}"),
        Arg::Short(letter) => format!("-{letter}"),
        Arg::Value(value) => value.to_string_lossy().into_owned(),
    }
}

fn one_of(words: &[&str]) -> String {
    match words {
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        words => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<T>(word: &str, read: impl Fn(&mut Arguments) -> Result<T, Wrong>) -> Result<T, String> {
        let mut arguments = Arguments::of(&["--option", word]);
        arguments.option("node", &["--option"]).map_err(|wrong| wrong.to_string())?;
        read(&mut arguments).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn sizes_have_units() {
        let read = |word| value(word, |arguments| arguments.bytes("--memory"));
        let known =
            [("1", 1), ("4GiB", 4 << 30), ("0.5KiB", 512), ("2MB", 2_000_000), ("3 gib", 3 << 30), ("7t", 7 << 40)];
        for (word, bytes) in known {
            assert_eq!(read(word), Ok(bytes), "{word}");
        }
        for word in ["0", "GiB", "4 apples", "-1", "1e99", "4.0.0"] {
            assert!(read(word).unwrap_err().contains("KiB, MiB"), "{word}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        let read = |word| value(word, |arguments| arguments.address("--bind"));
        for word in ["10.0.0.1:1", "host:0", "[::1]:80"] {
            assert_eq!(read(word).as_deref(), Ok(word));
        }
        for word in ["host", ":80", "host:", "host:99999", "::1:80", "http://host:80"] {
            assert!(read(word).unwrap_err().contains("HOST:PORT"), "{word}");
        }
        let host = |word| value(word, |arguments| arguments.host("--advertise"));
        assert!(["10.0.0.1", "host", "[::1]"].iter().all(|word| host(word).as_deref() == Ok(*word)));
        assert!(host("10.0.0.1:80").unwrap_err().contains("without a port") && host("::1").is_err());
    }

    #[test]
    fn amounts_and_pairs() {
        assert_eq!(value("0.25", |arguments| arguments.amount("--cpus")), Ok(0.25));
        for word in ["many", "-1", "inf", "NaN", "1e9"] {
            assert!(value(word, |arguments| arguments.amount("--cpus")).unwrap_err().contains("no amount"), "{word}");
        }
        let pair = |word| value(word, |arguments| arguments.pair("--label", "KEY=VALUE"));
        assert_eq!(pair("zone=a=b"), Ok(("zone".into(), "a=b".into())));
        assert!(pair("zone").unwrap_err().contains("KEY=VALUE") && pair("=a").is_err() && pair("a=").is_err());
        assert!(value("7", |arguments| arguments.count("--gpus")) == Ok(7));
        assert!(value("1.5", |arguments| arguments.count("--gpus")).unwrap_err().contains("whole number"));
    }

    #[test]
    fn what_is_unknown_is_named_with_what_is_known() {
        let error = Arguments::of(&["start"]).command("", &["head", "node"]).expect_err("unknown").to_string();
        assert!(
            error.contains("`start`") && error.contains("head and node") && error.contains("outray --help"),
            "{error}"
        );
        let error = Arguments::of(&["-x"]).option("stop", &["--json"]).expect_err("unknown").to_string();
        assert!(error.contains("`-x`") && error.contains("--json") && error.contains("outray stop --help"), "{error}");
        let error = Arguments::of(&[]).file("timeline", "FILE").expect_err("missing").to_string();
        assert!(error.contains("needs FILE"), "{error}");
    }
}
