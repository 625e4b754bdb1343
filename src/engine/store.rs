//! Store: one task's result, all of it or nothing.
//!
//! The steps, and what a crash after each leaves:
//! 1. stage every output, log and key part: a staging directory, swept by the next open;
//! 2. publish the blobs: blobs that nothing refers to, swept by a repair;
//! 3. publish the manifest: the entry is there, its row follows at the first lookup;
//! 4. commit the row: done.
//!
//! A concurrent lookup sees the old entry, or none, until step 3, and the whole new one after it.

use super::Cache;
use super::logs::encode_order;
use super::output::{CacheEntry, CacheOutput, OutputContent};
use crate::blob::{Batch, Source};
use crate::cancel::Cancel;
use crate::disk::{self, LockMode, Timestamp};
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{
    BlobRef, LOG_INLINE_BYTES_MAX, LogStream, Logs, Manifest, Node, NodeKind, Origin, OutputPath,
    PRIVATE_BLOB_MODE, blob_mode,
};
use crate::parallel;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a store operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stored {
    /// Regular files among the outputs.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Blobs that the store did not have.
    pub new_blobs: u64,
    /// Bytes in those.
    pub new_bytes: u64,
}

impl Cache {
    /// Stores the result of `task`, replacing what was stored for it. All or nothing: a concurrent
    /// lookup sees the whole entry or not this one. Durable when it returns if the cache was opened
    /// so. Blocking, for as long as it takes to read the outputs; looks at `cancel` for each file.
    ///
    /// # Errors
    /// [`Error::InvalidOutput`] for outputs that cannot be cached, [`Error::SourceChanged`] if one
    /// changes while it is read, [`Error::Full`]; [`Error::StoreRefused`] if the store was removed
    /// or replaced since it was opened. Nothing is stored then.
    pub fn store(&self, task: &TaskDigest, entry: &CacheEntry, cancel: &Cancel) -> Result<Stored> {
        let stored = self.try_store(task, entry, cancel);
        match stored {
            // Whatever fails in a store that is gone fails because it is gone.
            Err(Error::Io { .. }) if !self.inner.identity.is_in_place() => Err(self.replaced()),
            stored => stored,
        }
    }

    fn try_store(&self, task: &TaskDigest, entry: &CacheEntry, cancel: &Cancel) -> Result<Stored> {
        cancel.check()?;
        self.inner.blobs.refresh();
        let _lease = match &entry.workspace {
            Some(workspace) => {
                let workspace = disk::canonical(workspace).context("find", || workspace)?;
                Some(self.lease(&workspace, &entry.roots, LockMode::Shared, cancel)?)
            }
            None => None,
        };
        let _lock = self.lock(LockMode::Shared, cancel)?;
        let batch = self.inner.blobs.batch(self.inner.options.durability);
        let ingest = Ingest { cache: self, batch: &batch, cancel, counts: Counts::default() };
        let nodes = Mutex::new(Vec::with_capacity(entry.outputs.len()));
        parallel::for_each_with(&entry.outputs, Vec::new, |buffer, output| {
            let node = ingest.output(output, buffer)?;
            nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node);
            Ok(())
        })?;
        let nodes = nodes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut manifest = Manifest::assemble(entry.roots.clone(), nodes)?;
        manifest.exit_code = entry.exit_code;
        manifest.duration_ms = entry.duration_ms;
        manifest.logs = Logs {
            stdout: ingest.log(&entry.stdout)?,
            stderr: ingest.log(&entry.stderr)?,
            order: encode_order(
                &entry.log_order,
                entry.stdout.len() as u64,
                entry.stderr.len() as u64,
            ),
        };
        manifest.key_parts =
            entry.key_parts.as_deref().map(|parts| ingest.private(parts)).transpose()?;
        manifest.origin = Origin {
            stored_at: disk::now(),
            incarnation: self.inner.identity.incarnation(),
            epoch: u64::from(self.inner.identity.epoch_after_writes()),
        };
        let stored = ingest.counts.stored(&manifest);
        batch.publish(&|| !cancel.is_cancelled())?;
        cancel.check()?;
        self.publish_manifest(task, &manifest)?;
        self.inner.has_unsynced.store(true, Ordering::Relaxed);
        Ok(stored)
    }
}

