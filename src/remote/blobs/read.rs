//! One blob from a server, as a stream.
//!
//! From `bytestream.proto`, `Read`, and `remote_execution.proto`, `ContentAddressableStorage`:
//! - A read that broke off goes on at the offset where it was, which counts plain bytes in either
//!   form. It goes on plain, which every server can.
//! - "Clients MUST verify" hash and size. The end is passed on only after both are right; before it
//!   no more than the stated size.

use super::compress::{self, Inflate};
use super::download::Piece;
use super::{ANSWER_BYTES_MAX, Session};
use crate::remote::call::{Line, Purpose};
use crate::remote::digests::{RemoteDigest, RemoteHasher};
use crate::remote::error::RemoteError;
use crate::remote::resource::{Form, read_name};
use crate::remote::retry::{PROGRESS_BYTES_MIN, Verdict, judge};
use bazel_remote_apis::google::bytestream::ReadRequest;
use bazel_remote_apis::google::bytestream::byte_stream_client::ByteStreamClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Code, Status};

const ACTION: &str = "download a blob";
/// What a message may add to a blob when it is compressed, and what servers say without bytes.
const OVERHEAD_BYTES: u64 = 1 << 20;

/// Why a stream ended before its end.
enum Broken {
    /// The server, or the way to it.
    Status(Status),
    /// The compressed form cannot be read.
    Form,
    /// The server says that this was all.
    Short,
    /// The server lied.
    Lied(&'static str),
    /// Nobody wants the rest.
    Unwanted,
}

impl From<Status> for Broken {
    fn from(status: Status) -> Broken {
        Broken::Status(status)
    }
}

/// What has arrived and was passed on.
struct Transfer<'a> {
    digest: RemoteDigest,
    hasher: RemoteHasher,
    passed_bytes: u64,
    sink: &'a mpsc::Sender<Piece>,
}

impl Session {
    /// Reads a blob to `sink`, which gets its bytes and then either the end or an error.
    pub(super) async fn read(&self, digest: RemoteDigest, sink: mpsc::Sender<Piece>) {
        let last = match self.try_read(digest, &sink).await {
            Ok(()) => Piece::End,
            Err(error) => Piece::Failed(error),
        };
        // Who has dropped the other end does not want to know.
        drop(sink.send(last).await);
    }

    async fn try_read(
        &self,
        digest: RemoteDigest,
        sink: &mpsc::Sender<Piece>,
    ) -> Result<(), RemoteError> {
        let is_large = digest.size_bytes >= compress::BYTES_MIN;
        let mut form =
            if self.capabilities.has_zstd && is_large { Form::Zstd } else { Form::Plain };
        let hasher = self.capabilities.digest_function.hasher();
        let mut transfer = Transfer { digest, hasher, passed_bytes: 0, sink };
        let mut trial = self.server.trial(ACTION, Purpose::Read)?;
        loop {
            let line = trial.line().await?;
            let before = transfer.passed_bytes;
            let broken = match self.receive(&line, form, &mut transfer).await {
                Ok(()) => break,
                Err(broken) => broken,
            };
            if transfer.passed_bytes - before >= PROGRESS_BYTES_MIN {
                trial.got_on();
            }
            let was_compressed = std::mem::replace(&mut form, Form::Plain) == Form::Zstd;
            match broken {
                Broken::Unwanted => return Ok(()),
                Broken::Lied(what) => return Err(trial.answered(self.server.lied(ACTION, what))),
                // The server said that it can; it does not have to be right.
                Broken::Form if was_compressed => {}
                Broken::Status(status) if was_compressed && judge(&status) == Verdict::Rejected => {
                }
                Broken::Form => {
                    return Err(trial.answered(self.server.lied(ACTION, "sent a broken stream")));
                }
                Broken::Short => {
                    if !trial.wait().await {
                        let lied = self.server.lied(ACTION, "sent less than the blob's size");
                        return Err(trial.answered(lied));
                    }
                }
                Broken::Status(status) => {
                    if let Err(failure) = trial.failed(&line, &status).await {
                        return Err(if failure.is_absent() {
                            self.server.absent(&digest)
                        } else if failure.code == Code::DataLoss {
                            self.server.lied(ACTION, "has lost a part of the blob")
                        } else {
                            failure.into()
                        });
                    }
                }
            }
        }
        let is_right = trial.answered(transfer.hasher.finish() == digest);
        is_right
            .then_some(())
            .ok_or_else(|| self.server.lied(ACTION, "sent bytes of another digest"))
    }

    /// Receives the rest of the blob.
    async fn receive(
        &self,
        line: &Line,
        form: Form,
        transfer: &mut Transfer<'_>,
    ) -> Result<(), Broken> {
        let digest = transfer.digest;
        let function = self.capabilities.digest_function;
        let message = ReadRequest {
            resource_name: read_name(self.server.instance(), function, form, &digest),
            read_offset: i64::try_from(transfer.passed_bytes).unwrap_or(i64::MAX),
            read_limit: 0,
        };
        let patience = self.server.patience(ANSWER_BYTES_MAX as u64);
        let mut client =
            ByteStreamClient::new(line.channel()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let mut stream =
            line.watch(patience, client.read(line.request(message))).await?.into_inner();
        let mut inflate = match form {
            Form::Plain => None,
            Form::Zstd => Some(Inflate::new().map_err(|_| Broken::Form)?),
        };
        let received_max = (digest.size_bytes - transfer.passed_bytes)
            .saturating_mul(2)
            .saturating_add(OVERHEAD_BYTES);
        let (mut received, mut fed) = (0, Instant::now());
        while let Some(message) = line.watch(patience, stream.message()).await? {
            let bytes = message.data;
            // A message without bytes says that more will come, but not for ever.
            if bytes.is_empty() && fed.elapsed() > patience.total {
                return Err(Status::deadline_exceeded("nothing but empty messages").into());
            }
            if !bytes.is_empty() {
                fed = Instant::now();
            }
            received += bytes.len() as u64;
            if received > received_max {
                return Err(Broken::Lied("sent more than the blob's size"));
            }
            match &mut inflate {
                None => transfer.pass(bytes).await?,
                Some(inflate) => {
                    let mut rest = bytes.as_slice();
                    while let Some(piece) = inflate.next(&mut rest).map_err(|_| Broken::Form)? {
                        transfer.pass(piece).await?;
                    }
                }
            }
            if transfer.is_whole() && inflate.as_ref().is_none_or(Inflate::is_complete) {
                // What the server does after the last byte is not worth a wait, and not a retry.
                return Ok(());
            }
        }
        if inflate.as_ref().is_some_and(|inflate| !inflate.is_complete()) {
            return Err(Broken::Form);
        }
        if transfer.is_whole() {
            return Ok(());
        }
        Err(Broken::Short)
    }
}

impl Transfer<'_> {
    fn is_whole(&self) -> bool {
        self.passed_bytes == self.digest.size_bytes
    }

    async fn pass(&mut self, bytes: Vec<u8>) -> Result<(), Broken> {
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() as u64 > self.digest.size_bytes - self.passed_bytes {
            return Err(Broken::Lied("sent more than the blob's size"));
        }
        self.hasher.update(&bytes);
        self.passed_bytes += bytes.len() as u64;
        // Waits for whoever takes the bytes; that is not the server's fault, and has no time-out.
        self.sink.send(Piece::Bytes(bytes)).await.map_err(|_| Broken::Unwanted)
    }
}
