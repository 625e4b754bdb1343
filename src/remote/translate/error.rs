//! Why what a server has is no entry.

use crate::manifest::PATH_BYTES_MAX;
use crate::remote::digests::RemoteDigest;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Why a result is no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ResultError {
    /// Something in the result, or in a message that it names, breaks a rule.
    #[error("the server's result is not valid at {place:?}: {reason}")]
    Invalid {
        /// The output, as far as it can be said.
        place: String,
        /// The rule.
        reason: &'static str,
    },
    /// The result names more than [`super::read::ENTRY_BYTES_MAX`].
    #[error("the server's result has more outputs than an entry can have")]
    TooLarge,
    /// Bytes are not what the server said they were.
    #[error("bytes that should be {expected} are {actual}")]
    WrongBytes {
        /// What they should be.
        expected: RemoteDigest,
        /// What they are.
        actual: RemoteDigest,
    },
    /// A message is neither in the Tree that needs it, nor was it given; or a file or log was not.
    #[error("{digest}, which the server's result needs, is missing")]
    Missing {
        /// Its digest.
        digest: RemoteDigest,
    },
}

pub(super) fn invalid(place: impl AsRef<Path>, reason: &'static str) -> ResultError {
    // What is longer than any path is not worth repeating.
    let place = place.as_ref().as_os_str().as_bytes();
    let place = &place[..place.len().min(PATH_BYTES_MAX)];
    ResultError::Invalid { place: String::from_utf8_lossy(place).into_owned(), reason }
}
