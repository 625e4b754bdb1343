//! What a rig has done and found: figures by name, violations, and the line that ends it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// So many violations are told in full.
const TOLD_MAX: u64 = 20;

/// The figures of one rig.
#[derive(Debug)]
pub(crate) struct Report {
    began: Instant,
    figures: BTreeMap<String, u64>,
    violations: u64,
    skipped: Option<String>,
}

impl Report {
    pub(crate) fn new() -> Report {
        Report { began: Instant::now(), figures: BTreeMap::new(), violations: 0, skipped: None }
    }

    /// The report of a rig that cannot work here.
    pub(crate) fn skipped(reason: impl Into<String>) -> Report {
        Report { skipped: Some(reason.into()), ..Report::new() }
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

    /// Prints the line: `RIG name: figure=number ..., seconds=number, violations=number`.
    pub(crate) fn finish(&self, rig: &str) -> ExitCode {
        if let Some(reason) = &self.skipped {
            eprintln!("SKIPPED: {rig}: {reason}");
            let is_required = std::env::var_os("REQUIRE_RIGS").is_some_and(|value| value == "1");
            return ExitCode::from(if is_required { 1 } else { 3 });
        }
        let figures: Vec<String> =
            self.figures.iter().map(|(figure, number)| format!("{figure}={number}")).collect();
        println!(
            "RIG {rig}: {}, seconds={}, violations={}",
            figures.join(", "),
            self.began.elapsed().as_secs(),
            self.violations
        );
        ExitCode::from(u8::from(self.violations > 0))
    }
}
