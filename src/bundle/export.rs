//! Export: entries of a store into a bundle.

use super::known::Known;
use super::records::RecordWriter;
use super::{place, signer_of};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::disk;
use crate::engine::{Cache, Offer};
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use crate::manifest::BlobRef;
use std::collections::HashSet;
use std::io::{self, Read, Write};

/// What an export wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Exported {
    /// Entries.
    pub entries: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes in those, before they are compressed.
    pub blob_bytes: u64,
    /// Entries that were left out because the reader has them.
    pub known_entries: u64,
    /// Tasks without an entry, or, with trusted keys, without one that counts.
    pub missing_entries: u64,
    /// Entries that were left out, and dropped, because blobs were found damaged.
    pub damaged_entries: u64,
}

/// Writes the entries of these tasks, with the blobs that the reader does not have. Each blob is checked
/// before it is written, so an entry that is damaged is left out and not carried on. The same entries
/// make the same bytes, in any order of `tasks`, as long as zstd is of the same version. Entries are held
/// one at a time while others go on. Blocking; looks at `cancel` for each blob and each piece of it.
///
/// # Errors
/// If the output cannot be written, or a store cannot be read: what was written is no bundle then.
///
/// # Examples
/// See [`Known`] and [`super::import`].
pub fn export(
    cache: &Cache,
    tasks: &[TaskDigest],
    known: &Known,
    output: impl Write,
    cancel: &Cancel,
) -> Result<Exported> {
    let explain = |error| Error::io("write", place(), error);
    let mut tasks = tasks.to_vec();
    tasks.sort_unstable();
    tasks.dedup();
    let mut records = RecordWriter::begin(output).map_err(explain)?;
    let (mut exported, mut sent) = (Exported::default(), HashSet::new());
    for task in &tasks {
        cancel.check()?;
        let Some(offer) = cache.offer(task)? else {
            exported.missing_entries += 1;
            continue;
        };
        let mut manifest = offer.manifest().clone();
        // What one store happens to know of it.
        manifest.sha256 = Vec::new();
        let portable = manifest.encode_portable(task);
        if known.has_entry(&portable) {
            exported.known_entries += 1;
            continue;
        }
        let signer = signer_of(&manifest);
        let mut blobs = manifest.distinct_blobs();
        blobs.retain(|blob| {
            blob.size_bytes > 0
                && !known.has_blob(signer, blob.digest)
                && !sent.contains(&(signer, blob.digest))
        });
        match offer.verify(&blobs, cancel) {
            Err(Error::Damaged { .. }) => {
                exported.damaged_entries += 1;
                continue;
            }
            Err(Error::Miss) => {
                exported.missing_entries += 1;
                continue;
            }
            verified => verified?,
        }
        records.entry(&portable).map_err(explain)?;
        exported.entries += 1;
        for blob in &blobs {
            records.blob(blob).map_err(explain)?;
            copy(&offer, blob, &mut records, cancel)?;
            sent.insert((signer, blob.digest));
            exported.blobs += 1;
            exported.blob_bytes += blob.size_bytes;
        }
    }
    records.end().map_err(explain)?;
    Ok(exported)
}

/// Writes the bytes of a blob.
fn copy<W: Write>(
    offer: &Offer,
    blob: &BlobRef,
    records: &mut RecordWriter<W>,
    cancel: &Cancel,
) -> Result<()> {
    let mut reader = offer.open(&blob.digest)?;
    let mut buffer = vec![0; blob.size_bytes.min(disk::BUFFER_BYTES as u64) as usize];
    let mut left_bytes = blob.size_bytes;
    while left_bytes > 0 {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let wanted = left_bytes.min(buffer.len() as u64) as usize;
        // Its last bytes come only if it was what it should be.
        reader.read_exact(&mut buffer[..wanted]).map_err(|source| unreadable(blob, source))?;
        records.bytes(&buffer[..wanted]).map_err(|error| Error::io("write", place(), error))?;
        left_bytes -= wanted as u64;
    }
    Ok(())
}

fn unreadable(blob: &BlobRef, source: io::Error) -> Error {
    let path = Digest::to_string(&blob.digest).into();
    Error::Io { action: "read the blob", path, source }
}
