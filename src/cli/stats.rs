//! `larder stats`

use super::args::Global;
use super::print::{Printer, bytes, count, counted, duration};
use super::{Failure, Status, open_cache};
use larder::Stats;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

pub(super) fn main(global: &Global, printer: &Printer) -> Result<Status, Failure> {
    let (cache, _) = open_cache(global, Path::new("."))?;
    let stats = cache.stats()?;
    printer.result(
        || {
            let rows = [
                ("store", cache.path().display().to_string()),
                ("entries", count(stats.entries)),
                (
                    "blobs",
                    format!(
                        "{} ({} linked into workspaces)",
                        count(stats.blobs),
                        count(stats.linked_blobs)
                    ),
                ),
                ("on disk", format!("{}{}", bytes(stats.total_bytes()), limit(&stats))),
                ("  blobs", bytes(stats.blob_bytes)),
                ("  manifests", bytes(stats.manifest_bytes)),
                ("  index", bytes(stats.index_bytes)),
                ("  staging", bytes(stats.staging_bytes)),
                (
                    "  quarantine",
                    format!(
                        "{} ({} files)",
                        bytes(stats.quarantine_bytes),
                        count(stats.quarantined)
                    ),
                ),
                ("  other", bytes(stats.other_bytes)),
                ("evicted early", evicted_early(&stats)),
            ];
            rows.map(|(name, value)| format!("{name:<13} {value}")).join("\n")
        },
        || {
            json!({
                "store": cache.path().to_string_lossy(),
                "entries": stats.entries,
                "blobs": stats.blobs,
                "linked_blobs": stats.linked_blobs,
                "total_bytes": stats.total_bytes(),
                "blob_bytes": stats.blob_bytes,
                "manifest_bytes": stats.manifest_bytes,
                "index_bytes": stats.index_bytes,
                "staging_bytes": stats.staging_bytes,
                "quarantined": stats.quarantined,
                "quarantine_bytes": stats.quarantine_bytes,
                "other_bytes": stats.other_bytes,
                "size_bytes_max": stats.size_bytes_max,
                "evicted_early": {
                    "entries": stats.evicted_early.entries,
                    "duration_ms": stats.evicted_early.duration_ms,
                    "size_bytes_max_enough": stats.evicted_early.size_bytes_max_enough,
                },
            })
        },
    );
    Ok(Status::Done)
}

fn limit(stats: &Stats) -> String {
    stats.size_bytes_max.map_or_else(String::new, |max| format!(" of at most {}", bytes(max)))
}

/// What went for a limit of size and was needed again, and which limit would have done.
fn evicted_early(stats: &Stats) -> String {
    let early = stats.evicted_early;
    if early.entries == 0 {
        return "nothing in the last 7 days".to_owned();
    }
    let is_below = stats.size_bytes_max.is_some_and(|max| max < early.size_bytes_max_enough);
    let enough = if is_below {
        format!("a limit of {}", bytes(early.size_bytes_max_enough))
    } else {
        "the present limit".to_owned()
    };
    format!(
        "{} in the last 7 days, {} of rebuilding; {enough} would have spared most of it",
        counted(early.entries, "result"),
        duration(Duration::from_millis(early.duration_ms))
    )
}
