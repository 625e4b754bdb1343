//! Push: an entry of the store becomes a result on the server.
//!
//! The order is that of the protocol (`remote_execution.proto`, `ActionCache.UpdateActionResult`): first
//! every blob, the messages that describe the entry, and our manifest among them; then the result. A
//! push that ends in between leaves blobs that nothing refers to, which the server forgets.
//!
//! Where the server names blobs by SHA-256, each is read once for that, and the names are noted in the
//! manifest, so that the next push of the entry reads only what the server lacks.

use super::{RemoteTier, block, same_name, unless_cancelled};
use crate::cancel::Cancel;
use crate::digest::{Digest, DigestMap};
use crate::engine::Offer;
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{BlobRef, Manifest};
use crate::parallel;
use crate::remote::translate::{Delta, DescribeError, Naming, action_of, add_delta, describe};
use crate::remote::{DigestFunction, RemoteAddress, RemoteDigest, Upload, UploadSource};
use prost::Message;
use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Pushed {
    /// Blobs that the server did not have.
    pub blobs: u64,
    /// Bytes that were sent for them, as they were sent: compressed ones count as such.
    pub sent_bytes: u64,
}

const BASE_CONTEXT: &str = "larder 2026-11-24 base of a delta v1";
/// Below this many outputs a manifest is sent as fast as what differs from another.
const DELTA_NODES_MIN: usize = 200;

/// A result is one message, of which gRPC takes 4 MiB unless a server says more to its clients, which
/// this protocol has no word for; the rest is for what is around it.
const RESULT_BYTES_MAX: usize = 4 * 1000 * 1000;

/// How much of a blob is read at once to be hashed.
const PIECE_BYTES: usize = 128 << 10;

impl RemoteTier {
    /// Sends the entry of `task`. `None` if there is none, or it is one that the server cannot hold: a
    /// name that is not UTF-8, an absolute symlink where it takes none, or so many outputs outside of
    /// directories that the result is no message any more, or a blob that is larger than it takes. If the
    /// future is dropped, some blobs may be there, and no result.
    ///
    /// # Errors
    /// [`Error::Remote`] if the server does not take it, or a blob is found damaged while it is read: then
    /// the server gets no result, and the entry is gone from the store. [`Error::Damaged`] if a blob is
    /// missing or has another size, likewise.
    pub async fn push(&self, task: &TaskDigest, cancel: &Cancel) -> Result<Option<Pushed>> {
        unless_cancelled(cancel, Box::pin(self.try_push(task, cancel))).await
    }

    async fn try_push(&self, task: &TaskDigest, cancel: &Cancel) -> Result<Option<Pushed>> {
        let (cache, key) = (self.cache().clone(), *task);
        let Some(offer) = block(cancel, move |_| cache.offer(&key)).await? else { return Ok(None) };
        let offer = Arc::new(offer);
        let capabilities = self.inner.client.capabilities().await?;
        let function = capabilities.digest_function;
        if offer.manifest().distinct_blobs().iter().any(|blob| !capabilities.takes(blob.size_bytes))
        {
            return Ok(None);
        }
        let names = self.names(&offer, function, cancel).await?;
        let hash = |bytes: &[u8]| function.digest(bytes);
        let action = action_of(task, &hash);
        let mut manifest = offer.manifest().clone();
        // Whoever gets the manifest need not fetch the Trees to learn these names.
        manifest.sha256 = match function {
            DigestFunction::Blake3 => Vec::new(),
            DigestFunction::Sha256 => {
                manifest.distinct_blobs().iter().map(|blob| *names[&blob.digest].hash()).collect()
            }
        };
        let place = base_place(&self.inner.address, offer.manifest());
        let delta = self.delta(&offer, &place, &manifest.sha256, cancel).await?;
        let manifest = manifest.encode_portable(task);
        let manifest_name = hash(&manifest);
        let name_of = |blob: &BlobRef| names.get(&blob.digest).copied();
        let naming = Naming { hash: &hash, name_of: &name_of };
        let mut described = match describe(offer.manifest(), &manifest_name, naming) {
            Err(DescribeError::NotText { .. }) => return Ok(None),
            described => described.map_err(Error::remote)?,
        };
        let delta = delta.map(|delta| (hash(&delta), delta));
        if let Some((name, _)) = &delta {
            add_delta(&mut described.result, name);
        }
        let is_refused =
            described.absolute_symlink.is_some() && !capabilities.allows_absolute_symlinks;
        if is_refused || described.result.encoded_len() > RESULT_BYTES_MAX {
            return Ok(None);
        }
        // Parts of the Trees; some servers give no result back without them.
        let messages = described.messages.into_iter().chain(described.directories);
        let messages = action.messages.into_iter().chain(messages);
        let messages = messages.chain([(manifest_name, manifest)]).chain(delta);
        let mut uploads: Vec<Upload> =
            messages.map(|(digest, bytes)| Upload { digest, source: Arc::new(bytes) }).collect();
        uploads.extend(offer.manifest().distinct_blobs().into_iter().map(|blob| Upload {
            digest: names[&blob.digest],
            source: Arc::new(Content { offer: Arc::clone(&offer), blob }),
        }));
        let all: Vec<RemoteDigest> = uploads.iter().map(|upload| upload.digest).collect();
        let missing = self.inner.client.find_missing(&all).await?;
        let missing: HashSet<RemoteDigest> = missing.into_iter().collect();
        uploads.retain(|upload| missing.contains(&upload.digest));
        let uploaded = self.inner.client.upload(uploads).await?;
        self.inner.client.update_action(&action.digest, described.result).await?;
        if offer.manifest().nodes.len() >= DELTA_NODES_MIN {
            let (cache, key) = (self.cache().clone(), *task);
            // Best effort: without it, whoever gets the next entry fetches its whole manifest.
            drop(block(cancel, move |_| cache.note_base(&place, &key)).await);
        }
        Ok(Some(Pushed { blobs: uploaded.blobs, sent_bytes: uploaded.sent_bytes }))
    }

