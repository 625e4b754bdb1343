//! `larder check KEY`

use super::args::{Global, Key};
use super::print::{Printer, duration};
use super::{Failure, Status, find_or_pull, open_entries};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

pub(super) fn main(global: &Global, args: &Key, printer: &Printer) -> Result<Status, Failure> {
    let (cache, settings) = open_entries(global, Path::new("."))?;
    let Some(hit) = find_or_pull(&cache, &settings, &args.key, printer, |task| cache.lookup(task))?
    else {
        printer.result(|| "miss".to_owned(), || json!({ "hit": false }));
        return Ok(Status::Miss);
    };
    printer.result(
        || {
            format!(
                "hit · exit code {} · ran {}",
                hit.exit_code,
                duration(Duration::from_millis(hit.duration_ms))
            )
        },
        || json!({ "hit": true, "exit_code": hit.exit_code, "duration_ms": hit.duration_ms }),
    );
    Ok(Status::Done)
}
