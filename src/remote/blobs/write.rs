//! One blob to a server, as a stream.
//!
//! From `bytestream.proto`, `Write` and `QueryWriteStatus`, and `remote_execution.proto`,
//! `ContentAddressableStorage`:
//! - An upload that broke off goes on where the server says that it has got to; a compressed one
//!   begins again.
//! - An answer may come early: somebody else has finished the same blob. It then names the full
//!   size, or -1 if the upload is compressed.
//! - A blob that is not what its digest says is `INVALID_ARGUMENT`, and not sent again.

use super::compress;
use super::upload::{Exactly, Upload};
use super::{ANSWER_BYTES_MAX, Session};
use crate::remote::call::{Line, Purpose};
use crate::remote::channel::Patience;
use crate::remote::error::RemoteError;
use crate::remote::resource::{Form, UploadId, write_name};
use crate::remote::retry::{PROGRESS_BYTES_MIN, Verdict, judge};
use bazel_remote_apis::google::bytestream::byte_stream_client::ByteStreamClient;
use bazel_remote_apis::google::bytestream::{QueryWriteStatusRequest, WriteRequest, WriteResponse};
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

const ACTION: &str = "upload a blob";
/// What one message of a stream has.
const PIECE_BYTES: usize = 128 << 10;
/// How many of them wait for the connection.
const PIECES_MAX: usize = 4;
/// A server that has all bytes hashes and moves them before it answers; it gets the time for that.
const COMMIT_BYTES_PER_SECOND: u64 = 32 << 20;

/// Where an upload stands.
enum Progress {
    Finished,
    At(u64),
}

impl Session {
    /// Writes a blob; returns how many bytes were sent.
    pub(super) async fn write(&self, upload: &Upload) -> Result<u64, RemoteError> {
        let mut form = self.form_of(upload).await?;
        let mut sent_bytes = 0;
        let mut id = UploadId::new();
        let mut offset = 0;
        let mut trial = self.server.trial(ACTION, Purpose::Write)?;
        loop {
            let line = trial.line().await?;
            let pump = Pump::new(upload.clone(), form, offset);
            let name = self.write_name(upload, form, &id);
            let outcome = self.send(&line, name.clone(), &pump).await;
            sent_bytes += pump.sent_bytes();
            if let Some(error) = pump.take_error() {
                return Err(RemoteError::source(&upload.digest, error));
            }
            let status = match outcome {
                Ok(answer) => match self.check(upload, form, &pump, answer)? {
                    None => return Ok(trial.answered(sent_bytes)),
                    Some(status) => status,
                },
                Err(status) if status.code() == Code::AlreadyExists => {
                    return Ok(trial.answered(sent_bytes));
                }
                Err(status) => status,
            };
            if form == Form::Zstd && judge(&status) == Verdict::Rejected {
                // The server said that it can; it does not have to be right.
                (form, offset, id) = (Form::Plain, 0, UploadId::new());
                continue;
            }
            if offset > 0 && judge(&status) == Verdict::Rejected {
                // Nor does it have to be able to go on where it said that it was.
                (offset, id) = (0, UploadId::new());
                continue;
            }
            trial.failed(&line, &status).await?;
            match self.progress(&trial.line().await?, upload, form, name).await? {
                Progress::Finished => return Ok(trial.answered(sent_bytes)),
                Progress::At(committed) => {
                    if committed >= offset.saturating_add(PROGRESS_BYTES_MIN) {
                        trial.got_on();
                    }
                    if committed == 0 {
                        id = UploadId::new();
                    }
                    offset = committed;
                }
            }
        }
    }

    fn write_name(&self, upload: &Upload, form: Form, id: &UploadId) -> String {
        let function = self.capabilities.digest_function;
        write_name(self.server.instance(), function, form, &upload.digest, id)
    }

    async fn form_of(&self, upload: &Upload) -> Result<Form, RemoteError> {
        if !self.capabilities.has_zstd || upload.digest.size_bytes < compress::BYTES_MIN {
            return Ok(Form::Plain);
        }
        let source = Arc::clone(&upload.source);
        let looks = tokio::task::spawn_blocking(move || {
            compress::looks_compressible(&mut *source.open(0)?)
        });
        let looks = looks.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let looks = looks.map_err(|error| RemoteError::source(&upload.digest, error))?;
        Ok(if looks { Form::Zstd } else { Form::Plain })
    }

