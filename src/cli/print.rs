//! Printing: results on stdout, words on stderr, numbers for people.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Prints in the way that the global options ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    json: bool,
    quiet: bool,
    verbose: bool,
}

impl Printer {
    pub(super) fn new(json: bool, quiet: bool, verbose: bool) -> Printer {
        Printer { json, quiet, verbose }
    }

    /// A subcommand's result: text for people, or an object for machines, on stdout.
    pub(super) fn result(
        &self,
        text: impl FnOnce() -> String,
        json: impl FnOnce() -> serde_json::Value,
    ) {
        let line = if self.json { json().to_string() } else { text() };
        let mut out = io::stdout().lock();
        // A reader that has seen enough is no error.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }

    /// What `run` did, on stderr: stdout is the command's own. On a line of its own, whatever the
    /// command's stderr ended with.
    pub(super) fn report(
        &self,
        stderr: &[u8],
        text: impl FnOnce() -> String,
        json: impl FnOnce() -> serde_json::Value,
    ) {
        let start = if stderr.last().is_some_and(|byte| *byte != b'\n') { "\n" } else { "" };
        if self.json {
            say(&format!("{start}{}", json()));
        } else if !self.quiet {
            say(&format!("{start}larder: {}", text()));
        }
    }

    /// More about what was done, for those who asked.
    pub(super) fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose && !self.json {
            say(&format!("larder: {}", text()));
        }
    }

    /// There is no entry: an object on stdout for machines, a word for people.
    pub(super) fn miss(&self) {
        if self.json {
            self.result(String::new, || serde_json::json!({ "hit": false }));
        } else {
            self.note("no entry for this key");
        }
    }

    pub(super) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            say(&format!("larder: note: {text}"));
        }
    }

    #[expect(clippy::unused_self, reason = "all printing goes through a printer")]
    pub(super) fn warn(&self, text: &str) {
        say(&format!("larder: warning: {text}"));
    }

    #[expect(clippy::unused_self, reason = "all printing goes through a printer")]
    pub(super) fn error(&self, error: &dyn StdError) {
        say(&format!("larder: error: {}", chain(error)));
    }

    /// Whether a progress bar would be seen by anyone.
    pub(super) fn wants_progress(&self) -> bool {
        !self.quiet && !self.json && io::stderr().is_terminal()
    }
}

/// One line on stderr. A reader that has gone away is no error, and no reason to panic.
fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// `1234567` as `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and its noun, which is given in the singular and takes an `s`.
pub(super) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// Bytes in the largest binary unit that leaves at least one digit before the point.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// A duration with three digits or so.
pub(super) fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let seconds = duration.as_secs_f64();
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..120_000 => format!("{seconds:.1} s"),
        120_000..7_200_000 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        let sizes = [0, 1023, 1024, 1536, 40 << 20, (1 << 30) - 1].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "40 MiB", "1.0 GiB"]);
        let times = [12, 999, 1000, 41_234, 600_000, 36_000_000]
            .map(|millis| duration(Duration::from_millis(millis)));
        assert_eq!(times, ["12 ms", "999 ms", "1.0 s", "41.2 s", "10 min", "10.0 h"]);
        assert_eq!([counted(1, "file"), counted(2, "file")], ["1 file", "2 files"]);
    }
}
