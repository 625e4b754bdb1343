//! What a rig has done and found: figures by name, violations, what it could not do here, and the line
//! that ends it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// So many violations are told in full.
const TOLD_MAX: u64 = 20;

/// The variable that makes a failure of a skip, if it is 1.
pub(crate) const REQUIRE_RIGS: &str = "REQUIRE_RIGS";

/// The figures of one rig.
#[derive(Debug)]
pub(crate) struct Report {
    began: Instant,
    figures: BTreeMap<String, u64>,
    violations: u64,
    skips: Vec<String>,
}

impl Report {
    pub(crate) fn new() -> Report {
        Report { began: Instant::now(), figures: BTreeMap::new(), violations: 0, skips: Vec::new() }
    }

    /// The report of a rig that cannot work here.
    pub(crate) fn skipped(reason: impl Into<String>) -> Report {
        let mut report = Report::new();
        report.skip(reason);
        report
    }

    /// Says that a part of the rig cannot work here; what the other parts do and find counts.
    pub(crate) fn skip(&mut self, reason: impl Into<String>) {
        self.skips.push(reason.into());
    }

    pub(crate) fn add(&mut self, figure: &str, more: u64) {
        *self.figures.entry(figure.to_owned()).or_default() += more;
    }

    pub(crate) fn figure(&self, figure: &str) -> u64 {
        self.figures.get(figure).copied().unwrap_or(0)
    }

    /// Counts a broken guarantee, and tells which, with all that is needed to see it again.
    pub(crate) fn violation(&mut self, what: &str) {
        self.violations += 1;
        if self.violations <= TOLD_MAX {
            eprintln!("VIOLATION: {what}");
        }
    }

    pub(crate) fn violations(&self) -> u64 {
        self.violations
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Takes over the figures of a line that [`Report::finish`] printed.
    pub(crate) fn add_line(&mut self, line: &str) {
        let figures = line.split_once(": ").map_or("", |(_, figures)| figures);
        for figure in figures.trim().split(", ") {
            if let Some((figure, number)) = figure.split_once('=')
                && !["seconds", "violations"].contains(&figure)
            {
                self.add(figure, number.parse().unwrap_or(0));
            }
        }
    }

    /// Takes over what another has found.
    pub(crate) fn absorb(&mut self, other: &Report) {
        self.absorb_figures(other);
        self.violations += other.violations;
        self.skips.extend_from_slice(&other.skips);
    }

    /// Takes over what another has done; its violations were told already.
    pub(crate) fn absorb_figures(&mut self, other: &Report) {
        for (figure, more) in &other.figures {
            self.add(figure, *more);
        }
    }

    /// Reads the line that another process has printed.
    pub(crate) fn read(line: &str) -> Option<Report> {
        let (_, figures) = line.strip_prefix("RIG ")?.split_once(": ")?;
        let mut report = Report::new();
        for figure in figures.split(", ").filter(|figure| !figure.is_empty()) {
            let (name, number) = figure.split_once('=')?;
            match name {
                "violations" => report.violations = number.parse().ok()?,
                "seconds" => {}
                _ => report.add(name, number.parse().ok()?),
            }
        }
        Some(report)
    }

    /// Prints a line `SKIPPED: name: reason` for each part that was skipped, and in any case the line
    /// `RIG name: figure=number ..., seconds=number, violations=number`.
    pub(crate) fn finish(&self, rig: &str) -> ExitCode {
        for reason in &self.skips {
            println!("SKIPPED: {rig}: {}", reason.lines().collect::<Vec<_>>().join(" "));
        }
        println!("{}", self.line(rig));
        let is_required = std::env::var_os(REQUIRE_RIGS).is_some_and(|value| value == "1");
        ExitCode::from(self.status(is_required))
    }

    fn line(&self, rig: &str) -> String {
        let figures = self.figures.iter().map(|(figure, number)| (figure.as_str(), *number));
        let last = [("seconds", self.began.elapsed().as_secs()), ("violations", self.violations)];
        let told: Vec<String> =
            figures.chain(last).map(|(figure, number)| format!("{figure}={number}")).collect();
        format!("RIG {rig}: {}", told.join(", "))
    }

    /// The exit status: a violation weighs more than a part that was skipped.
    fn status(&self, is_required: bool) -> u8 {
        match (self.violations, self.skips.is_empty()) {
            (1.., _) => 1,
            (0, false) if is_required => 1,
            (0, false) => 3,
            (0, true) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_drops_no_violation_and_no_figure() {
        let mut report = Report::new();
        report.add("stored", 7);
        report.violation("wrong bytes");
        report.skip("there is no xfs");
        assert_eq!(report.line("sources"), "RIG sources: stored=7, seconds=0, violations=1");
        assert_eq!([true, false].map(|is_required| report.status(is_required)), [1, 1]);
    }

    #[test]
    fn a_skip_alone_is_a_failure_only_where_rigs_are_required() {
        let report = Report::skipped("there is no xfs");
        assert_eq!([true, false].map(|is_required| report.status(is_required)), [1, 3]);
        assert_eq!(Report::new().status(true), 0);
    }

    #[test]
    fn a_line_that_was_printed_can_be_read() {
        let mut report = Report::new();
        report.add("stored", 7);
        report.violation("wrong bytes");
        for report in [report, Report::new()] {
            let read = Report::read(&report.line("sources")).expect("a line");
            assert_eq!(read.figures, report.figures);
            assert_eq!(read.violations, report.violations);
        }
    }
}
