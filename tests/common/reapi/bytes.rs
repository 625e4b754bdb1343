//! The byte stream.

use super::services::spoil;
use super::{Method, ReadFault, Shared, State, WriteFault, reapi};
use bazel_remote_apis::google::bytestream::byte_stream_server::{ByteStream, ByteStreamServer};
use bazel_remote_apis::google::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest,
    WriteResponse,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

const PIECE_BYTES: usize = 64 << 10;

pub(super) fn service(shared: Arc<Shared>) -> ByteStreamServer<Bytes> {
    ByteStreamServer::new(Bytes(shared))
}

pub(super) struct Bytes(Arc<Shared>);

/// What a resource name says.
struct Resource {
    digest: reapi::Digest,
    is_compressed: bool,
}

impl State {
    fn parse(&self, name: &str) -> Result<Resource, Status> {
        let bad = || Status::invalid_argument(format!("a bad resource name: {name}"));
        let parts: Vec<&str> = name.split('/').collect();
        let start = parts
            .iter()
            .position(|part| matches!(*part, "blobs" | "compressed-blobs"))
            .ok_or_else(bad)?;
        let is_compressed = parts[start] == "compressed-blobs";
        let mut rest = &parts[start + 1..];
        if is_compressed {
            rest = rest.strip_prefix(&["zstd"]).ok_or_else(bad)?;
            if self.behaviour.lies_about_zstd {
                return Err(Status::unimplemented("no compression after all"));
            }
        }
        // MUST be there for BLAKE3, and MUST NOT for SHA-256.
        if self.has_blake3() {
            rest = rest.strip_prefix(&["blake3"]).ok_or_else(bad)?;
        }
        let [hash, size] = rest else { return Err(bad()) };
        let digest = reapi::Digest {
            hash: (*hash).to_owned(),
            size_bytes: size.parse().map_err(|_| bad())?,
        };
        if hash.len() == 64 { Ok(Resource { digest, is_compressed }) } else { Err(bad()) }
    }
}

#[tonic::async_trait]
impl ByteStream for Bytes {
    type ReadStream = ReceiverStream<Result<ReadResponse, Status>>;

