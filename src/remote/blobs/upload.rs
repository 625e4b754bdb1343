//! Blobs to a server: small ones in batches, the others as streams.
//!
//! From `remote_execution.proto`, `BatchUpdateBlobs`: "The requests may succeed or fail
//! independently". Each blob's own status counts, and only those that failed are sent again.

use super::compress;
use super::{ANSWER_BYTES_MAX, Session};
use crate::remote::call::Purpose;
use crate::remote::digests::RemoteDigest;
use crate::remote::error::{Answer, RemoteError};
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use bazel_remote_apis::google::rpc;
use prost::Message;
use reapi::batch_update_blobs_request::Request as Entry;
use reapi::compressor::Value as Compressor;
use reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Cursor, Read};
use std::sync::Arc;
use tokio::task::JoinSet;
use tonic::{Code, Status};

const ACTION: &str = "upload blobs";

/// Gives the bytes of one blob, as often as they are needed. Read on a blocking thread.
pub(crate) trait UploadSource: Send + Sync {
    /// The bytes from this offset on.
    ///
    /// # Errors
    /// If they cannot be read.
    fn open(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>>;

    /// The same, for a part that has a digest of its own: what is read need not be seen to belong to the
    /// whole.
    ///
    /// # Errors
    /// If they cannot be read.
    fn open_part(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>> {
        self.open(offset_bytes)
    }
}

/// Messages that are blobs, which are in memory anyway.
impl UploadSource for Vec<u8> {
    fn open(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut bytes = Cursor::new(self.clone());
        bytes.set_position(offset_bytes);
        Ok(Box::new(bytes))
    }
}

/// A blob that the server is to have.
#[derive(Clone)]
pub(crate) struct Upload {
    /// Its name.
    pub(crate) digest: RemoteDigest,
    /// Its bytes.
    pub(crate) source: Arc<dyn UploadSource>,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// What an upload did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Uploaded {
    /// How many blobs the server has taken, or had by then.
    pub(crate) blobs: u64,
    /// How many bytes of blobs were sent, as they were sent: compressed ones count as such.
    pub(crate) sent_bytes: u64,
}

impl Uploaded {
    fn add(&mut self, other: Uploaded) {
        self.blobs += other.blobs;
        self.sent_bytes += other.sent_bytes;
    }
}

impl Session {
    /// Uploads all of them, each once. What [`Session::find_missing`] does not list need not be
    /// given.
    ///
    /// # Errors
    /// The first error; the others are tried all the same, unless the server is unavailable or
    /// refuses what is written.
    pub(crate) async fn upload(
        self: &Arc<Session>,
        uploads: Vec<Upload>,
    ) -> Result<Uploaded, RemoteError> {
        let mut seen = HashSet::new();
        let uploads: Vec<Upload> = uploads
            .into_iter()
            .filter(|upload| !upload.digest.is_empty() && seen.insert(upload.digest))
            .collect();
        if uploads.iter().any(|upload| !self.capabilities.takes(upload.digest.size_bytes)) {
            let answer =
                Answer::new(Code::InvalidArgument, "a blob is larger than the server takes");
            return Err(self.server.refused(ACTION, answer));
        }
        let chunking = self.capabilities.chunking;
        let is_cut = |upload: &Upload| {
            chunking.is_some_and(|chunking| chunking.cuts(upload.digest.size_bytes))
        };
        let (large, mut whole): (Vec<Upload>, Vec<Upload>) = uploads.into_iter().partition(is_cut);
        let mut uploaded = Uploaded::default();
        if let Some(chunking) = chunking {
            // One after another: the chunks of each keep the line busy.
            for upload in large {
                match self.upload_chunks(&upload, chunking).await? {
                    Some(done) => uploaded.add(done),
                    None => whole.push(upload),
                }
            }
        }
        uploaded.add(self.upload_whole(whole).await?);
        Ok(uploaded)
    }

    /// Uploads all of them, none in chunks.
    ///
    /// # Errors
    /// As for [`Session::upload`].
    pub(super) async fn upload_whole(
        self: &Arc<Session>,
        uploads: Vec<Upload>,
    ) -> Result<Uploaded, RemoteError> {
        let (batches, streams) = self.batches_of(uploads, |upload| upload.digest);
        let mut calls = JoinSet::new();
        for batch in batches {
            let session = Arc::clone(self);
            calls.spawn(async move { session.upload_batch(batch).await });
        }
        for upload in streams {
            let session = Arc::clone(self);
            calls.spawn(async move { session.upload_stream(upload).await });
        }
        let (mut uploaded, mut first_error) = (Uploaded::default(), None);
        while let Some(outcome) = calls.join_next().await {
            match outcome {
                Ok(Ok(part)) => uploaded.add(part),
                Ok(Err(error)) => {
                    let is_hopeless = matches!(
                        error,
                        RemoteError::Unavailable { .. } | RemoteError::Refused { .. }
                    );
                    first_error.get_or_insert(error);
                    if is_hopeless {
                        break;
                    }
                }
                Err(_) => return Err(RemoteError::invalid("an upload ended in a panic")),
            }
        }
        first_error.map_or(Ok(uploaded), Err)
    }

    /// One after another, each alone.
    async fn upload_streams(&self, uploads: Vec<Upload>) -> Result<Uploaded, RemoteError> {
        let mut uploaded = Uploaded::default();
        for upload in uploads {
            uploaded.add(self.upload_stream(upload).await?);
        }
        Ok(uploaded)
    }

    async fn upload_stream(&self, upload: Upload) -> Result<Uploaded, RemoteError> {
        let _permit = self.streams.acquire().await;
        let sent_bytes = self.write(&upload).await?;
        Ok(Uploaded { blobs: 1, sent_bytes })
    }

    async fn upload_batch(&self, mut left: Vec<Upload>) -> Result<Uploaded, RemoteError> {
        let permit = self.batches.acquire().await;
        let mut uploaded = Uploaded::default();
        let mut trial = self.server.trial(ACTION, Purpose::Write)?;
        loop {
            let (entries, bytes) = self.entries(&left).await?;
            let message = reapi::BatchUpdateBlobsRequest {
                instance_name: self.server.instance().to_owned(),
                requests: entries,
                digest_function: self.capabilities.digest_function.number(),
            };
            let line = trial.line().await?;
            let mut client = ContentAddressableStorageClient::new(line.channel())
                .max_decoding_message_size(ANSWER_BYTES_MAX);
            let call = client.batch_update_blobs(line.request(message));
            uploaded.sent_bytes += bytes;
            let status = match line.watch(self.server.patience(bytes), call).await {
                Ok(answer) => {
                    let count = left.len();
                    let (failed, status) = self.sort_out(left, answer.into_inner())?;
                    uploaded.blobs += (count - failed.len()) as u64;
                    left = failed;
                    let Some(status) = status else { return Ok(trial.answered(uploaded)) };
                    if left.len() < count {
                        trial.got_on();
                    }
                    status
                }
                Err(status) => status,
            };
            if let Err(failure) = trial.failed(&line, &status).await {
                // Too large for a limit that the server did not name, or no batches at all.
                if failure.may_be_the_form() {
                    drop(permit);
                    uploaded.add(self.upload_streams(left).await?);
                    return Ok(uploaded);
                }
                return Err(failure.into());
            }
        }
    }

    /// Reads the blobs of a batch, and how many bytes of them are sent.
    async fn entries(&self, uploads: &[Upload]) -> Result<(Vec<Entry>, u64), RemoteError> {
        let (uploads, may_compress) = (uploads.to_vec(), self.capabilities.has_zstd_in_batches);
        let read = tokio::task::spawn_blocking(move || {
            let entries: Result<Vec<Entry>, RemoteError> = uploads
                .iter()
                .map(|upload| {
                    entry(upload, may_compress)
                        .map_err(|error| RemoteError::source(&upload.digest, error))
                })
                .collect();
            entries.map(|entries| {
                let bytes = entries.iter().map(|entry| entry.data.len() as u64).sum();
                (entries, bytes)
            })
        });
        read.await.unwrap_or_else(|_| Err(RemoteError::invalid("reading blobs ended in a panic")))
    }

    /// Those that failed, and the status of one of them.
    fn sort_out(
        &self,
        sent: Vec<Upload>,
        answer: reapi::BatchUpdateBlobsResponse,
    ) -> Result<(Vec<Upload>, Option<Status>), RemoteError> {
        let mut outcomes: HashMap<RemoteDigest, Option<rpc::Status>> =
            sent.iter().map(|upload| (upload.digest, None)).collect();
        for response in answer.responses {
            let digest = response.digest.as_ref().and_then(RemoteDigest::from_message);
            let Some(outcome) = digest.and_then(|digest| outcomes.get_mut(&digest)) else {
                return Err(self.server.lied(ACTION, "answered for a blob that was not sent"));
            };
            let status = response.status.unwrap_or_default();
            // Of two answers the worse one counts.
            if outcome.as_ref().is_none_or(is_success) {
                *outcome = Some(status);
            }
        }
        let (mut failed, mut worst) = (Vec::new(), None);
        for upload in sent {
            let status = match outcomes.remove(&upload.digest).flatten() {
                Some(status) if is_success(&status) => continue,
                Some(status) => to_status(&status),
                None => Status::unknown("the server did not answer for each blob"),
            };
            failed.push(upload);
            // One that will not pass by itself decides.
            let passes = |status: &Status| {
                matches!(
                    crate::remote::retry::judge(status),
                    crate::remote::retry::Verdict::Again(_)
                )
            };
            if worst.as_ref().is_none_or(passes) {
                worst = Some(status);
            }
        }
        Ok((failed, worst))
    }
}

/// A blob's own status, as far as an answer for a call has it.
pub(super) fn to_status(status: &rpc::Status) -> Status {
    // The details say when to try again.
    Status::with_details(
        Code::from_i32(status.code),
        status.message.clone(),
        status.encode_to_vec().into(),
    )
}

fn is_success(status: &rpc::Status) -> bool {
    matches!(Code::from_i32(status.code), Code::Ok | Code::AlreadyExists)
}

fn entry(upload: &Upload, may_compress: bool) -> io::Result<Entry> {
    let size_bytes = upload.digest.size_bytes;
    let mut data = Vec::with_capacity(size_bytes as usize);
    Exactly::new(upload.source.open(0)?, size_bytes).read_to_end(&mut data)?;
    let mut compressor = Compressor::Identity;
    if may_compress && size_bytes >= compress::BYTES_MIN {
        let compressed = zstd::bulk::compress(&data, compress::LEVEL)?;
        if compress::is_worth_it(data.len(), compressed.len()) {
            (data, compressor) = (compressed, Compressor::Zstd);
        }
    }
    Ok(Entry { digest: Some(upload.digest.to_message()), data, compressor: compressor as i32 })
}

/// A reader that has exactly so many bytes, or fails: a source that has changed must not be sent
/// under the old name.
pub(super) struct Exactly<R> {
    inner: R,
    left_bytes: u64,
}

impl<R> Exactly<R> {
    pub(super) fn new(inner: R, left_bytes: u64) -> Exactly<R> {
        Exactly { inner, left_bytes }
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left_bytes == 0 {
            return match self.inner.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "longer than its digest says")),
            };
        }
        let most = buffer.len().min(usize::try_from(self.left_bytes).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 {
            let what = "shorter than its digest says";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.left_bytes -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_of_another_size_is_an_error() {
        let read = |bytes: &[u8], size: u64| {
            let mut found = Vec::new();
            Exactly::new(bytes, size).read_to_end(&mut found).map(|_| found)
        };
        assert_eq!(read(b"abc", 3).expect("as long as it says"), b"abc");
        assert_eq!(read(b"abc", 4).expect_err("short").kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(b"abc", 2).expect_err("long").kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(b"", 0).expect("empty"), b"");
    }
}
