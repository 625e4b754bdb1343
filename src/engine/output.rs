//! What goes into a store operation and what a restore hands back: `CacheEntry`, `CacheOutput`.
//!
//! Contents need not sit in memory: an output can be bytes, a file that is read when it is stored,
//! or a blob that is read when it is asked for.

use super::hold::{Held, Hold};
use super::reader::BlobReader;
use super::restore::Restored;
use super::{Cache, Inner};
use crate::digest::Digest;
use crate::disk::{self, Capabilities, Dir, FileStat, Stamp, Timestamp};
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{Manifest, Node, NodeKind, Root, blob_mode};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of one task, as it is stored.
///
/// # Examples
/// ```
/// use larder::{CacheEntry, CacheOutput};
/// let mut entry = CacheEntry::new(0, 41_200).with_stdout("built\n");
/// entry.outputs.push(CacheOutput::bytes("dist/app.js", "code"));
/// assert_eq!(entry.exit_code, 0);
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CacheEntry {
    /// What the task wrote to standard output.
    pub stdout: Arc<[u8]>,
    /// What it wrote to standard error.
    pub stderr: Arc<[u8]>,
    /// The order in which the pieces of the two were read; may stay empty.
    pub log_order: Vec<LogPiece>,
    /// The task's exit code.
    pub exit_code: i32,
    /// How long the task ran, in milliseconds.
    pub duration_ms: u64,
    /// The outputs, in any order.
    pub outputs: Vec<CacheOutput>,
    /// The declared roots. An output that no root covers becomes a root of its own.
    pub roots: Vec<Root>,
    /// A description of what the task's key was made of, kept with the entry.
    pub key_parts: Option<Arc<[u8]>>,
    /// The workspace from which the outputs were captured.
    pub(crate) workspace: Option<PathBuf>,
}

/// A piece of a task's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPiece {
    /// So many bytes of standard output.
    Stdout(u64),
    /// So many bytes of standard error.
    Stderr(u64),
}

impl CacheEntry {
    /// An entry without outputs and logs.
    pub fn new(exit_code: i32, duration_ms: u64) -> CacheEntry {
        CacheEntry { exit_code, duration_ms, ..CacheEntry::default() }
    }

    /// Sets standard output.
    #[must_use]
    pub fn with_stdout(mut self, stdout: impl AsRef<[u8]>) -> CacheEntry {
        self.stdout = stdout.as_ref().into();
        self
    }

    /// Sets standard error.
    #[must_use]
    pub fn with_stderr(mut self, stderr: impl AsRef<[u8]>) -> CacheEntry {
        self.stderr = stderr.as_ref().into();
        self
    }

    /// Sets exit code and duration.
    #[must_use]
    pub fn with_result(mut self, exit_code: i32, duration_ms: u64) -> CacheEntry {
        self.exit_code = exit_code;
        self.duration_ms = duration_ms;
        self
    }
}

/// One output of a task.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CacheOutput {
    /// Where it lies, relative to the workspace. Checked when it is stored.
    pub path: PathBuf,
    /// What it holds.
    pub content: OutputContent,
    /// Whether the owner may execute it. Only asked where `mode` is `None`.
    pub executable: bool,
    /// Permission bits. `None`: those of the source file; 0644, 0755 if executable, for bytes.
    pub mode: Option<u32>,
    /// Modification time. `None`: that of the source file; none for bytes.
    pub modified: Option<Timestamp>,
}

/// What an output holds.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum OutputContent {
    /// A file with these bytes.
    Bytes(Arc<[u8]>),
    /// A directory; its contents are outputs of their own.
    Directory,
    /// A file to be read when the entry is stored.
    File(SourceFile),
    /// A file whose bytes lie in a store: what a restore returns.
    Stored(StoredBlob),
    /// A symlink with this text.
    Symlink(OsString),
}

impl CacheOutput {
    /// An output with any content.
    pub fn new(path: impl Into<PathBuf>, content: OutputContent) -> CacheOutput {
        CacheOutput { path: path.into(), content, executable: false, mode: None, modified: None }
    }

    /// A file with these bytes.
    pub fn bytes(path: impl Into<PathBuf>, bytes: impl AsRef<[u8]>) -> CacheOutput {
        CacheOutput::new(path, OutputContent::Bytes(bytes.as_ref().into()))
    }

    /// A file that is read when the entry is stored.
    pub fn file(path: impl Into<PathBuf>, source: impl Into<PathBuf>) -> CacheOutput {
        CacheOutput::new(
            path,
            OutputContent::File(SourceFile { workspace: None, path: source.into() }),
        )
    }

    /// A directory.
    pub fn directory(path: impl Into<PathBuf>) -> CacheOutput {
        CacheOutput::new(path, OutputContent::Directory)
    }