    async fn send(
        &self,
        line: &Line,
        name: String,
        pump: &Arc<Pump>,
    ) -> Result<WriteResponse, Status> {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let running = Arc::clone(pump);
        // Ends by itself, and soon: when the receiver is dropped, or `stop` is set.
        tokio::task::spawn_blocking(move || running.run(name, &sender));
        let size_bytes = pump.upload.digest.size_bytes;
        let commit = commit_time(size_bytes);
        let patience = self.server.patience(size_bytes);
        let patience = Patience { idle: patience.idle.saturating_add(commit), ..patience };
        let mut client =
            ByteStreamClient::new(line.channel()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let call = client.write(line.request(ReceiverStream::new(receiver)));
        let outcome = line.watch(patience, call).await;
        pump.is_stopped.store(true, Ordering::Relaxed);
        outcome.map(tonic::Response::into_inner)
    }

    /// Whether an answer says that the server has the blob; a status if it says that it has not.
    fn check(
        &self,
        upload: &Upload,
        form: Form,
        pump: &Pump,
        answer: WriteResponse,
    ) -> Result<Option<Status>, RemoteError> {
        let is = |count: u64| u64::try_from(answer.committed_size) == Ok(count);
        let size_bytes = upload.digest.size_bytes;
        let is_done = match form {
            Form::Plain => is(size_bytes),
            // Servers count either what came or what was in it.
            Form::Zstd => answer.committed_size == -1 || is(pump.sent_bytes()) || is(size_bytes),
        };
        if is_done {
            return Ok(None);
        }
        if form == Form::Plain && u64::try_from(answer.committed_size).is_ok_and(|c| c < size_bytes)
        {
            return Ok(Some(Status::aborted("the server ended the upload before its end")));
        }
        Err(self.server.lied(ACTION, "says that it took another number of bytes"))
    }

    /// Asks how far a broken upload has got.
    async fn progress(
        &self,
        line: &Line,
        upload: &Upload,
        form: Form,
        resource_name: String,
    ) -> Result<Progress, RemoteError> {
        if form == Form::Zstd {
            return Ok(Progress::At(0));
        }
        let mut client =
            ByteStreamClient::new(line.channel()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let request = line.request(QueryWriteStatusRequest { resource_name });
        let call = client.query_write_status(request);
        // Servers that know nothing of it, or cannot say, get the blob again; what is wrong with
        // them shows there.
        let Ok(answer) = line.watch(self.server.patience(0), call).await else {
            return Ok(Progress::At(0));
        };
        let answer = answer.into_inner();
        match u64::try_from(answer.committed_size) {
            Ok(_) if answer.complete => Ok(Progress::Finished),
            Ok(committed) if committed <= upload.digest.size_bytes => Ok(Progress::At(committed)),
            _ => Err(self.server.lied(ACTION, "says that it took more bytes than there are")),
        }
    }
}

/// Reads a blob on a blocking thread and hands it to a call, piece by piece.
struct Pump {
    upload: Upload,
    form: Form,
    offset: u64,
    sent_bytes: AtomicU64,
    is_stopped: AtomicBool,
    error: Mutex<Option<io::Error>>,
}

impl Pump {
    fn new(upload: Upload, form: Form, offset: u64) -> Arc<Pump> {
        Arc::new(Pump {
            upload,
            form,
            offset,
            sent_bytes: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            error: Mutex::new(None),
        })
    }

    fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    fn take_error(&self) -> Option<io::Error> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn run(&self, name: String, sender: &mpsc::Sender<WriteRequest>) {
        if let Err(error) = self.try_run(name, sender) {
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }

    fn try_run(&self, name: String, sender: &mpsc::Sender<WriteRequest>) -> io::Result<()> {
        let left_bytes = self.upload.digest.size_bytes - self.offset;
        let plain = Exactly::new(self.upload.source.open(self.offset)?, left_bytes);
        let mut source: Box<dyn Read> = match self.form {
            Form::Plain => Box::new(plain),
            Form::Zstd => Box::new(zstd::stream::read::Encoder::new(plain, compress::LEVEL)?),
        };
        let mut resource_name = name;
        let mut write_offset = self.offset;
        let mut piece = read_piece(&mut source)?;
        loop {
            // The last piece says that it is the last, so the next one is read before it is sent.
            let next = read_piece(&mut source)?;
            let count = piece.len() as u64;
            let message = WriteRequest {
                resource_name: std::mem::take(&mut resource_name),
                write_offset: i64::try_from(write_offset).map_err(io::Error::other)?,
                finish_write: next.is_empty(),
                data: piece,
            };
            // Not an error: the call has its answer, or has failed for a reason of its own.
            if self.is_stopped.load(Ordering::Relaxed) || sender.blocking_send(message).is_err() {
                return Ok(());
            }
            self.sent_bytes.fetch_add(count, Ordering::Relaxed);
            write_offset += count;
            if next.is_empty() {
                return Ok(());
            }
            piece = next;
        }
    }
}

/// How much longer a server may be silent that has this many bytes to hash and to move.
pub(super) fn commit_time(size_bytes: u64) -> Duration {
    Duration::from_secs(size_bytes / COMMIT_BYTES_PER_SECOND)
}

/// The next piece, full unless it is the last; empty at the end.
fn read_piece(source: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    source.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
    Ok(piece)
}
