//! `larder logs KEY`, and the replay that `run` shares.

use super::args::{Global, Key};
use super::print::Printer;
use super::{Failure, Status, find_or_pull, open_entries};
use larder::{LogPiece, TaskLogs};
use serde_json::json;
use std::io::{self, Write};
use std::path::Path;

pub(super) fn main(global: &Global, args: &Key, printer: &Printer) -> Result<Status, Failure> {
    let (cache, settings) = open_entries(global, Path::new("."))?;
    let Some(logs) = find_or_pull(&cache, &settings, &args.key, printer, |task| cache.logs(task))?
    else {
        printer.miss();
        return Ok(Status::Miss);
    };
    if global.json {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        printer.result(
            String::new,
            || json!({ "stdout": text(&logs.stdout), "stderr": text(&logs.stderr) }),
        );
    } else {
        replay(&logs);
    }
    Ok(Status::Done)
}

/// Writes each stream's bytes to our own, piece by piece in the order in which they were read. A
/// reader that has gone away is no error.
pub(super) fn replay(logs: &TaskLogs) {
    let (mut stdout, mut stderr) = (logs.stdout.as_slice(), logs.stderr.as_slice());
    for piece in &logs.order {
        match *piece {
            LogPiece::Stdout(length_bytes) => {
                write(&mut io::stdout().lock(), take(&mut stdout, length_bytes));
            }
            LogPiece::Stderr(length_bytes) => {
                write(&mut io::stderr().lock(), take(&mut stderr, length_bytes));
            }
        }
    }
    // What the order does not tell, or all of it if it is not known.
    write(&mut io::stdout().lock(), stdout);
    write(&mut io::stderr().lock(), stderr);
}

fn take<'a>(bytes: &mut &'a [u8], length_bytes: u64) -> &'a [u8] {
    let length = usize::try_from(length_bytes).unwrap_or(usize::MAX).min(bytes.len());
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

fn write(out: &mut dyn Write, bytes: &[u8]) {
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}
