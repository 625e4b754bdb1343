//! Makes messages by hand, and a server that is a map.

mod every;
mod hostile;
mod others;
mod ours;

use super::describe::Described;
use super::error::ResultError;
use super::riders::{MANIFEST_TYPE, Riders};
use super::*;
use crate::digest::Digest;
use crate::disk::Timestamp;
use crate::key::TaskDigest;
use crate::manifest::{
    BlobRef, LogStream, Logs, Manifest, Node, NodeKind, OutputPath, Root, RootKind,
};
use crate::remote::digests::{DigestFunction, RemoteDigest};
use bazel_remote_apis::build::bazel::remote::execution::v2::{
    self as reapi, ActionResult, Directory, DirectoryNode, ExecutedActionMetadata, FileNode,
    NodeProperties, OutputDirectory, OutputFile, OutputSymlink, SymlinkNode, Tree,
};
use bazel_remote_apis::google::protobuf::{self, Any, UInt32Value};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message;
use std::collections::{BTreeMap, HashMap, HashSet};

fn sha256(bytes: &[u8]) -> RemoteDigest {
    DigestFunction::Sha256.digest(bytes)
}

/// What a server has.
#[derive(Default)]
struct Blobs(HashMap<RemoteDigest, Vec<u8>>);

impl Blobs {
    #[expect(clippy::unnecessary_wraps, reason = "so do the fields of messages have it")]
    fn put(&mut self, bytes: impl Into<Vec<u8>>) -> Option<reapi::Digest> {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        self.0.insert(digest, bytes);
        Some(digest.to_message())
    }

    fn read(&self, result: &ActionResult) -> Result<ForeignEntry, ResultError> {
        read_from(&self.0, result)
    }

    /// The manifest of an entry all of whose blobs are here.
    fn manifest(&self, entry: &ForeignEntry) -> Result<Manifest, ResultError> {
        let bytes = |name: &RemoteDigest| {
            self.0.get(name).map(Vec::as_slice).or_else(|| entry.contents(name))
        };
        entry.complete(&|name| bytes(name).map(Digest::of), &|name| bytes(name).map(<[u8]>::to_vec))
    }
}

fn read_from(
    blobs: &HashMap<RemoteDigest, Vec<u8>>,
    result: &ActionResult,
) -> Result<ForeignEntry, ResultError> {
    let mut reading = Reading::begin(result, &sha256)?;
    loop {
        let wanted = reading.wanted();
        if wanted.is_empty() {
            return reading.finish();
        }
        for digest in wanted {
            let message = blobs.get(&digest).ok_or(ResultError::Missing { digest })?;
            reading.give(&digest, message)?;
        }
    }
}

fn path(text: &str) -> OutputPath {
    OutputPath::parse(text).expect("a valid path")
}

fn file(text: &str, contents: &[u8], mode: u32, modified: Option<Timestamp>) -> Node {
    let size_bytes = contents.len() as u64;
    let kind = NodeKind::File { digest: Digest::of(contents), size_bytes, mode, modified };
    Node { path: path(text), kind }
}

fn directory(text: &str, mode: u32) -> Node {
    Node { path: path(text), kind: NodeKind::Directory { mode } }
}

fn symlink(text: &str, target: &str) -> Node {
    Node { path: path(text), kind: NodeKind::Symlink { target: target.as_bytes().into() } }
}

fn root(text: &str, kind: RootKind) -> Root {
    Root { path: path(text), kind }
}

const TIME: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };

#[expect(clippy::unnecessary_wraps, reason = "so do the fields of messages have it")]
fn properties(mode: u32) -> Option<NodeProperties> {
    let mtime = protobuf::Timestamp { seconds: TIME.seconds, nanos: TIME.nanoseconds as i32 };
    let unix_mode = Some(UInt32Value { value: mode });
    Some(NodeProperties { properties: Vec::new(), mtime: Some(mtime), unix_mode })
}

fn output_file(path: &str, digest: Option<reapi::Digest>) -> OutputFile {
    OutputFile { path: path.to_owned(), digest, ..OutputFile::default() }
}

fn output_symlink(path: &str, target: &str) -> OutputSymlink {
    OutputSymlink { path: path.to_owned(), target: target.to_owned(), node_properties: None }
}

fn output_tree(path: &str, tree_digest: Option<reapi::Digest>) -> OutputDirectory {
    OutputDirectory { path: path.to_owned(), tree_digest, ..OutputDirectory::default() }
}

fn file_node(name: &str, digest: Option<reapi::Digest>) -> FileNode {
    FileNode { name: name.to_owned(), digest, ..FileNode::default() }
}

fn directory_node(name: &str, child: &Directory) -> DirectoryNode {
    let digest = Some(sha256(&child.encode_to_vec()).to_message());
    DirectoryNode { name: name.to_owned(), digest }
}

fn symlink_node(name: &str, target: &str) -> SymlinkNode {
    SymlinkNode { name: name.to_owned(), target: target.to_owned(), node_properties: None }
}
