//! Figures, their bounds, and the page of them.

use std::fmt::Write;

pub(crate) struct Report {
    server: String,
    slack: f64,
    figures: Vec<Figure>,
    skipped: Vec<String>,
}

struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    bound: Option<f64>,
}

impl Report {
    pub(crate) fn new(server: &str, slack: f64) -> Report {
        Report { server: server.to_owned(), slack, figures: Vec::new(), skipped: Vec::new() }
    }

    /// A figure that stands for itself.
    pub(crate) fn tell(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.add(what.into(), value, unit, None);
    }

    /// A figure that may be no larger than its bound.
    pub(crate) fn hold(
        &mut self,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        bound: f64,
    ) {
        self.add(what.into(), value, unit, Some(bound));
    }

    pub(crate) fn skip(&mut self, what: &str) {
        eprintln!("SKIPPED: {what}");
        self.skipped.push(what.to_owned());
    }

    fn add(&mut self, what: String, value: f64, unit: &'static str, bound: Option<f64>) {
        let figure = Figure { what, value, unit, bound };
        println!("{:<72} {:>12} {}", figure.what, figure.number(), figure.verdict());
        self.figures.push(figure);
    }

    /// Whether a figure is over its bound, with some slack.
    pub(crate) fn is_over(&self) -> bool {
        let is_over = |figure: &Figure| figure.bound.is_some_and(|b| figure.value > b * self.slack);
        self.figures.iter().any(is_over)
    }

    pub(crate) fn page(&self) -> String {
        let mut page = format!(
            "# The remote tier, measured\n\
             Made by `sh scripts/remote.sh --write`, with Larder {} and the server {}.\n\n\
             Two network namespaces with a store each, and one server. Between each of them and the \
             server lie 100 Mbit/s in each direction (a token bucket of `tc`), and a proxy that holds \
             each byte for 50 ms in each direction: a question and its answer take 100 ms. The tree is \
             20,000 files in 1,500 directories, whose bytes do not compress. Bytes on the line are what \
             the interfaces count, headers and both directions included. \"The line's own time\" is what \
             the contents of all files, each once, take at 100 Mbit/s.\n\n\
             | Figure | Value | Bound | |\n| --- | --- | --- | --- |\n",
            env!("CARGO_PKG_VERSION"),
            self.server,
        );
        for figure in &self.figures {
            let bound = figure.bound.map_or_else(String::new, |b| format!("{b} {}", figure.unit));
            let (what, number, verdict) = (&figure.what, figure.number(), figure.verdict());
            writeln!(page, "| {what} | {number} | {bound} | {verdict} |").expect("in memory");
        }
        for what in &self.skipped {
            writeln!(page, "\nSkipped: {what}.").expect("in memory");
        }
        page
    }
}

impl Figure {
    fn number(&self) -> String {
        let digits = if self.value.fract() == 0.0 { 0 } else { 2 };
        format!("{:.digits$} {}", self.value, self.unit)
    }

    fn verdict(&self) -> &'static str {
        match self.bound {
            None => "",
            Some(bound) if self.value > bound => "OVER",
            Some(_) => "OK",
        }
    }
}
