//! `SingleFlight`: the extension of the contract by which a task that many want is built once.
//!
//! A backend says who may build; waiting is the same for all of them, and takes no thread.

use super::pause::Pause;
use super::{BackendResult, CacheBackend, CacheLookupResult, CachePolicy, IRTask};
use crate::disk::Timestamp;
use async_trait::async_trait;
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Lets one build a task, and the others wait for its result.
///
/// # Contract
/// - Of all that ask for one digest under [`CachePolicy::Normal`] at most one holds a guard that
///   came with [`Turn::Mine`], across all that share the cache: tasks and threads, and processes if
///   the cache is shared by processes. The guard of a builder that dies, however, is free.
/// - [`Turn::Mine`] means that there was no hit after the guard was taken.
/// - Policies that forbid reading or writing, and stores that cannot note who builds (switched off,
///   read-only, full), answer [`Turn::Mine`] with a guard that keeps nobody off.
/// - A future that is dropped has no guard, or gives it up.
///
/// # Examples
/// ```
/// use larder::{CacheBackend, CacheEntry, CachePolicy, IRTask, MemoryBackend, SingleFlight, Turn};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), larder::BackendError> {
/// let cache: Arc<dyn SingleFlight> = Arc::new(MemoryBackend::new());
/// let (task, policy) = (IRTask::new("build"), CachePolicy::Normal);
/// let limit = Duration::from_secs(600);
/// match cache.check_or_wait(&task, "digest", policy, limit).await? {
///     Turn::Hit(_) => { /* Restore it. */ }
///     Turn::Mine(guard) => {
///         // Run the task here. If it fails, dropping the guard lets the next one try.
///         cache.store(&task, "digest", &CacheEntry::new(0, 1200), policy).await?;
///         drop(guard);
///     }
///     Turn::Building { process, since } => {
///         println!("{process:?} has been building it since {since:?}; not waiting any longer");
///     }
///     _ => { /* Run the task. */ }
/// }
/// let turn = cache.check_or_claim(&task, "digest", policy).await?;
/// assert!(matches!(turn, Turn::Hit(found) if found.duration_ms == Some(1200)));
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait SingleFlight: CacheBackend {
    /// As [`CacheBackend::check`], and on a miss claims the right to build the task, or says who has
    /// it. Waits for nobody.
    ///
    /// # Errors
    /// As for [`CacheBackend::check`].
    async fn check_or_claim(
        &self,
        task: &IRTask,
        digest: &str,
        policy: CachePolicy,
    ) -> BackendResult<Turn>;

    /// As [`SingleFlight::check_or_claim`], but waits for whoever builds the task, at most so long:
    /// until there is a hit, or until the builder has failed or died and it is the caller's turn.
    /// Holds no thread meanwhile. Who builds a task that wants another's result waits while it keeps
    /// others waiting; if tasks can want each other's results, only the limit ends that.
    ///
    /// # Errors
    /// As for [`CacheBackend::check`].
    async fn check_or_wait(
        &self,
        task: &IRTask,
        digest: &str,
        policy: CachePolicy,
        limit: Duration,
    ) -> BackendResult<Turn> {
        const PAUSE_MAX: Duration = Duration::from_millis(50);
        let began = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let turn = self.check_or_claim(task, digest, policy).await?;
            let left = limit.saturating_sub(began.elapsed());
            if !matches!(turn, Turn::Building { .. }) || left.is_zero() {
                return Ok(turn);
            }
            Pause::of(pause.min(left)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// What to do about a task.
#[derive(Debug)]
#[non_exhaustive]
pub enum Turn {
    /// There is a result to restore. If it cannot be restored because it went, or was found damaged,
    /// ask again.
    Hit(CacheLookupResult),
    /// The caller builds it, and drops this when the result is stored, or will not be.
    Mine(BuildGuard),
    /// Somebody else builds it.
    Building {
        /// The process, if it is known.
        process: Option<u32>,
        /// Since when.
        since: Timestamp,
    },
}

/// The right to build a task, as long as this lives; to drop it gives the right up, whether a result
/// was stored or not. Blocks for microseconds when it is dropped.
#[must_use = "others may build the task when this is dropped"]
pub struct BuildGuard(Option<Box<dyn Any + Send + Sync>>);

impl BuildGuard {
    /// Holds whatever keeps others off until it is dropped. For backends.
    pub fn holding(claim: impl Send + Sync + 'static) -> BuildGuard {
        BuildGuard(Some(Box::new(claim)))
    }

    /// Keeps nobody off. For backends.
    pub const fn free() -> BuildGuard {
        BuildGuard(None)
    }

    /// Whether others wait for this one.
    pub const fn is_exclusive(&self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Debug for BuildGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildGuard").field("is_exclusive", &self.is_exclusive()).finish()
    }
}

/// Forwards the trait through a pointer.
macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        impl<B: SingleFlight + ?Sized> SingleFlight for $pointer<B> {
            async fn check_or_claim(
                &self,
                task: &IRTask,
                digest: &str,
                policy: CachePolicy,
            ) -> BackendResult<Turn> {
                (**self).check_or_claim(task, digest, policy).await
            }
            async fn check_or_wait(
                &self,
                task: &IRTask,
                digest: &str,
                policy: CachePolicy,
                limit: Duration,
            ) -> BackendResult<Turn> {
                (**self).check_or_wait(task, digest, policy, limit).await
            }
        }
    };
}

forward!(Arc);
forward!(Box);
