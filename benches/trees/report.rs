//! The table: one line for each number, its bound, and whether it is kept.

use super::measure::Samples;
use super::options::{Options, Scale};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};

/// What a line's number is, and what it must not exceed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// Larder's time over the floor's.
    Ratio(f64),
    /// The same, for information.
    Information,
    /// Larder's time less the floor's, in milliseconds.
    MoreMilliseconds(f64),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Ratio(bound) => write!(f, "{bound}"),
            Bound::Information => f.write_str("-"),
            Bound::MoreMilliseconds(bound) => write!(f, "+{bound} ms"),
        }
    }
}

/// Which number of the samples is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Figure {
    Median,
    Minimum,
    Percentile(f64),
}

impl Figure {
    fn of(self, samples: &Samples) -> f64 {
        match self {
            Figure::Median => samples.median(),
            Figure::Minimum => samples.min(),
            Figure::Percentile(part) => samples.percentile(part),
        }
    }
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) place: &'a str,
    pub(crate) row: &'a str,
    /// What was compared with what.
    pub(crate) measure: &'a str,
    pub(crate) bound: Bound,
    pub(crate) figure: Figure,
    pub(crate) larder: &'a Samples,
    pub(crate) floor: &'a Samples,
    /// What was done.
    pub(crate) done: &'a str,
}

#[derive(Debug)]
pub(crate) struct Report<'a> {
    options: &'a Options,
    over: usize,
    lines: usize,
}

impl<'a> Report<'a> {
    pub(crate) fn new(options: &'a Options) -> Report<'a> {
        say(&format!(
            "{:<5} {:<24} {:<44} {:>6} {:>7} {:<4} {:>21} {:>21}  done",
            "where",
            "row",
            "measure",
            "bound",
            "value",
            "",
            "Larder ms (minimum)",
            "floor ms (minimum)",
        ));
        Report { options, over: 0, lines: 0 }
    }

    pub(crate) fn add(&mut self, line: &Line<'_>) {
        let (larder, floor) = (line.figure.of(line.larder), line.figure.of(line.floor));
        let (value, limit) = match line.bound {
            Bound::Ratio(bound) => (larder / floor, bound),
            Bound::Information => (larder / floor, f64::INFINITY),
            Bound::MoreMilliseconds(bound) => (larder - floor, bound),
        };
        // A floor of no time at all, which tiny workloads have, says nothing.
        let is_judged = self.options.scale != Scale::Smoke
            && !matches!(line.bound, Bound::Information)
            && !self.options.only_informs(line.row, line.measure);
        let is_over = is_judged && value > limit * self.options.slack;
        let verdict = match (is_judged, is_over) {
            (false, _) => "",
            (true, true) => "OVER",
            (true, false) => "OK",
        };
        self.over += usize::from(is_over);
        self.lines += 1;
        let times = |figure: f64, samples: &Samples| {
            format!("{} ({})", milliseconds(figure), milliseconds(samples.min()))
        };
        say(&format!(
            "{:<5} {:<24} {:<44} {:>6} {:>7.3} {:<4} {:>21} {:>21}  {}",
            line.place,
            line.row,
            line.measure,
            line.bound.to_string(),
            value,
            verdict,
            times(larder, line.larder),
            times(floor, line.floor),
            line.done,
        ));
        self.append(line, value, larder, floor).expect("the file of --csv can be appended to");
    }

    /// Says visibly that something was not measured.
    #[expect(clippy::unused_self, reason = "whoever reports does so through the report")]
    pub(crate) fn skip(&self, place: &str, row: &str, reason: &str) {
        say(&format!("{place:<5} {row:<24} SKIPPED: {reason}"));
    }

    /// Counts something that must not be there, and is never excused.
    pub(crate) fn must_be_zero(&mut self, place: &str, row: &str, what: &str, count: usize) {
        let verdict = if count == 0 { "OK" } else { "OVER" };
        self.over += usize::from(count > 0);
        self.lines += 1;
        say(&format!("{place:<5} {row:<24} {what:<44} {:>6} {count:>7} {verdict}", 0));
        let values = format!("{place},{row},{what},0,{count},,\n");
        self.append_text(&values).expect("the file of --csv can be appended to");
    }

    /// Sums up; false if a bound was not kept.
    pub(crate) fn end(&self) -> bool {
        say(&format!("{} lines, {} over their bounds", self.lines, self.over));
        self.over == 0
    }

    fn append(&self, line: &Line<'_>, value: f64, larder: f64, floor: f64) -> io::Result<()> {
        let bound = match line.bound {
            Bound::Ratio(bound) | Bound::MoreMilliseconds(bound) => bound.to_string(),
            Bound::Information => String::new(),
        };
        let (place, row, measure) = (line.place, line.row, line.measure);
        let values = format!("{place},{row},{measure},{bound},{value:.4},{larder:.6},{floor:.6}\n");
        self.append_text(&values)
    }

    fn append_text(&self, values: &str) -> io::Result<()> {
        let Some(path) = &self.options.csv else {
            return Ok(());
        };
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        if file.metadata()?.len() == 0 {
            file.write_all(b"filesystem,row,measure,bound,ratio,larder_ms,floor_ms\n")?;
        }
        file.write_all(values.as_bytes())
    }
}

/// Four digits, as far as there are any.
fn milliseconds(value: f64) -> String {
    if value < 1.0 { format!("{value:.5}") } else { format!("{value:.1}") }
}

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
