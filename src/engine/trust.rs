//! Trust: which entries this store's user believes.
//!
//! - Without trusted keys every entry counts. With some, an entry that none of them has signed is a
//!   miss for whoever looks it up, restores it or reads its logs; and nothing is believed that only
//!   the store says: no row of the index, no stamp, no ledger. Whoever can write the store can write
//!   those, too.
//! - What is not trusted is left alone. Another reader may trust it; a store replaces it.
//! - What is checked are the bytes that are used afterwards: a lookup and the restore that follows
//!   each check what they have read.

use super::Cache;
use super::entries::Hit;
use crate::digest::DigestMap;
use crate::disk::{FileStat, Stamp};
use crate::error::Result;
use crate::key::TaskDigest;
use crate::manifest::{Manifest, Root};
use crate::options::{LinkMode, RestoreOptions, VerifyLevel};
use std::sync::{Mutex, PoisonError};

/// What lookups of this process have found signed, so that a large manifest is not decoded for each.
/// A stamp can be forged; but what is said then was signed for this task, too, and the restore reads
/// the manifest again.
#[derive(Debug, Default)]
pub(super) struct Vouched(Mutex<DigestMap<TaskDigest, (Stamp, Hit)>>);

impl Vouched {
    fn find(&self, task: &TaskDigest, stamp: Stamp) -> Option<Hit> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(task).filter(|(of, _)| *of == stamp).map(|(_, hit)| *hit)
    }

    fn note(&self, task: &TaskDigest, stamp: Stamp, hit: Hit) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(*task, (stamp, hit));
    }
}

impl Cache {
    /// Whether only signed entries count.
    pub(crate) fn asks_for_signatures(&self) -> bool {
        !self.inner.options.trusted.is_empty()
    }

    /// Whether the store's own word about files is not believed: by those who ask for signatures, since
    /// others may write it; and by those who sign, since they vouch for what they have read.
    pub(super) fn doubts_the_store(&self) -> bool {
        self.asks_for_signatures() || self.inner.options.signing.is_some()
    }

    /// As [`Cache::read_manifest`], of an entry that counts.
    pub(super) fn read_entry(&self, task: &TaskDigest) -> Result<Option<(Manifest, FileStat)>> {
        self.read_entry_beside(task, |_| {})
    }

    /// As [`Cache::read_manifest_beside`], of an entry that counts.
    pub(super) fn read_entry_beside(
        &self,
        task: &TaskDigest,
        beside: impl FnOnce(&[Root]) + Send,
    ) -> Result<Option<(Manifest, FileStat)>> {
        let found = self.read_manifest_beside(task, beside)?;
        Ok(found.filter(|(manifest, _)| self.counts(task, manifest)))
    }

    /// Whether keys are not asked for, or one of them has signed the entry.
    pub(super) fn counts(&self, task: &TaskDigest, manifest: &Manifest) -> bool {
        let keys = &self.inner.options.trusted;
        keys.is_empty() || keys.iter().any(|key| key.has_signed(task, manifest))
    }

    /// A lookup that believes signatures and nothing else.
    pub(super) fn lookup_signed(&self, task: &TaskDigest, stat: &FileStat) -> Result<Option<Hit>> {
        let vouched = &self.inner.vouched;
        if let Some(hit) = vouched.find(task, stat.stamp()) {
            return Ok(Some(hit));
        }
        let Some((manifest, stat)) = self.read_entry(task)? else { return Ok(None) };
        let hit = Hit::of(&manifest);
        vouched.note(task, stat.stamp(), hit);
        Ok(Some(hit))
    }

    /// How a restore may go about it: on a network filesystem stats may be old, and a store that others
    /// write may lie. Links to inodes that belong to others could change afterwards.
    pub(super) fn allowed(&self, options: RestoreOptions) -> RestoreOptions {
        let is_of_others = self.asks_for_signatures() && self.inner.root.access().is_shared();
        let copies = if self.is_reduced() || is_of_others {
            options.with_link_mode(LinkMode::Copy)
        } else {
            options
        };
        if self.is_reduced() || self.asks_for_signatures() {
            return copies.with_verify_level(VerifyLevel::Content);
        }
        copies
    }
}
