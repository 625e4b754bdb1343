//! Drain: sending what waits in the store, as long as there is time.

use super::{RemoteTier, block, unless_cancelled};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use crate::remote::RemoteError;
use std::time::Duration;

/// What became of the entries that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Drained {
    /// Entries that the server has now.
    pub sent: u64,
    /// Blobs that it did not have before.
    pub blobs: u64,
    /// Bytes that were sent for them.
    pub sent_bytes: u64,
    /// Entries that were gone or damaged, or that the server cannot hold.
    pub dropped: u64,
    /// Entries that still wait for this server, or that others send.
    pub waiting: u64,
}

impl RemoteTier {
    /// Sends the entries that wait for this server, each once, those that were tried last at the end, until
    /// `limit` is over. What is not sent by then waits for whoever comes next, and so does what could not be
    /// sent; of another entry's failure none is held up. Entries that another process sends just now are
    /// left to it. If the future is dropped, the entry at hand waits again.
    ///
    /// # Errors
    /// The first one, when all were tried; at once, if it says that the server cannot be used now.
    pub async fn drain(&self, limit: Duration, cancel: &Cancel) -> Result<Drained> {
        let mut drained = Drained::default();
        let sent = unless_cancelled(cancel, Box::pin(self.drain_all(&mut drained, cancel)));
        let ended = tokio::time::timeout(limit, sent).await.unwrap_or(Ok(()));
        drained.waiting = self.listed(&Cancel::new()).await?.len() as u64;
        ended.map(|()| drained)
    }

    async fn drain_all(&self, drained: &mut Drained, cancel: &Cancel) -> Result<()> {
        let mut first_error = None;
        for task in self.listed(cancel).await? {
            cancel.check_only()?;
            let (cache, goal) = (self.cache().clone(), self.inner.goal);
            // What cannot be taken is left to somebody who can.
            let Ok(Some(upload)) = block(cancel, move |_| cache.take_upload(&goal, &task)).await
            else {
                continue;
            };
            match self.push(&task, cancel).await {
                Ok(Some(pushed)) => {
                    drained.sent += 1;
                    drained.blobs += pushed.blobs;
                    drained.sent_bytes += pushed.sent_bytes;
                }
                Ok(None) => drained.dropped += 1,
                // Nothing is left to send.
                Err(Error::Damaged { .. } | Error::Miss | Error::NoBlob { .. }) => {
                    drained.dropped += 1;
                }
                Err(error) if concerns_all(&error) => return Err(error),
                Err(error) => {
                    first_error.get_or_insert(error);
                    continue;
                }
            }
            block(cancel, move |_| upload.done()).await?;
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn listed(&self, cancel: &Cancel) -> Result<Vec<TaskDigest>> {
        let (cache, goal) = (self.cache().clone(), self.inner.goal);
        block(cancel, move |_| cache.waiting_uploads(&goal)).await
    }
}

/// Whether the next entry would fail in the same way.
fn concerns_all(error: &Error) -> bool {
    match error {
        Error::Remote { source } => {
            source.downcast_ref().is_none_or(RemoteError::concerns_everything)
        }
        Error::Cancelled | Error::NoRuntime => true,
        _ => false,
    }
}
