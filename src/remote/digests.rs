//! `RemoteDigest`: the name of a blob on a server, hash and size, under either digest function.
//!
//! Invariants:
//! - Which function made a digest is said once for a connection and never mixed within it; BLAKE3
//!   and SHA-256 have the same length, so nothing in the digest itself would tell them apart.
//! - What comes from a server has 64 lowercase hex digits and a size of at least 0, or is no
//!   digest.
//!
//! The store's own names are [`crate::digest::Digest`], always BLAKE3 and without a size.

use crate::digest::Digest;
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use sha2::Digest as _;
use std::fmt;

/// The digest functions that Larder speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum DigestFunction {
    /// That of the store.
    Blake3,
    /// That of every server.
    Sha256,
}

impl DigestFunction {
    /// The digest of bytes that are in memory.
    pub(crate) fn digest(self, bytes: &[u8]) -> RemoteDigest {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// A hasher for what comes in pieces.
    pub(crate) fn hasher(self) -> RemoteHasher {
        let state = match self {
            DigestFunction::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
            DigestFunction::Sha256 => State::Sha256(sha2::Sha256::new()),
        };
        RemoteHasher { state, size_bytes: 0 }
    }

    /// The protocol's number. It is set in every request: left out, a server would take BLAKE3 for
    /// SHA-256 (`remote_execution.proto`, `FindMissingBlobsRequest.digest_function`).
    pub(crate) fn number(self) -> i32 {
        self.value() as i32
    }

    fn value(self) -> reapi::digest_function::Value {
        match self {
            DigestFunction::Blake3 => reapi::digest_function::Value::Blake3,
            DigestFunction::Sha256 => reapi::digest_function::Value::Sha256,
        }
    }
}

impl fmt::Display for DigestFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.value().as_str_name())
    }
}

/// The name of a blob on a server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RemoteDigest {
    hash: [u8; 32],
    /// How many bytes the blob has.
    pub(crate) size_bytes: u64,
}

impl RemoteDigest {
    /// Joins a hash and the number of bytes that were hashed.
    pub(crate) const fn new(hash: [u8; 32], size_bytes: u64) -> RemoteDigest {
        RemoteDigest { hash, size_bytes }
    }

    /// The hash.
    pub(crate) const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The hash in 64 hex digits.
    pub(crate) fn hex(&self) -> String {
        Digest::from_bytes(self.hash).to_string()
    }

    /// Whether this names the blob without bytes, which servers have without being given it
    /// (`remote_execution.proto`, `ContentAddressableStorage`).
    pub(crate) const fn is_empty(&self) -> bool {
        self.size_bytes == 0
    }

    /// As the protocol has it.
    pub(crate) fn to_message(self) -> reapi::Digest {
        // A size past i64 belongs to no file; it would be refused, not taken for another.
        let size_bytes = i64::try_from(self.size_bytes).unwrap_or(i64::MAX);
        reapi::Digest { hash: self.hex(), size_bytes }
    }

    /// From a server; `None` if that is no digest.
    pub(crate) fn from_message(message: &reapi::Digest) -> Option<RemoteDigest> {
        let hash: Digest = message.hash.parse().ok()?;
        let size_bytes = u64::try_from(message.size_bytes).ok()?;
        Some(RemoteDigest { hash: *hash.as_bytes(), size_bytes })
    }
}

impl fmt::Display for RemoteDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Digest::from_bytes(self.hash), self.size_bytes)
    }
}

impl fmt::Debug for RemoteDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes and counts.
#[derive(Clone)]
pub(crate) struct RemoteHasher {
    state: State,
    size_bytes: u64,
}

#[derive(Clone)]
enum State {
    Blake3(Box<blake3::Hasher>),
    Sha256(sha2::Sha256),
}

impl RemoteHasher {
    /// Adds bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.size_bytes += bytes.len() as u64;
        match &mut self.state {
            State::Blake3(hasher) => {
                hasher.update(bytes);
            }
            State::Sha256(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all that was added.
    pub(crate) fn finish(self) -> RemoteDigest {
        let hash = match self.state {
            State::Blake3(hasher) => *hasher.finalize().as_bytes(),
            State::Sha256(hasher) => hasher.finalize().into(),
        };
        RemoteDigest { hash, size_bytes: self.size_bytes }
    }
}

impl fmt::Debug for RemoteHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteHasher").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_functions_agree_with_known_values() {
        // FIPS 180-2, B.1, and the BLAKE3 test vectors' empty input.
        let sha256 = DigestFunction::Sha256.digest(b"abc");
        assert_eq!(
            sha256.to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad/3"
        );
        let blake3 = DigestFunction::Blake3.digest(b"");
        assert_eq!(
            blake3.to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262/0"
        );
        assert!(blake3.is_empty() && !sha256.is_empty());
    }

    #[test]
    fn pieces_make_the_digest_of_the_whole() {
        for function in [DigestFunction::Blake3, DigestFunction::Sha256] {
            let mut hasher = function.hasher();
            hasher.update(b"a");
            hasher.update(b"");
            hasher.update(b"bc");
            assert_eq!(hasher.finish(), function.digest(b"abc"), "{function}");
        }
    }

    #[test]
    fn the_numbers_are_the_protocols() {
        assert_eq!(DigestFunction::Sha256.number(), 1);
        assert_eq!(DigestFunction::Blake3.number(), 9);
        assert_eq!(DigestFunction::Blake3.to_string(), "BLAKE3");
    }

    #[test]
    fn what_a_server_calls_a_digest_is_checked() {
        let digest = DigestFunction::Sha256.digest(b"abc");
        assert_eq!(RemoteDigest::from_message(&digest.to_message()), Some(digest));
        let hex = digest.hex();
        for (hash, size_bytes) in [
            (hex.clone(), -1),
            (hex.to_uppercase(), 3),
            (hex[1..].to_owned(), 3),
            (format!("{hex}0"), 3),
            ("../".repeat(21) + "x", 3),
            (String::new(), 0),
        ] {
            let message = reapi::Digest { hash, size_bytes };
            assert_eq!(RemoteDigest::from_message(&message), None, "{message:?}");
        }
    }
}
