//! `larder health`

use super::args::{Global, Health};
use super::print::Printer;
use super::{Failure, Status, open_cache};
use serde_json::json;

pub(super) fn main(global: &Global, args: &Health, printer: &Printer) -> Result<Status, Failure> {
    let (cache, _) = open_cache(global, &args.workspace)?;
    let health = cache.health(Some(&args.workspace))?;
    let yes = |is: bool| if is { "yes" } else { "no" };
    let is_well = health.is_writable;
    printer.result(
        || {
            let less = if health.is_reduced { "; reduced, because of the network" } else { "" };
            let mut lines = vec![
                format!("store         {} ({}{less})", cache.path().display(), health.store_filesystem),
                format!("writable      {}", yes(health.is_writable)),
                format!("index         {}", if health.has_index { "yes" } else { "no; manifests answer instead" }),
            ];
            if let Some((filesystem, support)) = &health.workspace {
                lines.push(format!("workspace     {} ({filesystem})", args.workspace.display()));
                lines.push(format!("  reflinks    {}", yes(support.reflink)));
                lines.push(format!("  hardlinks   {}", yes(support.hardlink)));
            }
            lines.join("\n")
        },
        || {
            json!({
                "store": cache.path().to_string_lossy(),
                "store_filesystem": health.store_filesystem,
                "reduced": health.is_reduced,
                "writable": health.is_writable,
                "index": health.has_index,
                "workspace": health.workspace.map(|(filesystem, support)| json!({
                    "filesystem": filesystem, "reflink": support.reflink, "hardlink": support.hardlink,
                })),
            })
        },
    );
    Ok(if is_well { Status::Done } else { Status::Store })
}
