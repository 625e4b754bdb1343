//! `TieredBackend`: a store on this machine, and a server behind it.
//!
//! The store answers first. What it lacks is asked of the server and brought into the store before it is
//! called a hit, so a hit can be restored whatever happens to the server then. What is stored is stored
//! here, waits in the store for its upload, and is sent in the background, or by whoever comes next.
//!
//! Invariant: nothing that concerns the server alone makes an operation fail. It is as if there were only
//! the store; of an outage, [`RemoteTier::take_outage`] says why, once, and what else is wrong
//! [`RemoteTier::status`] says who asks.

use super::{
    BackendResult, CacheBackend, CacheLookupResult, CachePolicy, ExactLogs, IRTask, LocalBackend,
    SingleFlight, Turn, lossy,
};
use crate::cancel::Cancel;
use crate::engine::{CacheEntry, CacheOutput, TaskLogs};
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use crate::remote::RemoteOptions;
use crate::tier::{Drained, RemoteTier};
use async_trait::async_trait;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// A store with a server behind it. Cheap to clone.
///
/// # Examples
/// ```no_run
/// use larder::{CacheOptions, LocalBackend, RemoteAccess, RemoteOptions, TieredBackend};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let local = LocalBackend::open("store".as_ref(), CacheOptions::default())?;
/// let server = RemoteOptions::new("grpcs://cache.example.com/team")?;
/// let backend = TieredBackend::new(local, server.with_access(RemoteAccess::ReadWrite));
/// // ... the runner uses it as any `CacheBackend`, and before it ends:
/// backend.flush().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TieredBackend {
    local: LocalBackend,
    tier: RemoteTier,
    /// One drain at a time in this process.
    draining: Arc<Mutex<()>>,
    /// Whether something was queued that no drain has looked for.
    has_more: Arc<AtomicBool>,
}

/// How long the background goes on sending; then the next store begins anew.
const DRAIN_MAX: Duration = Duration::from_secs(3600);

impl TieredBackend {
    /// Puts a server behind a store. Connects to nothing yet.
    pub fn new(local: LocalBackend, options: RemoteOptions) -> TieredBackend {
        let tier = RemoteTier::new(local.cache().clone(), options);
        TieredBackend { local, tier, draining: Arc::default(), has_more: Arc::default() }
    }

    /// The server.
    pub fn tier(&self) -> &RemoteTier {
        &self.tier
    }

    /// The store.
    pub fn local(&self) -> &LocalBackend {
        &self.local
    }

    /// Sends what waits, as long as [`RemoteOptions::upload_wait_max`] allows. For the end of a run. What
    /// is not sent by then waits in the store for whoever comes next.
    ///
    /// # Errors
    /// If the server cannot be used now, or the store cannot be listed. A runner may pass over that.
    pub async fn flush(&self) -> BackendResult<Drained> {
        if !self.tier.may_push() {
            return Ok(Drained::default());
        }
        let begun = Instant::now();
        let limit = self.tier.upload_wait_max();
        let turn = tokio::time::timeout(limit, self.draining.lock()).await;
        // Somebody else is still at it: then this only says what waits.
        let left =
            if turn.is_ok() { limit.saturating_sub(begun.elapsed()) } else { Duration::ZERO };
        self.tier.drain(left, &Cancel::new()).await
    }

    /// Sends what waits, unless somebody in this process does.
    fn drain_in_background(&self) {
        let (tier, draining) = (self.tier.clone(), Arc::clone(&self.draining));
        let has_more = Arc::clone(&self.has_more);
        has_more.store(true, Ordering::Release);
        drop(tokio::spawn(async move {
            // Who comes while another drains has said so, and that one looks again.
            while has_more.load(Ordering::Acquire) {
                let Ok(_turn) = draining.try_lock() else { return };
                while has_more.swap(false, Ordering::AcqRel) {
                    // An outage is told by the tier, and what is left waits.
                    let _ = tier.drain(DRAIN_MAX, &Cancel::new()).await;
                }
            }
        }));
    }