    /// A symlink.
    pub fn symlink(path: impl Into<PathBuf>, target: impl Into<OsString>) -> CacheOutput {
        CacheOutput::new(path, OutputContent::Symlink(target.into()))
    }

    /// Where its contents come from, if that is a file; else where it goes.
    pub(super) fn source_path(&self) -> &Path {
        match &self.content {
            OutputContent::File(source) => source.path(),
            _ => &self.path,
        }
    }

    /// Makes it executable (or not).
    #[must_use]
    pub fn with_executable(mut self, executable: bool) -> CacheOutput {
        self.executable = executable;
        self
    }

    /// Sets the permission bits.
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> CacheOutput {
        self.mode = Some(mode);
        self.executable = mode & 0o100 != 0;
        self
    }

    /// Sets the modification time.
    #[must_use]
    pub fn with_modified(mut self, modified: Timestamp) -> CacheOutput {
        self.modified = Some(modified);
        self
    }
}

/// A file in a workspace or elsewhere that has not been read yet.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// For captured files: the workspace's own handle, so that no swapped directory misleads us.
    workspace: Option<Arc<Dir>>,
    path: PathBuf,
}

impl SourceFile {
    pub(super) fn captured(workspace: Arc<Dir>, path: PathBuf) -> SourceFile {
        SourceFile { workspace: Some(workspace), path }
    }

    /// Where it lies: relative to its workspace if it was captured there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// The directory that holds it, if it was captured; the one in `last`, where that is the same.
    /// Neighbours in a share have it in common.
    pub(super) fn folder<'f>(&self, last: &'f mut Option<SourceFolder>) -> Result<Option<&'f Dir>> {
        let Some(workspace) = &self.workspace else { return Ok(None) };
        if !last.as_ref().is_some_and(|last| Arc::ptr_eq(&last.workspace, workspace)) {
            let parent = self.path.parent().unwrap_or(Path::new(""));
            let folder = self.explain(workspace.open_beneath(parent))?;
            *last = Some(SourceFolder { workspace: Arc::clone(workspace), folder });
        }
        Ok(last.as_ref().map(|last| &last.folder))
    }

    /// Opens it: a regular file, not through a symlink.
    pub(crate) fn open(&self, capabilities: Capabilities) -> Result<(File, FileStat)> {
        self.explain(match &self.workspace {
            Some(workspace) => workspace.open_regular_beneath(&self.path),
            None => open_alone(&self.path, capabilities),
        })
    }

    /// Says what an error means for an output.
    pub(super) fn explain<T>(&self, opened: io::Result<T>) -> Result<T> {
        match opened {
            Ok(opened) => Ok(opened),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::OutputMissing { path: self.path.clone() })
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(Error::InvalidOutput {
                    path: self.path.clone(),
                    reason: "it is not a regular file",
                })
            }
            Err(error) if disk::is_not_a_directory(&error) => Err(Error::InvalidOutput {
                path: self.path.clone(),
                reason: "it lies behind a symlink",
            }),
            Err(error) => Err(error).context("open", || &self.path),
        }
    }
}

/// A directory in which captured files lie.
#[derive(Debug)]
pub(super) struct SourceFolder {
    workspace: Arc<Dir>,
    folder: Dir,
}

fn open_alone(path: &Path, capabilities: Capabilities) -> io::Result<(File, FileStat)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Dir::open(parent, capabilities)?.open_regular(name)
}

/// A blob in an open store. Read on demand; held as long as this lives, across processes, for up to
/// twelve hours: a store that is open is not destroyed, and nobody removes a blob that is held,
/// whatever becomes of its entry.
#[derive(Clone)]
pub struct StoredBlob {
    pub(super) cache: Arc<Inner>,
    /// `None` where that could not be noted.
    _hold: Arc<Option<Hold>>,
    pub(super) digest: Digest,
    pub(super) mode: u32,
    pub(super) size_bytes: u64,
}

impl StoredBlob {
    /// BLAKE3 of its contents.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Length of its contents.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Opens it for reading. The reader checks the bytes against the digest as they are read and
    /// ends with an error of kind `InvalidData` if they are not the blob's; they are in quarantine then.
    /// Blocking.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the blob is not there, or has another size.
    pub fn open(&self) -> Result<BlobReader> {
        let cache = Cache { inner: Arc::clone(&self.cache) };
        cache.read_blob(&self.digest, self.mode, self.size_bytes, None)
    }

