//! `larder restore KEY`, and how restores are told, which `run` shares.

use super::args::{Global, Restore};
use super::print::{self, Printer, counted, duration};
use super::{Failure, Status, find_or_pull, maintain, open_entries, progress};
use larder::{Cancel, CopyReason, MethodCounts, Restored};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub(super) fn main(global: &Global, args: &Restore, printer: &Printer) -> Result<Status, Failure> {
    let (cache, settings) = open_entries(global, &args.workspace)?;
    let options = settings.restore_options(&args.links)?;
    let cancel = Cancel::new();
    let started = Instant::now();
    let restored = progress::counting(printer, "restoring", &cancel, || {
        find_or_pull(&cache, &settings, &args.key, printer, |task| {
            cache.restore(task, &args.workspace, options, &cancel)
        })
    })?;
    let Some(restored) = restored else {
        printer.miss();
        return Ok(Status::Miss);
    };
    let took = started.elapsed();
    printer.result(|| format!("restored {}", words(&restored, took)), || object(&restored, took));
    explain(&restored, printer);
    maintain(&cache, printer);
    Ok(Status::Done)
}

/// `1,204 files, 38 MiB linked in 12 ms`
pub(super) fn words(restored: &Restored, took: Duration) -> String {
    let files = restored.manifest.file_count() as u64;
    let methods = [
        (restored.reflinked, "reflinked"),
        (restored.hardlinked, "linked"),
        (restored.copied, "copied"),
        (restored.kept, "in place"),
    ];
    let told: Vec<String> = methods
        .into_iter()
        .filter(|(counts, _)| counts.files > 0)
        .map(|(counts, verb)| format!("{} {verb}", print::bytes(counts.bytes)))
        .collect();
    let told = if told.is_empty() { String::new() } else { format!(", {}", told.join(", ")) };
    format!("{}{told} in {}", counted(files, "file"), duration(took))
}

/// The same for machines.
pub(super) fn object(restored: &Restored, took: Duration) -> Value {
    let counts = |counts: MethodCounts| json!({ "files": counts.files, "bytes": counts.bytes });
    let reasons: serde_json::Map<String, Value> = restored
        .copy_reasons
        .iter()
        .map(|(reason, files)| (reason.to_string(), json!(files)))
        .collect();
    json!({
        "files": restored.manifest.file_count(),
        "bytes": restored.manifest.output_bytes(),
        "reflinked": counts(restored.reflinked),
        "hardlinked": counts(restored.hardlinked),
        "copied": counts(restored.copied),
        "kept": counts(restored.kept),
        "removed": restored.removed,
        "copy_reasons": reasons,
        "took_ms": took.as_secs_f64() * 1000.0,
    })
}

/// Says why files were copied that might have been links.
pub(super) fn explain(restored: &Restored, printer: &Printer) {
    for (reason, files) in &restored.copy_reasons {
        if *reason == CopyReason::OtherFilesystem {
            printer.note(
                "the store is on another filesystem than the workspace, so outputs are copied; \
                 put a store beside the workspace with --store DIR or LARDER_DIR",
            );
        } else {
            printer.detail(|| format!("{} copied: {reason}", counted(*files, "file")));
        }
    }
}
