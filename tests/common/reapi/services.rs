//! The services of messages: capabilities, results, blobs in batches.

use super::{Method, ReadFault, Shared, State, reapi};
use bazel_remote_apis::google::rpc;
use reapi::compressor::Value as Compressor;
use std::collections::VecDeque;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

const MESSAGE_BYTES_MAX: i64 = 4 << 20;

#[tonic::async_trait]
impl reapi::capabilities_server::Capabilities for Shared {
    async fn get_capabilities(
        &self,
        request: Request<reapi::GetCapabilitiesRequest>,
    ) -> Result<Response<reapi::ServerCapabilities>, Status> {
        let what = request.get_ref().instance_name.clone();
        self.enter(Method::Capabilities, what, &request).await?;
        Ok(Response::new(self.state().behaviour.capabilities.clone()))
    }
}

#[tonic::async_trait]
impl reapi::action_cache_server::ActionCache for Shared {
    async fn get_action_result(
        &self,
        request: Request<reapi::GetActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let hash = request.get_ref().action_digest.clone().unwrap_or_default().hash;
        self.enter(Method::GetAction, &hash, &request).await?;
        self.check_function(request.get_ref().digest_function)?;
        let result = self.state().actions.get(&hash).cloned();
        result.map(Response::new).ok_or_else(|| Status::not_found("no such result"))
    }

    async fn update_action_result(
        &self,
        request: Request<reapi::UpdateActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let digest = request.get_ref().action_digest.clone().unwrap_or_default();
        self.enter(Method::UpdateAction, &digest.hash, &request).await?;
        self.check_function(request.get_ref().digest_function)?;
        let result = request.into_inner().action_result.unwrap_or_default();
        let mut state = self.state();
        // As strict servers do.
        if !state.holds(&digest) {
            return Err(Status::failed_precondition("the action itself is missing"));
        }
        state.actions.insert(digest.hash, result.clone());
        Ok(Response::new(result))
    }
}

