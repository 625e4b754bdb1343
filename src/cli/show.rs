//! `larder show KEY`

use super::args::{Global, Key};
use super::print::{Printer, bytes, counted, duration};
use super::run::parts;
use super::{Failure, Status, open_cache};
use larder::{Manifest, NodeKind, RootKind, TaskDigest, TrustedKey};
use serde_json::{Value, json};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

pub(super) fn main(global: &Global, args: &Key, printer: &Printer) -> Result<Status, Failure> {
    // Shows also what is not trusted, and says so.
    let (cache, settings) = open_cache(global, Path::new("."))?;
    let keys = settings.trusted()?;
    let mut found = Vec::new();
    for task in settings.namespaces.to_read(&args.key)? {
        if let Some(manifest) = cache.manifest(&task)? {
            found.push((judge(&task, &manifest, &keys), task, manifest));
        }
    }
    // The one that would be brought back, if there is such a one.
    let trusted = found.iter().position(|(verdict, ..)| *verdict == TRUSTED).unwrap_or(0);
    let Some((verdict, task, manifest)) = found.get(trusted) else {
        printer.miss();
        return Ok(Status::Miss);
    };
    let parts = cache.key_parts(task, manifest)?;
    let parts = parts.as_deref().map(parts::describe).unwrap_or_default();
    printer.result(|| text(manifest, verdict, &parts), || object(manifest, verdict, &parts));
    Ok(Status::Done)
}

const TRUSTED: &str = "trusted";

/// What is to be thought of an entry's signature.
fn judge(task: &TaskDigest, manifest: &Manifest, keys: &[TrustedKey]) -> &'static str {
    let Some(signature) = &manifest.signature else { return "unsigned" };
    if keys.is_empty() {
        return "not checked";
    }
    match keys.iter().find(|key| key.id() == signature.key) {
        Some(key) if key.has_signed(task, manifest) => TRUSTED,
        Some(_) => "does not fit",
        None => "not trusted",
    }
}

fn text(manifest: &Manifest, verdict: &str, parts: &[(String, String)]) -> String {
    let mut text = format!(
        "exit code {}, ran {}, {}, {}\n",
        manifest.exit_code,
        duration(Duration::from_millis(manifest.duration_ms)),
        counted(manifest.file_count() as u64, "file"),
        bytes(manifest.output_bytes()),
    );
    // Writing to a String cannot fail.
    let mut line = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{line}");
    };
    if let Some(writer) = &manifest.writer {
        line(format_args!("writer {writer}"));
    }
    if let Some(signature) = &manifest.signature {
        line(format_args!("signed by {} ({}, {verdict})", signature.key, signature.kind));
    }
    for root in &manifest.roots {
        line(format_args!("root {} {}", kind_of(root.kind), root.path));
    }
    for (name, value) in parts {
        line(format_args!("key {name} {value}"));
    }
    for node in &manifest.nodes {
        match &node.kind {
            NodeKind::Directory { mode } => {
                line(format_args!("{mode:04o} {:>12} {:12} {}/", "", "", node.path));
            }
            NodeKind::File { digest, size_bytes, mode, .. } => {
                line(format_args!("{mode:04o} {size_bytes:>12} {} {}", digest.short(), node.path));
            }
            NodeKind::Symlink { target } => {
                let target = String::from_utf8_lossy(target);
                line(format_args!("link {:>12} {:12} {} -> {target}", "", "", node.path));
            }
            _ => line(format_args!("     {:>12} {:12} {}", "", "", node.path)),
        }
    }
    text.trim_end().to_owned()
}

fn object(manifest: &Manifest, verdict: &str, parts: &[(String, String)]) -> Value {
    let path = |path: &larder::OutputPath| {
        String::from_utf8_lossy(path.as_path().as_os_str().as_bytes()).into_owned()
    };
    let node = |node: &larder::Node| match &node.kind {
        NodeKind::Directory { mode } => {
            json!({ "path": path(&node.path), "type": "directory", "mode": mode })
        }
        NodeKind::File { digest, size_bytes, mode, modified } => json!({
            "path": path(&node.path), "type": "file", "mode": mode, "digest": digest.to_string(), "bytes": size_bytes,
            "modified": modified.map(|time| json!([time.seconds, time.nanoseconds])),
        }),
        NodeKind::Symlink { target } => {
            json!({ "path": path(&node.path), "type": "symlink", "target": String::from_utf8_lossy(target) })
        }
        _ => json!({ "path": path(&node.path) }),
    };
    json!({
        "exit_code": manifest.exit_code,
        "duration_ms": manifest.duration_ms,
        "stored_at": manifest.origin.stored_at.seconds,
        "writer": manifest.writer.as_ref().map(larder::WriterName::as_str),
        "signature": verdict,
        "signer": manifest.signature.as_ref().map(|signature| signature.key.to_string()),
        "roots": manifest.roots.iter()
            .map(|root| json!({ "path": path(&root.path), "type": kind_of(root.kind) })).collect::<Vec<_>>(),
        "stdout_bytes": manifest.logs.stdout.size_bytes(),
        "stderr_bytes": manifest.logs.stderr.size_bytes(),
        "key": parts.iter().map(|(name, value)| json!([name, value])).collect::<Vec<_>>(),
        "outputs": manifest.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

fn kind_of(kind: RootKind) -> &'static str {
    match kind {
        RootKind::Directory => "directory",
        RootKind::File => "file",
        RootKind::Glob => "glob",
        _ => "unknown",
    }
}
