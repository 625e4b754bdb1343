//! `Error`: what can go wrong, grouped by what the caller can do about it.
//!
//! Messages say what was attempted and on which path; the cause is in `source` and nowhere else.
//! No message holds file contents or values of environment variables. Absence is not an error:
//! a lookup that finds nothing returns `Ok(None)`.

use crate::digest::Digest;
use std::io;
use std::path::{Path, PathBuf};

/// The result of most of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. [`Error::kind`] groups the variants by what the caller can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process holds what this operation needs for itself.
    #[error("{path} is in use by another process")]
    Busy {
        /// What is in use.
        path: PathBuf,
    },

    /// A bundle cannot be read at all, or not to its end where all of it is needed.
    #[error("cannot read the bundle: {reason}")]
    BundleRefused {
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The operation's cancel flag was set, or the future that asked for it was dropped.
    #[error("the operation was cancelled")]
    Cancelled,

    /// Stored bytes are not what they were when they were stored. What was found is in the store's
    /// quarantine, and the entry is dropped: the next check is a miss, the next store heals it.
    #[error("damaged bytes in {path} (expected {expected}, found {})", display_found(*.actual))]
    Damaged {
        /// The file in the store.
        path: PathBuf,
        /// The digest under which the bytes were stored.
        expected: Digest,
        /// The digest of the bytes found; `None` if they could not be read as a blob at all.
        actual: Option<Digest>,
    },

    /// An entry that was made elsewhere is none that this store can take over. Nothing was stored.
    #[error("cannot take over the entry: {reason}")]
    EntryRefused {
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The store was written by a newer version of Larder. Nothing was touched.
    #[error(
        "{path} has store format {found}; this version of larder knows formats up to {supported}"
    )]
    Format {
        /// The format file.
        path: PathBuf,
        /// The version it names.
        found: u32,
        /// The newest version that this build can use.
        supported: u32,
    },

    /// No room left: bytes, inodes or quota.
    #[error("no space left: failed to {action} {path}")]
    Full {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },

    /// A worker thread of ours ended in a panic. A bug in Larder; please report it.
    #[error("internal error: {what}")]
    Internal {
        /// What was being done.
        what: &'static str,
    },

    /// A declared output cannot be cached: a path that is absolute or climbs, two outputs that
    /// collide, a device, a FIFO, a socket.
    #[error("cannot cache the output {path}: {reason}")]
    InvalidOutput {
        /// The output, relative to its workspace where it has one.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// What was to be stored is what a restore left that was cut short: part of it old, part new.
    /// Nothing was stored. Restore it again, or run the task (`Cache::hand_over` before it runs).
    #[error("{path} is as a restore left it that was cut short")]
    HalfRestored {
        /// The root of outputs.
        path: PathBuf,
    },

    /// A task key was empty or too long.
    #[error("a task key has 1 to 1,024 bytes, this one has {length_bytes}")]
    InvalidKey {
        /// How long it was.
        length_bytes: usize,
    },

    /// The name of a namespace is too long, or has control characters.
    #[error("a namespace's name has at most 256 bytes and no control characters")]
    InvalidNamespace,

    /// The system refused an operation.
    #[error("failed to {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },

    /// A key file cannot be used.
    #[error("cannot use the key {path}: {reason}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// There is no entry to restore (never stored, removed, or dropped as damaged).
    #[error("no entry for this key")]
    Miss,

    /// A blob that an entry needs is not to be had: no source sent it.
    #[error("the blob {digest} is not to be had")]
    NoBlob {
        /// Which one.
        digest: Digest,
    },

    /// An asynchronous operation was called outside of a tokio runtime.
    #[error("no tokio runtime is running on this thread")]
    NoRuntime,

    /// A declared output does not exist.
    #[error("the declared output {path} does not exist")]
    OutputMissing {
        /// The output, relative to its workspace.
        path: PathBuf,
    },

    /// The server behind the store, or the way to it, failed. Go on without it.
    #[cfg(feature = "remote")]
    #[error("the remote server is of no use")]
    Remote {
        /// Why: a [`crate::RemoteError`], or what is wrong with what it sent.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A file changed while it was being stored. Nothing was stored.
    #[error("{path} changed while it was being stored")]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },

    /// The store cannot be used: it is not ours, not a store, or was replaced while it was open.
    #[error("cannot use the store {path}: {reason}")]
    StoreRefused {
        /// The store's root.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },

    /// Keys are trusted, and none of them has signed the entry.
    #[error("none of the trusted keys has signed the entry")]
    Untrusted,

    /// A source sent something else than what it was asked for. It was thrown away.
    #[error("what was sent as the blob {expected} {reason}")]
    WrongBytes {
        /// The blob that was asked for.
        expected: Digest,
        /// What is wrong with what came.
        reason: &'static str,
    },

    /// Something in the workspace stands in the way of a restore. Nothing was changed.
    #[error("cannot restore to {path}: {reason}")]
    WorkspaceRefused {
        /// The place in the workspace.
        path: PathBuf,
        /// What stands in the way.
        reason: &'static str,
    },
}

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Try again later.
    Busy,
    /// Fix the call: a bad key or key file, a bad output, no runtime.
    Caller,
    /// Nothing: the caller itself asked for the end.
    Cancelled,
    /// Run the task and store it again; the damage is quarantined.
    Damaged,
    /// Free disk space.
    Full,
    /// Look at the system's answer in `source`.
    Io,
    /// Run the task.
    Miss,
    /// Ask somebody else, or run the task: what another place sent is not what it should be.
    Source,
    /// Look at the store: its format, owner or place.
    Store,
    /// Look at the workspace: what is missing, changing, or in the way.
    Workspace,
}

impl Error {
    /// Returns what the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Busy { .. } => ErrorKind::Busy,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::Damaged { .. } => ErrorKind::Damaged,
            Error::Full { .. } => ErrorKind::Full,
            Error::InvalidOutput { .. }
            | Error::InvalidKey { .. }
            | Error::InvalidNamespace
            | Error::Key { .. }
            | Error::NoRuntime => ErrorKind::Caller,
            Error::Io { .. } | Error::Internal { .. } => ErrorKind::Io,
            Error::Miss | Error::Untrusted => ErrorKind::Miss,
            Error::BundleRefused { .. }
            | Error::EntryRefused { .. }
            | Error::NoBlob { .. }
            | Error::WrongBytes { .. } => ErrorKind::Source,
            #[cfg(feature = "remote")]
            Error::Remote { .. } => ErrorKind::Source,
            Error::Format { .. } | Error::StoreRefused { .. } => ErrorKind::Store,
            Error::HalfRestored { .. }
            | Error::OutputMissing { .. }
            | Error::SourceChanged { .. }
            | Error::WorkspaceRefused { .. } => ErrorKind::Workspace,
        }
    }

    /// Whether the caller should simply run its task as if there were no cache. True for everything
    /// but mistakes in the call itself and cancellation: a broken cache never breaks the build.
    ///
    /// # Examples
    /// ```
    /// assert!(larder::Error::Miss.allows_uncached_run());
    /// assert!(!larder::Error::NoRuntime.allows_uncached_run());
    /// ```
    pub fn allows_uncached_run(&self) -> bool {
        !matches!(self.kind(), ErrorKind::Caller | ErrorKind::Cancelled)
    }

    /// Wraps what went wrong with a server.
    #[cfg(feature = "remote")]
    pub(crate) fn remote(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Remote { source: source.into() }
    }

    /// Wraps an I/O error, telling a full disk apart from the rest.
    pub(crate) fn io(action: &'static str, path: PathBuf, source: io::Error) -> Error {
        if crate::disk::is_full(&source) {
            Error::Full { action, path, source }
        } else {
            Error::Io { action, path, source }
        }
    }
}

/// Adds action and path to an `io::Result`; the path is only built if there is an error.
pub(crate) trait Context<T> {
    fn context<P: AsRef<Path>>(self, action: &'static str, path: impl FnOnce() -> P) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<P: AsRef<Path>>(self, action: &'static str, path: impl FnOnce() -> P) -> Result<T> {
        self.map_err(|source| Error::io(action, path().as_ref().to_path_buf(), source))
    }
}

fn display_found(actual: Option<Digest>) -> String {
    actual.map_or_else(|| "no readable blob".to_owned(), |digest| digest.to_string())
}
