//! The rows of the table, one group a file, and the order in which they come.

mod cap;
mod collection;
mod lookups;
mod stores;
mod waits;

use crate::common;
use crate::common::place::Place;
use crate::common::samples::Samples;
use crate::options::Options;
use crate::page;
use crate::report::{Report, say};
use std::process::ExitCode;
use std::time::Duration;

/// What all rows work with.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    pub(crate) options: &'a Options,
    pub(crate) place: &'a Place,
}

type Row = fn(&Bench<'_>, &'static str, &mut Report<'_>);

const ROWS: [(&str, Row); 7] = [
    ("a lookups", lookups::measure),
    ("b stores", stores::small_trees),
    ("b one file", stores::beside_large_ones),
    ("c few entries", collection::few_entries),
    ("c many entries", collection::many_entries),
    ("d waits", waits::measure),
    ("e runs", cap::measure),
];

/// How many work at once.
const CREW: u64 = 4;

pub(crate) fn run(options: &Options) -> ExitCode {
    let place = match &options.place {
        Some(parent) => Place::inside(parent),
        None => Place::of(common::place()),
    };
    let bench = Bench { options, place: &place };
    let mut report = Report::new(options);
    for (row, measure) in ROWS {
        if options.selects(row) {
            measure(&bench, row, &mut report);
        }
    }
    let over = report.over();
    say(&format!("{} lines, {over} over their bounds", report.lines.len()));
    if let Some(file) = &options.docs {
        page::write(file, options, place.filesystem(), &report.lines);
    }
    if over == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The median, the 99th percentile and the longest, in milliseconds.
fn spread(waits: &Samples) -> [f64; 3] {
    [waits.median(), waits.percentile(0.99), waits.percentile(1.0)]
}

fn all(lanes: Vec<Vec<Duration>>) -> Samples {
    Samples::new(lanes.into_iter().flatten().collect())
}

/// The median of figures of rounds.
fn median(figures: Vec<f64>) -> f64 {
    Samples::of_milliseconds(figures).median()
}
