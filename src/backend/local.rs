//! `LocalBackend`: the engine behind the trait.
//!
//! Each operation that reads or writes files runs whole on one of the runtime's blocking threads; a
//! lookup takes microseconds and runs in place. A future that is dropped sets the operation's
//! cancel flag; the operation ends at its next file, its leases end with it.
//!
//! Namespaces live here, where a key becomes a task digest: the engine knows only digests. A key is
//! looked for in each namespace that is read, in order, and stored in the own one.

use super::{
    BackendResult, BuildGuard, CacheBackend, CacheLookupResult, CachePolicy, ExactLogs, IRTask,
    SingleFlight, Turn, lossy,
};
use crate::cancel::Cancel;
use crate::engine::{Cache, CacheEntry, CacheOutput, Claim, TaskLogs};
use crate::error::{Error, Result};
use crate::key::{Namespaces, TaskDigest};
use crate::options::{CacheOptions, RestoreOptions};
use async_trait::async_trait;
use std::path::Path;

/// A store on this machine. Cheap to clone.
///
/// # Examples
/// ```
/// use larder::{CacheBackend, CacheEntry, CacheOptions, CacheOutput, CachePolicy, IRTask, LocalBackend};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let backend = LocalBackend::open(&folder.path().join("store"), CacheOptions::default())?;
/// let (task, workspace) = (IRTask::new("hello"), folder.path().join("workspace"));
/// let mut entry = CacheEntry::new(0, 15).with_stdout("done\n");
/// entry.outputs.push(CacheOutput::bytes("hello.txt", "hello"));
/// backend.store(&task, "digest", &entry, CachePolicy::Normal).await?;
///
/// let outputs = backend.restore_outputs(&task, "digest", &workspace).await?;
/// assert_eq!(outputs.len(), 1);
/// assert_eq!(std::fs::read(workspace.join("hello.txt"))?, b"hello");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LocalBackend {
    cache: Cache,
    restore_options: RestoreOptions,
    namespaces: Namespaces,
}

impl LocalBackend {
    /// Opens the store at `path`. Blocking, for less than a millisecond.
    ///
    /// # Errors
    /// As for [`Cache::open`].
    pub fn open(path: &Path, options: CacheOptions) -> BackendResult<LocalBackend> {
        Ok(LocalBackend::new(Cache::open(path, options)?))
    }

    /// Puts the facade before an open store.
    pub fn new(cache: Cache) -> LocalBackend {
        LocalBackend {
            cache,
            restore_options: RestoreOptions::default(),
            namespaces: Namespaces::default(),
        }
    }

    /// Replaces how restores go about it.
    #[must_use]
    pub fn with_restore_options(mut self, restore_options: RestoreOptions) -> LocalBackend {
        self.restore_options = restore_options;
        self
    }

    /// Replaces where entries are looked for and stored. An entry of the own namespace goes before those
    /// of others.
    ///
    /// # Examples
    /// ```
    /// use larder::{CacheOptions, LocalBackend, Namespaces};
    /// let folder = tempfile::tempdir()?;
    /// let backend = LocalBackend::open(&folder.path().join("store"), CacheOptions::default())?
    ///     .with_namespaces(Namespaces::new("pull-17")?.reading(["default"])?);
    /// # let _ = backend;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: Namespaces) -> LocalBackend {
        self.namespaces = namespaces;
        self
    }

    /// Where entries are looked for and stored.
    #[cfg(feature = "remote")]
    pub(super) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// The engine.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Leaves to another thread what nobody waits for, and whose result nobody needs.
    fn maintain(&self) {
        let cache = self.cache.clone();
        drop(tokio::runtime::Handle::current().spawn_blocking(move || cache.maintain()));
    }

    /// Runs an operation on a blocking thread. If the future is dropped, the operation is cancelled.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        operation: impl FnOnce(&Cache, &Cancel) -> Result<T> + Send + 'static,
    ) -> BackendResult<T> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let guard = CancelOnDrop(Cancel::new());
        let (cache, cancel) = (self.cache.clone(), guard.0.clone());
        let done = runtime.spawn_blocking(move || operation(&cache, &cancel)).await;
        done.map_err(|error| {
            if error.is_cancelled() { Error::Cancelled } else { Error::Internal { what } }
        })?
    }
}

