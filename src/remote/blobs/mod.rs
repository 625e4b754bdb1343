//! Blobs on a server: which are missing, how they get there, how they come back.
//!
//! Invariants:
//! - A blob without bytes is never asked for, sent or fetched: servers have it
//!   (`remote_execution.proto`, `ContentAddressableStorage`).
//! - Small blobs travel in batches, large ones in chunks where the server can put them together,
//!   the others one at a time as streams; of each kind a few at once, so that memory is bounded by
//!   the number of calls, not by what is transferred.
//! - What a server gives is what its digest says, or an error.

mod chunks;
mod compress;
mod download;
mod find;
mod read;
mod upload;
mod write;

pub(crate) use download::{BlobReader, Downloads};
pub(crate) use upload::{Upload, UploadSource, Uploaded};

use super::call::Server;
use super::capabilities::{BATCH_ENTRY_BYTES, MESSAGE_BYTES_MAX, RemoteCapabilities};
use super::digests::RemoteDigest;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How many searches are under way at once.
const QUESTIONS_MAX: usize = 4;
/// How many batches are under way at once: enough that one is on the line while another is
/// answered.
const BATCHES_MAX: usize = 4;
/// How many streams are.
const STREAMS_MAX: usize = 4;
/// The largest message that is taken. Above [`MESSAGE_BYTES_MAX`], because servers count
/// differently.
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20 | 64 << 10;

/// One server whose capabilities are known.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) server: Arc<Server>,
    pub(super) capabilities: RemoteCapabilities,
    /// For calls that carry no blobs, and must not wait for somebody to take some.
    questions: Semaphore,
    batches: Semaphore,
    streams: Semaphore,
}

impl Session {
    pub(super) fn new(server: Arc<Server>, capabilities: RemoteCapabilities) -> Session {
        Session {
            server,
            capabilities,
            questions: Semaphore::new(QUESTIONS_MAX),
            batches: Semaphore::new(BATCHES_MAX),
            streams: Semaphore::new(STREAMS_MAX),
        }
    }

    /// Cuts into batches, in the given order: each fits the server's limit for blobs and the limit
    /// for messages, with all that is around the blobs. What fits no batch is left to streams.
    fn batches_of<T>(
        &self,
        blobs: Vec<T>,
        digest: impl Fn(&T) -> RemoteDigest,
    ) -> (Vec<Vec<T>>, Vec<T>) {
        let (mut batches, mut streams) = (Vec::new(), Vec::new());
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for blob in blobs {
            let size_bytes = digest(&blob).size_bytes;
            if !self.capabilities.fits_batch(size_bytes) {
                streams.push(blob);
                continue;
            }
            let overhead = (batch.len() as u64 + 1) * BATCH_ENTRY_BYTES;
            let is_full = bytes + size_bytes > self.capabilities.batch_bytes_max
                || bytes + size_bytes + overhead > MESSAGE_BYTES_MAX;
            if is_full && !batch.is_empty() {
                batches.push(std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += size_bytes;
            batch.push(blob);
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        (batches, streams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::digests::DigestFunction;
    use crate::remote::endpoint::RemoteOptions;

    fn session(batch_bytes_max: u64) -> Session {
        let server = Server::new(&RemoteOptions::new("grpc://localhost:1").expect("a URL"));
        let capabilities = RemoteCapabilities {
            digest_function: DigestFunction::Sha256,
            may_update_actions: true,
            allows_absolute_symlinks: false,
            blob_bytes_max: None,
            batch_bytes_max,
            has_zstd: false,
            has_zstd_in_batches: false,
            chunking: None,
            version: "2.3".to_owned(),
        };
        Session::new(Arc::new(server), capabilities)
    }

    fn cut(session: &Session, sizes: &[u64]) -> (Vec<Vec<u64>>, Vec<u64>) {
        session.batches_of(sizes.to_vec(), |size| RemoteDigest::new([0; 32], *size))
    }

    #[test]
    fn batches_keep_the_servers_limit() {
        let session = session(100);
        assert_eq!(cut(&session, &[]), (vec![], vec![]));
        assert_eq!(
            cut(&session, &[40, 60, 1, 101, 100, 99]),
            (vec![vec![40, 60], vec![1], vec![100], vec![99]], vec![101])
        );
    }

    #[test]
    fn batches_keep_the_limit_of_messages_with_what_is_around_the_blobs() {
        let session = session(MESSAGE_BYTES_MAX);
        let most = MESSAGE_BYTES_MAX - BATCH_ENTRY_BYTES;
        assert_eq!(
            cut(&session, &[most, 1, most + 1]),
            (vec![vec![most], vec![1]], vec![most + 1]),
        );
        let small = vec![1; 100_000];
        let (batches, streams) = cut(&session, &small);
        assert!(streams.is_empty());
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), small.len(), "none is lost");
        for batch in &batches {
            let bytes = batch.len() as u64 * (1 + BATCH_ENTRY_BYTES);
            assert!(bytes <= MESSAGE_BYTES_MAX, "{bytes}");
        }
    }
}
