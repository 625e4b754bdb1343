//! Store: one task's result, all of it or nothing.
//!
//! The steps, and what a crash after each leaves:
//! 1. ingest every output, log and key part, each published as soon as it is staged: blobs that
//!    nothing refers to, swept by a repair;
//! 2. note their slots and, if the store is durable, sync; stage the manifest: the same;
//! 3. in a shared section, publish the manifest: the entry is there, its row follows with a later
//!    commit, or at a lookup;
//! 4. note the row and the ledger, to be written when nobody waits: done.
//!
//! Steps 1 and 2 take no lock, so blobs may be swept that they found, or made. If there was a sweep
//! since before step 1, step 3 looks again for each blob that the entry needs, and if one is gone
//! everything begins anew; the third time within the section, where nobody sweeps (`commit`).
//!
//! A store that fails before its slots are noted removes what it published, if nobody has committed
//! since it began.
//!
//! A concurrent lookup sees the old entry, or none, until step 3, and the whole new one after it.

use super::Cache;
use super::commit::{LastRounds, Ready};
use super::ledgers::ledger_of_outputs;
use super::logs::encode_order;
use super::output::{CacheEntry, CacheOutput, OutputContent, SourceFile, SourceFolder};
use super::shares::{self, Slots};
use crate::blob::{Batch, Source};
use crate::cancel::Cancel;
use crate::disk::{self, FileStat, LockMode, Timestamp};
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use crate::ledger::{Cursor, Ledger, Place, Row, Seen};
use crate::manifest::{
    BlobRef, LOG_INLINE_BYTES_MAX, LogStream, Logs, Manifest, Node, NodeKind, OutputPath,
    PRIVATE_BLOB_MODE, PathError, blob_mode,
};
use crate::parallel;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The ledger of so many outputs is read while they are shared out.
const BESIDE_OUTPUTS_MIN: usize = 1000;

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
    /// changes while it is read, [`Error::HalfRestored`] if a restore was killed there and nothing has
    /// changed since that was noticed, [`Error::Full`]; [`Error::StoreRefused`] if the store was removed
    /// or replaced since it was opened, or may only be read. Nothing is stored then.
    pub fn store(&self, task: &TaskDigest, entry: &CacheEntry, cancel: &Cancel) -> Result<Stored> {
        self.check_may_write()?;
        let needs = || {
            // A blob may be the first of its folder.
            (self.blocks_of(entry), 2 * entry.outputs.len() as u64)
        };
        self.with_room(needs, cancel, || self.try_store(task, entry, cancel))
    }

    /// About how much the contents of an entry would take on disk.
    fn blocks_of(&self, entry: &CacheEntry) -> u64 {
        const BLOCK_BYTES: u64 = 4096;
        let capabilities = self.inner.options.capabilities;
        let size_bytes = |output: &CacheOutput| match &output.content {
            OutputContent::Bytes(bytes) => bytes.len() as u64,
            OutputContent::File(source) => {
                source.open(capabilities).map_or(0, |(_, stat)| stat.allocated_bytes)
            }
            OutputContent::Stored(blob) => blob.size_bytes(),
            OutputContent::Directory | OutputContent::Symlink(_) => 0,
        };
        let blocks = entry.outputs.iter().map(|output| size_bytes(output).div_ceil(BLOCK_BYTES));
        blocks.sum::<u64>().saturating_mul(BLOCK_BYTES)
    }

    fn try_store(&self, task: &TaskDigest, entry: &CacheEntry, cancel: &Cancel) -> Result<Stored> {
        cancel.check()?;
        self.inner.blobs.refresh();
        let workspace = match &entry.workspace {
            Some(workspace) => Some(disk::canonical(workspace).context("find", || workspace)?),
            None => None,
        };
        let _lease = match &workspace {
            Some(workspace) => {
                Some(self.lease(workspace, &entry.roots, LockMode::Shared, cancel)?)
            }
            None => None,
        };
        if let Some(workspace) = &workspace {
            self.refuse_leftovers(workspace, entry)?;
        }
        let (blobs, last_rounds) = (entry.outputs.len(), LastRounds::InSection);
        let prepare =
            |batch: &Batch<'_>| self.prepare(batch, task, entry, workspace.as_deref(), cancel);
        let (ready, rest) = self.commit_prepared(task, blobs, last_rounds, cancel, prepare)?;
        self.follow_commit(task, &ready)?;
        let Prepared { stored, about, ledger, kept, fresh } = rest;
        if let Some(about) = about {
            self.replace_ledger_unordered(about, &ledger, kept, fresh);
        }
        Ok(stored)
    }

    /// Steps 1 and 2.
    fn prepare<'e>(
        &self,
        batch: &Batch<'_>,
        task: &TaskDigest,
        entry: &'e CacheEntry,
        workspace: Option<&Path>,
        cancel: &Cancel,
    ) -> Result<(Ready<'_>, Prepared<'e>)> {
        let about = workspace.map(|workspace| ledger_of_outputs(workspace, &entry.roots));
        let outputs = &entry.outputs;
        let read_ledger = || about.map_or_else(Arc::default, |about| self.read_ledger(about));
        let share_out =
            || shares::by_folder(outputs.iter().map(CacheOutput::source_path).enumerate());
        let (shares, ledger) = if outputs.len() < BESIDE_OUTPUTS_MIN {
            (share_out(), read_ledger())
        } else {
            parallel::both(share_out, read_ledger)
        };
        let nodes = Slots::new(outputs.len());
        let ingest =
            Ingest { cache: self, batch, cancel, nodes: &nodes, counts: Counts::default() };
        let workers = parallel::for_each_with(
            &shares,
            outputs.len(),
            || Worker::new(&ledger),
            |worker, share| {
                let mut folder = None;
                let members = share.members.iter().map(|at| &outputs[*at]);
                let paths = OutputPath::parse_all(members.map(|output| &*output.path));
                share.members.iter().zip(paths).try_for_each(|(at, path)| {
                    ingest.output(*at, path, &outputs[*at], &mut folder, worker)
                })
            },
        )?;
        let (mut kept, mut fresh) = (Vec::new(), Vec::new());
        for worker in workers {
            kept.extend(worker.kept);
            fresh.extend(worker.fresh);
        }
        fresh.sort_unstable_by_key(|(position, _)| *position);
        let fresh = fresh.into_iter().map(|(_, row)| row).collect();
        let logs = Logs {
            stdout: ingest.log(&entry.stdout)?,
            stderr: ingest.log(&entry.stderr)?,
            order: encode_order(
                &entry.log_order,
                entry.stdout.len() as u64,
                entry.stderr.len() as u64,
            ),
        };
        let key_parts =
            entry.key_parts.as_deref().map(|parts| ingest.private(parts)).transpose()?;
        let counts = ingest.counts;
        let mut manifest = Manifest::assemble(entry.roots.clone(), nodes.into_made())?;
        manifest.exit_code = entry.exit_code;
        manifest.duration_ms = entry.duration_ms;
        manifest.logs = logs;
        manifest.key_parts = key_parts;
        manifest.origin = self.origin_now();
        manifest.writer.clone_from(&self.inner.options.writer);
        let stored = counts.stored(&manifest);
        batch.finish()?;
        cancel.check()?;
        let bytes = manifest.encode_signed(task, self.inner.options.signing.as_ref());
        let staged = self.stage_manifest(task, &bytes, None)?;
        Ok((Ready { manifest, staged }, Prepared { stored, about, ledger, kept, fresh }))
    }
}

