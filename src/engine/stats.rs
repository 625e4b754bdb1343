//! Stats: what is in a store, in honest bytes.

use super::{Cache, EvictedEarly};
use crate::disk::{Dir, FileKind, layout};
use crate::error::{Context, Result};
use std::io;
use std::path::Path;

/// What is in a store. Bytes are blocks on disk, not lengths, each inode once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Tasks with an entry.
    pub entries: u64,
    /// Blobs.
    pub blobs: u64,
    /// Blobs that are also linked into a workspace.
    pub linked_blobs: u64,
    /// Blocks of all blobs, in bytes.
    pub blob_bytes: u64,
    /// Blocks of all manifests, in bytes.
    pub manifest_bytes: u64,
    /// Blocks of index and stamp table, in bytes.
    pub index_bytes: u64,
    /// Blocks of what is being staged, in bytes.
    pub staging_bytes: u64,
    /// Files in quarantine.
    pub quarantined: u64,
    /// Blocks of those, in bytes.
    pub quarantine_bytes: u64,
    /// Blocks of everything else, in bytes: ledgers, leases, holds, what was just swept.
    pub other_bytes: u64,
    /// The largest size that the store's limits allow, in bytes; `None` without such a limit.
    pub size_bytes_max: Option<u64>,
    /// What went because of a limit of size, and was needed after all.
    pub evicted_early: EvictedEarly,
}

impl Stats {
    /// All of it, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.blob_bytes
            + self.manifest_bytes
            + self.index_bytes
            + self.staging_bytes
            + self.quarantine_bytes
            + self.other_bytes
    }
}

impl Cache {
    /// Counts what is in the store: one listing of every folder and one stat for each file.
    /// Blocking; about 2 µs a file.
    ///
    /// # Errors
    /// If the store cannot be listed.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        self.inner.blobs.for_each(|_, _, stat| {
            stats.blobs += 1;
            stats.linked_blobs += u64::from(stat.links > 1);
            stats.blob_bytes += stat.allocated_bytes;
            Ok(())
        })?;
        self.for_each_manifest(|_, _, _, stat| {
            stats.entries += 1;
            stats.manifest_bytes += stat.allocated_bytes;
            Ok(())
        })?;
        let stamps = self.inner.root.stat(layout::STAMPS.as_ref());
        let stamps = stamps.context("look at", || self.inner.path.join(layout::STAMPS))?;
        stats.index_bytes =
            self.inner.index.allocated_bytes() + stamps.map_or(0, |stat| stat.allocated_bytes);
        (_, stats.staging_bytes) = self.folder_usage(layout::STAGING)?;
        (stats.quarantined, stats.quarantine_bytes) = self.folder_usage(layout::QUARANTINE)?;
        let counted = stats.index_bytes + stats.staging_bytes + stats.quarantine_bytes;
        stats.other_bytes = self.other_bytes()?.saturating_sub(counted);
        stats.size_bytes_max = self.size_bytes_max()?;
        stats.evicted_early = self.evicted_early();
        Ok(stats)
    }

    /// Blocks of everything but blobs and manifests, in bytes. Locks are empty files.
    pub(super) fn other_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for name in [
            layout::STAMPS,
            layout::INDEX,
            layout::REFERENCES,
            layout::TALLY,
            layout::MARKING,
            layout::GHOSTS,
        ] {
            let stat = self.inner.root.stat(name.as_ref());
            let stat = stat.context("look at", || self.inner.path.join(name))?;
            bytes += stat.map_or(0, |stat| stat.allocated_bytes);
        }
        for folder in layout::FOLDERS {
            if ![layout::BLOBS, layout::MANIFESTS, layout::LEASES, layout::BUILDS].contains(&folder)
            {
                bytes += self.folder_usage(folder)?.1;
            }
        }
        Ok(bytes)
    }

    fn folder_usage(&self, folder: &'static str) -> Result<(u64, u64)> {
        let path = self.inner.path.join(folder);
        match self.inner.root.open_child(folder.as_ref()) {
            // A store of an earlier version that we may only read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((0, 0)),
            opened => usage(&opened.context("open", || &path)?, &path),
        }
    }
}

/// Files below a directory and the bytes of their blocks.
fn usage(dir: &Dir, path: &Path) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for (name, kind) in dir.entries().context("list", || path)? {
        let below = path.join(&name);
        if kind == FileKind::Directory {
            // A staging directory may go at any time.
            if let Ok(child) = dir.open_child(&name) {
                let (more_files, more_bytes) = usage(&child, &below)?;
                files += more_files;
                bytes += more_bytes;
            }
        } else if let Some(stat) = dir.stat(&name).context("look at", || below)? {
            files += 1;
            bytes += stat.allocated_bytes;
        }
    }
    Ok((files, bytes))
}
