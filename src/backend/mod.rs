//! `CacheBackend`: the contract between a task runner and a cache, and its implementations.
//!
//! The engine blocks and names no runtime; the facade moves each operation of more than microseconds
//! to one of tokio's blocking threads, whole.

pub mod conformance;
mod disabled;
mod flight;
mod local;
mod memory;
mod pause;
#[cfg(feature = "remote")]
mod remote;
mod task;
#[cfg(feature = "remote")]
mod tiered;

pub use disabled::DisabledBackend;
pub use flight::{BuildGuard, SingleFlight, Turn};
pub use local::LocalBackend;
pub use memory::MemoryBackend;
#[cfg(feature = "remote")]
pub use remote::RemoteBackend;
pub use task::{IRTask, ResourceRequirements, SecretSource};
#[cfg(feature = "remote")]
pub use tiered::TieredBackend;

pub use crate::error::Error as BackendError;

use crate::engine::{CacheEntry, CacheOutput, Hit, TaskLogs};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// The result of a backend's operation.
pub type BackendResult<T> = Result<T, BackendError>;

/// What a task may do with the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CachePolicy {
    /// Read, and write on a miss.
    #[default]
    Normal,
    /// Read only: `store` succeeds and does nothing.
    Readonly,
    /// Write only: `check` is a miss, and does not look.
    Writeonly,
    /// Neither.
    Disabled,
}

impl CachePolicy {
    /// Whether results may be read.
    pub const fn allows_read(self) -> bool {
        matches!(self, CachePolicy::Normal | CachePolicy::Readonly)
    }

    /// Whether results may be written.
    pub const fn allows_write(self) -> bool {
        matches!(self, CachePolicy::Normal | CachePolicy::Writeonly)
    }
}

/// What a lookup found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheLookupResult {
    /// Whether there is a result to restore.
    pub hit: bool,
    /// The digest that was looked up.
    pub digest: String,
    /// On a hit: how long the task ran when it was stored, in milliseconds.
    pub duration_ms: Option<u64>,
}

impl CacheLookupResult {
    /// A hit.
    pub fn hit(digest: impl Into<String>, duration_ms: u64) -> CacheLookupResult {
        CacheLookupResult { hit: true, digest: digest.into(), duration_ms: Some(duration_ms) }
    }

    /// A miss.
    pub fn miss(digest: impl Into<String>) -> CacheLookupResult {
        CacheLookupResult { hit: false, digest: digest.into(), duration_ms: None }
    }

    fn of(digest: &str, hit: Option<Hit>) -> CacheLookupResult {
        hit.map_or_else(
            || CacheLookupResult::miss(digest),
            |hit| CacheLookupResult::hit(digest, hit.duration_ms),
        )
    }
}

