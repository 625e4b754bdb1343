//! Blobs from a server: small ones in batches, the others as streams, in whatever order they
//! arrive.
//!
//! The transfer runs on the runtime; blocking threads take what arrives ([`Downloads::next`]) and
//! read it ([`BlobReader`]). Between the two are bounded channels: whoever takes slowly slows the
//! server down.

use super::compress;
use super::{ANSWER_BYTES_MAX, Session};
use crate::remote::call::Purpose;
use crate::remote::digests::RemoteDigest;
use crate::remote::error::{Answer, RemoteError};
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use reapi::batch_read_blobs_response::Response as Entry;
use reapi::compressor::Value as Compressor;
use reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tonic::{Code, Status};

const ACTION: &str = "download blobs";
/// How many blobs have arrived and wait to be taken.
const ARRIVALS_MAX: usize = 8;
/// How many messages of one stream wait to be read. They can have 4 MiB.
const PIECES_MAX: usize = 1;

/// Downloads that are under way. Dropped, they end.
#[derive(Debug)]
pub(crate) struct Downloads {
    arrivals: Mutex<mpsc::Receiver<Arrival>>,
    task: AbortHandle,
}

/// A blob that has arrived, or whose first bytes have, or that will not.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Which one.
    pub(crate) digest: RemoteDigest,
    /// Its bytes.
    pub(crate) content: Result<BlobReader, RemoteError>,
}

/// What a stream consists of.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Vec<u8>),
    /// All bytes were there, and they were the right ones.
    End,
    Failed(RemoteError),
}

/// The bytes of a blob. Reads to its end only if they have the blob's size and digest; every error
/// is a [`RemoteError`] inside of an `io::Error`. Blocks; not for asynchronous code.
#[derive(Debug)]
pub(crate) struct BlobReader {
    current: io::Cursor<Vec<u8>>,
    /// Where more comes from; `None` if `current` is all.
    rest: Option<mpsc::Receiver<Piece>>,
}

impl Downloads {
    /// The next blob; `None` after the last. Blocks; any thread that is not the runtime's may call
    /// it, several at once. Each blob that was asked for arrives once.
    pub(crate) fn next(&self) -> Option<Arrival> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv()
    }

    /// As [`Downloads::next`], for asynchronous code.
    pub(crate) async fn next_async(&mut self) -> Option<Arrival> {
        self.arrivals.get_mut().unwrap_or_else(PoisonError::into_inner).recv().await
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl BlobReader {
    fn whole(bytes: Vec<u8>) -> BlobReader {
        BlobReader { current: io::Cursor::new(bytes), rest: None }
    }

    fn stream(rest: mpsc::Receiver<Piece>) -> BlobReader {
        BlobReader { current: io::Cursor::new(Vec::new()), rest: Some(rest) }
    }

    /// All bytes, for asynchronous code and blobs that fit in memory.
    ///
    /// # Errors
    /// As for reading.
    pub(crate) async fn into_bytes(self) -> Result<Vec<u8>, RemoteError> {
        let mut bytes = self.current.into_inner();
        let Some(mut rest) = self.rest else { return Ok(bytes) };
        loop {
            match rest.recv().await {
                Some(Piece::Bytes(more)) => bytes.extend(more),
                Some(Piece::End) => return Ok(bytes),
                Some(Piece::Failed(error)) => return Err(error),
                None => return Err(given_up()),
            }
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            let Some(rest) = self.rest.as_mut().filter(|_| count == 0 && !buffer.is_empty()) else {
                return Ok(count);
            };
            match rest.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = io::Cursor::new(bytes),
                Some(Piece::End) => self.rest = None,
                Some(Piece::Failed(error)) => return Err(error.into()),
                // Not an end: the rest is missing.
                None => return Err(given_up().into()),
            }
        }
    }
}