#[tonic::async_trait]
impl reapi::content_addressable_storage_server::ContentAddressableStorage for Shared {
    async fn find_missing_blobs(
        &self,
        request: Request<reapi::FindMissingBlobsRequest>,
    ) -> Result<Response<reapi::FindMissingBlobsResponse>, Status> {
        let count = request.get_ref().blob_digests.len();
        self.enter(Method::FindMissing, count.to_string(), &request).await?;
        let request = request.into_inner();
        self.check_function(request.digest_function)?;
        let state = self.state();
        let mut missing: Vec<_> =
            request.blob_digests.into_iter().filter(|digest| !state.holds(digest)).collect();
        if state.behaviour.names_another {
            missing.push(state.digest(b"something else"));
        }
        Ok(Response::new(reapi::FindMissingBlobsResponse { missing_blob_digests: missing }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<reapi::BatchUpdateBlobsRequest>,
    ) -> Result<Response<reapi::BatchUpdateBlobsResponse>, Status> {
        let count = request.get_ref().requests.len();
        self.enter(Method::BatchUpdate, count.to_string(), &request).await?;
        let request = request.into_inner();
        self.check_function(request.digest_function)?;
        let mut state = self.state();
        let sizes =
            request.requests.iter().map(|r| r.digest.clone().unwrap_or_default().size_bytes);
        state.check_batch(sizes.sum())?;
        let mut responses = Vec::new();
        for entry in request.requests {
            let digest = entry.digest.clone().unwrap_or_default();
            let status = state.take_entry(entry);
            let response = reapi::batch_update_blobs_response::Response {
                digest: Some(digest),
                status: Some(status),
            };
            responses.push(response);
        }
        if state.behaviour.answers_nothing {
            responses.clear();
        }
        if state.behaviour.names_another {
            let digest = Some(state.digest(b"something else"));
            responses.push(reapi::batch_update_blobs_response::Response { digest, status: None });
        }
        Ok(Response::new(reapi::BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<reapi::BatchReadBlobsRequest>,
    ) -> Result<Response<reapi::BatchReadBlobsResponse>, Status> {
        let count = request.get_ref().digests.len();
        self.enter(Method::BatchRead, count.to_string(), &request).await?;
        let request = request.into_inner();
        self.check_function(request.digest_function)?;
        let may_compress = request.acceptable_compressors.contains(&(Compressor::Zstd as i32));
        let mut state = self.state();
        state.check_batch(request.digests.iter().map(|digest| digest.size_bytes).sum())?;
        let mut responses = Vec::new();
        for digest in request.digests {
            responses.push(state.give_entry(digest, may_compress));
        }
        if state.behaviour.answers_nothing {
            responses.clear();
        }
        if state.behaviour.names_another {
            let digest = state.digest(b"something else");
            responses.push(state.give_entry(digest, may_compress));
        }
        Ok(Response::new(reapi::BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream = ReceiverStream<Result<reapi::GetTreeResponse, Status>>;

    async fn get_tree(
        &self,
        _: Request<reapi::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn split_blob(
        &self,
        _: Request<reapi::SplitBlobRequest>,
    ) -> Result<Response<reapi::SplitBlobResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    type GetChunkMappingStream = ReceiverStream<Result<reapi::GetChunkMappingResponse, Status>>;

    async fn get_chunk_mapping(
        &self,
        _: Request<reapi::GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn splice_blob(
        &self,
        request: Request<reapi::SpliceBlobRequest>,
    ) -> Result<Response<reapi::SpliceBlobResponse>, Status> {
        let digest = request.get_ref().blob_digest.clone().unwrap_or_default();
        self.enter(Method::Splice, &digest.hash, &request).await?;
        let request = request.into_inner();
        self.check_function(request.digest_function)?;
        self.state().splice(&digest, request.chunk_digests)?;
        Ok(Response::new(reapi::SpliceBlobResponse { blob_digest: Some(digest) }))
    }

    async fn register_chunk_mapping(
        &self,
        request: Request<Streaming<reapi::RegisterChunkMappingRequest>>,
    ) -> Result<Response<reapi::RegisterChunkMappingResponse>, Status> {
        self.enter(Method::Splice, "a stream", &request).await?;
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap_or_default();
        self.check_function(first.digest_function)?;
        let digest = first.blob_digest.unwrap_or_default();
        let mut chunks = first.chunk_digests;
        while let Some(message) = messages.message().await? {
            chunks.extend(message.chunk_digests);
        }
        self.state().splice(&digest, chunks)?;
        Ok(Response::new(reapi::RegisterChunkMappingResponse { blob_digest: Some(digest) }))
    }
}

impl State {
    fn check_batch(&self, bytes: i64) -> Result<(), Status> {
        let cache = self.behaviour.capabilities.cache_capabilities.clone().unwrap_or_default();
        let limit = match cache.max_batch_total_size_bytes {
            limit if limit > 0 => limit.min(MESSAGE_BYTES_MAX),
            _ => MESSAGE_BYTES_MAX,
        };
        if bytes <= limit { Ok(()) } else { Err(Status::invalid_argument("too large a batch")) }
    }

    fn own_failure(&mut self, hash: &str) -> Option<rpc::Status> {
        self.behaviour.blob_failures.get_mut(hash).and_then(VecDeque::pop_front)
    }

    fn take_entry(&mut self, entry: reapi::batch_update_blobs_request::Request) -> rpc::Status {
        let digest = entry.digest.unwrap_or_default();
        if let Some(status) = self.own_failure(&digest.hash) {
            return status;
        }
        let bytes = match Compressor::try_from(entry.compressor) {
            Ok(Compressor::Identity) => entry.data,
            Ok(Compressor::Zstd) => zstd::decode_all(&*entry.data).expect("a frame"),
            _ => return super::blob_status(Code::InvalidArgument),
        };
        if self.digest(&bytes) != digest {
            return super::blob_status(Code::InvalidArgument);
        }
        self.blobs.insert(digest.hash, bytes);
        rpc::Status::default()
    }

    fn give_entry(
        &mut self,
        digest: reapi::Digest,
        may_compress: bool,
    ) -> reapi::batch_read_blobs_response::Response {
        let mut entry = reapi::batch_read_blobs_response::Response::default();
        if let Some(status) = self.own_failure(&digest.hash) {
            entry.status = Some(status);
        } else if let Some(bytes) = self.blobs.get(&digest.hash) {
            let bytes = spoil(bytes.clone(), self.behaviour.read);
            if may_compress {
                entry.data = zstd::encode_all(&*bytes, 1).expect("compresses");
                entry.compressor = Compressor::Zstd as i32;
            } else {
                entry.data = bytes;
            }
        } else {
            entry.status = Some(super::blob_status(Code::NotFound));
        }
        entry.digest = Some(digest);
        entry
    }

    fn splice(&mut self, digest: &reapi::Digest, chunks: Vec<reapi::Digest>) -> Result<(), Status> {
        let mut whole = Vec::new();
        for chunk in &chunks {
            let bytes = self.blobs.get(&chunk.hash);
            whole.extend(bytes.ok_or_else(|| Status::not_found("a chunk is missing"))?);
        }
        if self.digest(&whole) != *digest {
            return Err(Status::invalid_argument("the chunks make another blob"));
        }
        self.blobs.insert(digest.hash.clone(), whole);
        self.chunks.insert(digest.hash.clone(), chunks);
        Ok(())
    }
}

/// What a wrong blob looks like.
pub(super) fn spoil(mut bytes: Vec<u8>, fault: ReadFault) -> Vec<u8> {
    match fault {
        ReadFault::Corrupts => {
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
        }
        ReadFault::TooLong => bytes.push(0),
        ReadFault::Truncates { after_bytes } => bytes.truncate(after_bytes),
        _ => {}
    }
    bytes
}
