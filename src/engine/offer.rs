//! Offer: an entry that may go elsewhere, with its blobs.
//!
//! An offer holds the blobs as outputs that were handed out are held (`hold`): whatever becomes of the
//! entry, they can be read as long as it lives. What is read is checked on the way (`reader`), so that
//! damage is never sent as good; it is set aside, and the entry goes.
//!
//! What is learnt while an entry goes elsewhere, its SHA-256, can be noted in its manifest. The steps,
//! and what a crash after each leaves:
//! 1. read the manifest that is there, and stage it with the column: nothing;
//! 2. in an exclusive section, see that it is still there, and publish the other in its place: the same
//!    entry with the column. It keeps the times of its file, so uses and age stay as they were.
//!
//! Left to others: how an entry is taken over (`receive`), and in which form it travels.

use super::Cache;
use super::hold::{Held, Hold};
use super::reader::BlobReader;
use crate::blob::Proof;
use crate::cancel::Cancel;
use crate::digest::{Digest, DigestMap};
use crate::disk::{LockMode, Stamp};
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{BlobRef, Manifest, Origin, SHA256_BYTES};
use crate::options::VerifyLevel;
use crate::parallel;

/// An entry that may go elsewhere. Its blobs are held as long as this lives, across processes, for up to
/// twelve hours; where that cannot be noted (on a full disk, in a store that may only be read) they may
/// go, and that is found when they are read.
#[derive(Debug)]
pub struct Offer {
    cache: Cache,
    task: TaskDigest,
    manifest: Manifest,
    stamp: Stamp,
    /// The mode and the size of each blob.
    blobs: DigestMap<Digest, (u32, u64)>,
    _hold: Option<Hold>,
}

impl Cache {
    /// The entry of `task`, to be sent elsewhere; `None` if there is none, or, with trusted keys, none
    /// that one of them has signed. Does not count as a use. Blocking, briefly.
    ///
    /// # Errors
    /// If the manifest cannot be read for a reason other than its absence or damage.
    ///
    /// # Examples
    /// See [`Cache::receive`].
    pub fn offer(&self, task: &TaskDigest) -> Result<Option<Offer>> {
        /// So often the entry must be replaced under us.
        const ROUNDS_MAX: usize = 4;
        for _ in 0..ROUNDS_MAX {
            let Some((mut manifest, stat)) = self.read_entry(task)? else { break };
            let hold = match self.hold(task, &manifest, stat.stamp())? {
                Held::Here(hold) => Some(hold),
                Held::Unheld => None,
                Held::Gone => continue,
            };
            manifest.origin = Origin::default();
            if self.doubts_the_store() {
                manifest.sha256 = Vec::new();
            }
            let mut blobs = DigestMap::default();
            for (blob, mode) in manifest.blobs() {
                blobs.entry(blob.digest).or_insert((mode, blob.size_bytes));
            }
            let (cache, task, stamp) = (self.clone(), *task, stat.stamp());
            return Ok(Some(Offer { cache, task, manifest, stamp, blobs, _hold: hold }));
        }
        Ok(None)
    }

    /// Notes the SHA-256 of each blob of an entry, in the order of [`Manifest::distinct_blobs`], so that
    /// the next who needs them need not read the blobs. False, and nothing is noted, if the entry is not
    /// the one of this manifest any more, or the store may only be read. Atomic; the entry stays the same
    /// in everything else, also in its age. Blocking, briefly.
    ///
    /// # Errors
    /// [`Error::EntryRefused`] if these are not as many as there are blobs; if the manifest cannot be
    /// written.
    pub fn note_sha256(
        &self,
        task: &TaskDigest,
        manifest: &Manifest,
        sha256: &[[u8; SHA256_BYTES]],
    ) -> Result<bool> {
        if sha256.len() != manifest.distinct_blobs().len() {
            return Err(Error::EntryRefused { reason: "there is not one SHA-256 for each blob" });
        }
        // Without locks between machines, nobody could tell that it is still the same.
        if !self.may_write() || self.is_reduced() {
            return Ok(false);
        }
        let found = self.read_manifest(task)?.filter(|(found, _)| found.is_same_entry(manifest));
        let Some((mut found, stat)) = found else { return Ok(false) };
        if found.sha256 == sha256 {
            return Ok(true);
        }
        found.sha256 = sha256.to_vec();
        let times = Some((stat.accessed, stat.modified));
        let mut staged = self.stage_manifest(task, &found.encode(task), times)?;
        {
            // Nobody publishes another one between the look and the publication.
            let _section = self.enter(LockMode::Exclusive, &Cancel::new())?;
            if !self.is_manifest(task, stat.stamp())? {
                return Ok(false);
            }
            // Whoever lists the manifests just now may see neither.
            self.note_marked(&found)?;
            self.publish_manifest(task, &mut staged)?;
        }
        self.follow_publication(task, &found, &staged)?;
        Ok(true)
    }
}

impl Offer {
    /// Whose entry it is.
    pub fn task(&self) -> &TaskDigest {
        &self.task
    }

    /// Its manifest, without its origin: what [`Manifest::encode_portable`] encodes.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Opens one of its blobs for reading from the beginning. Each call gives a reader of its own.
    ///
    /// # Errors
    /// [`Error::NoBlob`] if the entry does not need it. [`Error::Damaged`] if it is not there or has
    /// another size; the entry is dropped then. [`Error::Miss`] if it went with the entry.
    pub fn open(&self, digest: &Digest) -> Result<BlobReader> {
        let Some((mode, size_bytes)) = self.blobs.get(digest) else {
            return Err(Error::NoBlob { digest: *digest });
        };
        self.cache.read_blob(digest, *mode, *size_bytes, Some((self.task, self.stamp)))
    }

    /// Reads these blobs, and says whether all are what they should be: for those who cannot take back
    /// what they have begun to send. Blocking; looks at `cancel` before each blob.
    ///
    /// # Errors
    /// As for [`Offer::open`] and reading: what is damaged is in quarantine, and the entry is dropped.
    pub fn verify(&self, blobs: &[BlobRef], cancel: &Cancel) -> Result<()> {
        let store = &self.cache.inner.blobs;
        let view = store.view(blobs.len());
        let keep_going = || !cancel.is_cancelled();
        let verify = |(): &mut (), blob: &BlobRef| {
            cancel.check()?;
            let Some((mode, size_bytes)) = self.blobs.get(&blob.digest) else {
                return Err(Error::NoBlob { digest: blob.digest });
            };
            let level = VerifyLevel::Content;
            let actual = match store.prove(&view, &blob.digest, *mode, level, &keep_going)? {
                Proof::Intact(stat) if stat.size_bytes == *size_bytes => return Ok(()),
                Proof::Intact(_) | Proof::Missing => None,
                Proof::Unrenewed => return Ok(()),
                Proof::Damaged { actual } => actual,
            };
            if !self.cache.remove_if_unchanged(&self.task, self.stamp)? {
                return Err(Error::Miss);
            }
            let path = store.blob_path(&blob.digest, *mode);
            Err(Error::Damaged { path, expected: blob.digest, actual })
        };
        parallel::for_each_with(blobs, blobs.len(), || (), verify).map(drop)
    }
}
