//! `larder gc`

use super::args::{Gc, Global};
use super::print::{Printer, bytes, count};
use super::progress::ByteBar;
use super::{Failure, Status, open_cache};
use larder::{Cancel, EvictOptions};
use serde_json::json;
use std::path::Path;

pub(super) fn main(global: &Global, args: &Gc, printer: &Printer) -> Result<Status, Failure> {
    let (cache, settings) = open_cache(global, Path::new("."))?;
    let mut options = EvictOptions::default();
    options.limits = settings.limits()?;
    options.is_dry_run = args.dry_run;
    options.budget = args.budget.map(Into::into);
    let before = cache.usage()?;
    let excess_bytes = before.size_bytes_max.map_or(0, |max| before.size_bytes.saturating_sub(max));
    let mut bar = ByteBar::new(printer, "evicting", excess_bytes);
    let mut shown_bytes = 0;
    let evicted = cache.evict(&options, &Cancel::new(), &mut |evicted| {
        let done_bytes = evicted.freed_bytes + evicted.linked_bytes;
        bar.advance(done_bytes - shown_bytes);
        shown_bytes = done_bytes;
    })?;
    bar.finish();
    let usage = evicted.usage;
    printer.result(
        || {
            let verb = if args.dry_run { "would evict" } else { "evicted" };
            let noun = if evicted.entries == 1 { "entry" } else { "entries" };
            let linked = match evicted.linked_bytes {
                0 => String::new(),
                linked => {
                    format!(", {} more when workspaces let go of their links", bytes(linked))
                }
            };
            let limit = usage.size_bytes_max;
            let limit = limit.map_or_else(String::new, |max| format!(" of at most {}", bytes(max)));
            format!(
                "{verb} {} {noun}: {} free{linked}; the store takes {}{limit}",
                count(evicted.entries),
                bytes(evicted.freed_bytes),
                bytes(usage.size_bytes)
            )
        },
        || {
            json!({
                "dry_run": args.dry_run,
                "entries": evicted.entries,
                "blobs": evicted.blobs,
                "freed_bytes": evicted.freed_bytes,
                "linked_bytes": evicted.linked_bytes,
                "size_bytes": usage.size_bytes,
                "size_bytes_max": usage.size_bytes_max,
                "free_bytes": usage.free_bytes,
            })
        },
    );
    Ok(Status::Done)
}
