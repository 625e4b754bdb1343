//! What one task left behind: its outputs by path and digest, logs, exit code and duration.
//!
//! Pure data; nothing here does I/O. A [`Manifest`] that exists is valid:
//! - roots and nodes are sorted and unique; no root lies inside a directory root;
//! - every node is covered by a root, and every file and directory root has its node;
//! - no file or symlink lies above another node, and below a node that is a directory every
//!   directory on the way is a node too;
//! - modes are permission bits only: no setuid, setgid or sticky.
//!
//! Not kept: owners, ACLs, extended attributes, hard links within the tree, times of directories
//! and symlinks.

mod codec;
mod path;

pub use codec::DecodeError;
#[cfg(any(fuzzing, larder_rigs))]
pub(crate) use codec::wrap_body;
pub use path::{OutputPath, PathError};
pub(crate) use path::{PATH_BYTES_MAX, compare_paths};

use crate::digest::{Digest, DigestSet};
use crate::disk::Timestamp;
use crate::error::Error;
use crate::signature::{Signature, WriterName};
use globset::{GlobBuilder, GlobMatcher};
use std::cmp::Ordering;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The result of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Manifest {
    /// The task's exit code.
    pub exit_code: i32,
    /// How long the task ran, in milliseconds.
    pub duration_ms: u64,
    /// What the task declared as its outputs; a restore owns exactly these places.
    pub roots: Vec<Root>,
    /// Every file, directory and symlink, sorted by path.
    pub nodes: Vec<Node>,
    /// What the task wrote to stdout and stderr.
    pub logs: Logs,
    /// A blob that says what the task's key was made of.
    pub key_parts: Option<BlobRef>,
    /// When and where the entry was stored. Local: never leaves the machine.
    pub origin: Origin,
    /// Who says to have stored it.
    pub writer: Option<WriterName>,
    /// Who vouches for it; not checked yet.
    pub signature: Option<Signature>,
    /// SHA-256 of each blob, in the order of [`Manifest::distinct_blobs`]; empty if they are not known.
    /// For those who know contents by that name. No signature covers it, so it is only believed where it
    /// was made.
    pub sha256: Vec<[u8; SHA256_BYTES]>,
}

/// The length of a SHA-256.
pub(crate) const SHA256_BYTES: usize = 32;

/// One declared output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Root {
    /// The path, or the pattern of a glob.
    pub path: OutputPath,
    /// What the path names.
    pub kind: RootKind,
}

impl Root {
    /// The root that a node is for itself.
    fn of(node: &Node) -> Root {
        let kind = match node.kind {
            NodeKind::Directory { .. } => RootKind::Directory,
            NodeKind::File { .. } | NodeKind::Symlink { .. } => RootKind::File,
        };
        Root { path: node.path.clone(), kind }
    }
}

/// What a [`Root`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RootKind {
    /// A directory with all that is below it. A restore removes what else it finds there.
    Directory,
    /// One file or symlink.
    File,
    /// Every path that a pattern matches, and what lies below matched directories.
    Glob,
}

/// One file, directory or symlink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it lies, relative to the workspace.
    pub path: OutputPath,
    /// What it is.
    pub kind: NodeKind,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeKind {
    /// A directory.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file.
    File {
        /// BLAKE3 of the contents.
        digest: Digest,
        /// Length of the contents.
        size_bytes: u64,
        /// Permission bits.
        mode: u32,
        /// Modification time, if one was recorded.
        modified: Option<Timestamp>,
    },
    /// A symbolic link.
    Symlink {
        /// Its text, verbatim: relative, absolute or dangling.
        target: Box<[u8]>,
    },
}

/// Names a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobRef {
    /// BLAKE3 of the contents.
    pub digest: Digest,
    /// Length of the contents.
    pub size_bytes: u64,
}

