//! From the result of an action, whoever wrote it, to an entry.
//!
//! A [`Reading`] is told the result, says which Trees and directories it lacks, is given them, and ends in a
//! [`ForeignEntry`].
//!
//! What clients do, and what is made of it:
//! - Symlinks are in `output_symlinks`, or in the two lists of before 2.1, or in both.
//! - An output directory has a `Tree`, or only the digest of its `Directory`, as `BuildStream` asks for. If
//!   it is the working directory, then all that is in it are outputs.
//! - Modes come with the type of the file (moon), as the executable bit alone (Bazel), or not at all.
//! - Outputs may lie within others; what is said twice must be the same.
//! - Files and logs may come along in the result. They are believed if they have the digest.

use super::entry::ForeignEntry;
use super::error::{ResultError, invalid};
use super::parts::{
    DIRECTORY_MALFORMED, DIRECTORY_MODE, child_path, decode, duration_ms, file_kind, mode_of,
    path_of, symlink_kind, symlinks_of,
};
use super::wire::{Fields, Malformed};
use super::{Hash, TREE_CHILD, TREE_ROOT};
use crate::manifest::{Manifest, Node, NodeKind, OutputPath, Root, RootKind, TreeError};
use crate::remote::digests::RemoteDigest;
use bazel_remote_apis::build::bazel::remote::execution::v2::{
    self as reapi, ActionResult, DirectoryNode, FileNode, NodeProperties, SymlinkNode,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The most that one result may make us fetch, besides its files and logs, and remember: a million outputs.
pub(crate) const ENTRY_BYTES_MAX: u64 = 256 << 20;

/// What an output or a directory takes in memory besides its name.
const NODE_BYTES: u64 = 200;

/// How deep directories may lie that come without a Tree: each level has to be asked for.
const LEVELS_MAX: usize = 128;

/// A result that is being read.
pub(crate) struct Reading<'a> {
    hash: Hash<'a>,
    left_bytes: u64,
    exit_code: i32,
    duration_ms: u64,
    nodes: Vec<Node>,
    /// Output directories; `None` is the working directory.
    outputs: Vec<(Option<OutputPath>, Source)>,
    logs: [Option<RemoteDigest>; 2],
    contents: HashMap<RemoteDigest, Vec<u8>>,
    /// The root of each Tree that was given.
    trees: HashMap<RemoteDigest, RemoteDigest>,
    directories: HashMap<RemoteDigest, Arc<[u8]>>,
    wanted_trees: BTreeSet<RemoteDigest>,
    /// And how many levels above each were asked for.
    wanted_directories: BTreeMap<RemoteDigest, usize>,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Tree(RemoteDigest),
    Directory(RemoteDigest),
}

impl fmt::Debug for Reading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("wanted", &self.wanted()).finish_non_exhaustive()
    }
}

