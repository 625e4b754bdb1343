//! The command line of the program.

use std::path::PathBuf;
use std::str::FromStr;

/// How large and how long everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// What the bounds are meant for.
    Full,
    /// Some minutes.
    Quick,
    /// Seconds: only shows that everything runs.
    Smoke,
}

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) scale: Scale,
    pub(crate) place: Option<PathBuf>,
    pub(crate) rounds: usize,
    /// Parts of names of rows; all rows if there are none.
    rows: Vec<String>,
    /// Parts of rows or measures whose bounds are not enforced.
    information: Vec<String>,
    pub(crate) slack: f64,
    pub(crate) cap_bytes: u64,
    pub(crate) feed_bytes: u64,
    pub(crate) csv: Option<PathBuf>,
    pub(crate) docs: Option<PathBuf>,
}

const MIB: u64 = 1 << 20;

impl Options {
    /// Reads the command line; the error is for the person who wrote it.
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            scale: Scale::Full,
            place: None,
            rounds: 0,
            rows: Vec::new(),
            information: Vec::new(),
            slack: 1.0,
            cap_bytes: 0,
            feed_bytes: 0,
            csv: None,
            docs: None,
        };
        let mut arguments = arguments;
        let mut unknown = None;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                // `cargo bench` passes it on.
                "--bench" => {}
                "--test" => options.scale = Scale::Smoke,
                "--quick" => options.scale = Scale::Quick,
                "--place" => options.place = Some(value()?.into()),
                "--rounds" => options.rounds = number(&argument, &value()?)?,
                "--slack" => options.slack = number(&argument, &value()?)?,
                "--cap" => options.cap_bytes = number::<u64>(&argument, &value()?)? * MIB,
                "--feed" => options.feed_bytes = number::<u64>(&argument, &value()?)? * MIB,
                "--rows" => options.rows.extend(list(&value()?)),
                "--information" => options.information.extend(list(&value()?)),
                "--csv" => options.csv = Some(value()?.into()),
                "--docs" => options.docs = Some(value()?.into()),
                flag if flag.starts_with('-') => unknown = Some(flag.to_owned()),
                row => options.rows.push(row.to_owned()),
            }
        }
        match (&options.place, unknown) {
            (Some(_), Some(unknown)) => return Err(format!("there is no option {unknown}")),
            // This is one of all benchmarks, and what it does not know is meant for the others.
            (None, Some(_)) => options.rows.clear(),
            _ => {}
        }
        if options.place.is_none() {
            options.scale = Scale::Smoke;
        }
        let (rounds, cap_mib, feed_mib) = match options.scale {
            Scale::Full => (7, 1024, 20 * 1024),
            Scale::Quick => (3, 32, 320),
            Scale::Smoke => (1, 4, 1),
        };
        for (chosen, default) in
            [(&mut options.cap_bytes, cap_mib), (&mut options.feed_bytes, feed_mib)]
        {
            if *chosen == 0 {
                *chosen = default * MIB;
            }
        }
        if options.rounds == 0 {
            options.rounds = rounds;
        }
        Ok(options)
    }

    /// Whether the row of this name was asked for.
    pub(crate) fn selects(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| row.contains(part.as_str()))
    }

    /// Whether this measure of this row is shown beside its bound, but not held to it.
    pub(crate) fn only_informs(&self, row: &str, measure: &str) -> bool {
        self.information.iter().any(|part| row.contains(part) || measure.contains(part))
    }

    /// One of three values, by scale.
    pub(crate) fn pick<T>(&self, full: T, quick: T, smoke: T) -> T {
        match self.scale {
            Scale::Full => full,
            Scale::Quick => quick,
            Scale::Smoke => smoke,
        }
    }
}

fn list(text: &str) -> impl Iterator<Item = String> {
    text.split(',').map(str::to_owned)
}

fn number<T: FromStr>(argument: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{argument}: {text:?} is not a number"))
}