/// What a task wrote to its two streams.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Logs {
    /// Standard output.
    pub stdout: LogStream,
    /// Standard error.
    pub stderr: LogStream,
    /// The order in which the pieces were read: lengths in bytes, stdout first, then in turn. Only
    /// the first may be 0. Empty if the order is not known.
    pub order: Vec<u64>,
}

/// One stream's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogStream {
    /// Few bytes, kept in the manifest: at most [`LOG_INLINE_BYTES_MAX`].
    Inline(Box<[u8]>),
    /// A blob.
    Blob(BlobRef),
}

/// The longest log that is kept inside the manifest; a blob costs an inode and a block of 4 KiB.
pub const LOG_INLINE_BYTES_MAX: usize = 4096;

impl Default for LogStream {
    fn default() -> LogStream {
        LogStream::Inline(Box::default())
    }
}

impl LogStream {
    /// Length in bytes.
    pub fn size_bytes(&self) -> u64 {
        match self {
            LogStream::Inline(bytes) => bytes.len() as u64,
            LogStream::Blob(blob) => blob.size_bytes,
        }
    }
}

/// The local trailer of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// When the entry was stored.
    pub stored_at: Timestamp,
    /// Which life of which store wrote it.
    pub incarnation: [u8; 16],
    /// The store's epoch at that time: boots and barriers, counted.
    pub epoch: u64,
}

impl Default for Origin {
    fn default() -> Origin {
        Origin {
            stored_at: Timestamp { seconds: 0, nanoseconds: 0 },
            incarnation: [0; 16],
            epoch: 0,
        }
    }
}

impl Manifest {
    /// A manifest of these parts, in canonical form.
    pub(crate) fn assemble(roots: Vec<Root>, nodes: Vec<Node>) -> Result<Manifest, TreeError> {
        let mut manifest = Manifest {
            exit_code: 0,
            duration_ms: 0,
            roots,
            nodes,
            logs: Logs::default(),
            key_parts: None,
            origin: Origin::default(),
            writer: None,
            signature: None,
            sha256: Vec::new(),
        };
        manifest.normalize()?;
        Ok(manifest)
    }
}

/// Why outputs cannot be one manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeError {
    pub(crate) path: Option<OutputPath>,
    pub(crate) reason: &'static str,
}

impl From<TreeError> for Error {
    fn from(error: TreeError) -> Error {
        let path = error.path.map_or_else(|| ".".into(), |path| path.as_path().to_path_buf());
        Error::InvalidOutput { path, reason: error.reason }
    }
}

impl Manifest {
    /// Brings roots and nodes into the one canonical form: sorted, nodes that no root covers made
    /// roots of their own, roots inside directory roots dropped, directories that are missing on
    /// the way to a node added with mode 0755.
    pub(crate) fn normalize(&mut self) -> Result<(), TreeError> {
        self.roots.sort();
        self.nodes.sort_by(|a, b| a.path.cmp(&b.path));
        // What a capture lists is canonical already. But a pattern may own directories that nobody
        // named.
        let has_globs = self.roots.iter().any(|root| root.kind == RootKind::Glob);
        if !has_globs && self.check().is_ok() {
            return Ok(());
        }
        let globs = self.compiled_globs()?;
        let uncovered = self.nodes.iter().filter(|node| !self.is_covered(&node.path, &globs));
        let own_roots: Vec<Root> = uncovered.map(Root::of).collect();
        self.roots.extend(own_roots);
        self.roots.sort();
        self.roots.dedup();
        let directories: Vec<OutputPath> = self
            .roots
            .iter()
            .filter(|root| root.kind == RootKind::Directory)
            .map(|root| root.path.clone())
            .collect();
        let is_directory_root = |path: &OutputPath| directories.binary_search(path).is_ok();
        self.roots.retain(|root| {
            let is_inside = root.path.ancestors().any(|ancestor| is_directory_root(&ancestor));
            !is_inside && (root.kind == RootKind::Directory || !is_directory_root(&root.path))
        });
        let mut missing = Vec::new();
        {
            let find =
                |path: &OutputPath| self.nodes.binary_search_by(|node| node.path.cmp(path)).is_ok();
            for node in &self.nodes {
                let mut is_below_node = false;
                for ancestor in node.path.ancestors() {
                    let is_node = find(&ancestor);
                    // A pattern that matches a directory owns it, named or not.
                    let is_matched =
                        globs.iter().flatten().any(|glob| glob.is_match(ancestor.as_path()));
                    is_below_node |= is_node || is_matched || is_directory_root(&ancestor);
                    if is_below_node && !is_node {
                        missing.push(ancestor);
                    }
                }
            }
            missing.extend(directories.iter().filter(|directory| !find(directory)).cloned());
        }
        missing.sort();
        missing.dedup();
        self.nodes.extend(
            missing
                .into_iter()
                .map(|path| Node { path, kind: NodeKind::Directory { mode: 0o755 } }),
        );
        self.nodes.sort_by(|a, b| a.path.cmp(&b.path));
        self.check()
    }

