//! The arguments of the program, beside those that cargo and criterion's programs know.

use crate::plan::Size;
use std::ffi::OsString;
use std::path::PathBuf;

pub(crate) const USAGE: &str =
    "usage: cargo bench --bench growth -- --place DIR [--quick] [--json FILE]";

#[derive(Debug)]
pub(crate) struct Arguments {
    /// Where stores and workspaces are made; a folder for temporary files if there is none.
    pub(crate) place: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) size: Size,
}

impl Arguments {
    pub(crate) fn parse(given: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
        let mut arguments = Arguments { place: None, json: None, size: Size::Tiny };
        let (mut is_quick, mut is_test, mut unknown) = (false, false, None);
        let mut given = given;
        while let Some(argument) = given.next() {
            let mut value = |name| given.next().ok_or(format!("{name} needs a value"));
            match argument.to_str() {
                Some("--place") => arguments.place = Some(value("--place")?.into()),
                Some("--json") => arguments.json = Some(value("--json")?.into()),
                Some("--quick") => is_quick = true,
                Some("--test") => is_test = true,
                // cargo adds it.
                Some("--bench") => {}
                _ => unknown = Some(argument),
            }
        }
        if arguments.place.is_some() && !is_test {
            if let Some(unknown) = unknown {
                return Err(format!("{} is not an argument", unknown.display()));
            }
            arguments.size = if is_quick { Size::Quick } else { Size::Full };
        }
        // Else this is one of all benchmarks, and what it does not know is meant for the others.
        Ok(arguments)
    }
}