/// Cache backend trait for pluggable cache implementations.
///
/// # Contract
/// For implementors, and a promise to callers:
/// - Implementations are thread-safe; operations may run at once, also on one digest.
/// - `digest` is any string of 1 to 1,024 bytes. Empty or longer is [`BackendError::InvalidKey`],
///   from every method that takes one and under every policy.
/// - A `store` is all or nothing: a concurrent `check` sees the whole entry or not this one. Storing
///   a digest again replaces its entry.
/// - After `restore_outputs` the outputs in the workspace are what was stored; after its failure
///   with [`BackendError::Damaged`], [`BackendError::Miss`] or [`BackendError::WorkspaceRefused`]
///   the workspace is as it was.
/// - A future that is dropped stops its work soon. The next operation on the same outputs waits for
///   its end; cache and workspace are consistent.
/// - No method panics, whatever it is given; without a tokio runtime an implementation that needs
///   one returns [`BackendError::NoRuntime`].
/// - A caller for whose error [`BackendError::allows_uncached_run`] is true goes on without a cache.
///
/// [`conformance`] is this contract as a test suite.
///
/// # Examples
/// ```
/// use larder::{CacheBackend, CacheEntry, CachePolicy, IRTask, MemoryBackend};
/// use std::sync::Arc;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), larder::BackendError> {
/// let backend: Arc<dyn CacheBackend> = Arc::new(MemoryBackend::new());
/// let task = IRTask::new("build");
/// backend.store(&task, "digest", &CacheEntry::new(0, 1200), CachePolicy::Normal).await?;
/// let found = backend.check(&task, "digest", CachePolicy::Normal).await?;
/// assert_eq!(found.duration_ms, Some(1200));
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait CacheBackend: Send + Sync {
    /// Check if a cached result exists for the given task and digest. A policy that forbids reading
    /// makes this a miss without touching the store.
    ///
    /// # Errors
    /// If the digest is no key, or the store cannot be read.
    async fn check(
        &self,
        task: &IRTask,
        digest: &str,
        policy: CachePolicy,
    ) -> BackendResult<CacheLookupResult>;

    /// Store a task execution result in the cache. A policy that forbids writing makes this a
    /// successful no-op.
    ///
    /// # Errors
    /// If storage fails; the task's own result is not touched, and callers go on without a cache.
    async fn store(
        &self,
        task: &IRTask,
        digest: &str,
        entry: &CacheEntry,
        policy: CachePolicy,
    ) -> BackendResult<()>;

    /// Restore output artifacts from cache to the workspace. Returns them, sorted by path.
    ///
    /// # Errors
    /// [`BackendError::Miss`] if there is no entry; else if restoration fails.
    async fn restore_outputs(
        &self,
        task: &IRTask,
        digest: &str,
        workspace: &Path,
    ) -> BackendResult<Vec<CacheOutput>>;

    /// Get cached stdout and stderr as text (lossy; [`ExactLogs`] has the bytes). `(None, None)` if
    /// there is no entry.
    ///
    /// # Errors
    /// If the digest is no key, or the logs cannot be read.
    async fn get_logs(
        &self,
        task: &IRTask,
        digest: &str,
    ) -> BackendResult<(Option<String>, Option<String>)>;

    /// Get the backend name for logging and metrics.
    fn name(&self) -> &'static str;

    /// Check if the backend is available.
    ///
    /// # Errors
    /// If it is not.
    async fn health_check(&self) -> BackendResult<()>;
}

/// The logs of a task byte for byte, where a backend can give them.
#[async_trait]
pub trait ExactLogs: CacheBackend {
    /// The exact bytes of both streams and their order; `None` if there is no entry.
    ///
    /// # Errors
    /// As for [`CacheBackend::get_logs`].
    async fn get_exact_logs(&self, task: &IRTask, digest: &str) -> BackendResult<Option<TaskLogs>>;
}

/// Forwards the trait through a pointer.
macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        impl<B: CacheBackend + ?Sized> CacheBackend for $pointer<B> {
            async fn check(
                &self,
                task: &IRTask,
                digest: &str,
                policy: CachePolicy,
            ) -> BackendResult<CacheLookupResult> {
                (**self).check(task, digest, policy).await
            }
            async fn store(
                &self,
                task: &IRTask,
                digest: &str,
                entry: &CacheEntry,
                policy: CachePolicy,
            ) -> BackendResult<()> {
                (**self).store(task, digest, entry, policy).await
            }
            async fn restore_outputs(
                &self,
                task: &IRTask,
                digest: &str,
                workspace: &Path,
            ) -> BackendResult<Vec<CacheOutput>> {
                (**self).restore_outputs(task, digest, workspace).await
            }
            async fn get_logs(
                &self,
                task: &IRTask,
                digest: &str,
            ) -> BackendResult<(Option<String>, Option<String>)> {
                (**self).get_logs(task, digest).await
            }
            fn name(&self) -> &'static str {
                (**self).name()
            }
            async fn health_check(&self) -> BackendResult<()> {
                (**self).health_check().await
            }
        }
    };
}

forward!(Arc);
forward!(Box);

/// Both streams as text, as `get_logs` returns them.
fn lossy(logs: Option<TaskLogs>) -> (Option<String>, Option<String>) {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    match logs {
        Some(logs) => (Some(text(logs.stdout)), Some(text(logs.stderr))),
        None => (None, None),
    }
}
