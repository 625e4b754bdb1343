//! Delta: a manifest as what differs from that of another entry, which the other side most likely has.
//!
//! Of a large tree in which little changed, the manifest alone is more bytes than the change. So beside the
//! manifest lies a delta to the entry that was sent before from the same outputs. Whoever has that entry
//! rebuilds the manifest from it and fetches no other; who has not, fetches the manifest.
//!
//! ```text
//! larder-d  u16 version  task digest of the base (32)  BLAKE3 of the base (32)  u32 length of the manifest
//! u32 count of names, each 32 bytes: the SHA-256 of each distinct blob that the base has not, in their order;
//!           none where the server names blobs by BLAKE3
//! one zstd frame, the base as its prefix
//! ```
//!
//! Base and manifest are in their portable form, without the column of SHA-256. Neither is longer than
//! [`MANIFEST_BYTES_MAX`], so the window of the frame has at most 8 MiB.

use crate::digest::{Digest, DigestMap, DigestSet};
use crate::key::TaskDigest;
use crate::manifest::{BlobRef, Manifest};
use crate::remote::digests::RemoteDigest;
use std::io::{Read, Write};

const MAGIC: &[u8; 8] = b"larder-d";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 8 + 2 + 32 + 32 + 4 + 4;
/// A larger manifest has no delta: some 50,000 outputs.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Of both together.
const WINDOW_LOG: u32 = 23;
const LEVEL: i32 = 9;

/// A delta that was fetched; nothing in it is checked but its form.
#[derive(Debug)]
pub(crate) struct Delta<'a> {
    pub(crate) base_task: TaskDigest,
    base_digest: Digest,
    length_bytes: usize,
    names: &'a [[u8; 32]],
    frame: &'a [u8],
}

impl<'a> Delta<'a> {
    /// Describes what makes `manifest` of `base`. `sha256` are the names of its distinct blobs, or none.
    /// `None` if that is not worth it.
    pub(crate) fn encode(
        (task, manifest): (&TaskDigest, &Manifest),
        (base_task, base): (&TaskDigest, &Manifest),
        sha256: &[[u8; 32]],
    ) -> Option<Vec<u8>> {
        let (target, prefix) = (bare(task, manifest), bare(base_task, base));
        if target.len().max(prefix.len()) > MANIFEST_BYTES_MAX {
            return None;
        }
        let known = digests_of(base);
        let blobs = manifest.distinct_blobs();
        let names = blobs.iter().zip(sha256).filter(|(blob, _)| !known.contains(&blob.digest));
        let names: Vec<u8> = names.flat_map(|(_, name)| *name).collect();
        let mut delta = Vec::from(*MAGIC);
        delta.extend(VERSION.to_le_bytes());
        delta.extend(base_task.as_bytes());
        delta.extend(Digest::of(&prefix).as_bytes());
        delta.extend((target.len() as u32).to_le_bytes());
        delta.extend((names.len() as u32 / 32).to_le_bytes());
        delta.extend(names);
        let mut encoder = zstd::Encoder::with_ref_prefix(&mut delta, LEVEL, &prefix).ok()?;
        encoder.window_log(WINDOW_LOG).ok()?;
        encoder.long_distance_matching(true).ok()?;
        encoder.write_all(&target).and_then(|()| encoder.finish().map(drop)).ok()?;
        (delta.len() < target.len() / 2).then_some(delta)
    }

    /// Reads one; `None` if these bytes are none.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Delta<'a>> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let at = |start: usize| header[start..start + 32].try_into().expect("32 bytes");
        let number =
            |start: usize| u32::from_le_bytes(header[start..start + 4].try_into().expect("four"));
        let length_bytes = number(74) as usize;
        let is_one = header.starts_with(MAGIC)
            && header[8..10] == VERSION.to_le_bytes()
            && length_bytes <= MANIFEST_BYTES_MAX;
        let (names, frame) = rest.split_at_checked((number(78) as usize).checked_mul(32)?)?;
        is_one.then_some(Delta {
            base_task: TaskDigest::from_bytes(at(10)),
            base_digest: Digest::from_bytes(at(42)),
            length_bytes,
            names: names.as_chunks().0,
            frame,
        })
    }

    /// The manifest of `task`, and the server's names of the blobs that `base` has not; `None` if this is
    /// not the base, or what comes out is no manifest.
    pub(crate) fn apply(
        &self,
        task: &TaskDigest,
        base: &Manifest,
    ) -> Option<(Manifest, DigestMap<Digest, RemoteDigest>)> {
        let prefix = bare(&self.base_task, base);
        if Digest::of(&prefix) != self.base_digest {
            return None;
        }
        let mut decoder = zstd::Decoder::with_ref_prefix(self.frame, &prefix).ok()?;
        decoder.window_log_max(WINDOW_LOG).ok()?;
        let mut bytes = Vec::with_capacity(self.length_bytes);
        decoder.take(self.length_bytes as u64 + 1).read_to_end(&mut bytes).ok()?;
        if bytes.len() != self.length_bytes {
            return None;
        }
        let manifest = Manifest::decode(&bytes, task).ok()?;
        let known = digests_of(base);
        let fresh: Vec<BlobRef> = manifest
            .distinct_blobs()
            .into_iter()
            .filter(|blob| !known.contains(&blob.digest))
            .collect();
        let name = |(blob, name): (BlobRef, &[u8; 32])| {
            (blob.digest, RemoteDigest::new(*name, blob.size_bytes))
        };
        let is_whole = self.names.is_empty() || self.names.len() == fresh.len();
        is_whole.then(|| (manifest, fresh.into_iter().zip(self.names).map(name).collect()))
    }
}

/// The portable form that everybody who has an entry can make of it.
fn bare(task: &TaskDigest, manifest: &Manifest) -> Vec<u8> {
    Manifest { sha256: Vec::new(), ..manifest.clone() }.encode_portable(task)
}

fn digests_of(manifest: &Manifest) -> DigestSet<Digest> {
    manifest.distinct_blobs().iter().map(|blob| blob.digest).collect()
}
