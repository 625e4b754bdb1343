//! `larder rm KEY`, and `larder rm --writer NAME`

use super::args::{Global, Rm};
use super::print::Printer;
use super::{Failure, Status, open_cache};
use larder::{Cancel, Purge};
use serde_json::json;
use std::path::Path;

pub(super) fn main(global: &Global, args: &Rm, printer: &Printer) -> Result<Status, Failure> {
    let (cache, settings) = open_cache(global, Path::new("."))?;
    let Some(key) = &args.key else { return purge(&cache, args, printer) };
    let is_removed = cache.remove(&settings.namespaces.to_write(key)?)?;
    let word = if is_removed { "removed" } else { "no entry for this key" };
    printer.result(|| word.to_owned(), || json!({ "removed": is_removed }));
    Ok(if is_removed { Status::Done } else { Status::Miss })
}

fn purge(cache: &larder::Cache, args: &Rm, printer: &Printer) -> Result<Status, Failure> {
    let mut purge = Purge::default().with_dry_run(args.dry_run);
    purge.writer.clone_from(&args.writer);
    purge.signer = args.signer;
    purge.since = args.since.map(|since| since.0);
    let purged = cache.purge(&purge, &Cancel::new())?;
    if purged.newer > 0 {
        let count = purged.newer;
        printer
            .warn(&format!("cannot read {count} entries of a newer version of larder; they stay"));
    }
    printer.result(
        || {
            let verb = if args.dry_run { "would remove" } else { "removed" };
            format!("{verb} {} of {} entries", purged.removed, purged.examined)
        },
        || {
            json!({
                "removed": purged.removed, "examined": purged.examined, "newer": purged.newer,
                "dry_run": args.dry_run,
            })
        },
    );
    Ok(if purged.removed > 0 { Status::Done } else { Status::Miss })
}
