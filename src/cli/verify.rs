//! `larder verify [--repair]`

use super::args::{Global, Verify};
use super::print::{Printer, bytes, count};
use super::progress::ByteBar;
use super::{Failure, Status, open_cache};
use larder::{Cancel, Repair, ScrubReport};
use serde_json::{Value, json};
use std::path::Path;

pub(super) fn main(global: &Global, args: &Verify, printer: &Printer) -> Result<Status, Failure> {
    let (cache, _) = open_cache(global, Path::new("."))?;
    let repair = if args.repair { Repair::Yes } else { Repair::No };
    let total = if printer.wants_progress() { cache.blob_bytes()? } else { 0 };
    let mut bar = ByteBar::new(printer, "verifying", total);
    let mut progress = |bytes| bar.advance(bytes);
    let report = if args.workspace.is_empty() {
        cache.scrub(repair, &Cancel::new(), &mut progress)
    } else {
        cache.repair_from(&args.workspace, &Cancel::new(), &mut progress)
    };
    bar.finish();
    let report = report?;
    printer.result(|| text(&report, args.repair), || object(&report, args.repair));
    Ok(if report.is_clean() { Status::Done } else { Status::Damage })
}

/// So many of each kind are listed, so that all fits a screen.
const LISTED_MAX: usize = 5;

fn text(report: &ScrubReport, is_repaired: bool) -> String {
    let mut lines = vec![format!(
        "{}, {} in {}",
        plural(report.entries, "entry", "entries"),
        bytes(report.blob_bytes),
        plural(report.blobs, "blob", "blobs"),
    )];
    let mut list = |what: &str, items: &[String], deed: &str| {
        let deed = if is_repaired { deed } else { "" };
        for item in items.iter().take(LISTED_MAX) {
            lines.push(format!("{what} {item}{deed}"));
        }
        let more = items.len().saturating_sub(LISTED_MAX) as u64;
        if more > 0 {
            lines.push(format!("  and {} more{deed} (--json lists all)", count(more)));
        }
    };
    list("damaged blob", &report.damaged_blobs, ": quarantined");
    list("damaged manifest", &report.damaged_manifests, ": quarantined");
    list("entry that cannot be restored:", &report.broken_entries, ": dropped");
    if report.is_index_damaged {
        lines.push(
            "the index was damaged and is set aside; entries are found without it".to_owned(),
        );
    }
    let mut number = |number: u64, one: &str, many: &str, deed: &str| {
        if number > 0 {
            lines.push(format!(
                "{}{}",
                plural(number, one, many),
                if is_repaired { deed } else { "" }
            ));
        }
    };
    number(
        report.healed_blobs,
        "blob healed from a workspace",
        "blobs healed from a workspace",
        "",
    );
    number(report.newer_entries, "entry of a newer version", "entries of a newer version", "");
    number(report.damaged_rows, "damaged index row", "damaged index rows", ": index written anew");
    number(report.stale_rows, "stale index row", "stale index rows", ": index written anew");
    number(
        report.orphan_blobs,
        "blob that no entry needs",
        "blobs that no entry needs",
        ": removed",
    );
    number(report.strangers, "file that is not ours", "files that are not ours", "");
    lines.push(if report.is_clean() { "clean".to_owned() } else { "damage found".to_owned() });
    lines.join("\n")
}

fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

fn object(report: &ScrubReport, is_repaired: bool) -> Value {
    json!({
        "clean": report.is_clean(),
        "repaired": is_repaired,
        "entries": report.entries,
        "blobs": report.blobs,
        "blob_bytes": report.blob_bytes,
        "damaged_blobs": report.damaged_blobs,
        "healed_blobs": report.healed_blobs,
        "damaged_manifests": report.damaged_manifests,
        "broken_entries": report.broken_entries,
        "newer_entries": report.newer_entries,
        "index_damaged": report.is_index_damaged,
        "damaged_rows": report.damaged_rows,
        "stale_rows": report.stale_rows,
        "orphan_blobs": report.orphan_blobs,
        "orphan_bytes": report.orphan_bytes,
        "strangers": report.strangers,
    })
}