    /// Checks every invariant of the module.
    pub(crate) fn check(&self) -> Result<(), TreeError> {
        let globs = self.compiled_globs()?;
        self.check_roots()?;
        let error = |node: &Node, reason| TreeError { path: Some(node.path.clone()), reason };
        // The nodes that lead to the current one, from the top down.
        let mut above: Vec<&Node> = Vec::new();
        let mut last: Option<&Node> = None;
        // Whether the topmost of them owns what is below it.
        let mut is_owned = false;
        // Roots have the order of nodes, so these are the ones that no node has passed yet.
        let mut roots = self.roots.as_slice();
        for node in &self.nodes {
            match last.map(|last| last.path.cmp(&node.path)) {
                Some(Ordering::Equal) => {
                    return Err(error(node, "two outputs have the same path"));
                }
                Some(Ordering::Greater) => return Err(error(node, "outputs are not sorted")),
                Some(Ordering::Less) | None => {}
            }
            last = Some(node);
            while above.last().is_some_and(|top| !top.path.contains(&node.path)) {
                above.pop();
            }
            if let Some(top) = above.last() {
                if !matches!(top.kind, NodeKind::Directory { .. }) {
                    return Err(error(
                        node,
                        "an output lies below another one that is no directory",
                    ));
                }
                if top.path.as_bytes() != node.path.parent().as_os_str().as_bytes() {
                    return Err(error(node, "a directory on the way to an output is missing"));
                }
            }
            // What lies below a directory that is a root, or that a pattern matches, is covered with it.
            if above.is_empty() || !is_owned {
                while let [root, rest @ ..] = roots
                    && root.path < node.path
                {
                    roots = rest;
                }
                let is_root = roots
                    .first()
                    .is_some_and(|root| root.path == node.path && root.kind != RootKind::Glob);
                if !is_root && !self.is_covered(&node.path, &globs) {
                    return Err(error(node, "an output is covered by no root"));
                }
                if above.is_empty() {
                    is_owned = self.owns(node, &globs);
                }
            }
            above.push(node);
            if let NodeKind::Symlink { target } = &node.kind
                && (target.is_empty() || target.contains(&0))
            {
                return Err(error(node, "a symlink's target is empty or contains NUL"));
            }
        }
        self.check_logs()
    }

    fn check_roots(&self) -> Result<(), TreeError> {
        let mut directory: Option<&Root> = None;
        for (index, root) in self.roots.iter().enumerate() {
            let error = |reason| Err(TreeError { path: Some(root.path.clone()), reason });
            if index > 0 && self.roots[index - 1] >= *root {
                return error("roots are not sorted");
            }
            if directory.is_some_and(|directory| directory.path.contains(&root.path)) {
                return error("a root lies inside another one");
            }
            let node = self.node(&root.path);
            match (root.kind, node.map(|node| &node.kind)) {
                (RootKind::Directory, Some(NodeKind::Directory { .. })) => directory = Some(root),
                (RootKind::File, Some(NodeKind::File { .. } | NodeKind::Symlink { .. }))
                | (RootKind::Glob, _) => {}
                _ => return error("a root has no node of its kind"),
            }
        }
        Ok(())
    }