    /// Brings the first of these that the server has. False if it has none, or cannot be asked.
    async fn pull(&self, keys: &[TaskDigest]) -> BackendResult<bool> {
        for key in keys {
            match self.tier.pull(key, &Cancel::new()).await {
                Ok(Some(_)) => return Ok(true),
                Ok(None) => {}
                Err(error @ (Error::Cancelled | Error::NoRuntime)) => return Err(error),
                // The server's trouble, or a store that cannot take it: a miss, as it was.
                Err(_) => return Ok(false),
            }
        }
        Ok(false)
    }
}

#[async_trait]
impl CacheBackend for TieredBackend {
    async fn check(
        &self,
        task: &IRTask,
        digest: &str,
        policy: CachePolicy,
    ) -> BackendResult<CacheLookupResult> {
        let found = self.local.check(task, digest, policy).await?;
        if found.hit || !policy.allows_read() {
            return Ok(found);
        }
        if self.pull(&self.local.namespaces().to_read(digest)?).await? {
            return self.local.check(task, digest, policy).await;
        }
        Ok(found)
    }

    async fn store(
        &self,
        task: &IRTask,
        digest: &str,
        entry: &CacheEntry,
        policy: CachePolicy,
    ) -> BackendResult<()> {
        self.local.store(task, digest, entry, policy).await?;
        if policy.allows_write() && self.tier.may_push() {
            let (tier, key) = (self.tier.clone(), self.local.namespaces().to_write(digest)?);
            // Stored all the same if that cannot be noted.
            let queued = tokio::task::spawn_blocking(move || tier.queue(&key)).await;
            if matches!(queued, Ok(Ok(()))) {
                self.drain_in_background();
            }
        }
        Ok(())
    }

    async fn restore_outputs(
        &self,
        task: &IRTask,
        digest: &str,
        workspace: &Path,
    ) -> BackendResult<Vec<CacheOutput>> {
        match self.local.restore_outputs(task, digest, workspace).await {
            // Never there, evicted since the check, or damaged, and the server may have it whole.
            Err(error @ (Error::Miss | Error::Damaged { .. })) => {
                if self.pull(&self.local.namespaces().to_read(digest)?).await? {
                    return self.local.restore_outputs(task, digest, workspace).await;
                }
                Err(error)
            }
            restored => restored,
        }
    }

    async fn get_logs(
        &self,
        task: &IRTask,
        digest: &str,
    ) -> BackendResult<(Option<String>, Option<String>)> {
        Ok(lossy(self.get_exact_logs(task, digest).await?))
    }

    fn name(&self) -> &'static str {
        "tiered"
    }

    /// Of the store: without the server there is a cache all the same.
    async fn health_check(&self) -> BackendResult<()> {
        self.local.health_check().await
    }
}

#[async_trait]
impl ExactLogs for TieredBackend {
    async fn get_exact_logs(&self, task: &IRTask, digest: &str) -> BackendResult<Option<TaskLogs>> {
        let found: Result<_> = self.local.get_exact_logs(task, digest).await;
        match found {
            missing @ (Ok(None) | Err(Error::Damaged { .. })) => {
                if self.pull(&self.local.namespaces().to_read(digest)?).await? {
                    return self.local.get_exact_logs(task, digest).await;
                }
                missing
            }
            found => found,
        }
    }
}

#[async_trait]
impl SingleFlight for TieredBackend {
    async fn check_or_claim(
        &self,
        task: &IRTask,
        digest: &str,
        policy: CachePolicy,
    ) -> BackendResult<Turn> {
        let turn = self.local.check_or_claim(task, digest, policy).await?;
        if matches!(turn, Turn::Mine(_)) {
            // In our turn, so that others on this machine wait for what we bring.
            let found = self.check(task, digest, policy).await?;
            if found.hit {
                return Ok(Turn::Hit(found));
            }
        }
        Ok(turn)
    }
}
