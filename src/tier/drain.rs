//! Drain: sending what waits in the store, as long as there is time.

use super::{RemoteTier, block};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
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
    /// Entries that were gone, or that no server could hold.
    pub dropped: u64,
    /// Entries that still wait, or that others send.
    pub waiting: u64,
}

impl RemoteTier {
    /// Sends the entries that wait, the oldest first, until `limit` is over. What is not sent by then
    /// waits for whoever comes next. Entries that another process sends just now are left to it.
    ///
    /// # Errors
    /// The first one that says that the server cannot be used now; what waits, waits on.
    pub async fn drain(&self, limit: Duration, cancel: &Cancel) -> Result<Drained> {
        let mut drained = Drained::default();
        let ended = tokio::time::timeout(limit, self.drain_all(&mut drained, cancel))
            .await
            .unwrap_or(Ok(()));
        let cache = self.cache().clone();
        let waiting = block(cancel, move |_| cache.waiting_uploads()).await?;
        drained.waiting = waiting.len() as u64;
        ended.map(|()| drained)
    }

    async fn drain_all(&self, drained: &mut Drained, cancel: &Cancel) -> Result<()> {
        let cache = self.cache().clone();
        let waiting = block(cancel, move |_| cache.waiting_uploads()).await?;
        for task in waiting {
            cancel.check()?;
            let cache = self.cache().clone();
            let taken = block(cancel, move |_| cache.take_upload(&task)).await?;
            let Some(upload) = taken else { continue };
            match self.push(&task, cancel).await {
                Ok(Some(pushed)) => {
                    drained.sent += 1;
                    drained.blobs += pushed.blobs;
                    drained.sent_bytes += pushed.sent_bytes;
                }
                Ok(None) => drained.dropped += 1,
                // Of this entry alone: damaged, or nothing that a server could hold.
                Err(error) if !is_of_the_server(&error) => drained.dropped += 1,
                Err(error) => return Err(error),
            }
            block(cancel, move |_| upload.done()).await?;
        }
        Ok(())
    }
}

/// Whether the next entry would fail in the same way.
fn is_of_the_server(error: &Error) -> bool {
    matches!(error, Error::Remote { .. } | Error::Cancelled | Error::NoRuntime)
}
