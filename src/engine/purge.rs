//! Purge: removing what one writer has stored.
//!
//! Looks at every manifest, since neither index nor references know writers. Each entry is removed as
//! any other (I10): by name, in an exclusive section, and only if it is still the one that was judged.
//! Blobs stay for the next eviction or repair, because other entries may need them. What is stored
//! while this goes on may be missed: first stop the writer.

use super::Cache;
use super::entries::Loaded;
use crate::cancel::Cancel;
use crate::disk::Timestamp;
use crate::error::Result;
use crate::manifest::Manifest;
use crate::options::Durability;
use crate::signature::{KeyId, WriterName};

/// Which entries are to go. Those that fit everything that is given; none if neither writer nor signer
/// is.
///
/// # Examples
/// ```
/// let bad = larder::Purge::default().with_writer("ci-7".parse()?);
/// # let _ = bad;
/// # Ok::<(), larder::ParseWriterError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Purge {
    /// Who says to have stored them.
    pub writer: Option<WriterName>,
    /// Which key they name as their signer's, whether it fits or not.
    pub signer: Option<KeyId>,
    /// Stored at or after this time. What counts is the later one of what the manifest says and of the
    /// file's own time.
    pub since: Option<Timestamp>,
    /// Only say what would go.
    pub is_dry_run: bool,
}

impl Purge {
    /// Replaces the writer.
    #[must_use]
    pub fn with_writer(mut self, writer: WriterName) -> Purge {
        self.writer = Some(writer);
        self
    }

    /// Replaces the signer.
    #[must_use]
    pub fn with_signer(mut self, signer: KeyId) -> Purge {
        self.signer = Some(signer);
        self
    }

    /// Replaces the time.
    #[must_use]
    pub fn with_since(mut self, since: Timestamp) -> Purge {
        self.since = Some(since);
        self
    }

    /// Only says what would go.
    #[must_use]
    pub fn with_dry_run(mut self, is_dry_run: bool) -> Purge {
        self.is_dry_run = is_dry_run;
        self
    }

    fn fits(&self, manifest: &Manifest, modified: Timestamp) -> bool {
        let is_named = self.writer.is_some() || self.signer.is_some();
        let signer = manifest.signature.as_ref().map(|signature| signature.key);
        let stored_at = manifest.origin.stored_at.max(modified);
        is_named
            && self.writer.as_ref().is_none_or(|name| manifest.writer.as_ref() == Some(name))
            && self.signer.is_none_or(|key| signer == Some(key))
            && self.since.is_none_or(|since| stored_at >= since)
    }
}

/// What a purge found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Purged {
    /// Entries that were removed; in a dry run, that would be.
    pub removed: u64,
    /// Entries that were looked at.
    pub examined: u64,
    /// Entries that only a newer version can read, and that were left.
    pub newer: u64,
}

impl Cache {
    /// Removes every entry that `purge` names, in all namespaces. Durable if the cache is. Blocking, for
    /// as long as it takes to read all manifests; looks at `cancel` for each. Damaged manifests go to
    /// quarantine on the way; a dry run changes nothing.
    ///
    /// # Errors
    /// If a manifest cannot be read or removed; [`crate::Error::StoreRefused`] in a store that may only
    /// be read. What was removed until then is.
    pub fn purge(&self, purge: &Purge, cancel: &Cancel) -> Result<Purged> {
        if !purge.is_dry_run {
            self.check_may_write()?;
        }
        let mut purged = Purged::default();
        self.for_each_manifest(|task, folder, name, _| {
            cancel.check()?;
            let loaded = if purge.is_dry_run {
                self.peek_at_manifest(folder, name, &task)?
            } else {
                self.load_manifest(folder, name, &task)?
            };
            match loaded {
                Loaded::Entry(manifest, stat) => {
                    purged.examined += 1;
                    if purge.fits(&manifest, stat.modified)
                        && (purge.is_dry_run || self.remove_if_unchanged(&task, stat.stamp())?)
                    {
                        purged.removed += 1;
                    }
                }
                Loaded::Newer => purged.newer += 1,
                Loaded::Gone => {}
            }
            Ok(())
        })?;
        if !purge.is_dry_run && self.inner.options.durability == Durability::Durable {
            // Also what somebody else has removed of it, and not synced.
            let identity = &self.inner.identity;
            identity.sync_until(identity.epoch_after_writes())?;
        }
        Ok(purged)
    }
}
