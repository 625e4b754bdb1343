//! `RemoteBackend`: a server alone, for those who want no store of their own.
//!
//! Entries pass through a store that is only a place to land: outputs are restored from it with all the
//! care of the engine, and nothing in it is ever taken for an answer of the server's.
//!
//! Invariant: a check asks the server each time, and is a miss if it cannot be asked.

use super::{BackendResult, CacheBackend, CacheLookupResult, CachePolicy, IRTask, LocalBackend};
use crate::cancel::Cancel;
use crate::engine::{CacheEntry, CacheOutput};
use crate::error::Error;
use crate::remote::RemoteOptions;
use crate::tier::RemoteTier;
use async_trait::async_trait;
use std::path::Path;

/// A server of the Remote Execution API as a cache. Cheap to clone.
///
/// # Examples
/// ```no_run
/// use larder::{CacheOptions, LocalBackend, RemoteBackend, RemoteOptions};
/// let landing = LocalBackend::open("/var/tmp/landing".as_ref(), CacheOptions::default())?;
/// let backend = RemoteBackend::new(landing, RemoteOptions::new("grpc://localhost:9092")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct RemoteBackend {
    landing: LocalBackend,
    tier: RemoteTier,
}

impl RemoteBackend {
    /// Uses a server by way of `landing`, a store of the caller's, whose limits say how much may lie there.
    /// Its namespaces and restore options hold. Connects to nothing yet.
    pub fn new(landing: LocalBackend, options: RemoteOptions) -> RemoteBackend {
        let tier = RemoteTier::new(landing.cache().clone(), options);
        RemoteBackend { landing, tier }
    }

    /// The server.
    pub fn tier(&self) -> &RemoteTier {
        &self.tier
    }

    /// Brings the first entry of that name that the server has.
    async fn pull(&self, digest: &str) -> BackendResult<bool> {
        for key in self.landing.namespaces().to_read(digest)? {
            if self.tier.pull(&key, &Cancel::new()).await?.is_some() {
                return Ok(true);
            }
            // What lies here from before is no answer of the server's.
            self.landing.cache().remove(&key)?;
        }
        Ok(false)
    }
}

#[async_trait]
impl CacheBackend for RemoteBackend {
    async fn check(
        &self,
        task: &IRTask,
        digest: &str,
        policy: CachePolicy,
    ) -> BackendResult<CacheLookupResult> {
        let miss = CacheLookupResult::miss(digest);
        self.landing.namespaces().to_read(digest)?;
        if !policy.allows_read() {
            return Ok(miss);
        }
        match self.pull(digest).await {
            Ok(true) => self.landing.check(task, digest, policy).await,
            Ok(false) => Ok(miss),
            Err(error) if error.allows_uncached_run() => Ok(miss),
            Err(error) => Err(error),
        }
    }

    async fn store(
        &self,
        task: &IRTask,
        digest: &str,
        entry: &CacheEntry,
        policy: CachePolicy,
    ) -> BackendResult<()> {
        self.landing.store(task, digest, entry, policy).await?;
        if policy.allows_write() {
            let key = self.landing.namespaces().to_write(digest)?;
            let reason = "no server can hold one of its names";
            self.tier.push(&key, &Cancel::new()).await?.ok_or(Error::EntryRefused { reason })?;
        }
        Ok(())
    }

    async fn restore_outputs(
        &self,
        task: &IRTask,
        digest: &str,
        workspace: &Path,
    ) -> BackendResult<Vec<CacheOutput>> {
        if !self.pull(digest).await? {
            return Err(Error::Miss);
        }
        self.landing.restore_outputs(task, digest, workspace).await
    }

    async fn get_logs(
        &self,
        task: &IRTask,
        digest: &str,
    ) -> BackendResult<(Option<String>, Option<String>)> {
        if !self.pull(digest).await? {
            return Ok((None, None));
        }
        self.landing.get_logs(task, digest).await
    }

    fn name(&self) -> &'static str {
        "remote"
    }

    async fn health_check(&self) -> BackendResult<()> {
        self.tier.status().await?;
        Ok(())
    }
}
