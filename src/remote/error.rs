//! `RemoteError`: what can go wrong with a server, grouped by what the caller can do about it.
//!
//! Invariants:
//! - No message holds a token, a value of a header, or more of a server's text than
//!   [`TEXT_BYTES_MAX`] bytes; control characters in it are replaced, since it is shown on
//!   terminals.
//! - None of these errors is a reason for a task to fail.

use super::digests::RemoteDigest;
use std::io;
use std::sync::Arc;
use tonic::{Code, Status};

/// How much of what a server says is kept.
const TEXT_BYTES_MAX: usize = 300;

/// Why something that involves a server failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// A blob is not there, or no longer. A miss.
    #[error("the server {server} does not have the blob {digest}")]
    Absent {
        /// Which server.
        server: Arc<str>,
        /// The blob, as hash and size.
        digest: String,
    },

    /// The options cannot be used. Fix them.
    #[error("cannot use the remote server: {reason}")]
    Invalid {
        /// What is wrong with them.
        reason: String,
        /// What the system said.
        source: Option<Arc<io::Error>>,
    },

    /// The server broke the protocol: wrong bytes, sizes, counts or names. What it sent was thrown
    /// away. A miss.
    #[error("failed to {action} at {server}: the server {what}")]
    Lied {
        /// What was attempted.
        action: &'static str,
        /// Which server.
        server: Arc<str>,
        /// What it did.
        what: &'static str,
    },

    /// The server was reached and does not want this: no permission, no space, too large. The same
    /// call will not succeed soon.
    #[error("the server {server} refused to {action}")]
    Refused {
        /// What was attempted.
        action: &'static str,
        /// Which server.
        server: Arc<str>,
        /// What it said.
        source: Answer,
    },

    /// What was to be uploaded could not be read, or is not what its digest says.
    #[error("failed to read the blob {digest} for an upload")]
    Source {
        /// The blob, as hash and size.
        digest: String,
        /// What went wrong.
        source: Arc<io::Error>,
    },

    /// The server cannot be reached, is too slow, or fails. Go on without it.
    #[error("failed to {action} at {server}")]
    Unavailable {
        /// What was attempted.
        action: &'static str,
        /// Which server.
        server: Arc<str>,
        /// What is known of the reason.
        source: Answer,
    },
}

/// What a server, or the way to it, said: a gRPC status code and a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {text}")]
pub struct Answer {
    code: Code,
    text: String,
}

impl Answer {
    /// One of our own making.
    pub(super) fn new(code: Code, text: &str) -> Answer {
        Answer { code, text: clean(text, &[]) }
    }

    /// A status without any of `secrets`, which a server may repeat.
    pub(super) fn of(status: &Status, secrets: &[&str]) -> Answer {
        let mut text = status.message().to_owned();
        // The causes of a failed connection are not in the message.
        let mut source = std::error::Error::source(status);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        Answer { code: status.code(), text: clean(&text, secrets) }
    }

    /// Whether it is about who asks or about space, and not about what was asked.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(
            self.code,
            Code::PermissionDenied | Code::Unauthenticated | Code::ResourceExhausted
        )
    }

    /// The name of the status code, as the gRPC specification has it in English.
    pub fn code(&self) -> &'static str {
        self.code.description()
    }
}

impl RemoteError {
    /// One of ours out of what a reader gave.
    pub(crate) fn of(error: io::Error) -> Option<RemoteError> {
        error.downcast().ok()
    }

    /// Whether whatever is asked next would fail in the same way: it is about the server, the way to it, or
    /// who asks, and not about what was asked.
    pub(crate) fn concerns_everything(&self) -> bool {
        match self {
            RemoteError::Unavailable { .. } | RemoteError::Invalid { .. } => true,
            RemoteError::Refused { source, .. } => {
                source.is_lasting() || source.code == Code::FailedPrecondition
            }
            RemoteError::Absent { .. } | RemoteError::Lied { .. } | RemoteError::Source { .. } => {
                false
            }
        }
    }

    pub(super) fn invalid(reason: impl Into<String>) -> RemoteError {
        RemoteError::Invalid { reason: reason.into(), source: None }
    }

    pub(super) fn invalid_file(reason: impl Into<String>, source: io::Error) -> RemoteError {
        RemoteError::Invalid { reason: reason.into(), source: Some(Arc::new(source)) }
    }

    pub(super) fn source(digest: &RemoteDigest, source: io::Error) -> RemoteError {
        RemoteError::Source { digest: digest.to_string(), source: Arc::new(source) }
    }
}

/// As the library's error, which has the original in `source`.
impl From<RemoteError> for crate::error::Error {
    fn from(error: RemoteError) -> crate::error::Error {
        crate::error::Error::remote(error)
    }
}

/// As an `io::Error`, for those that read a blob through `std::io::Read`. The original is inside.
impl From<RemoteError> for io::Error {
    fn from(error: RemoteError) -> io::Error {
        let kind = match &error {
            RemoteError::Absent { .. } => io::ErrorKind::NotFound,
            RemoteError::Lied { .. } => io::ErrorKind::InvalidData,
            RemoteError::Refused { .. } => io::ErrorKind::PermissionDenied,
            RemoteError::Invalid { .. } => io::ErrorKind::InvalidInput,
            RemoteError::Source { .. } | RemoteError::Unavailable { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Cuts, takes out secrets, and replaces what could control a terminal.
fn clean(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "[redacted]");
    }
    let mut cut = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if cut.len() + c.len_utf8() > TEXT_BYTES_MAX {
            cut.push_str("...");
            break;
        }
        cut.push(c);
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_cut_and_cannot_control_a_terminal() {
        let text = format!("\u{1b}[31mno\r\n{}", "\u{e9}".repeat(1000));
        let answer = Answer::of(&Status::unavailable(text), &[]);
        let shown = answer.to_string();
        assert!(shown.len() < TEXT_BYTES_MAX + 100, "{}", shown.len());
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }

    #[test]
    fn a_secret_that_a_server_repeats_is_taken_out() {
        let status = Status::unauthenticated("Bearer hunter2 has expired");
        let answer = Answer::of(&status, &["hunter2", ""]);
        assert!(!format!("{answer} {answer:?}").contains("hunter2"));
        assert!(answer.to_string().contains("has expired"));
    }

    #[test]
    fn an_error_survives_its_way_through_a_reader() {
        let error = io::Error::from(RemoteError::invalid("reason"));
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<RemoteError>());
        assert!(matches!(inner, Some(RemoteError::Invalid { .. })));
    }
}
