//! Makes the `Tree` of a directory, in the form that REAPI 2.3 calls topologically sorted: directories with
//! the same contents stand once, parents before children, and nothing else is in it.

use super::describe::{DescribeError, Naming, is_executable, properties, text};
use super::wire::append_field;
use super::{TREE_CHILD, TREE_ROOT};
use crate::manifest::{BlobRef, Node, NodeKind};
use crate::remote::digests::RemoteDigest;
use bazel_remote_apis::build::bazel::remote::execution::v2::{
    Directory, DirectoryNode, FileNode, SymlinkNode,
};
use prost::Message;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;

/// The `Tree` of a directory.
pub(super) struct Tree {
    pub(super) message: Vec<u8>,
    /// The directories below its root, which are parts of it.
    pub(super) directories: Vec<(RemoteDigest, Vec<u8>)>,
}

/// The tree of the directory `top`, of which `below` are the nodes below, sorted.
pub(super) fn tree_of(
    top: &Node,
    mode: u32,
    below: &[Node],
    naming: Naming<'_>,
) -> Result<Tree, DescribeError> {
    let mut builder = Builder {
        naming,
        above: Vec::new(),
        last: Open::new(top, mode),
        closed: Closed::default(),
    };
    for node in below {
        // Sorted paths: what does not lie in the last directory, nothing will any more.
        while !builder.last.node.path.contains(&node.path) && builder.close()? {}
        builder.add(node)?;
    }
    while builder.close()? {}
    let mut message = Vec::new();
    append_field(&mut message, TREE_ROOT, &builder.last.directory.encode_to_vec());
    // A directory is closed after all that is in it, whichever of its copies was met first.
    let mut directories = builder.closed.messages;
    directories.reverse();
    for (_, directory) in &directories {
        append_field(&mut message, TREE_CHILD, directory);
    }
    Ok(Tree { message, directories })
}

struct Builder<'a> {
    naming: Naming<'a>,
    /// The directories above the last one, from the top down.
    above: Vec<Open<'a>>,
    last: Open<'a>,
    closed: Closed,
}

/// A directory that may get more children.
struct Open<'a> {
    node: &'a Node,
    directory: Directory,
}

impl Open<'_> {
    fn new(node: &Node, mode: u32) -> Open<'_> {
        let directory =
            Directory { node_properties: Some(properties(mode, None)), ..Directory::default() };
        Open { node, directory }
    }
}

/// Directories that are whole, each contents once.
#[derive(Default)]
struct Closed {
    met: HashSet<RemoteDigest>,
    messages: Vec<(RemoteDigest, Vec<u8>)>,
}

impl<'a> Builder<'a> {
    fn add(&mut self, node: &'a Node) -> Result<(), DescribeError> {
        let directory = &mut self.last.directory;
        let name = text(node.path.name().as_bytes(), node)?;
        match &node.kind {
            NodeKind::File { digest, size_bytes, mode, modified } => {
                let blob = BlobRef { digest: *digest, size_bytes: *size_bytes };
                directory.files.push(FileNode {
                    name,
                    digest: Some(self.naming.name(&blob)?),
                    is_executable: is_executable(*mode),
                    node_properties: Some(properties(*mode, *modified)),
                });
            }
            NodeKind::Symlink { target } => {
                let target = text(target, node)?;
                directory.symlinks.push(SymlinkNode { name, target, node_properties: None });
            }
            NodeKind::Directory { mode } => {
                let above = std::mem::replace(&mut self.last, Open::new(node, *mode));
                self.above.push(above);
            }
        }
        Ok(())
    }

    /// Puts the last directory into the one above it; false if there is none.
    fn close(&mut self) -> Result<bool, DescribeError> {
        let Some(above) = self.above.pop() else { return Ok(false) };
        let Open { node, directory } = std::mem::replace(&mut self.last, above);
        let message = directory.encode_to_vec();
        let digest = (self.naming.hash)(&message);
        let name = text(node.path.name().as_bytes(), node)?;
        let child = DirectoryNode { name, digest: Some(digest.to_message()) };
        self.last.directory.directories.push(child);
        if self.closed.met.insert(digest) {
            self.closed.messages.push((digest, message));
        }
        Ok(true)
    }
}
