//! Large blobs to a server in chunks, of which only those travel that it lacks.
//!
//! From `remote_execution.proto`, `FastCdc2020Params` and `RegisterChunkMapping` (`SpliceBlob`
//! before 2.13): chunks are cut by content, with a quarter of the average as the smallest and four
//! times it as the largest size, normalization level 2; blobs up to the largest size travel whole;
//! all chunks are there before the server is told how they make the blob; the server checks what
//! they make.
//!
//! Whatever does not work with chunks is done without: a chunk that was evicted in between, a
//! server that claims more than it can. The other way round, downloads are whole: which chunks are
//! here already is not known.

use super::upload::{Exactly, Upload, UploadSource, Uploaded};
use super::{ANSWER_BYTES_MAX, Session};
use crate::remote::call::{Failure, Purpose};
use crate::remote::capabilities::{Chunking, DIGEST_BYTES, MESSAGE_BYTES_MAX};
use crate::remote::channel::Patience;
use crate::remote::digests::{DigestFunction, RemoteDigest};
use crate::remote::error::RemoteError;
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use fastcdc::v2020::{Normalization, StreamCDC};
use reapi::chunking_function::Value as ChunkingFunction;
use reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;
use tonic::Code;

const ACTION: &str = "put chunks together";
/// How many digests one message of a stream has.
const DIGESTS_MAX: usize = 10_000;

impl Chunking {
    /// Whether a blob of this size is cut.
    pub(super) fn cuts(&self, size_bytes: u64) -> bool {
        self.can_splice && size_bytes > u64::from(self.average_bytes) * 4
    }
}

/// A part of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    digest: RemoteDigest,
    offset_bytes: u64,
}

/// The bytes of a part of a blob.
struct ChunkSource {
    whole: Arc<dyn UploadSource>,
    chunk: Chunk,
}

