//! What the fuzz target of results checks.

use super::error::ResultError;
use super::{DescribeError, ForeignEntry, Naming, Reading, describe};
use crate::digest::Digest;
use crate::manifest::{BlobRef, Manifest, NodeKind, Origin, RootKind};
use crate::remote::digests::{DigestFunction, RemoteDigest};
use bazel_remote_apis::build::bazel::remote::execution::v2::ActionResult;
use prost::Message;
use std::collections::HashMap;

/// The entry that these pieces are; [`crate::fuzzing::read_action_result`] says how.
pub(crate) fn read_pieces(pieces: &[&[u8]]) -> Option<Manifest> {
    let mut pieces = pieces.iter().copied();
    let result = ActionResult::decode(pieces.next()?).ok()?;
    let hash = |bytes: &[u8]| RemoteDigest::new([0; 32], bytes.len() as u64);
    let mut reading = Reading::begin(&result, &hash).ok()?;
    loop {
        let wanted = reading.wanted();
        if wanted.is_empty() {
            return complete(&reading.finish().ok()?).ok();
        }
        for digest in wanted {
            reading.give(&digest, pieces.next().unwrap_or_default()).ok()?;
        }
    }
}

/// The manifest of an entry whose digests are BLAKE3, with zeros for the logs in it.
fn complete(entry: &ForeignEntry) -> Result<Manifest, ResultError> {
    entry.complete(&|name| Some(Digest::from_bytes(*name.hash())), &|name| {
        Some(vec![0; name.size_bytes as usize])
    })
}

/// Describes an entry, reads that, and finds the same.
pub(crate) fn check_described(manifest: &Manifest) {
    let hash = |bytes: &[u8]| DigestFunction::Blake3.digest(bytes);
    // Of the blobs that a manifest can claim, those that can be: no file is larger, and there is one without bytes.
    let name_of = |blob: &BlobRef| {
        let is_small = i64::try_from(blob.size_bytes).is_ok();
        let is_possible = blob.size_bytes > 0 || blob.digest == Digest::of(b"");
        (is_small && is_possible)
            .then(|| RemoteDigest::new(*blob.digest.as_bytes(), blob.size_bytes))
    };
    let described = match describe(manifest, &hash(b""), Naming { hash: &hash, name_of: &name_of })
    {
        Ok(described) => described,
        Err(DescribeError::NotText { .. } | DescribeError::NoName { .. }) => return,
    };
    let messages: HashMap<_, _> = described.messages.iter().cloned().collect();
    let mut reading = Reading::begin(&described.result, &hash).expect("our own result");
    for digest in reading.wanted() {
        reading.give(&digest, &messages[&digest]).expect("our own message");
    }
    let entry = reading.finish().expect("our own Trees");
    let names = entry.names_for(manifest, manifest.key_parts.as_ref().and_then(name_of));
    assert_eq!(names.map(|_| ()), Ok(()), "each blob is named");
    let read = entry
        .complete(&|name| Some(Digest::from_bytes(*name.hash())), &|name| {
            messages.get(name).cloned()
        })
        .expect("our own logs");
    assert_eq!(comparable(&read), comparable(manifest));
}

/// An entry without what a result may leave out: patterns, times that no message holds, and what rides along.
fn comparable(manifest: &Manifest) -> Manifest {
    let mut manifest = manifest.clone();
    manifest.roots.retain(|root| root.kind != RootKind::Glob);
    manifest.normalize().expect("still valid");
    for node in &mut manifest.nodes {
        if let NodeKind::File { modified, .. } = &mut node.kind {
            *modified = None;
        }
    }
    manifest.duration_ms = 0;
    manifest.key_parts = None;
    manifest.logs.order = Vec::new();
    let (origin, sha256) = (Origin::default(), Vec::new());
    Manifest { origin, writer: None, signature: None, sha256, ..manifest }
}