    /// What makes the manifest of that of the entry that was sent before from the same outputs.
    async fn delta(
        &self,
        offer: &Arc<Offer>,
        place: &[u8; 32],
        sha256: &[[u8; 32]],
        cancel: &Cancel,
    ) -> Result<Option<Vec<u8>>> {
        if offer.manifest().nodes.len() < DELTA_NODES_MIN {
            return Ok(None);
        }
        let (cache, offer) = (self.cache().clone(), Arc::clone(offer));
        let (place, sha256) = (*place, sha256.to_vec());
        block(cancel, move |_| {
            let Some(base_task) = cache.base(&place).filter(|base| base != offer.task()) else {
                return Ok(None);
            };
            // One that cannot be read is none.
            let Ok(Some(base)) = cache.manifest(&base_task) else { return Ok(None) };
            let this = (offer.task(), offer.manifest());
            Ok(Delta::encode(this, (&base_task, &base), &sha256))
        })
        .await
    }

    /// What the server calls each blob of the entry.
    async fn names(
        &self,
        offer: &Arc<Offer>,
        function: DigestFunction,
        cancel: &Cancel,
    ) -> Result<DigestMap<Digest, RemoteDigest>> {
        let blobs = offer.manifest().distinct_blobs();
        if function == DigestFunction::Blake3 {
            let name = |blob: BlobRef| (blob.digest, same_name(&blob.digest, blob.size_bytes));
            return Ok(blobs.into_iter().map(name).collect());
        }
        let offer = Arc::clone(offer);
        let cache = self.cache().clone();
        let hashes = block(cancel, move |cancel| {
            let manifest = offer.manifest();
            if !manifest.sha256.is_empty() {
                return Ok(manifest.sha256.clone());
            }
            let hashes = hash_all(&offer, cancel)?;
            // Best effort: without it, the next push hashes again.
            let _ = cache.note_sha256(offer.task(), manifest, &hashes);
            Ok(hashes)
        });
        let name = |(blob, hash): (BlobRef, [u8; 32])| {
            (blob.digest, RemoteDigest::new(hash, blob.size_bytes))
        };
        Ok(blobs.into_iter().zip(hashes.await?).map(name).collect())
    }
}

/// Where it is noted which entry of these outputs was sent to a server last.
fn base_place(address: &RemoteAddress, manifest: &Manifest) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(BASE_CONTEXT);
    let address = address.to_string();
    let roots = manifest.roots.iter().map(|root| root.path.as_bytes());
    for part in [address.as_bytes()].into_iter().chain(roots) {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    *hasher.finalize().as_bytes()
}

/// The SHA-256 of each blob, which is seen to be what it should be on the way.
fn hash_all(offer: &Offer, cancel: &Cancel) -> Result<Vec<[u8; 32]>> {
    let blobs: Vec<(usize, BlobRef)> =
        offer.manifest().distinct_blobs().into_iter().enumerate().collect();
    let hash = |found: &mut Vec<(usize, [u8; 32])>, (position, blob): &(usize, BlobRef)| {
        cancel.check()?;
        let mut reader = offer.open(&blob.digest)?;
        let mut hasher = DigestFunction::Sha256.hasher();
        let mut piece = vec![0; PIECE_BYTES.min(blob.size_bytes as usize + 1)];
        loop {
            cancel.check_only()?;
            let read = match reader.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(Error::remote)?,
            };
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
        }
        found.push((*position, *hasher.finish().hash()));
        Ok(())
    };
    let mut found: Vec<_> = parallel::for_each_with(&blobs, blobs.len(), Vec::new, hash)?
        .into_iter()
        .flatten()
        .collect();
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, hash)| hash).collect())
}

/// A blob of an entry that is sent.
struct Content {
    offer: Arc<Offer>,
    blob: BlobRef,
}

impl UploadSource for Content {
    fn open(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut reader = self.offer.open(&self.blob.digest).map_err(io::Error::other)?;
        // What was sent before is read again, since only a whole blob can be checked.
        reader.skip(offset_bytes)?;
        Ok(Box::new(reader))
    }

    fn open_part(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>> {
        let reader = self.offer.open(&self.blob.digest).map_err(io::Error::other)?;
        Ok(Box::new(reader.unchecked_from(offset_bytes)?))
    }
}