impl UploadSource for ChunkSource {
    fn open(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>> {
        let left_bytes = self.chunk.digest.size_bytes.saturating_sub(offset_bytes);
        Ok(Box::new(self.whole.open_part(self.chunk.offset_bytes + offset_bytes)?.take(left_bytes)))
    }
}

impl Session {
    /// Uploads a blob in chunks; `None` if it has to travel whole.
    ///
    /// # Errors
    /// If the blob cannot be read, or the server is unavailable.
    pub(super) async fn upload_chunks(
        self: &Arc<Session>,
        upload: &Upload,
        chunking: Chunking,
    ) -> Result<Option<Uploaded>, RemoteError> {
        let chunks = self.cut(upload, chunking).await?;
        let is_too_long = chunks.len() as u64 * DIGEST_BYTES > MESSAGE_BYTES_MAX;
        if chunks.len() < 2 || (is_too_long && !chunking.is_streamed) {
            return Ok(None);
        }
        let digests: Vec<RemoteDigest> = chunks.iter().map(|chunk| chunk.digest).collect();
        let missing: HashSet<RemoteDigest> =
            self.find_missing(&digests).await?.into_iter().collect();
        let uploads = chunks
            .iter()
            .filter(|chunk| missing.contains(&chunk.digest))
            .map(|chunk| Upload {
                digest: chunk.digest,
                source: Arc::new(ChunkSource { whole: Arc::clone(&upload.source), chunk: *chunk }),
            })
            .collect();
        // Not `upload`, which cuts: a future must not contain itself.
        let sent = self.upload_whole(uploads).await?;
        match self.splice(upload.digest, &digests, chunking).await {
            Ok(()) => Ok(Some(Uploaded { blobs: 1, sent_bytes: sent.sent_bytes })),
            Err(failure) if failure.code == Code::AlreadyExists => {
                Ok(Some(Uploaded { blobs: 1, sent_bytes: sent.sent_bytes }))
            }
            Err(failure) if failure.is_absent() || failure.may_be_the_form() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Finds the chunks; reads the whole blob once.
    async fn cut(&self, upload: &Upload, chunking: Chunking) -> Result<Vec<Chunk>, RemoteError> {
        let (upload, function) = (upload.clone(), self.capabilities.digest_function);
        let cut = tokio::task::spawn_blocking(move || {
            let source = upload.source.open(0);
            source
                .and_then(|source| {
                    cut(Exactly::new(source, upload.digest.size_bytes), chunking, function)
                })
                .map_err(|error| RemoteError::source(&upload.digest, error))
        });
        cut.await.unwrap_or_else(|_| Err(RemoteError::invalid("cutting a blob ended in a panic")))
    }

    /// Tells the server of which chunks a blob is made.
    async fn splice(
        &self,
        blob: RemoteDigest,
        chunks: &[RemoteDigest],
        chunking: Chunking,
    ) -> Result<(), Failure> {
        let bytes = chunks.len() as u64 * DIGEST_BYTES;
        // The server reads and hashes all of it before it answers.
        let patience = self.server.patience(bytes);
        let commit = super::write::commit_time(blob.size_bytes);
        let patience = Patience {
            idle: patience.idle.saturating_add(commit),
            total: patience.total.saturating_add(commit),
        };
        let mut trial = self.server.trial(ACTION, Purpose::Write)?;
        loop {
            let line = trial.line().await?;
            let mut client = ContentAddressableStorageClient::new(line.channel())
                .max_decoding_message_size(ANSWER_BYTES_MAX);
            let outcome = if chunking.is_streamed {
                let messages = tokio_stream::iter(self.mapping(blob, chunks));
                let call = client.register_chunk_mapping(line.request(messages));
                line.watch(patience, call).await.map(|answer| answer.into_inner().blob_digest)
            } else {
                let message = reapi::SpliceBlobRequest {
                    instance_name: self.server.instance().to_owned(),
                    blob_digest: Some(blob.to_message()),
                    chunk_digests: chunks.iter().map(|chunk| chunk.to_message()).collect(),
                    digest_function: self.capabilities.digest_function.number(),
                    chunking_function: ChunkingFunction::FastCdc2020 as i32,
                };
                let call = client.splice_blob(line.request(message));
                line.watch(patience, call).await.map(|answer| answer.into_inner().blob_digest)
            };
            match outcome {
                Ok(made) => {
                    trial.answered(());
                    let made = made.as_ref().and_then(RemoteDigest::from_message);
                    if made == Some(blob) {
                        return Ok(());
                    }
                    return Err(self.server.lied(ACTION, "made another blob of them").into());
                }
                Err(status) => trial.failed(&line, &status).await?,
            }
        }
    }

    /// The messages of the streamed form: only the first says what they are about.
    fn mapping(
        &self,
        blob: RemoteDigest,
        chunks: &[RemoteDigest],
    ) -> Vec<reapi::RegisterChunkMappingRequest> {
        let mut messages: Vec<reapi::RegisterChunkMappingRequest> = chunks
            .chunks(DIGESTS_MAX)
            .map(|part| reapi::RegisterChunkMappingRequest {
                chunk_digests: part.iter().map(|chunk| chunk.to_message()).collect(),
                ..reapi::RegisterChunkMappingRequest::default()
            })
            .collect();
        if let Some(first) = messages.first_mut() {
            self.server.instance().clone_into(&mut first.instance_name);
            first.blob_digest = Some(blob.to_message());
            first.digest_function = self.capabilities.digest_function.number();
            first.chunking_function = ChunkingFunction::FastCdc2020 as i32;
        }
        messages
    }
}

fn cut(source: impl Read, chunking: Chunking, function: DigestFunction) -> io::Result<Vec<Chunk>> {
    let average = chunking.average_bytes as usize;
    let chunks = StreamCDC::with_level_and_seed(
        source,
        average / 4,
        average,
        average * 4,
        Normalization::Level2,
        u64::from(chunking.seed),
    );
    chunks
        .map(|chunk| {
            let chunk = chunk.map_err(io::Error::other)?;
            Ok(Chunk { digest: function.digest(&chunk.data), offset_bytes: chunk.offset })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKING: Chunking =
        Chunking { average_bytes: 4096, seed: 0, can_splice: true, is_streamed: false };

    fn noise(seed: u8, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn chunks_of(bytes: &[u8], chunking: Chunking) -> Vec<Chunk> {
        cut(bytes, chunking, DigestFunction::Sha256).expect("memory can be read")
    }

    #[test]
    fn chunks_make_the_blob_and_keep_their_bounds() -> io::Result<()> {
        let bytes = noise(1, 300_000);
        let chunks = chunks_of(&bytes, CHUNKING);
        let (mut whole, last) = (Vec::new(), chunks.len() - 1);
        let source: Arc<dyn UploadSource> = Arc::new(bytes.clone());
        for (index, chunk) in chunks.iter().enumerate() {
            assert_eq!(chunk.offset_bytes, whole.len() as u64);
            let size = chunk.digest.size_bytes;
            assert!(size <= 4 * 4096 && (size >= 1024 || index == last), "{size}");
            let part = ChunkSource { whole: Arc::clone(&source), chunk: *chunk };
            let before = whole.len();
            part.open(0)?.read_to_end(&mut whole)?;
            assert_eq!(DigestFunction::Sha256.digest(&whole[before..]), chunk.digest);
            let mut rest = Vec::new();
            part.open(7)?.read_to_end(&mut rest)?;
            assert_eq!(rest, whole[before + 7..]);
        }
        assert_eq!(whole, bytes);
        Ok(())
    }

    #[test]
    fn a_change_in_the_middle_changes_few_chunks() {
        let before = noise(1, 1 << 20);
        let mut after = before.clone();
        after.splice(500_000..500_000, *b"inserted");
        let known: HashSet<RemoteDigest> =
            chunks_of(&before, CHUNKING).iter().map(|chunk| chunk.digest).collect();
        let new: Vec<Chunk> = chunks_of(&after, CHUNKING)
            .into_iter()
            .filter(|chunk| !known.contains(&chunk.digest))
            .collect();
        assert!(!new.is_empty() && new.len() <= 3, "{} of {}", new.len(), known.len());
    }

    #[test]
    fn a_seed_cuts_elsewhere() {
        let bytes = noise(1, 100_000);
        let seeded = Chunking { seed: 42, ..CHUNKING };
        assert_ne!(chunks_of(&bytes, CHUNKING), chunks_of(&bytes, seeded));
    }

    #[test]
    fn blobs_up_to_the_largest_chunk_travel_whole() {
        assert!(!CHUNKING.cuts(4 * 4096) && CHUNKING.cuts(4 * 4096 + 1));
        assert!(!Chunking { can_splice: false, ..CHUNKING }.cuts(u64::MAX));
    }
}
