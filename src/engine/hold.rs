//! Holds: blobs that somebody may still read, though their entry may go.
//!
//! A hold is a flocked file in the store with the tags of its blobs, written in one go and never
//! changed. It counts as long as its lock is held, so it ends with its holder, however that ends; and
//! for half a day at most, so that one who keeps results for ever does not keep a store full.
//! It is made in a shared section, so a sweeper either sees it or had removed the blobs before.

use super::mark::tag_of;
use super::{Cache, Inner};
use crate::cancel::Cancel;
use crate::disk::{self, Lock, LockMode, Stamp, layout};
use crate::error::{Context, Result};
use crate::key::TaskDigest;
use crate::manifest::Manifest;
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::sync::Arc;

/// The tags of a manifest of 256 MiB, of which each file takes at least 38 bytes.
const HOLD_BYTES_MAX: u64 = 64 << 20;

/// So long a hold counts.
const HOLD_SECONDS_MAX: i64 = 12 * 3600;

/// The blobs of an entry, held as long as this lives.
#[derive(Debug)]
pub(super) struct Hold {
    store: Arc<Inner>,
    name: OsString,
    _lock: Lock,
}

/// What became of the attempt to hold an entry's blobs.
#[derive(Debug)]
pub(super) enum Held {
    Here(Hold),
    /// It cannot be noted: on a full disk, or in a store that we may only read, blobs may go.
    Unheld,
    /// The entry was removed or replaced.
    Gone,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Best effort: once nobody holds the lock, a sweeper removes it.
        let folder = self.store.root.open_child(layout::HOLDS.as_ref());
        let _ = folder.and_then(|folder| folder.unlink(&self.name));
    }
}

impl Cache {
    /// Holds the blobs of the entry of `task` that has this manifest.
    pub(super) fn hold(
        &self,
        task: &TaskDigest,
        manifest: &Manifest,
        stamp: Stamp,
    ) -> Result<Held> {
        // As long as it is there, so are its blobs; and who removes them later sees the hold.
        self.hold_if(manifest, || self.is_manifest(task, stamp))
    }

    /// Holds the blobs that an entry will need which is not there yet: what is found is not swept while
    /// the rest is fetched. Best effort, and nothing relies on it.
    pub(super) fn hold_early(&self, manifest: &Manifest) -> Option<Hold> {
        match self.hold_if(manifest, || Ok(true)) {
            Ok(Held::Here(hold)) => Some(hold),
            Ok(Held::Unheld | Held::Gone) | Err(_) => None,
        }
    }

    fn hold_if(
        &self,
        manifest: &Manifest,
        is_there: impl FnOnce() -> Result<bool>,
    ) -> Result<Held> {
        let mut tags = Vec::new();
        for (blob, mode) in manifest.blobs() {
            tags.extend_from_slice(&tag_of(&blob.digest, mode).to_le_bytes());
        }
        let Ok(_section) = self.enter(LockMode::Shared, &Cancel::new()) else {
            return Ok(Held::Unheld);
        };
        if !is_there()? {
            return Ok(Held::Gone);
        }
        let (Ok(folder), Ok(name)) = (self.folder(layout::HOLDS), disk::random_name()) else {
            return Ok(Held::Unheld);
        };
        let name = OsString::from(name);
        let made = (|| -> io::Result<Option<Lock>> {
            let mut file = folder.create_new(&name, 0o600)?;
            file.write_all(&tags)?;
            Lock::try_acquire(file, LockMode::Exclusive)
        })();
        let Ok(Some(lock)) = made else {
            let _ = folder.unlink(&name);
            return Ok(Held::Unheld);
        };
        Ok(Held::Here(Hold { store: Arc::clone(&self.inner), name, _lock: lock }))
    }

    /// The tags of all blobs that are held by holds that are not in `known`, to which they are added.
    /// Removes what dead holders left. In an exclusive section.
    pub(super) fn new_holds(&self, known: &mut HashSet<OsString>) -> Result<Vec<u64>> {
        let folder = self.folder(layout::HOLDS)?;
        let place = || self.inner.path.join(layout::HOLDS);
        let mut tags = Vec::new();
        for (name, _) in folder.entries().context("list", place)? {
            if known.contains(&name) {
                continue;
            }
            let (file, stat) = match folder.open_for_update(&name) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
                    ) =>
                {
                    continue;
                }
                // Of somebody who died before others might read it: it is made in a section.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    folder.unlink(&name).context("remove", || place().join(&name))?;
                    continue;
                }
                opened => opened.context("open", || place().join(&name))?,
            };
            let mut bytes = Vec::new();
            // The blobs of the largest manifest are fewer. What is longer is no hold.
            if stat.size_bytes <= HOLD_BYTES_MAX {
                let read = disk::read_exactly(&file, stat.size_bytes as usize, &mut bytes);
                read.context("read", || place().join(&name))?;
            }
            if Lock::try_acquire(file, LockMode::Exclusive).context("lock", place)?.is_some() {
                folder.unlink(&name).context("remove", || place().join(&name))?;
                continue;
            }
            known.insert(name);
            if disk::now().seconds.saturating_sub(stat.modified.seconds) > HOLD_SECONDS_MAX {
                continue;
            }
            let (words, _) = bytes.as_chunks::<8>();
            tags.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        }
        Ok(tags)
    }
}
