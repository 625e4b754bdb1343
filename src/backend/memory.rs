//! `MemoryBackend`: the same contract in memory. A test double, and the model against which the
//! engine is tested: written for plainness, not for speed.
//!
//! Shares with the engine only its input types and the rules of `manifest`. A restore removes each
//! root and writes it anew, through directory handles, never through a symlink.

use super::{
    BackendResult, BuildGuard, CacheBackend, CacheLookupResult, CachePolicy, ExactLogs, IRTask,
    SingleFlight, Turn, lossy,
};
use crate::digest::Digest;
use crate::disk::{self, Capabilities, Dir, FileKind, Placed, Timestamp, layout};
use crate::engine::{CacheEntry, CacheOutput, OutputContent, TaskLogs};
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{Manifest, Node, NodeKind, OutputPath, covers};
use async_trait::async_trait;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keeps entries in memory, contents and all. Blocks its thread while it works; needs no runtime.
///
/// # Examples
/// ```
/// use larder::{CacheBackend, MemoryBackend};
/// assert_eq!(MemoryBackend::new().name(), "memory");
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemoryBackend {
    entries: Arc<Mutex<HashMap<TaskDigest, Arc<Entry>>>>,
    flights: Flights,
    /// One restore at a time.
    restoring: Arc<Mutex<()>>,
}

/// Since when the tasks that somebody builds are built.
type Flights = Arc<Mutex<HashMap<TaskDigest, Timestamp>>>;

#[derive(Debug)]
struct Entry {
    manifest: Manifest,
    contents: HashMap<Digest, Arc<[u8]>>,
    logs: TaskLogs,
    duration_ms: u64,
}

impl MemoryBackend {
    /// An empty cache.
    pub fn new() -> MemoryBackend {
        MemoryBackend::default()
    }

