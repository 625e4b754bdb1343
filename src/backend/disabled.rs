//! `DisabledBackend`: a cache that is switched off.

use super::{
    BackendResult, BuildGuard, CacheBackend, CacheLookupResult, CachePolicy, ExactLogs, IRTask,
    SingleFlight, Turn,
};
use crate::engine::{CacheEntry, CacheOutput, TaskLogs};
use crate::error::Error;
use crate::key::TaskDigest;
use async_trait::async_trait;
use std::path::Path;

/// Never has anything, stores nothing, and is always well.
///
/// # Examples
/// ```
/// use larder::{CacheBackend, DisabledBackend};
/// assert_eq!(DisabledBackend.name(), "disabled");
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct DisabledBackend;

#[async_trait]
impl CacheBackend for DisabledBackend {
    async fn check(
        &self,
        _: &IRTask,
        digest: &str,
        _: CachePolicy,
    ) -> BackendResult<CacheLookupResult> {
        TaskDigest::derive("", digest)?;
        Ok(CacheLookupResult::miss(digest))
    }

    async fn store(
        &self,
        _: &IRTask,
        digest: &str,
        _: &CacheEntry,
        _: CachePolicy,
    ) -> BackendResult<()> {
        TaskDigest::derive("", digest)?;
        Ok(())
    }

    async fn restore_outputs(
        &self,
        _: &IRTask,
        digest: &str,
        _: &Path,
    ) -> BackendResult<Vec<CacheOutput>> {
        TaskDigest::derive("", digest)?;
        Err(Error::Miss)
    }

    async fn get_logs(
        &self,
        _: &IRTask,
        digest: &str,
    ) -> BackendResult<(Option<String>, Option<String>)> {
        TaskDigest::derive("", digest)?;
        Ok((None, None))
    }

    fn name(&self) -> &'static str {
        "disabled"
    }

    async fn health_check(&self) -> BackendResult<()> {
        Ok(())
    }
}

#[async_trait]
impl ExactLogs for DisabledBackend {
    async fn get_exact_logs(&self, _: &IRTask, digest: &str) -> BackendResult<Option<TaskLogs>> {
        TaskDigest::derive("", digest)?;
        Ok(None)
    }
}

#[async_trait]
impl SingleFlight for DisabledBackend {
    async fn check_or_claim(
        &self,
        _: &IRTask,
        digest: &str,
        _: CachePolicy,
    ) -> BackendResult<Turn> {
        TaskDigest::derive("", digest)?;
        Ok(Turn::Mine(BuildGuard::free()))
    }
}