    /// Reads it whole, verified. Blocking; takes as much memory as the blob has bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the blob is not there or has other bytes.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut reader = self.open()?;
        let path = || self.cache.blobs.blob_path(&self.digest, self.mode);
        match reader.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(_) if reader.damage().is_some() => {
                Err(Error::Damaged { path: path(), expected: self.digest, actual: reader.damage() })
            }
            Err(error) => Err(error).context("read", path),
        }
    }

    pub(super) fn file(&self) -> Result<(File, FileStat)> {
        Ok(self.open()?.into_file())
    }
}

impl fmt::Debug for StoredBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredBlob")
            .field("digest", &self.digest)
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// The outputs of a task's entry, in the order of their paths, with contents that are read on
    /// demand; `None` if there is no entry. Blocking, briefly.
    ///
    /// # Errors
    /// If the manifest cannot be read for a reason other than its absence or damage.
    pub fn outputs(&self, task: &TaskDigest) -> Result<Option<Vec<CacheOutput>>> {
        /// So often the entry must be replaced under us.
        const ROUNDS_MAX: usize = 4;
        for _ in 0..ROUNDS_MAX {
            let Some((manifest, stat)) = self.read_entry(task)? else { break };
            let outputs = self.held_outputs(task, &manifest, stat.stamp())?;
            if outputs.is_some() {
                return Ok(outputs);
            }
        }
        Ok(None)
    }

    /// As [`Cache::outputs`], of an entry that was just restored; `None` if it was removed or replaced
    /// since.
    ///
    /// # Errors
    /// If the manifest cannot be looked at.
    pub fn restored_outputs(
        &self,
        task: &TaskDigest,
        restored: &Restored,
    ) -> Result<Option<Vec<CacheOutput>>> {
        self.held_outputs(task, &restored.manifest, restored.stamp)
    }

    fn held_outputs(
        &self,
        task: &TaskDigest,
        manifest: &Manifest,
        stamp: Stamp,
    ) -> Result<Option<Vec<CacheOutput>>> {
        let hold = match self.hold(task, manifest, stamp)? {
            Held::Here(hold) => Some(hold),
            Held::Unheld => None,
            Held::Gone => return Ok(None),
        };
        let hold = Arc::new(hold);
        Ok(Some(manifest.nodes.iter().map(|node| self.output(node, &hold)).collect()))
    }

    fn output(&self, node: &Node, hold: &Arc<Option<Hold>>) -> CacheOutput {
        let path = node.path.as_path();
        match &node.kind {
            NodeKind::Directory { mode } => CacheOutput::directory(path).with_mode(*mode),
            NodeKind::Symlink { target } => CacheOutput::symlink(path, OsStr::from_bytes(target)),
            NodeKind::File { digest, size_bytes, mode, modified } => {
                let blob = StoredBlob {
                    cache: Arc::clone(&self.inner),
                    _hold: Arc::clone(hold),
                    digest: *digest,
                    mode: blob_mode(*mode),
                    size_bytes: *size_bytes,
                };
                let mut output =
                    CacheOutput::new(path, OutputContent::Stored(blob)).with_mode(*mode);
                output.modified = *modified;
                output
            }
        }
    }
}

/// An output as a task declares it, before it runs.
///
/// # Examples
/// ```
/// use larder::{OutputDeclaration, OutputKind};
/// assert_eq!(OutputDeclaration::new("dist/**/*.js").kind, OutputKind::Glob);
/// assert_eq!(OutputDeclaration::new("target").kind, OutputKind::Any);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OutputDeclaration {
    /// Path, or pattern, relative to the workspace.
    pub path: String,
    /// What it names.
    #[serde(rename = "type", default)]
    pub kind: OutputKind,
}

/// What an [`OutputDeclaration`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OutputKind {
    /// A directory.
    Directory,
    /// A file or a symlink.
    File,
    /// A pattern.
    Glob,
    /// Something that the runner delivers by other means; not cached.
    Orchestrator,
    /// A file, a symlink or a directory, whichever is there; a pattern if the path has `*`, `?`,
    /// `[` or `{`. Also what runners call `cas`, and every kind that we do not know.
    #[default]
    #[serde(other)]
    Any,
}

impl OutputDeclaration {
    /// Declares a path, or a pattern if it has pattern characters.
    pub fn new(path: impl Into<String>) -> OutputDeclaration {
        let path = path.into();
        let kind = if has_pattern(&path) { OutputKind::Glob } else { OutputKind::Any };
        OutputDeclaration { path, kind }
    }

    /// Declares a path of a known kind.
    pub fn with_kind(path: impl Into<String>, kind: OutputKind) -> OutputDeclaration {
        OutputDeclaration { path: path.into(), kind }
    }

    pub(super) fn is_pattern(&self) -> bool {
        self.kind == OutputKind::Glob || (self.kind == OutputKind::Any && has_pattern(&self.path))
    }
}

fn has_pattern(path: &str) -> bool {
    path.contains(['*', '?', '[', '{'])
}
