//! From an entry to the result of an action.
//!
//! What lies at the top of what the entry owns becomes an output: a file, a symlink, or a directory with
//! its `Tree`. So roots of all kinds are alike here, and what a pattern matched is listed one by one.
//! Modes and times go along as node properties. What the protocol has no word for (patterns, the order of
//! the logs, key parts, signatures) is in the manifest's own blob, which the result names.

use super::Hash;
use super::riders::{KEY_PARTS_TYPE, MANIFEST_TYPE, rider};
use super::tree::tree_of;
use crate::digest::Digest;
use crate::disk::Timestamp;
use crate::manifest::{BlobRef, LogStream, Manifest, Node, NodeKind, OutputPath};
use crate::remote::digests::RemoteDigest;
use bazel_remote_apis::build::bazel::remote::execution::v2::{
    self as reapi, ActionResult, ExecutedActionMetadata, NodeProperties, OutputDirectory,
    OutputFile, OutputSymlink,
};
use bazel_remote_apis::google::protobuf::{self, UInt32Value};
use std::collections::HashSet;
use std::fmt;

/// How a server names things.
#[derive(Clone, Copy)]
pub(crate) struct Naming<'a> {
    /// Hashes messages.
    pub(crate) hash: Hash<'a>,
    /// The name of a blob of ours: under BLAKE3 the same digest, else what its bytes were hashed to.
    pub(crate) name_of: &'a (dyn Fn(&BlobRef) -> Option<RemoteDigest> + Sync),
}

impl Naming<'_> {
    pub(super) fn name(&self, blob: &BlobRef) -> Result<reapi::Digest, DescribeError> {
        let name = (self.name_of)(blob).ok_or(DescribeError::NoName { digest: blob.digest })?;
        Ok(name.to_message())
    }
}

impl fmt::Debug for Naming<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Naming")
    }
}

/// An entry as a server gets it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Described {
    /// The result. To be sent last, when all that it names is there.
    pub(crate) result: ActionResult,
    /// What it names and is no blob of ours: Trees, and logs that are kept in the manifest. Each once.
    pub(crate) messages: Vec<(RemoteDigest, Vec<u8>)>,
    /// The directories below the roots of the Trees. They are parts of the Trees, and most servers do not
    /// need them as messages of their own; buildbox-casd takes no result without them. Each once.
    pub(crate) directories: Vec<(RemoteDigest, Vec<u8>)>,
    /// A symlink whose target is absolute, if there is one: not every server takes it.
    pub(crate) absolute_symlink: Option<OutputPath>,
}

/// Why an entry cannot be described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DescribeError {
    /// Protocol buffers have no bytes in the places of names.
    #[error("the path or the target of {path:?} is not UTF-8, and no server can hold it")]
    NotText {
        /// The output.
        path: OutputPath,
    },
    /// The caller does not know what the server calls a blob.
    #[error("there is no name on the server for the blob {digest}")]
    NoName {
        /// The blob.
        digest: Digest,
    },
}