    fn is_covered(&self, path: &OutputPath, globs: &[Option<GlobMatcher>]) -> bool {
        self.has_root(path, RootKind::File)
            || self.has_root(path, RootKind::Directory)
            || path.ancestors().any(|ancestor| self.has_root(&ancestor, RootKind::Directory))
            || globs.iter().flatten().any(|glob| covers(glob, path))
    }

    /// Whether a node is a root, or matches a pattern, itself.
    fn owns(&self, node: &Node, globs: &[Option<GlobMatcher>]) -> bool {
        self.has_root(&node.path, RootKind::Directory)
            || globs.iter().flatten().any(|glob| glob.is_match(node.path.as_path()))
    }

    /// Whether there is such a root; roots must be sorted.
    fn has_root(&self, path: &OutputPath, kind: RootKind) -> bool {
        self.roots.binary_search_by(|root| root.path.cmp(path).then(root.kind.cmp(&kind))).is_ok()
    }

    fn check_logs(&self) -> Result<(), TreeError> {
        let error = |reason| Err(TreeError { path: None, reason });
        for log in [&self.logs.stdout, &self.logs.stderr] {
            let is_inline = matches!(log, LogStream::Inline(_));
            if is_inline != (log.size_bytes() <= LOG_INLINE_BYTES_MAX as u64) {
                return error("a log is kept in the wrong place");
            }
        }
        let order = &self.logs.order;
        if order.iter().skip(1).any(|length_bytes| *length_bytes == 0) {
            return error("the order of the logs has an empty piece");
        }
        let sum = |first: usize| {
            order
                .iter()
                .skip(first)
                .step_by(2)
                .try_fold(0_u64, |sum, length_bytes| sum.checked_add(*length_bytes))
        };
        let is_whole = sum(0) == Some(self.logs.stdout.size_bytes())
            && sum(1) == Some(self.logs.stderr.size_bytes());
        if !order.is_empty() && !is_whole {
            return error("the order of the logs does not fit their lengths");
        }
        Ok(())
    }

    /// The matcher of each root that is a glob, by the root's position.
    pub(crate) fn compiled_globs(&self) -> Result<Vec<Option<GlobMatcher>>, TreeError> {
        let globs = self.roots.iter().filter(|root| root.kind == RootKind::Glob);
        if globs.clone().count() > GLOBS_MAX
            || globs.clone().any(|root| root.path.as_bytes().len() > GLOB_BYTES_MAX)
        {
            return Err(TreeError {
                path: None,
                reason: "there are too many patterns, or too long ones",
            });
        }
        let compile = |root: &Root| match root.kind {
            RootKind::Glob => compile_glob(&root.path)
                .map(Some)
                .map_err(|reason| TreeError { path: Some(root.path.clone()), reason }),
            _ => Ok(None),
        };
        self.roots.iter().map(compile).collect()
    }

    /// The node at `path`.
    pub fn node(&self, path: &OutputPath) -> Option<&Node> {
        let index = self.nodes.binary_search_by(|node| node.path.cmp(path)).ok()?;
        Some(&self.nodes[index])
    }

    /// The nodes at and below `path`: a run of [`Manifest::nodes`].
    pub fn nodes_below(&self, path: &OutputPath) -> &[Node] {
        let start = self.nodes.partition_point(|node| node.path < *path);
        let length =
            self.nodes[start..].iter().take_while(|node| path.contains(&node.path)).count();
        &self.nodes[start..start + length]
    }