/// What a store has found out on the way to its entry.
struct Prepared<'e> {
    stored: Stored,
    about: Option<Place>,
    ledger: Arc<Ledger>,
    /// Rows of the ledger that are still right.
    kept: Vec<u32>,
    /// Files that the ledger did not vouch for.
    fresh: Vec<Row<'e>>,
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
    /// Of the outputs, at their positions.
    nodes: &'a Slots<Node>,
    counts: Counts,
}

/// What one thread has at hand, and what it made.
struct Worker<'l, 'e> {
    buffer: Vec<u8>,
    cursor: Cursor<'l>,
    /// Rows of the ledger that are still right.
    kept: Vec<u32>,
    /// Files that the ledger did not vouch for, with the positions of their outputs.
    fresh: Vec<(usize, Row<'e>)>,
}

impl<'l> Worker<'l, '_> {
    fn new(ledger: &'l Ledger) -> Self {
        Worker { buffer: Vec::new(), cursor: ledger.cursor(), kept: Vec::new(), fresh: Vec::new() }
    }
}

impl<'e> Ingest<'_> {
    /// `folder` is the directory of the captured file that came before.
    fn output(
        &self,
        position: usize,
        path: Result<OutputPath, PathError>,
        output: &'e CacheOutput,
        folder: &mut Option<SourceFolder>,
        worker: &mut Worker<'_, 'e>,
    ) -> Result<()> {
        self.cancel.check()?;
        let invalid = |reason| Error::InvalidOutput { path: output.path.clone(), reason };
        let path = path.map_err(|error| invalid(error.0))?;
        let default_mode = |is_executable| if is_executable { 0o755 } else { 0o644 };
        let buffer = &mut worker.buffer;
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
            OutputContent::File(source) => self.source(position, output, source, folder, worker)?,
            OutputContent::Stored(blob) => {
                let (file, stat) = blob.file()?;
                let source = Source::File {
                    file: &file,
                    stat: &stat,
                    path: &output.path,
                    is_likely_known: true,
                };
                let mode = output.mode.unwrap_or(default_mode(output.executable)) & 0o777;
                let kind = self.file(&source, mode, output.modified, buffer)?;
                if !matches!(kind, NodeKind::File { digest, .. } if digest == blob.digest()) {
                    let path = output.path.clone();
                    return Err(Error::Damaged { path, expected: blob.digest(), actual: None });
                }
                kind
            }
        };
        self.nodes.put(position, Node { path, kind });
        Ok(())
    }

    /// A file that was captured, or named by its path: not even opened if the ledger vouches for it
    /// and the store has its bytes.
    fn source(
        &self,
        position: usize,
        output: &CacheOutput,
        source: &'e SourceFile,
        folder: &mut Option<SourceFolder>,
        worker: &mut Worker<'_, 'e>,
    ) -> Result<NodeKind> {
        let mode_of = |stat: &FileStat| output.mode.unwrap_or(stat.mode) & 0o777;
        let modified_of = |stat: &FileStat| output.modified.or(Some(stat.modified));
        let Some(folder) = source.folder(folder)? else {
            let (file, stat) = source.open(self.cache.inner.options.capabilities)?;
            let (path, is_likely_known) = (source.path(), false);
            let source = Source::File { file: &file, stat: &stat, path, is_likely_known };
            return self.file(&source, mode_of(&stat), modified_of(&stat), &mut worker.buffer);
        };
        let (name, path) = (source.name(), source.path().as_os_str().as_bytes());
        let row = worker.cursor.find(path);
        if let Some((row_position, row)) = row
            && let Some(stat) = folder.stat(name).context("look at", || source.path())?
            && row.seen.fits(&stat)
        {
            let (mode, modified) = (mode_of(&stat), modified_of(&stat));
            let keep_going = || !self.cancel.is_cancelled();
            if self.batch.has(&row.digest, blob_mode(mode), &keep_going)? {
                worker.kept.push(row_position);
                let (digest, size_bytes) = (row.digest, stat.size_bytes);
                return Ok(NodeKind::File { digest, size_bytes, mode, modified });
            }
        }
        let (file, stat) = source.explain(folder.open_regular(name))?;
        // What only has another time most likely has the same bytes.
        let is_likely_known = row.is_some_and(|(_, row)| row.seen.size_bytes() == stat.size_bytes);
        let place = Source::File { file: &file, stat: &stat, path: source.path(), is_likely_known };
        let kind = self.file(&place, mode_of(&stat), modified_of(&stat), &mut worker.buffer)?;
        if let NodeKind::File { digest, .. } = kind {
            worker.fresh.push((position, Row { path, digest, seen: Seen::private(&stat) }));
        }
        Ok(kind)
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