/// The result that stands for `manifest` on a server, where the manifest itself is the blob
/// `manifest_name`. The same entry makes the same result.
///
/// # Errors
/// If a path or a symlink's target is not UTF-8, or a blob has no name.
pub(crate) fn describe(
    manifest: &Manifest,
    manifest_name: &RemoteDigest,
    naming: Naming<'_>,
) -> Result<Described, DescribeError> {
    let mut result = ActionResult { exit_code: manifest.exit_code, ..ActionResult::default() };
    let mut messages = Messages::of(naming.hash);
    let mut directories = Messages::of(naming.hash);
    let mut absolute_symlink = None;
    for node in &manifest.nodes {
        if let NodeKind::Symlink { target } = &node.kind
            && target.starts_with(b"/")
        {
            absolute_symlink.get_or_insert_with(|| node.path.clone());
        }
    }
    let mut nodes = manifest.nodes.as_slice();
    while let [node, rest @ ..] = nodes {
        nodes = rest;
        let path = text(node.path.as_bytes(), node)?;
        match &node.kind {
            NodeKind::File { digest, size_bytes, mode, modified } => {
                let blob = BlobRef { digest: *digest, size_bytes: *size_bytes };
                result.output_files.push(OutputFile {
                    path,
                    digest: Some(naming.name(&blob)?),
                    is_executable: is_executable(*mode),
                    contents: Vec::new(),
                    node_properties: Some(properties(*mode, *modified)),
                });
            }
            NodeKind::Symlink { target } => {
                let target = text(target, node)?;
                result.output_symlinks.push(OutputSymlink { path, target, node_properties: None });
            }
            NodeKind::Directory { mode } => {
                let count = rest.iter().take_while(|other| node.path.contains(&other.path)).count();
                let (below, after) = rest.split_at(count);
                nodes = after;
                let tree = tree_of(node, *mode, below, naming)?;
                for (digest, directory) in tree.directories {
                    directories.add_as(digest, directory);
                }
                result.output_directories.push(OutputDirectory {
                    path,
                    tree_digest: Some(messages.add(tree.message)),
                    is_topologically_sorted: true,
                    // It would say that each directory is a blob, too.
                    root_directory_digest: None,
                });
            }
        }
    }
    let mut log = |log: &LogStream| match log {
        LogStream::Inline(bytes) if bytes.is_empty() => Ok(None),
        LogStream::Inline(bytes) => Ok(Some(messages.add(bytes.to_vec()))),
        LogStream::Blob(blob) => naming.name(blob).map(Some),
    };
    result.stdout_digest = log(&manifest.logs.stdout)?;
    result.stderr_digest = log(&manifest.logs.stderr)?;
    let mut riders = vec![rider(MANIFEST_TYPE, &manifest_name.to_message())];
    if let Some(parts) = &manifest.key_parts {
        riders.push(rider(KEY_PARTS_TYPE, &naming.name(parts)?));
    }
    result.execution_metadata = Some(ExecutedActionMetadata {
        virtual_execution_duration: duration(manifest.duration_ms),
        auxiliary_metadata: riders,
        ..ExecutedActionMetadata::default()
    });
    Ok(Described {
        result,
        messages: messages.list,
        directories: directories.list,
        absolute_symlink,
    })
}

/// Messages that are to be sent, each once.
struct Messages<'a> {
    hash: Hash<'a>,
    met: HashSet<RemoteDigest>,
    list: Vec<(RemoteDigest, Vec<u8>)>,
}

impl<'a> Messages<'a> {
    fn of(hash: Hash<'a>) -> Messages<'a> {
        Messages { hash, met: HashSet::new(), list: Vec::new() }
    }

    fn add(&mut self, message: Vec<u8>) -> reapi::Digest {
        let digest = (self.hash)(&message);
        self.add_as(digest, message);
        digest.to_message()
    }

    fn add_as(&mut self, digest: RemoteDigest, message: Vec<u8>) {
        if self.met.insert(digest) {
            self.list.push((digest, message));
        }
    }
}

/// `bytes` of `node` as the text that the protocol wants.
pub(super) fn text(bytes: &[u8], node: &Node) -> Result<String, DescribeError> {
    let text = std::str::from_utf8(bytes);
    Ok(text.map_err(|_| DescribeError::NotText { path: node.path.clone() })?.to_owned())
}

/// The one bit of a mode that every client knows.
pub(super) fn is_executable(mode: u32) -> bool {
    mode & 0o111 != 0
}

pub(super) fn properties(mode: u32, modified: Option<Timestamp>) -> NodeProperties {
    NodeProperties {
        properties: Vec::new(),
        mtime: modified.and_then(timestamp),
        unix_mode: Some(UInt32Value { value: mode }),
    }
}

/// `None` outside the years 1 to 9999, which are all that the message may hold.
fn timestamp(time: Timestamp) -> Option<protobuf::Timestamp> {
    const YEAR_1: i64 = -62_135_596_800;
    const YEAR_10000: i64 = 253_402_300_800;
    let is_allowed = (YEAR_1..YEAR_10000).contains(&time.seconds);
    is_allowed
        .then_some(protobuf::Timestamp { seconds: time.seconds, nanos: time.nanoseconds as i32 })
}

/// `None` above the ten thousand years that the message may hold.
fn duration(duration_ms: u64) -> Option<protobuf::Duration> {
    const SECONDS_MAX: u64 = 315_576_000_000;
    let (seconds, ms) = (duration_ms / 1000, duration_ms % 1000);
    let is_allowed = seconds < SECONDS_MAX;
    is_allowed
        .then_some(protobuf::Duration { seconds: seconds as i64, nanos: ms as i32 * 1_000_000 })
}