    /// Every blob that the entry needs, with the mode under which it is stored.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = (BlobRef, u32)> + '_ {
        let files = self.nodes.iter().filter_map(|node| match node.kind {
            NodeKind::File { digest, size_bytes, mode, .. } => {
                Some((BlobRef { digest, size_bytes }, blob_mode(mode)))
            }
            _ => None,
        });
        files.chain(self.private_blobs())
    }

    /// Those of the blobs that are never linked into a workspace.
    pub(crate) fn private_blobs(&self) -> impl Iterator<Item = (BlobRef, u32)> + '_ {
        let logs = [&self.logs.stdout, &self.logs.stderr].into_iter().filter_map(|log| match log {
            LogStream::Blob(blob) => Some(*blob),
            LogStream::Inline(_) => None,
        });
        logs.chain(self.key_parts).map(|blob| (blob, PRIVATE_BLOB_MODE))
    }

    /// Every blob that the entry needs, each digest once, in the order in which they are first named:
    /// files by path, then stdout, stderr and key parts.
    pub fn distinct_blobs(&self) -> Vec<BlobRef> {
        let mut seen = DigestSet::default();
        self.blobs().map(|(blob, _)| blob).filter(|blob| seen.insert(blob.digest)).collect()
    }

    /// Whether both are one entry: but for what each store notes of it for itself.
    pub(crate) fn is_same_entry(&self, other: &Manifest) -> bool {
        (self.exit_code, self.duration_ms) == (other.exit_code, other.duration_ms)
            && self.roots == other.roots
            && self.nodes == other.nodes
            && self.logs == other.logs
            && self.key_parts == other.key_parts
            && self.writer == other.writer
            && self.signature == other.signature
    }

    /// The number of bytes in all files of the tree.
    pub fn output_bytes(&self) -> u64 {
        self.nodes.iter().fold(0, |sum: u64, node| match node.kind {
            NodeKind::File { size_bytes, .. } => sum.saturating_add(size_bytes),
            _ => sum,
        })
    }

    /// The number of regular files.
    pub fn file_count(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node.kind, NodeKind::File { .. })).count()
    }
}

/// A compiled pattern takes kilobytes, and every path is held against each; so no entry has more
/// patterns than this, and none longer than that. What a task declares is far below.
const GLOBS_MAX: usize = 256;
const GLOB_BYTES_MAX: usize = 1024;

/// The mode of blobs that are never linked into a workspace.
pub(crate) const PRIVATE_BLOB_MODE: u32 = 0o400;

/// The permission bits of the inode that holds a file's contents: a link shares them, so there is
/// one inode for each digest and each of these. Nobody may write; we must be able to read.
pub(crate) const fn blob_mode(mode: u32) -> u32 {
    (mode & 0o555) | 0o400
}

/// Compiles an output pattern: `*` and `?` stay within a component, `**` spans any number.
pub(crate) fn compile_glob(pattern: &OutputPath) -> Result<GlobMatcher, &'static str> {
    let text = std::str::from_utf8(pattern.as_bytes()).map_err(|_| "a pattern is not UTF-8")?;
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    Ok(glob.map_err(|_| "a pattern cannot be read")?.compile_matcher())
}

/// Whether a glob root owns `path`: it, or a directory above it, matches.
pub(crate) fn covers(glob: &GlobMatcher, path: &OutputPath) -> bool {
    path.as_path().ancestors().any(|ancestor| ancestor != Path::new("") && glob.is_match(ancestor))
}

