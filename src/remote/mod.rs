//! `remote`: a client of the Remote Execution API, version 2, for its cache half.
//!
//! It knows digests, streams and messages, and knows no store: what a blob or a result is for, and
//! where its bytes come from and go to, is for the callers; `translate` says what an entry looks
//! like there, and does no calls. Asynchronous, on the caller's tokio runtime, which needs its I/O
//! and time drivers.
//!
//! Invariants:
//! - What a server says is checked before it counts: sizes, counts, names, and the digest of every
//!   blob. A server that lies costs a miss.
//! - No call waits longer than its connection stays silent for the idle timeout, and there is no
//!   limit on how long a transfer takes that gets on.
//! - No more than a few messages are in memory, however large a blob is.
//! - Tokens and headers are in no error and in no `Debug` output.
//!
//! Sources of the rules: `remote_execution.proto` of bazelbuild/remote-apis (REAPI),
//! `bytestream.proto` and `error_details.proto` of googleapis, and the gRPC specifications; each
//! file names the part it follows.

mod actions;
mod blobs;
mod breaker;
mod call;
mod capabilities;
mod channel;
mod client;
mod digests;
mod endpoint;
mod error;
mod resource;
mod retry;
mod token;
pub(crate) mod translate;

pub(crate) use blobs::{BlobReader, Downloads, Upload, UploadSource};
pub(crate) use client::Client;
pub use client::RemoteStatus;
pub(crate) use digests::{DigestFunction, RemoteDigest};
pub use endpoint::{
    ClientCertificate, PROBE_AFTER_FACTOR_MAX, RemoteAccess, RemoteAddress, RemoteHeaders,
    RemoteOptions, TokenSource,
};
pub use error::{Answer, RemoteError};

#[cfg(test)]
#[path = "../../tests/common/faults.rs"]
mod faults;
#[cfg(test)]
#[path = "../../tests/common/reapi/mod.rs"]
mod reapi_server;
#[cfg(test)]
mod tests;