impl<'a> Reading<'a> {
    /// Reads the result itself. `hash` is the function of the server's digests.
    ///
    /// # Errors
    /// If the result breaks a rule. So do those below.
    pub(crate) fn begin(result: &ActionResult, hash: Hash<'a>) -> Result<Reading<'a>, ResultError> {
        let mut reading = Reading {
            hash,
            left_bytes: ENTRY_BYTES_MAX,
            exit_code: result.exit_code,
            duration_ms: result.execution_metadata.as_ref().map_or(0, duration_ms),
            nodes: Vec::new(),
            outputs: Vec::new(),
            logs: [None; 2],
            contents: HashMap::new(),
            trees: HashMap::new(),
            directories: HashMap::new(),
            wanted_trees: BTreeSet::new(),
            wanted_directories: BTreeMap::new(),
        };
        for file in &result.output_files {
            let path = path_of(&file.path)?;
            let digest = reading.digest(&path, file.digest.as_ref())?;
            if !file.contents.is_empty() {
                reading.keep_contents(digest, &file.contents)?;
            }
            let kind = file_kind(&path, digest, file.is_executable, file.node_properties.as_ref())?;
            reading.push(path, kind)?;
        }
        for symlink in symlinks_of(result) {
            let path = path_of(&symlink.path)?;
            let kind = symlink_kind(&path, &symlink.target)?;
            reading.push(path, kind)?;
        }
        for directory in &result.output_directories {
            let path = match directory.path.as_str() {
                "" => None,
                path => Some(path_of(path)?),
            };
            let source = match (&directory.tree_digest, &directory.root_directory_digest) {
                (None, root @ Some(_)) => {
                    let root = reading.digest(&directory.path, root.as_ref())?;
                    reading.want_directory(root, 0)?;
                    Source::Directory(root)
                }
                (tree, _) => {
                    let tree = reading.digest(&directory.path, tree.as_ref())?;
                    reading.want_tree(tree)?;
                    Source::Tree(tree)
                }
            };
            reading.outputs.push((path, source));
        }
        reading.logs = [
            reading.log("stdout", result.stdout_digest.as_ref(), &result.stdout_raw)?,
            reading.log("stderr", result.stderr_digest.as_ref(), &result.stderr_raw)?,
        ];
        Ok(reading)
    }

    /// The messages that are needed next, each once. To be asked again after all were given: directories
    /// that are in no Tree name others.
    pub(crate) fn wanted(&self) -> Vec<RemoteDigest> {
        let directories =
            self.wanted_directories.keys().filter(|digest| !self.wanted_trees.contains(digest));
        self.wanted_trees.iter().chain(directories).copied().collect()
    }

    /// Takes a message that was wanted.
    ///
    /// # Errors
    /// [`ResultError::WrongBytes`] if it is another one.
    pub(crate) fn give(
        &mut self,
        digest: &RemoteDigest,
        message: &[u8],
    ) -> Result<(), ResultError> {
        self.check_bytes(digest, message)?;
        if self.wanted_trees.remove(digest) {
            self.take_tree(*digest, message)?;
        }
        if let Some(level) = self.wanted_directories.remove(digest) {
            self.take_directory(*digest, message, level)?;
        }
        Ok(())
    }

    /// The entry, if nothing is wanted any more.
    ///
    /// # Errors
    /// [`ResultError::Missing`] if something is.
    pub(crate) fn finish(mut self) -> Result<ForeignEntry, ResultError> {
        for (path, source) in std::mem::take(&mut self.outputs) {
            let root = match source {
                Source::Tree(tree) => {
                    *self.trees.get(&tree).ok_or(ResultError::Missing { digest: tree })?
                }
                Source::Directory(directory) => directory,
            };
            self.walk(path, root)?;
        }
        // Outputs that lie in others, and symlinks that are in several lists, were met twice.
        self.nodes.sort_by(|one, other| one.path.cmp(&other.path));
        self.nodes.dedup();
        let mut outline = outline_of(self.nodes).map_err(|error| {
            invalid(error.path.as_ref().map_or(Path::new(""), OutputPath::as_path), error.reason)
        })?;
        outline.exit_code = self.exit_code;
        outline.duration_ms = self.duration_ms;
        Ok(ForeignEntry::new(outline, self.logs, self.contents))
    }

    fn take_tree(&mut self, tree: RemoteDigest, message: &[u8]) -> Result<(), ResultError> {
        // A Tree without a root is that of an empty directory.
        let mut root: &[u8] = &[];
        for field in Fields::of(message) {
            match field.map_err(|Malformed| invalid("", "a tree cannot be read"))? {
                (number, directory) if number == u64::from(TREE_ROOT) => root = directory,
                (number, directory) if number == u64::from(TREE_CHILD) => {
                    self.keep_directory((self.hash)(directory), directory)?;
                }
                _ => {}
            }
        }
        let root_digest = (self.hash)(root);
        self.keep_directory(root_digest, root)?;
        self.trees.insert(tree, root_digest);
        Ok(())
    }

    fn take_directory(
        &mut self,
        digest: RemoteDigest,
        message: &[u8],
        level: usize,
    ) -> Result<(), ResultError> {
        self.keep_directory(digest, message)?;
        for field in Fields::of(message) {
            let (number, record) = field.map_err(|Malformed| invalid("", DIRECTORY_MALFORMED))?;
            if number == DIRECTORY_DIRECTORIES {
                let child: DirectoryNode = decode("", record)?;
                let child = self.digest(&child.name, child.digest.as_ref())?;
                self.want_directory(child, level + 1)?;
            }
        }
        Ok(())
    }

    /// Remembers a directory of which the bytes have been accounted for.
    fn keep_directory(&mut self, digest: RemoteDigest, message: &[u8]) -> Result<(), ResultError> {
        if !self.directories.contains_key(&digest) {
            self.charge(NODE_BYTES)?;
            self.directories.insert(digest, message.into());
        }
        Ok(())
    }

    fn want_tree(&mut self, tree: RemoteDigest) -> Result<(), ResultError> {
        if self.trees.contains_key(&tree) || !self.wanted_trees.insert(tree) {
            return Ok(());
        }
        self.charge(tree.size_bytes.saturating_add(NODE_BYTES))?;
        self.give_if_empty(tree)
    }

    fn want_directory(&mut self, directory: RemoteDigest, level: usize) -> Result<(), ResultError> {
        if self.directories.contains_key(&directory)
            || self.wanted_directories.contains_key(&directory)
        {
            return Ok(());
        }
        if level == LEVELS_MAX {
            return Err(invalid("", "directories without a tree lie too deep"));
        }
        self.charge(directory.size_bytes.saturating_add(NODE_BYTES))?;
        self.wanted_directories.insert(directory, level);
        self.give_if_empty(directory)
    }

    fn give_if_empty(&mut self, digest: RemoteDigest) -> Result<(), ResultError> {
        if digest.size_bytes == 0 { self.give(&digest, &[]) } else { Ok(()) }
    }

    /// Lists what is in a directory whose messages are all known.
    fn walk(&mut self, top: Option<OutputPath>, root: RemoteDigest) -> Result<(), ResultError> {
        let mut left = vec![(top, root)];
        while let Some((path, digest)) = left.pop() {
            let message = self.directories.get(&digest).ok_or(ResultError::Missing { digest })?;
            let message = Arc::clone(message);
            let place = path.as_ref().map_or(Path::new(""), OutputPath::as_path);
            let mut mode = DIRECTORY_MODE;
            for field in Fields::of(&message) {
                let (number, record) =
                    field.map_err(|Malformed| invalid(place, DIRECTORY_MALFORMED))?;
                match number {
                    DIRECTORY_FILES => {
                        let file: FileNode = decode(place, record)?;
                        let path = child_path(path.as_ref(), &file.name)?;
                        let digest = self.digest(&path, file.digest.as_ref())?;
                        let properties = file.node_properties.as_ref();
                        let kind = file_kind(&path, digest, file.is_executable, properties)?;
                        self.push(path, kind)?;
                    }
                    DIRECTORY_DIRECTORIES => {
                        let directory: DirectoryNode = decode(place, record)?;
                        let path = child_path(path.as_ref(), &directory.name)?;
                        let digest = self.digest(&path, directory.digest.as_ref())?;
                        // It waits as long as a node would.
                        self.charge(NODE_BYTES + path.as_bytes().len() as u64)?;
                        left.push((Some(path), digest));
                    }
                    DIRECTORY_SYMLINKS => {
                        let symlink: SymlinkNode = decode(place, record)?;
                        let path = child_path(path.as_ref(), &symlink.name)?;
                        let kind = symlink_kind(&path, &symlink.target)?;
                        self.push(path, kind)?;
                    }
                    DIRECTORY_PROPERTIES => {
                        let properties: NodeProperties = decode(place, record)?;
                        mode = mode_of(Some(&properties)).unwrap_or(DIRECTORY_MODE);
                    }
                    _ => {}
                }
            }
            if let Some(path) = path {
                self.nodes.push(Node { path, kind: NodeKind::Directory { mode } });
            }
        }
        Ok(())
    }

    fn push(&mut self, path: OutputPath, kind: NodeKind) -> Result<(), ResultError> {
        let target_bytes = match &kind {
            NodeKind::Symlink { target } => target.len(),
            _ => 0,
        };
        self.charge(NODE_BYTES + (path.as_bytes().len() + target_bytes) as u64)?;
        self.nodes.push(Node { path, kind });
        Ok(())
    }

    fn log(
        &mut self,
        place: &str,
        digest: Option<&reapi::Digest>,
        raw: &[u8],
    ) -> Result<Option<RemoteDigest>, ResultError> {
        // Some clients send a digest of which nothing is set.
        let digest = digest.filter(|digest| !digest.hash.is_empty() || digest.size_bytes != 0);
        if digest.is_none() && raw.is_empty() {
            return Ok(None);
        }
        let digest = match digest {
            Some(digest) => self.digest(place, Some(digest))?,
            None => (self.hash)(raw),
        };
        if !raw.is_empty() {
            self.keep_contents(digest, raw)?;
        }
        Ok(Some(digest))
    }

    fn keep_contents(&mut self, digest: RemoteDigest, contents: &[u8]) -> Result<(), ResultError> {
        self.check_bytes(&digest, contents)?;
        if !self.contents.contains_key(&digest) {
            self.charge(NODE_BYTES + contents.len() as u64)?;
            self.contents.insert(digest, contents.to_vec());
        }
        Ok(())
    }

    fn check_bytes(&self, expected: &RemoteDigest, bytes: &[u8]) -> Result<(), ResultError> {
        let actual = (self.hash)(bytes);
        if actual == *expected {
            Ok(())
        } else {
            Err(ResultError::WrongBytes { expected: *expected, actual })
        }
    }

    fn digest(
        &self,
        place: impl AsRef<Path>,
        digest: Option<&reapi::Digest>,
    ) -> Result<RemoteDigest, ResultError> {
        let Some(digest) = digest.and_then(RemoteDigest::from_message) else {
            return Err(invalid(place, "a digest is missing, or is none"));
        };
        // So nobody has to ask for it.
        if digest.size_bytes == 0 && digest != (self.hash)(&[]) {
            return Err(invalid(place, "no bytes at all have another digest"));
        }
        Ok(digest)
    }

    /// Accounts for something that is going to be kept in memory.
    fn charge(&mut self, bytes: u64) -> Result<(), ResultError> {
        self.left_bytes = self.left_bytes.checked_sub(bytes).ok_or(ResultError::TooLarge)?;
        Ok(())
    }
}

/// A manifest of these nodes, sorted, in which what lies at the top is a root. Nothing is added that was not
/// said: to look for it in a hostile result would take long.
fn outline_of(nodes: Vec<Node>) -> Result<Manifest, TreeError> {
    let mut roots: Vec<Root> = Vec::new();
    for node in &nodes {
        if roots.last().is_some_and(|root| root.path.contains(&node.path)) {
            continue;
        }
        let kind = match node.kind {
            NodeKind::Directory { .. } => RootKind::Directory,
            NodeKind::File { .. } | NodeKind::Symlink { .. } => RootKind::File,
        };
        roots.push(Root { path: node.path.clone(), kind });
    }
    let mut outline = Manifest::assemble(Vec::new(), Vec::new())?;
    outline.roots = roots;
    outline.nodes = nodes;
    outline.check()?;
    Ok(outline)
}

/// The fields of a `Directory`.
const DIRECTORY_FILES: u64 = 1;
const DIRECTORY_DIRECTORIES: u64 = 2;
const DIRECTORY_SYMLINKS: u64 = 3;
const DIRECTORY_PROPERTIES: u64 = 5;
