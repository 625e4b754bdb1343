//! `larder bundle export FILE` and `larder bundle import FILE`

use super::args::{Bundle, BundleCommand, Global};
use super::print::{self, Printer, bytes, count};
use super::{Failure, Status, maintain, open_entries, progress};
use larder::bundle::{Ending, Exported, Imported, Known, export, import};
use larder::{Cache, Cancel, Error, TaskDigest, Timestamp};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// The name that means stdin or stdout.
const STREAM: &str = "-";

pub(super) fn main(global: &Global, args: &Bundle, printer: &Printer) -> Result<Status, Failure> {
    let (cache, settings) = open_entries(global, Path::new("."))?;
    match &args.command {
        BundleCommand::Export { file, since, key, base } => {
            let tasks = if key.is_empty() {
                let ever = Timestamp { seconds: i64::MIN, nanoseconds: 0 };
                cache.used_since(since.map_or(ever, |since| since.0))?
            } else {
                let mut tasks = Vec::new();
                for key in key {
                    // The entry that a lookup would find.
                    let found =
                        super::find(&settings, key, |task| Ok(cache.lookup(task)?.map(|_| *task)))?;
                    // Without one, its own name tells that it is missing.
                    tasks.push(found.map_or_else(|| settings.namespaces.to_write(key), Ok)?);
                }
                tasks
            };
            export_to(&cache, &tasks, base, file, printer)
        }
        BundleCommand::Import { file } => {
            let status = import_from(&cache, file, printer)?;
            maintain(&cache, printer);
            Ok(status)
        }
    }
}

fn export_to(
    cache: &Cache,
    tasks: &[TaskDigest],
    bases: &[PathBuf],
    file: &Path,
    printer: &Printer,
) -> Result<Status, Failure> {
    let (cancel, mut known) = (Cancel::new(), Known::default());
    for base in bases {
        let opened = File::open(base).map_err(|error| io_error("open", base, &error))?;
        known.add(opened, &cancel).map_err(|error| match error {
            Error::BundleRefused { reason } => {
                Failure::Usage(format!("cannot read the bundle {}: {reason}", base.display()))
            }
            error => error.into(),
        })?;
    }
    let is_stream = file == Path::new(STREAM);
    let write = |out: &mut dyn Write| {
        progress::counting(printer, "exporting", &cancel, || {
            export(cache, tasks, &known, out, &cancel)
        })
    };
    let exported = if is_stream {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            return Err(Failure::Usage("a bundle is not for a terminal".to_owned()));
        }
        write(&mut stdout.lock())?
    } else {
        replace(file, write)?
    };
    if exported.missing_entries > 0 {
        printer.note(&format!("{} not there", entries(exported.missing_entries)));
    }
    if exported.damaged_entries > 0 {
        let damaged = entries(exported.damaged_entries);
        printer.warn(&format!("{damaged} with damaged blobs left out, and dropped"));
    }
    // Where the bundle itself goes to stdout, there is no place for more.
    if is_stream {
        printer.report(b"", || told(&exported), || object(&exported));
    } else {
        printer.result(|| told(&exported), || object(&exported));
    }
    Ok(match (exported.damaged_entries, exported.missing_entries) {
        (0, 0) => Status::Done,
        (0, _) => Status::Miss,
        _ => Status::Damage,
    })
}

fn told(exported: &Exported) -> String {
    let known = match exported.known_entries {
        0 => String::new(),
        known => format!(", {} known already", count(known)),
    };
    let blobs = bytes(exported.blob_bytes);
    format!("exported {}{known}: {blobs} before compression", entries(exported.entries))
}

fn object(exported: &Exported) -> serde_json::Value {
    json!({
        "entries": exported.entries,
        "blobs": exported.blobs,
        "blob_bytes": exported.blob_bytes,
        "known_entries": exported.known_entries,
        "missing_entries": exported.missing_entries,
        "damaged_entries": exported.damaged_entries,
    })
}

/// Writes a new file that takes the place of `file` when it is whole. What is there and is no regular
/// file, such as a pipe, is written to.
fn replace<T>(
    file: &Path,
    write: impl FnOnce(&mut dyn Write) -> larder::Result<T>,
) -> Result<T, Failure> {
    if fs::metadata(file).is_ok_and(|meta| !meta.is_file()) {
        let opened = File::options().write(true).open(file);
        let mut out = opened.map_err(|error| io_error("open", file, &error))?;
        return Ok(write(&mut out)?);
    }
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = file.with_file_name(name);
    let made = File::create_new(&part).map_err(|error| io_error("make", &part, &error))?;
    let written = (|| {
        let mut out = BufWriter::new(made);
        let done = write(&mut out)?;
        let made =
            out.into_inner().map_err(|error| io_error("write", &part, &error.into_error()))?;
        made.sync_all().map_err(|error| io_error("sync", &part, &error))?;
        fs::rename(&part, file).map_err(|error| io_error("rename to", file, &error))?;
        Ok(done)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

fn import_from(cache: &Cache, file: &Path, printer: &Printer) -> Result<Status, Failure> {
    let cancel = Cancel::new();
    let read = |input: &mut (dyn io::Read + Send)| {
        progress::counting(printer, "importing", &cancel, || import(cache, input, &cancel))
    };
    let imported = if file == Path::new(STREAM) {
        read(&mut io::stdin())?
    } else {
        let opened = File::open(file);
        read(&mut opened.map_err(|error| io_error("open", file, &error))?)?
    };
    for (number, what) in [
        (imported.incomplete_entries, "without all of its blobs, here or in the bundle"),
        (imported.damaged_entries, "that is not what it should be"),
        (imported.newer_entries, "of a newer version of larder"),
    ] {
        if number > 0 {
            printer.warn(&format!("{} not taken over, {what}", entries(number)));
        }
    }
    match imported.ending {
        Ending::Cut => printer.warn("the bundle ends early: only what came before is here"),
        Ending::Damaged { reason } => {
            printer.warn(&format!("the bundle is damaged ({reason}): what came before is here"));
        }
        _ => {}
    }
    printer.result(|| taken(&imported), || imported_object(&imported));
    Ok(match imported.ending {
        _ if imported.damaged_entries > 0 => Status::Damage,
        Ending::Damaged { .. } => Status::Damage,
        _ if imported.is_complete() => Status::Done,
        _ => Status::Miss,
    })
}

fn taken(imported: &Imported) -> String {
    let untrusted = match imported.untrusted_entries {
        0 => String::new(),
        number => format!(", {} left that no trusted key has signed", count(number)),
    };
    let new = bytes(imported.blob_bytes);
    format!("imported {}{untrusted}: {new} new", entries(imported.entries))
}

fn imported_object(imported: &Imported) -> serde_json::Value {
    let ending = match imported.ending {
        Ending::Whole => "whole",
        Ending::Cut => "cut",
        _ => "damaged",
    };
    json!({
        "entries": imported.entries,
        "blobs": imported.blobs,
        "blob_bytes": imported.blob_bytes,
        "untrusted_entries": imported.untrusted_entries,
        "incomplete_entries": imported.incomplete_entries,
        "damaged_entries": imported.damaged_entries,
        "newer_entries": imported.newer_entries,
        "ending": ending,
    })
}

fn entries(number: u64) -> String {
    format!("{} {}", count(number), if number == 1 { "entry" } else { "entries" })
}

fn io_error(action: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::Usage(format!("failed to {action} {}: {}", path.display(), print::chain(error)))
}
