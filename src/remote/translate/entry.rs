//! `ForeignEntry`: an entry of which only the server's digests are known.
//!
//! Under BLAKE3 these are ours. Under another function ours are known when the files are here, and
//! [`ForeignEntry::complete`] makes the manifest then; or a manifest of ours rides along, and
//! [`ForeignEntry::names_for`] says what the server calls the blobs in it.

use super::error::{ResultError, invalid};
use crate::digest::{Digest, DigestMap};
use crate::manifest::{BlobRef, LOG_INLINE_BYTES_MAX, LogStream, Logs, Manifest, NodeKind};
use crate::remote::digests::RemoteDigest;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// An entry as a server's result tells it. Its paths are checked: it can be restored if its files can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignEntry {
    /// Whole but for the logs; its digests are the server's.
    outline: Manifest,
    /// stdout and stderr.
    logs: [Option<RemoteDigest>; 2],
    /// What came along.
    contents: HashMap<RemoteDigest, Vec<u8>>,
}

impl ForeignEntry {
    pub(super) fn new(
        outline: Manifest,
        logs: [Option<RemoteDigest>; 2],
        contents: HashMap<RemoteDigest, Vec<u8>>,
    ) -> ForeignEntry {
        ForeignEntry { outline, logs, contents }
    }

    /// What the entry needs, files first, each once.
    pub(crate) fn blobs(&self) -> Vec<RemoteDigest> {
        let files = self.outline.nodes.iter().filter_map(|node| match &node.kind {
            NodeKind::File { digest, size_bytes, .. } => Some(name(digest, *size_bytes)),
            _ => None,
        });
        let mut met = HashSet::new();
        files.chain(self.logs.into_iter().flatten()).filter(|digest| met.insert(*digest)).collect()
    }

    /// stdout and stderr, those that there are.
    pub(crate) fn logs(&self) -> impl Iterator<Item = RemoteDigest> {
        self.logs.into_iter().flatten()
    }

    /// What came along with the result, or has no bytes: it need not be fetched.
    pub(crate) fn contents(&self, digest: &RemoteDigest) -> Option<&[u8]> {
        let is_empty = digest.size_bytes == 0;
        self.contents.get(digest).map(Vec::as_slice).or(is_empty.then_some(&[]))
    }

    /// The manifest. `digest_of` says which digest of ours the bytes have that the server calls so;
    /// `log_of` gives the bytes of a log of at most [`LOG_INLINE_BYTES_MAX`] that did not come along.
    ///
    /// # Errors
    /// [`ResultError::Missing`] for what they do not know.
    pub(crate) fn complete(
        &self,
        digest_of: &dyn Fn(&RemoteDigest) -> Option<Digest>,
        log_of: &dyn Fn(&RemoteDigest) -> Option<Vec<u8>>,
    ) -> Result<Manifest, ResultError> {
        let missing = |digest: RemoteDigest| ResultError::Missing { digest };
        let mut manifest = self.outline.clone();
        for node in &mut manifest.nodes {
            if let NodeKind::File { digest, size_bytes, .. } = &mut node.kind {
                let name = name(digest, *size_bytes);
                *digest = digest_of(&name).ok_or(missing(name))?;
            }
        }
        let log = |name: Option<RemoteDigest>| -> Result<LogStream, ResultError> {
            let Some(name) = name else { return Ok(LogStream::default()) };
            if name.size_bytes > LOG_INLINE_BYTES_MAX as u64 {
                let digest = digest_of(&name).ok_or(missing(name))?;
                return Ok(LogStream::Blob(BlobRef { digest, size_bytes: name.size_bytes }));
            }
            let bytes = self.contents(&name).map(<[u8]>::to_vec).or_else(|| log_of(&name));
            let bytes = bytes.filter(|bytes| bytes.len() as u64 == name.size_bytes);
            Ok(LogStream::Inline(bytes.ok_or(missing(name))?.into()))
        };
        let [stdout, stderr] = self.logs;
        manifest.logs = Logs { stdout: log(stdout)?, stderr: log(stderr)?, order: Vec::new() };
        Ok(manifest)
    }

    /// What the server calls the blobs of the manifest that rides along with this result, found by path.
    /// `key_parts` is the other rider.
    ///
    /// # Errors
    /// [`ResultError::Invalid`] if the manifest needs a blob that the result does not name.
    pub(crate) fn names_for(
        &self,
        manifest: &Manifest,
        key_parts: Option<RemoteDigest>,
    ) -> Result<DigestMap<Digest, RemoteDigest>, ResultError> {
        let mut names = DigestMap::default();
        let mut add = |place: &Path, blob: BlobRef, found: Option<RemoteDigest>| {
            let found = found.filter(|found| found.size_bytes == blob.size_bytes);
            let found = found
                .ok_or_else(|| invalid(place, "the manifest beside the result has another blob"))?;
            names.entry(blob.digest).or_insert(found);
            Ok(())
        };
        for node in &manifest.nodes {
            let NodeKind::File { digest, size_bytes, .. } = node.kind else { continue };
            let found = self.outline.node(&node.path).and_then(|node| match &node.kind {
                NodeKind::File { digest, size_bytes, .. } => Some(name(digest, *size_bytes)),
                _ => None,
            });
            add(node.path.as_path(), BlobRef { digest, size_bytes }, found)?;
        }
        let [stdout, stderr] = self.logs;
        let logs =
            [("stdout", &manifest.logs.stdout, stdout), ("stderr", &manifest.logs.stderr, stderr)];
        for (place, log, found) in logs {
            if let LogStream::Blob(blob) = log {
                add(Path::new(place), *blob, found)?;
            }
        }
        if let Some(parts) = manifest.key_parts {
            add(Path::new("key parts"), parts, key_parts)?;
        }
        Ok(names)
    }
}

/// The digest of the server that an outline has in the place of ours.
fn name(digest: &Digest, size_bytes: u64) -> RemoteDigest {
    RemoteDigest::new(*digest.as_bytes(), size_bytes)
}
