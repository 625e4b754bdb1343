//! The table: one line for each figure, its bound, and whether it is kept.

use crate::options::{Options, Scale};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};

/// What a figure must not exceed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// A figure made of times: `--slack` stretches it.
    OfTime(f64),
    /// A figure that does not depend on how busy the machine is.
    Exact(f64),
    /// For information.
    None,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::OfTime(bound) | Bound::Exact(bound) => write!(f, "{bound}"),
            Bound::None => Ok(()),
        }
    }
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) row: &'static str,
    pub(crate) measure: String,
    pub(crate) figure: f64,
    pub(crate) unit: &'static str,
    pub(crate) bound: Bound,
    pub(crate) verdict: &'static str,
    /// What it was made of.
    pub(crate) note: String,
}

#[derive(Debug)]
pub(crate) struct Report<'a> {
    options: &'a Options,
    pub(crate) lines: Vec<Line>,
}

const OVER: &str = "OVER";

impl<'a> Report<'a> {
    pub(crate) fn new(options: &'a Options) -> Report<'a> {
        let (row, measure) = ("row", "measure");
        say(&format!(
            "{row:<16} {measure:<52} {:>10} {:<3} {:>6}       note",
            "figure", "", "bound"
        ));
        Report { options, lines: Vec::new() }
    }

    pub(crate) fn add(
        &mut self,
        row: &'static str,
        measure: impl Into<String>,
        (figure, unit): (f64, &'static str),
        bound: Bound,
        note: impl Into<String>,
    ) {
        let (measure, note) = (measure.into(), note.into());
        let limit = match bound {
            Bound::OfTime(bound) => bound * self.options.slack,
            Bound::Exact(bound) => bound,
            Bound::None => f64::INFINITY,
        };
        let is_judged = self.options.scale != Scale::Smoke
            && limit.is_finite()
            && !self.options.only_informs(row, &measure);
        let verdict = match (is_judged, figure <= limit) {
            (false, _) => "",
            (true, true) => "OK",
            (true, false) => OVER,
        };
        let shown = format!("{figure:.2}");
        let bound_shown = bound.to_string();
        say(&format!(
            "{row:<16} {measure:<52} {shown:>10} {unit:<3} {bound_shown:>6} {verdict:<4}  {note}"
        ));
        let line = Line { row, measure, figure, unit, bound, verdict, note };
        self.append(&line).expect("the file of --csv can be appended to");
        self.lines.push(line);
    }

    /// How many lines are over their bounds.
    pub(crate) fn over(&self) -> usize {
        self.lines.iter().filter(|line| line.verdict == OVER).count()
    }

    fn append(&self, line: &Line) -> io::Result<()> {
        let Some(path) = &self.options.csv else { return Ok(()) };
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        if file.metadata()?.len() == 0 {
            file.write_all(b"row;measure;figure;unit;bound;note\n")?;
        }
        let Line { row, measure, figure, unit, bound, note, .. } = line;
        file.write_all(format!("{row};{measure};{figure:.4};{unit};{bound};{note}\n").as_bytes())
    }
}

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