impl Session {
    /// Begins to download each of them once. A blob without bytes arrives without being asked for.
    pub(crate) fn download(self: &Arc<Session>, digests: &[RemoteDigest]) -> Downloads {
        let mut seen = HashSet::new();
        let digests: Vec<RemoteDigest> =
            digests.iter().copied().filter(|digest| seen.insert(*digest)).collect();
        let (sender, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let session = Arc::clone(self);
        let task = tokio::spawn(async move { session.download_all(digests, sender).await });
        Downloads { arrivals: Mutex::new(arrivals), task: task.abort_handle() }
    }

    async fn download_all(
        self: Arc<Session>,
        digests: Vec<RemoteDigest>,
        arrivals: mpsc::Sender<Arrival>,
    ) {
        let (empty, digests): (Vec<_>, Vec<_>) =
            digests.into_iter().partition(RemoteDigest::is_empty);
        let (batches, streams) = self.batches_of(digests, |digest| *digest);
        let mut calls = JoinSet::new();
        // Streams first: the largest take longest.
        for digest in streams {
            let (session, arrivals) = (Arc::clone(&self), arrivals.clone());
            calls.spawn(async move { session.download_stream(digest, &arrivals).await });
        }
        for batch in batches {
            let (session, arrivals) = (Arc::clone(&self), arrivals.clone());
            calls.spawn(async move { session.download_batch(batch, &arrivals).await });
        }
        for digest in empty {
            let content = if self.capabilities.digest_function.digest(b"") == digest {
                Ok(BlobReader::whole(Vec::new()))
            } else {
                Err(self.server.absent(&digest))
            };
            drop(arrivals.send(Arrival { digest, content }).await);
        }
        while calls.join_next().await.is_some() {}
    }

    async fn download_stream(&self, digest: RemoteDigest, arrivals: &mpsc::Sender<Arrival>) {
        let _permit = self.streams.acquire().await;
        let (sink, pieces) = mpsc::channel(PIECES_MAX);
        let arrival = Arrival { digest, content: Ok(BlobReader::stream(pieces)) };
        // Bytes come while the blob waits to be taken.
        let (sent, ()) = tokio::join!(arrivals.send(arrival), self.read(digest, sink));
        drop(sent); // If nobody takes it, the reading has ended, too.
    }

    async fn download_batch(&self, mut left: Vec<RemoteDigest>, arrivals: &mpsc::Sender<Arrival>) {
        let permit = self.batches.acquire().await;
        let failed = match self.try_download_batch(&mut left, arrivals).await {
            Ok(()) => None,
            Err(failed) => failed,
        };
        drop(permit);
        for digest in left {
            match &failed {
                Some(error) => {
                    let content = Err(error.clone());
                    drop(arrivals.send(Arrival { digest, content }).await);
                }
                None => self.download_stream(digest, arrivals).await,
            }
        }
    }

    /// Passes on what arrives and takes it out of `left`. What is left then has this error, or may
    /// come as streams.
    async fn try_download_batch(
        &self,
        left: &mut Vec<RemoteDigest>,
        arrivals: &mpsc::Sender<Arrival>,
    ) -> Result<(), Option<RemoteError>> {
        let mut trial = self.server.trial(ACTION, Purpose::Read).map_err(Some)?;
        loop {
            let compressor =
                if self.capabilities.has_zstd { Compressor::Zstd } else { Compressor::Identity };
            let message = reapi::BatchReadBlobsRequest {
                instance_name: self.server.instance().to_owned(),
                digests: left.iter().map(|digest| digest.to_message()).collect(),
                acceptable_compressors: vec![compressor as i32],
                digest_function: self.capabilities.digest_function.number(),
            };
            let bytes = left.iter().map(|digest| digest.size_bytes).sum();
            let line = trial.line().await.map_err(Some)?;
            let mut client = ContentAddressableStorageClient::new(line.channel())
                .max_decoding_message_size(ANSWER_BYTES_MAX);
            let call = client.batch_read_blobs(line.request(message));
            let status = match line.watch(self.server.patience(bytes), call).await {
                Ok(answer) => {
                    let count = left.len();
                    let again = self.sort_in(left, answer.into_inner(), arrivals).await;
                    let Some(status) = again.map_err(Some)? else {
                        trial.answered(());
                        return Ok(());
                    };
                    if left.len() < count {
                        trial.got_on();
                    }
                    status
                }
                Err(status) => status,
            };
            if let Err(failure) = trial.failed(&line, &status).await {
                // No batches, or none as large as this.
                return Err(if failure.may_be_the_form() { None } else { Some(failure.into()) });
            }
        }
    }

    /// Passes on each blob that is there, or will never be. What may come another time stays in
    /// `left`, and the status of one of them is returned.
    async fn sort_in(
        &self,
        left: &mut Vec<RemoteDigest>,
        answer: reapi::BatchReadBlobsResponse,
        arrivals: &mpsc::Sender<Arrival>,
    ) -> Result<Option<Status>, RemoteError> {
        let mut wanted: HashSet<RemoteDigest> = left.iter().copied().collect();
        let mut again = HashSet::new();
        let mut outcome = Ok(None);
        for entry in answer.responses {
            let digest = entry.digest.as_ref().and_then(RemoteDigest::from_message);
            let Some(digest) = digest.filter(|digest| wanted.remove(digest)) else {
                outcome = Err(self.server.lied(ACTION, "sent a blob that nobody asked for"));
                break;
            };
            let own = super::upload::to_status(&entry.status.clone().unwrap_or_default());
            let content = match own.code() {
                Code::Ok => self.content(&digest, entry).map(BlobReader::whole),
                Code::NotFound => Err(self.server.absent(&digest)),
                _ => {
                    again.insert(digest);
                    outcome = Ok(Some(own));
                    continue;
                }
            };
            drop(arrivals.send(Arrival { digest, content }).await);
        }
        left.retain(|digest| wanted.contains(digest) || again.contains(digest));
        if matches!(outcome, Ok(None)) && !left.is_empty() {
            outcome = Ok(Some(Status::unknown("the server did not answer for each blob")));
        }
        outcome
    }

    /// The bytes of one blob of a batch, if they are right.
    fn content(&self, digest: &RemoteDigest, entry: Entry) -> Result<Vec<u8>, RemoteError> {
        let bytes = match Compressor::try_from(entry.compressor) {
            Ok(Compressor::Identity) => entry.data,
            Ok(Compressor::Zstd) => {
                compress::decompress(&entry.data, digest.size_bytes as usize)
                    .map_err(|_| self.server.lied(ACTION, "sent bytes that do not decompress"))?
            }
            _ => return Err(self.server.lied(ACTION, "sent a form that nobody asked for")),
        };
        if self.capabilities.digest_function.digest(&bytes) == *digest {
            Ok(bytes)
        } else {
            Err(self.server.lied(ACTION, "sent bytes of another digest"))
        }
    }
}

/// The transfer was dropped while somebody still read.
fn given_up() -> RemoteError {
    RemoteError::Unavailable {
        action: ACTION,
        server: "the server".into(),
        source: Answer::new(Code::Cancelled, "the download was given up"),
    }
}