    async fn read(
        &self,
        request: Request<ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let name = request.get_ref().resource_name.clone();
        self.0.enter(Method::Read, &name, &request).await?;
        let (sender, receiver) = mpsc::channel(4);
        let request = request.into_inner();
        let (bytes, fault) = {
            let mut state = self.0.state();
            let resource = state.parse(&name)?;
            let fault = state.behaviour.read;
            if let ReadFault::Breaks { times, .. } = &mut state.behaviour.read {
                *times = times.saturating_sub(1);
            }
            let bytes = state.blobs.get(&resource.digest.hash).cloned();
            let bytes = bytes.ok_or_else(|| Status::not_found("no such blob"))?;
            let bytes = spoil(bytes, fault);
            let offset = usize::try_from(request.read_offset).expect("not negative");
            let bytes = bytes.get(offset..).ok_or_else(|| Status::out_of_range("past the end"))?;
            let bytes = if resource.is_compressed {
                zstd::encode_all(bytes, 1).expect("compresses")
            } else {
                bytes.to_vec()
            };
            (bytes, fault)
        };
        tokio::spawn(send(bytes, fault, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let (metadata, extensions, mut messages) = request.into_parts();
        let mut first = messages.message().await?.unwrap_or_default();
        let name = std::mem::take(&mut first.resource_name);
        let request = Request::from_parts(metadata, extensions, ());
        self.0.enter(Method::Write, &name, &request).await?;
        let (resource, fault) = {
            let mut state = self.0.state();
            let fault = state.behaviour.write;
            if let WriteFault::Breaks { times, .. } | WriteFault::CannotGoOn { times, .. } =
                &mut state.behaviour.write
            {
                *times = times.saturating_sub(1);
            }
            (state.parse(&name)?, fault)
        };
        match fault {
            WriteFault::Early => {
                let size = if resource.is_compressed { -1 } else { resource.digest.size_bytes };
                return Ok(Response::new(WriteResponse { committed_size: size }));
            }
            WriteFault::CannotGoOn { .. } if first.write_offset > 0 => {
                return Err(Status::invalid_argument("only whole uploads"));
            }
            WriteFault::Hangs => tokio::time::sleep(Duration::from_secs(3600)).await,
            _ => {}
        }
        let mut came = self.0.state().partial.remove(&name).unwrap_or_default();
        let (begun, mut count, mut message) = (first.write_offset, 0, first);
        if !resource.is_compressed && u64::try_from(begun) != Ok(came.len() as u64) {
            return Err(Status::invalid_argument("the upload does not go on where it was"));
        }
        loop {
            if message.write_offset != begun + count {
                return Err(Status::invalid_argument("a gap in the upload"));
            }
            count += i64::try_from(message.data.len()).expect("small");
            came.extend(&message.data);
            let breaks = match fault {
                WriteFault::Breaks { times, after_bytes }
                | WriteFault::CannotGoOn { times, after_bytes } => {
                    times > 0 && came.len() >= after_bytes
                }
                WriteFault::BreaksAndClaims(_) => true,
                _ => false,
            };
            if breaks {
                self.0.state().partial.insert(name, came);
                return Err(Status::unavailable("told to break off"));
            }
            if message.finish_write {
                break;
            }
            let Some(next) = messages.message().await? else {
                self.0.state().partial.insert(name, came);
                return Err(Status::cancelled("not finished"));
            };
            message = next;
        }
        let sent = i64::try_from(came.len()).expect("small");
        if resource.is_compressed {
            came = zstd::decode_all(&*came).map_err(|_| Status::invalid_argument("no frame"))?;
        }
        let mut state = self.0.state();
        if state.digest(&came) != resource.digest {
            return Err(Status::invalid_argument("not what the digest says"));
        }
        state.blobs.insert(resource.digest.hash, came);
        let committed_size = if let WriteFault::Commits(size) = fault { size } else { sent };
        Ok(Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let name = request.get_ref().resource_name.clone();
        self.0.enter(Method::QueryWrite, &name, &request).await?;
        let state = self.0.state();
        if let WriteFault::BreaksAndClaims(committed_size) = state.behaviour.write {
            return Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: false }));
        }
        let digest = state.parse(&name)?.digest;
        let answer = if state.blobs.contains_key(&digest.hash) {
            QueryWriteStatusResponse { committed_size: digest.size_bytes, complete: true }
        } else if let Some(came) = state.partial.get(&name) {
            let committed_size = i64::try_from(came.len()).expect("small");
            QueryWriteStatusResponse { committed_size, complete: false }
        } else {
            return Err(Status::not_found("no such upload"));
        };
        Ok(Response::new(answer))
    }
}

async fn send(
    bytes: Vec<u8>,
    fault: ReadFault,
    sender: mpsc::Sender<Result<ReadResponse, Status>>,
) {
    let mut count = 0;
    for piece in bytes.chunks(PIECE_BYTES) {
        if let ReadFault::Breaks { times: 1.., after_bytes } = fault
            && count >= after_bytes
        {
            drop(sender.send(Err(Status::unavailable("told to break off"))).await);
            return;
        }
        if fault == ReadFault::Hangs || sender.send(Ok(response(piece))).await.is_err() {
            break;
        }
        count += piece.len();
    }
    match fault {
        ReadFault::Endless => {
            let piece = vec![0; PIECE_BYTES];
            while sender.send(Ok(response(&piece))).await.is_ok() {}
        }
        ReadFault::EndlessNothing => {
            while sender.send(Ok(response(&[]))).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        ReadFault::Hangs => tokio::time::sleep(Duration::from_secs(3600)).await,
        _ => {}
    }
}

fn response(bytes: &[u8]) -> ReadResponse {
    ReadResponse { data: bytes.to_vec() }
}