/// The leading components of a pattern that hold no pattern characters: where its matches can lie.
pub(crate) fn literal_prefix(pattern: &OutputPath) -> Option<OutputPath> {
    let bytes = pattern.as_bytes();
    let special = bytes.iter().position(|byte| b"*?[{\\".contains(byte)).unwrap_or(bytes.len());
    let end = bytes[..special].iter().rposition(|byte| *byte == b'/')?;
    OutputPath::from_bytes(&bytes[..end]).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn path(text: &str) -> OutputPath {
        OutputPath::parse(text).expect("a valid path")
    }

    fn file(text: &str, contents: &[u8]) -> Node {
        let kind = NodeKind::File {
            digest: Digest::of(contents),
            size_bytes: contents.len() as u64,
            mode: 0o644,
            modified: Some(Timestamp { seconds: -5, nanoseconds: 999_999_999 }),
        };
        Node { path: path(text), kind }
    }

    pub(crate) fn sample() -> Manifest {
        let mut manifest = Manifest {
            exit_code: -3,
            duration_ms: 41_200,
            roots: vec![
                Root { path: path("target"), kind: RootKind::Directory },
                Root { path: path("out.txt"), kind: RootKind::File },
                Root { path: path("dist/**/*.js"), kind: RootKind::Glob },
            ],
            nodes: vec![
                file("target/debug/app", b"app"),
                Node {
                    path: path("target/link"),
                    kind: NodeKind::Symlink { target: b"../nowhere".as_slice().into() },
                },
                Node { path: path("target/empty"), kind: NodeKind::Directory { mode: 0o700 } },
                file("out.txt", b""),
                file("dist/a/b.js", b"js"),
            ],
            logs: Logs {
                stdout: LogStream::Inline(b"out".as_slice().into()),
                stderr: LogStream::Blob(BlobRef { digest: Digest::of(b"err"), size_bytes: 5000 }),
                order: vec![0, 4000, 3, 1000],
            },
            key_parts: Some(BlobRef { digest: Digest::of(b"parts"), size_bytes: 5 }),
            origin: Origin::default(),
            writer: None,
            signature: None,
            sha256: Vec::new(),
        };
        manifest.normalize().expect("a valid manifest");
        manifest
    }

    #[test]
    fn normalizing_adds_directories_on_the_way() {
        let manifest = sample();
        assert_eq!(
            manifest.node(&path("target/debug")).map(|node| &node.kind),
            Some(&NodeKind::Directory { mode: 0o755 })
        );
        assert!(manifest.node(&path("dist")).is_none(), "above a glob's matches nothing is owned");
        assert_eq!(manifest.nodes_below(&path("target")).len(), 5);
    }

    /// The model test found it: a directory that a pattern owns kept the mode that it happened to have.
    #[test]
    fn a_directory_that_a_pattern_matches_is_a_node() {
        let roots = vec![Root { path: path("*"), kind: RootKind::Glob }];
        let manifest = Manifest::assemble(roots, vec![file("a/x", b"x")]).expect("valid");
        let directory = NodeKind::Directory { mode: 0o755 };
        assert_eq!(manifest.node(&path("a")).map(|node| &node.kind), Some(&directory));
    }

    #[test]
    fn roots_inside_a_directory_root_are_dropped() {
        let mut manifest = sample();
        manifest.roots.push(Root { path: path("target/debug"), kind: RootKind::Directory });
        manifest.roots.push(Root { path: path("target/*/x"), kind: RootKind::Glob });
        manifest.normalize().expect("still valid");
        assert_eq!(manifest, sample());
    }

    #[test]
    fn collisions_are_refused() {
        let refuse = |nodes: Vec<Node>| {
            let mut manifest = sample();
            manifest.nodes.extend(nodes);
            assert!(manifest.normalize().is_err());
        };
        refuse(vec![file("out.txt", b"again")]);
        refuse(vec![file("target/debug/app/below-a-file", b"x")]);
        refuse(vec![file("target/link/below-a-symlink", b"x")]);
    }

    #[test]
    fn what_no_root_covers_becomes_a_root() {
        let mut manifest = sample();
        manifest.nodes.push(file("elsewhere/x", b"x"));
        assert!(manifest.check().is_err());
        manifest.normalize().expect("valid now");
        assert!(manifest.roots.contains(&Root { path: path("elsewhere/x"), kind: RootKind::File }));
    }

    #[test]
    fn the_literal_prefix_ends_before_the_first_pattern() {
        for (pattern, prefix) in [
            ("a/b/*.js", Some("a/b")),
            ("*", None),
            ("a*/b", None),
            ("a/b?/c", Some("a")),
            ("a/{b,c}", Some("a")),
        ] {
            assert_eq!(literal_prefix(&path(pattern)), prefix.map(path), "{pattern}");
        }
    }
}