#[derive(Default)]
struct Counts {
    new_blobs: AtomicU64,
    new_bytes: AtomicU64,
}

impl Counts {
    fn stored(&self, manifest: &Manifest) -> Stored {
        Stored {
            files: manifest.file_count() as u64,
            bytes: manifest.output_bytes(),
            new_blobs: self.new_blobs.load(Ordering::Relaxed),
            new_bytes: self.new_bytes.load(Ordering::Relaxed),
        }
    }
}

struct Ingest<'a> {
    cache: &'a Cache,
    batch: &'a Batch<'a>,
    cancel: &'a Cancel,
    counts: Counts,
}

impl Ingest<'_> {
    fn output(&self, output: &CacheOutput, buffer: &mut Vec<u8>) -> Result<Node> {
        self.cancel.check()?;
        let invalid = |reason| Error::InvalidOutput { path: output.path.clone(), reason };
        let path = OutputPath::parse(&output.path).map_err(|error| invalid(error.0))?;
        let default_mode = |is_executable| if is_executable { 0o755 } else { 0o644 };
        let kind = match &output.content {
            OutputContent::Directory => {
                NodeKind::Directory { mode: output.mode.unwrap_or(0o755) & 0o777 }
            }
            OutputContent::Symlink(target) => {
                let target = target.as_bytes();
                if target.is_empty() || target.contains(&0) {
                    return Err(invalid("a symlink's target is empty or contains NUL"));
                }
                NodeKind::Symlink { target: target.into() }
            }
            OutputContent::Bytes(bytes) => {
                let mode = output.mode.unwrap_or(default_mode(output.executable)) & 0o777;
                self.file(&Source::Bytes(bytes), mode, output.modified, buffer)?
            }
            OutputContent::File(source) => {
                let (file, stat) = source.open(self.cache.inner.options.capabilities)?;
                let source = Source::File { file: &file, stat: &stat, path: source.path() };
                let mode = output.mode.unwrap_or(stat.mode) & 0o777;
                self.file(&source, mode, output.modified.or(Some(stat.modified)), buffer)?
            }
            OutputContent::Stored(blob) => {
                let (file, stat) = blob.file()?;
                let source = Source::File { file: &file, stat: &stat, path: &output.path };
                let mode = output.mode.unwrap_or(default_mode(output.executable)) & 0o777;
                let kind = self.file(&source, mode, output.modified, buffer)?;
                if !matches!(kind, NodeKind::File { digest, .. } if digest == blob.digest()) {
                    let path = output.path.clone();
                    return Err(Error::Damaged { path, expected: blob.digest(), actual: None });
                }
                kind
            }
        };
        Ok(Node { path, kind })
    }

    fn file(
        &self,
        source: &Source<'_>,
        mode: u32,
        modified: Option<Timestamp>,
        buffer: &mut Vec<u8>,
    ) -> Result<NodeKind> {
        let staged = self.add(source, blob_mode(mode), modified, buffer)?;
        Ok(NodeKind::File { digest: staged.digest, size_bytes: staged.size_bytes, mode, modified })
    }

    fn log(&self, bytes: &[u8]) -> Result<LogStream> {
        if bytes.len() <= LOG_INLINE_BYTES_MAX {
            return Ok(LogStream::Inline(bytes.into()));
        }
        Ok(LogStream::Blob(self.private(bytes)?))
    }

    fn private(&self, bytes: &[u8]) -> Result<BlobRef> {
        self.add(&Source::Bytes(bytes), PRIVATE_BLOB_MODE, None, &mut Vec::new())
    }

    fn add(
        &self,
        source: &Source<'_>,
        mode: u32,
        modified: Option<Timestamp>,
        buffer: &mut Vec<u8>,
    ) -> Result<BlobRef> {
        let staged =
            self.batch.add(source, mode, modified, buffer, &|| !self.cancel.is_cancelled())?;
        if staged.is_new {
            self.counts.new_blobs.fetch_add(1, Ordering::Relaxed);
            self.counts.new_bytes.fetch_add(staged.size_bytes, Ordering::Relaxed);
        }
        Ok(BlobRef { digest: staged.digest, size_bytes: staged.size_bytes })
    }
}
