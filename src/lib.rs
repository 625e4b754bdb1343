//! Larder keeps what tasks leave behind, and brings it back as links.
//!
//! A task runner computes a digest of everything a task depends on, and asks: is there a result for
//! this digest? If so, the outputs come back as reflinks, hardlinks or copies, with logs, exit code
//! and duration; if not, the task runs, and its result is stored. Every file is kept once, by the
//! BLAKE3 hash of its content.
//!
//! - [`CacheBackend`] is the asynchronous contract that a scheduler holds as
//!   `Arc<dyn CacheBackend>`; [`LocalBackend`], [`MemoryBackend`] and [`DisabledBackend`] implement
//!   it, and [`conformance`] tests any implementation. [`SingleFlight`] extends it: a task that many
//!   want at once is built once.
//! - [`Cache`] is the engine itself: blocking, complete without a runtime.
//!
//! # Examples
//! ```
//! use larder::{CacheBackend, CacheEntry, CacheOptions, CachePolicy, IRTask, LocalBackend, OutputDeclaration};
//! use std::sync::Arc;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let (store, workspace) = (folder.path().join("store"), folder.path().join("workspace"));
//! # std::fs::create_dir_all(workspace.join("dist"))?;
//! let cache: Arc<dyn CacheBackend> = Arc::new(LocalBackend::open(&store, CacheOptions::default())?);
//! let task = IRTask::new("bundle").with_outputs([OutputDeclaration::new("dist")]);
//! let digest = "whatever stands for the task's inputs";
//!
//! if cache.check(&task, digest, task.effective_policy()).await?.hit {
//!     cache.restore_outputs(&task, digest, &workspace).await?;
//! } else {
//!     std::fs::write(workspace.join("dist/app.js"), "built")?; // Run the task here.
//!     let entry = CacheEntry::capture(&workspace, &task.outputs)?.with_result(0, 41_200);
//!     cache.store(&task, digest, &entry, CachePolicy::Normal).await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # When the cache breaks
//! A broken cache never breaks the build: a caller for whose error
//! [`Error::allows_uncached_run`] is true runs its task as if there were no cache. Wrong bytes are
//! never restored: copies are hashed as they are made, and links are made only of inodes that are
//! provably untouched; DESIGN.md numbers the invariants.

#[cfg(not(unix))]
compile_error!("larder needs a Unix: it links, locks and walks by directory handles");

mod backend;
mod blob;
#[cfg(feature = "bundle")]
pub mod bundle;
mod cancel;
mod digest;
mod disk;
mod engine;
mod error;
#[cfg(any(fuzzing, larder_rigs))]
pub mod fuzzing;
mod identity;
mod index;
mod key;
mod ledger;
mod manifest;
mod options;
mod parallel;
#[cfg(feature = "remote")]
mod remote;
#[cfg(larder_rigs)]
pub mod rigging;
mod shards;
mod signature;
mod steps;
#[cfg(feature = "remote")]
mod tier;

pub use backend::{
    BackendError, BackendResult, BuildGuard, CacheBackend, CacheLookupResult, CachePolicy,
    DisabledBackend, ExactLogs, IRTask, LocalBackend, MemoryBackend, ResourceRequirements,
    SecretSource, SingleFlight, Turn, conformance,
};
#[cfg(feature = "remote")]
pub use backend::{RemoteBackend, TieredBackend};
pub use cancel::Cancel;
pub use digest::{Digest, ParseDigestError};
pub use disk::{Capabilities, Timestamp};
pub use engine::{
    BlobReader, BlobSource, Cache, CacheEntry, CacheOutput, Claim, CopyReason, EvictOptions,
    Evicted, EvictedEarly, Flight, Health, Hit, InputContent, Intake, LinkSupport, LogPiece,
    MethodCounts, Offer, OutputContent, OutputDeclaration, OutputKind, Purge, Purged, Received,
    Repair, Restored, ScrubReport, SourceFile, Stats, Stored, StoredBlob, TaskLogs, Usage, destroy,
    remove_outputs,
};
pub use error::{Error, ErrorKind, Result};
pub use key::{KEY_BYTES_MAX, Namespaces, TaskDigest};
pub use manifest::{
    BlobRef, DecodeError, LOG_INLINE_BYTES_MAX, LogStream, Logs, Manifest, Node, NodeKind, Origin,
    OutputPath, PathError, Root, RootKind,
};
pub use options::{
    CacheOptions, Durability, LINK_BYTES_MIN, Limit, Limits, LinkMode, MtimeMode, Network,
    PRIVATE_SUFFIXES, ParseOptionError, RestoreOptions, Sharing, VerifyLevel,
};
#[cfg(feature = "remote")]
pub use remote::{
    Answer, ClientCertificate, PROBE_AFTER_FACTOR_MAX, RemoteAccess, RemoteAddress, RemoteError,
    RemoteHeaders, RemoteOptions, RemoteStatus, TokenSource,
};
pub use signature::{
    KeyId, KeyKind, ParseKeyIdError, ParseWriterError, Signature, SigningKey, TrustedKey,
    WriterName,
};
#[cfg(feature = "remote")]
pub use tier::{Drained, Pushed, RemoteTier};
