//! What the reader of a bundle has already: entries and blobs of earlier bundles.

use super::records::{Record, RecordReader};
use super::{Signer, signer_of};
use crate::cancel::Cancel;
use crate::digest::{Digest, DigestSet};
use crate::error::{Error, Result};
use crate::manifest::{DecodeError, Manifest};
use std::collections::HashSet;
use std::io::Read;

/// What a bundle need not carry, because its reader has it from earlier ones.
///
/// # Examples
/// ```
/// use larder::{Cache, CacheEntry, CacheOptions, Cancel, TaskDigest, bundle};
/// # let folder = tempfile::tempdir()?;
/// # let cache = Cache::open(&folder.path().join("store"), CacheOptions::default())?;
/// # let (old, new) = (TaskDigest::derive("", "old")?, TaskDigest::derive("", "new")?);
/// # let entry = CacheEntry::new(0, 1000);
/// # let (nothing, cancel) = (bundle::Known::default(), Cancel::new());
/// cache.store(&old, &entry, &cancel)?;
/// let mut first = Vec::new();
/// bundle::export(&cache, &[old], &nothing, &mut first, &cancel)?;
///
/// cache.store(&new, &entry, &cancel)?;
/// let mut known = bundle::Known::default();
/// known.add(first.as_slice(), &cancel)?;
/// let exported = bundle::export(&cache, &[old, new], &known, &mut Vec::new(), &cancel)?;
/// assert_eq!((exported.entries, exported.known_entries), (1, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Known {
    /// The digests of portable manifests.
    entries: DigestSet<Digest>,
    blobs: HashSet<(Signer, Digest)>,
}

impl Known {
    /// Adds the entries of a bundle, and all blobs that they name, whether this bundle carries them or an
    /// earlier one did. Reads it to its end. Memory grows with the number of blobs, not with their bytes.
    ///
    /// # Errors
    /// [`Error::BundleRefused`] if it is none, damaged or cut; [`Error::Cancelled`].
    pub fn add(&mut self, input: impl Read, cancel: &Cancel) -> Result<()> {
        self.add_records(&mut RecordReader::open(input)?, cancel)
    }

    fn add_records<R: Read>(
        &mut self,
        records: &mut RecordReader<R>,
        cancel: &Cancel,
    ) -> Result<()> {
        loop {
            cancel.check()?;
            match records.next() {
                Ok(Record::Entry(bytes)) => {
                    self.entries.insert(Digest::of(&bytes));
                    match Manifest::decode_any(&bytes) {
                        Ok((_, manifest)) => self.add_blobs(&manifest),
                        // Whoever has that entry knows what it needs; we do not.
                        Err(DecodeError::Newer) => {}
                        Err(_) => {
                            return Err(Error::BundleRefused { reason: "a manifest is damaged" });
                        }
                    }
                }
                Ok(Record::Blob(_)) => {}
                Ok(Record::End) => return Ok(()),
                Err(stop) => return Err(stop.into_error()),
            }
        }
    }

    fn add_blobs(&mut self, manifest: &Manifest) {
        let signer = signer_of(manifest);
        self.blobs.extend(manifest.distinct_blobs().iter().map(|blob| (signer, blob.digest)));
    }

    pub(super) fn has_entry(&self, portable: &[u8]) -> bool {
        self.entries.contains(&Digest::of(portable))
    }

    pub(super) fn has_blob(&self, signer: Signer, digest: Digest) -> bool {
        self.blobs.contains(&(signer, digest))
    }
}

/// How many entries the records of these bytes have, up to the first that is none; for the fuzz targets.
#[cfg(any(fuzzing, larder_rigs))]
pub(crate) fn count_entries(records: &[u8]) -> usize {
    let mut known = Known::default();
    let _ = known.add_records(&mut RecordReader::plain(records), &Cancel::new());
    known.entries.len()
}
