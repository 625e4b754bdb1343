//! `Digest`: 32 bytes of BLAKE3 over some content; the name of a blob.
//!
//! Invariants:
//! - A `Digest` is only ever made from hashed bytes or from exactly 64 lowercase hex digits, so it
//!   can become part of a path without further checks.
//!
//! What a task depends on has a digest of its own type, [`crate::TaskDigest`], so that the two
//! cannot be swapped.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::str::FromStr;

/// The BLAKE3 hash of some content ([BLAKE3 specification](https://github.com/BLAKE3-team/BLAKE3-specs), 2020).
///
/// # Examples
/// ```
/// let digest = larder::Digest::of(b"hello");
/// assert_eq!(digest.to_string().parse::<larder::Digest>().as_ref(), Ok(&digest));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A text is not 64 lowercase hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest has exactly 64 lowercase hex digits")]
pub struct ParseDigestError;

impl Digest {
    /// Hashes `bytes`. Blocking; runs at memory speed on one core.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// Takes 32 bytes that a BLAKE3 hasher produced.
    pub const fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first twelve hex digits, for messages.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

/// A map whose keys are digests, or begin with one.
pub(crate) type DigestMap<K, V> = HashMap<K, V, BuildHasherDefault<DigestHasher>>;
/// A set of digests, or of what begins with one.
pub(crate) type DigestSet<K> = HashSet<K, BuildHasherDefault<DigestHasher>>;

/// The bits of a digest are spread well already; the first eight bytes are its hash.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*first);
        }
    }

    /// What comes beside a digest, such as a mode.
    fn write_u32(&mut self, number: u32) {
        self.0 = self.0.rotate_left(32) ^ u64::from(number);
    }

    /// The length of a digest says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Digest {
        Digest(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Digest, ParseDigestError> {
        let is_lower_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != 64 || !is_lower_hex {
            return Err(ParseDigestError);
        }
        blake3::Hash::from_hex(text).map(Digest::from).map_err(|_| ParseDigestError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lowercase_hex_digits_parse() {
        let text = Digest::of(b"x").to_string();
        assert_eq!(text.parse::<Digest>(), Ok(Digest::of(b"x")));
        for bad in [
            "",
            &text[1..],
            &text.to_uppercase(),
            &format!("{text}0"),
            &text.replace(&text[0..1], "g"),
        ] {
            assert_eq!(bad.parse::<Digest>(), Err(ParseDigestError), "{bad:?} is no digest");
        }
    }
}