    fn get(&self, key: &TaskDigest) -> Option<Arc<Entry>> {
        self.lock().get(key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskDigest, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes an entry; false if there was none. So that a model can follow the engine.
    ///
    /// # Errors
    /// [`Error::InvalidKey`].
    pub fn remove(&self, digest: &str) -> BackendResult<bool> {
        Ok(self.lock().remove(&TaskDigest::derive("", digest)?).is_some())
    }
}

#[async_trait]
impl CacheBackend for MemoryBackend {
    async fn check(
        &self,
        _: &IRTask,
        digest: &str,
        policy: CachePolicy,
    ) -> BackendResult<CacheLookupResult> {
        let key = TaskDigest::derive("", digest)?;
        let found = self.get(&key).filter(|_| policy.allows_read());
        Ok(found.map_or_else(
            || CacheLookupResult::miss(digest),
            |entry| CacheLookupResult::hit(digest, entry.duration_ms),
        ))
    }

    async fn store(
        &self,
        _: &IRTask,
        digest: &str,
        entry: &CacheEntry,
        policy: CachePolicy,
    ) -> BackendResult<()> {
        let key = TaskDigest::derive("", digest)?;
        if policy.allows_write() {
            let loaded = Entry::load(entry)?;
            self.lock().insert(key, Arc::new(loaded));
        }
        Ok(())
    }

    async fn restore_outputs(
        &self,
        _: &IRTask,
        digest: &str,
        workspace: &Path,
    ) -> BackendResult<Vec<CacheOutput>> {
        let key = TaskDigest::derive("", digest)?;
        let entry = self.get(&key).ok_or(Error::Miss)?;
        let _restoring = self.restoring.lock().unwrap_or_else(PoisonError::into_inner);
        disk::make_all(workspace).context("make the workspace", || workspace)?;
        let dir = Dir::open(workspace, Capabilities::all())
            .context("open the workspace", || workspace)?;
        entry.restore(&dir)?;
        Ok(entry.manifest.nodes.iter().map(|node| entry.output(node)).collect())
    }

    async fn get_logs(
        &self,
        task: &IRTask,
        digest: &str,
    ) -> BackendResult<(Option<String>, Option<String>)> {
        Ok(lossy(self.get_exact_logs(task, digest).await?))
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    async fn health_check(&self) -> BackendResult<()> {
        Ok(())
    }
}

#[async_trait]
impl ExactLogs for MemoryBackend {
    async fn get_exact_logs(&self, _: &IRTask, digest: &str) -> BackendResult<Option<TaskLogs>> {
        let key = TaskDigest::derive("", digest)?;
        Ok(self.get(&key).map(|entry| entry.logs.clone()))
    }
}

/// A task that is being built as long as this lives.
struct Flight {
    flights: Flights,
    key: TaskDigest,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[async_trait]
impl SingleFlight for MemoryBackend {
    async fn check_or_claim(
        &self,
        task: &IRTask,
        digest: &str,
        policy: CachePolicy,
    ) -> BackendResult<Turn> {
        let found = self.check(task, digest, policy).await?;
        if found.hit {
            return Ok(Turn::Hit(found));
        }
        if !(policy.allows_read() && policy.allows_write()) {
            return Ok(Turn::Mine(BuildGuard::free()));
        }
        let key = TaskDigest::derive("", digest)?;
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = flights.get(&key) {
            return Ok(Turn::Building { process: Some(std::process::id()), since: *since });
        }
        // Looked up once more, since it may have been stored meanwhile; nobody else can claim it now.
        if let Some(entry) = self.get(&key) {
            return Ok(Turn::Hit(CacheLookupResult::hit(digest, entry.duration_ms)));
        }
        flights.insert(key, disk::now());
        Ok(Turn::Mine(BuildGuard::holding(Flight { flights: Arc::clone(&self.flights), key })))
    }
}

impl Entry {
    fn load(entry: &CacheEntry) -> Result<Entry> {
        let mut contents = HashMap::new();
        let nodes = entry.outputs.iter().map(|output| load_output(output, &mut contents));
        let nodes = nodes.collect::<Result<Vec<Node>>>()?;
        Ok(Entry {
            manifest: Manifest::assemble(entry.roots.clone(), nodes)?,
            contents,
            logs: TaskLogs::new(&entry.stdout, &entry.stderr, &entry.log_order),
            duration_ms: entry.duration_ms,
        })
    }

    fn output(&self, node: &Node) -> CacheOutput {
        let path = node.path.as_path();
        match &node.kind {
            NodeKind::Directory { mode } => CacheOutput::directory(path).with_mode(*mode),
            NodeKind::Symlink { target } => CacheOutput::symlink(path, OsStr::from_bytes(target)),
            NodeKind::File { digest, mode, modified, .. } => {
                let content = OutputContent::Bytes(Arc::clone(&self.contents[digest]));
                let mut output = CacheOutput::new(path, content).with_mode(*mode);
                output.modified = *modified;
                output
            }
        }
    }

    /// Looks for what is in the way, then removes every root, then writes every node.
    fn restore(&self, workspace: &Dir) -> Result<()> {
        let is_below_output = |node: &&Node| {
            OutputPath::parse(node.path.parent())
                .is_ok_and(|parent| self.manifest.node(&parent).is_some())
        };
        for node in self.manifest.nodes.iter().filter(|node| !is_below_output(node)) {
            let Some(parent) = open_parent(workspace, &node.path)? else {
                continue;
            };
            let found = parent.stat(node.path.name()).context("look at", || &node.path)?;
            let is_link_node = matches!(node.kind, NodeKind::Symlink { .. });
            if found.is_some_and(|stat| stat.kind == FileKind::Symlink) && !is_link_node {
                return Err(refuse(
                    &node.path,
                    "the output is a symlink; remove it, or cache its target",
                ));
            }
        }
        for (root, glob) in self.manifest.roots.iter().zip(self.manifest.compiled_globs()?) {
            match glob {
                None => {
                    if let Some(parent) = open_parent(workspace, &root.path)? {
                        parent.remove_all(root.path.name()).context("remove", || &root.path)?;
                    }
                }
                Some(glob) => remove_matches(workspace, None, &|path| covers(&glob, path))?,
            }
        }
        for node in &self.manifest.nodes {
            self.write(workspace, node)?;
        }
        for node in self.manifest.nodes.iter().rev() {
            if let NodeKind::Directory { mode } = node.kind {
                let dir =
                    workspace.open_beneath(node.path.as_path()).context("open", || &node.path)?;
                dir.set_mode_self(mode).context("set the mode of", || &node.path)?;
            }
        }
        Ok(())
    }

    fn write(&self, workspace: &Dir, node: &Node) -> Result<()> {
        let parent = workspace
            .make_beneath(node.path.parent())
            .context("make the folder of", || &node.path)?;
        let name = node.path.name();
        match &node.kind {
            NodeKind::Directory { .. } => {
                parent.make_child(name, 0o700).context("make", || &node.path)?;
            }
            NodeKind::Symlink { target } => {
                let placed = parent
                    .symlink(OsStr::from_bytes(target), name)
                    .context("make", || &node.path)?;
                debug_assert_eq!(placed, Placed::Here, "every root was removed");
            }
            NodeKind::File { digest, mode, modified, .. } => {
                let written = parent.create_new(name, 0o600).and_then(|mut file| {
                    file.write_all(&self.contents[digest])?;
                    disk::set_mode(&file, *mode)?;
                    modified.map_or(Ok(()), |modified| disk::set_modified(&file, modified))
                });
                written.context("write", || &node.path)?;
            }
        }
        Ok(())
    }
}

fn load_output(output: &CacheOutput, contents: &mut HashMap<Digest, Arc<[u8]>>) -> Result<Node> {
    let invalid = |reason| Error::InvalidOutput { path: output.path.clone(), reason };
    let path = OutputPath::parse(&output.path).map_err(|error| invalid(error.0))?;
    let default_mode = if output.executable { 0o755 } else { 0o644 };
    let mut modified = output.modified;
    let (bytes, mode): (Arc<[u8]>, u32) = match &output.content {
        OutputContent::Directory => {
            return Ok(Node {
                path,
                kind: NodeKind::Directory { mode: output.mode.unwrap_or(0o755) & 0o777 },
            });
        }
        OutputContent::Symlink(target) => {
            return Ok(Node { path, kind: NodeKind::Symlink { target: target.as_bytes().into() } });
        }
        OutputContent::Bytes(bytes) => (Arc::clone(bytes), default_mode),
        OutputContent::Stored(blob) => (blob.read()?.into(), default_mode),
        OutputContent::File(source) => {
            let (mut file, stat) = source.open(Capabilities::all())?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).context("read", || source.path())?;
            modified = modified.or(Some(stat.modified));
            (bytes.into(), stat.mode)
        }
    };
    let (digest, size_bytes) = (Digest::of(&bytes), bytes.len() as u64);
    contents.insert(digest, bytes);
    let mode = output.mode.unwrap_or(mode) & 0o777;
    Ok(Node { path, kind: NodeKind::File { digest, size_bytes, mode, modified } })
}

fn open_parent(workspace: &Dir, path: &OutputPath) -> Result<Option<Dir>> {
    match workspace.open_beneath(path.parent()) {
        Ok(parent) => Ok(Some(parent)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if disk::is_not_a_directory(&error) => {
            Err(refuse(path, "a symlink, or something else that is no directory, is in the way"))
        }
        Err(error) => Err(error).context("open the folder of", || path),
    }
}

fn remove_matches(
    dir: &Dir,
    at: Option<&OutputPath>,
    is_owned: &dyn Fn(&OutputPath) -> bool,
) -> Result<()> {
    let here = || at.map_or(Path::new("."), OutputPath::as_path);
    for (name, kind) in dir.entries().context("list", here)? {
        let path = match at {
            Some(at) => at.join(&name),
            None => OutputPath::from_bytes(name.as_bytes()),
        };
        let Ok(path) = path else { continue };
        if name == layout::GIT_FOLDER {
            continue;
        }
        if is_owned(&path) {
            dir.remove_all(&name).context("remove", || &path)?;
        } else if kind == FileKind::Directory {
            remove_matches(
                &dir.open_child(&name).context("open", || &path)?,
                Some(&path),
                is_owned,
            )?;
        }
    }
    Ok(())
}

fn refuse(path: &OutputPath, reason: &'static str) -> Error {
    Error::WorkspaceRefused { path: path.as_path().to_path_buf(), reason }
}
