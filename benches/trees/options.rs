//! The command line of the program.

use std::path::PathBuf;

/// How large the workloads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Full,
    /// A few minutes for all filesystems.
    Quick,
    /// Seconds: only shows that everything runs.
    Smoke,
}

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) scale: Scale,
    pub(crate) pairs: usize,
    /// Names and folders of filesystems.
    pub(crate) places: Vec<(String, PathBuf)>,
    /// Parts of names of rows; all rows if there are none.
    pub(crate) rows: Vec<String>,
    /// Parts of rows or measures whose bounds are not enforced.
    pub(crate) information: Vec<String>,
    pub(crate) slack: f64,
    pub(crate) csv: Option<PathBuf>,
    pub(crate) target_folder: Option<PathBuf>,
}

/// What `scripts/filesystems.sh` prints also serves here.
const PLACES_VARIABLE: &str = "LARDER_TEST_FILESYSTEMS";
const PLACES_KNOWN: [&str; 3] = ["ext4", "xfs", "btrfs"];

impl Options {
    /// Reads the command line; the error is for the person who wrote it.
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            scale: Scale::Full,
            pairs: 0,
            places: Vec::new(),
            rows: Vec::new(),
            information: Vec::new(),
            slack: 1.0,
            csv: None,
            target_folder: None,
        };
        let mut places = std::env::var(PLACES_VARIABLE).unwrap_or_default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                // `cargo bench` passes it on.
                "--bench" => {}
                "--test" => options.scale = Scale::Smoke,
                "--quick" => options.scale = Scale::Quick,
                "--pairs" => options.pairs = number(&argument, &value()?)?,
                "--slack" => options.slack = number(&argument, &value()?)?,
                "--place" => places = value()?,
                "--rows" => options.rows.extend(list(&value()?)),
                "--information" => options.information.extend(list(&value()?)),
                "--csv" => options.csv = Some(value()?.into()),
                "--target-dir" => options.target_folder = Some(value()?.into()),
                flag if flag.starts_with('-') => return Err(format!("there is no option {flag}")),
                row => options.rows.push(row.to_owned()),
            }
        }
        for place in places.split(',').filter(|place| !place.is_empty()) {
            let (name, folder) = place.split_once('=').ok_or("a place is NAME=DIR")?;
            if PLACES_KNOWN.contains(&name) {
                options.places.push((name.to_owned(), folder.into()));
            }
        }
        if options.pairs == 0 {
            options.pairs = match options.scale {
                Scale::Full => 7,
                Scale::Quick => 3,
                Scale::Smoke => 1,
            };
        }
        Ok(options)
    }

    /// Whether this measure of this row is shown beside its bound, but not held to it.
    pub(crate) fn only_informs(&self, row: &str, measure: &str) -> bool {
        let is_named = |part: &String| row.contains(part) || measure.contains(part);
        self.information.iter().any(is_named)
    }

    /// Whether the row of this name was asked for.
    pub(crate) fn selects(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| row.contains(part.as_str()))
    }
}

fn list(text: &str) -> impl Iterator<Item = String> {
    text.split(',').map(str::to_owned)
}

fn number<T: std::str::FromStr>(argument: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{argument}: {text:?} is not a number"))
}