/// What is found for the first of these that has it.
fn first<T>(
    keys: &[TaskDigest],
    mut find: impl FnMut(&TaskDigest) -> Result<Option<T>>,
) -> Result<Option<T>> {
    keys.iter().find_map(|key| find(key).transpose()).transpose()
}

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[async_trait]
impl CacheBackend for LocalBackend {
    async fn check(
        &self,
        _: &IRTask,
        digest: &str,
        policy: CachePolicy,
    ) -> BackendResult<CacheLookupResult> {
        let keys = self.namespaces.to_read(digest)?;
        if !policy.allows_read() {
            return Ok(CacheLookupResult::miss(digest));
        }
        Ok(CacheLookupResult::of(digest, first(&keys, |key| self.cache.lookup(key))?))
    }

    async fn store(
        &self,
        _: &IRTask,
        digest: &str,
        entry: &CacheEntry,
        policy: CachePolicy,
    ) -> BackendResult<()> {
        let key = self.namespaces.to_write(digest)?;
        if !policy.allows_write() {
            return Ok(());
        }
        let entry = entry.clone();
        self.run("storing", move |cache, cancel| cache.store(&key, &entry, cancel)).await?;
        self.maintain();
        Ok(())
    }

    async fn restore_outputs(
        &self,
        _: &IRTask,
        digest: &str,
        workspace: &Path,
    ) -> BackendResult<Vec<CacheOutput>> {
        const ROUNDS_MAX: usize = 4;
        let keys = self.namespaces.to_read(digest)?;
        let (workspace, options) = (workspace.to_path_buf(), self.restore_options);
        let outputs = self.run("restoring", move |cache, cancel| {
            // Again, as often as the entry is replaced before its blobs are held.
            for _ in 0..ROUNDS_MAX {
                let restored = first(&keys, |key| {
                    let restored = cache.restore(key, &workspace, options, cancel)?;
                    Ok(restored.map(|restored| (*key, restored)))
                })?;
                let (key, restored) = restored.ok_or(Error::Miss)?;
                if let Some(outputs) = cache.restored_outputs(&key, &restored)? {
                    return Ok(outputs);
                }
            }
            Err(Error::Miss)
        });
        let outputs = outputs.await?;
        self.maintain();
        Ok(outputs)
    }

    async fn get_logs(
        &self,
        task: &IRTask,
        digest: &str,
    ) -> BackendResult<(Option<String>, Option<String>)> {
        Ok(lossy(self.get_exact_logs(task, digest).await?))
    }

    fn name(&self) -> &'static str {
        "local"
    }

    async fn health_check(&self) -> BackendResult<()> {
        self.run("looking after the store", |cache, _| cache.check_usable()).await
    }
}

#[async_trait]
impl ExactLogs for LocalBackend {
    async fn get_exact_logs(&self, _: &IRTask, digest: &str) -> BackendResult<Option<TaskLogs>> {
        let keys = self.namespaces.to_read(digest)?;
        self.run("reading logs", move |cache, _| first(&keys, |key| cache.logs(key))).await
    }
}

#[async_trait]
impl SingleFlight for LocalBackend {
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
        let (key, keys) = (self.namespaces.to_write(digest)?, self.namespaces.to_read(digest)?);
        let digest = digest.to_owned();
        let turn = self.run("claiming a task", move |cache, _| match cache.claim(&key) {
            // It may have been stored between the look and the claim.
            Ok(Claim::Mine(flight)) => Ok(match first(&keys, |key| cache.lookup(key))? {
                None => Turn::Mine(BuildGuard::holding(flight)),
                hit => Turn::Hit(CacheLookupResult::of(&digest, hit)),
            }),
            Ok(Claim::Building { process, since }) => Ok(Turn::Building { process, since }),
            // A store that can only be read, or is full: each for itself.
            Err(_) => Ok(Turn::Mine(BuildGuard::free())),
        });
        turn.await
    }
}
