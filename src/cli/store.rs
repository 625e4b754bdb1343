//! `larder store KEY`

use super::args::{Global, Store};
use super::print::{Printer, bytes, counted};
use super::settings::Settings;
use super::{Failure, Status, maintain, progress, remote};
use larder::{Cache, CacheEntry, Cancel, OutputDeclaration};
use serde_json::json;
use std::path::Path;

pub(super) fn main(global: &Global, args: &Store, printer: &Printer) -> Result<Status, Failure> {
    let declared: Vec<OutputDeclaration> =
        args.outputs.iter().map(OutputDeclaration::new).collect();
    let mut entry = CacheEntry::capture(&args.workspace, &declared)?
        .with_result(args.exit_code, args.duration_ms);
    if let Some(path) = &args.stdout {
        entry = entry.with_stdout(read(path)?);
    }
    if let Some(path) = &args.stderr {
        entry = entry.with_stderr(read(path)?);
    }
    let settings = Settings::load(global, &args.workspace)?;
    let cache = Cache::open(&settings.store, settings.storing_options()?)?;
    let task = settings.namespaces.to_write(&args.key)?;
    let cancel = Cancel::new();
    let stored =
        progress::counting(printer, "storing", &cancel, || cache.store(&task, &entry, &cancel))?;
    printer.result(
        || {
            format!(
                "stored {}, {} ({} new)",
                counted(stored.files, "file"),
                bytes(stored.bytes),
                bytes(stored.new_bytes)
            )
        },
        || {
            json!({
                "files": stored.files, "bytes": stored.bytes,
                "new_blobs": stored.new_blobs, "new_bytes": stored.new_bytes,
            })
        },
    );
    if let Some(server) = remote::Server::if_usable(&settings, &cache, printer) {
        server.push(&task, &cancel, printer);
    }
    maintain(&cache, printer);
    Ok(Status::Done)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))
}
