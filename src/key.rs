//! `TaskDigest`: the name under which a task's result is kept.
//!
//! A caller names a task by a string of its own (usually a digest over everything the task depends
//! on). That string is hashed, in a BLAKE3 context of its own, and never becomes part of a path;
//! so a task digest can collide neither with a blob's digest nor with another namespace's key.

use crate::error::Error;
use std::fmt;

/// BLAKE3 key derivation context (section 2.3 of the specification: globally unique, hardcoded).
const CONTEXT: &str = "larder 2026-11-23 task digest v1";

/// The longest key that is taken, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// What a task's result is filed under: the hash of a namespace and the caller's key.
///
/// # Examples
/// ```
/// use larder::TaskDigest;
/// let task = TaskDigest::derive("", "build:3f2a91")?;
/// assert_ne!(task, TaskDigest::derive("", "build:3f2a92")?);
/// assert!(TaskDigest::derive("", "").is_err());
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskDigest([u8; 32]);

impl TaskDigest {
    /// Hashes `key` in `namespace`. The empty namespace is that of whoever names none.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] if the key is empty or longer than [`KEY_BYTES_MAX`].
    pub fn derive(namespace: &str, key: &str) -> Result<TaskDigest, Error> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(Error::InvalidKey { length_bytes: key.len() });
        }
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&(namespace.len() as u64).to_le_bytes());
        hasher.update(namespace.as_bytes());
        hasher.update(key.as_bytes());
        Ok(TaskDigest(*hasher.finalize().as_bytes()))
    }

    /// Takes the 32 bytes of a task digest that was derived earlier.
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> TaskDigest {
        TaskDigest(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// In which namespaces entries are looked for, and in which they are stored. Keys of two namespaces
/// never meet. That keeps apart only those who keep to it: who can write to a store can write to every
/// namespace in it.
///
/// # Examples
/// ```
/// use larder::{Namespaces, TaskDigest};
/// // A pull request's job reads the main line's entries and writes only its own.
/// let names = Namespaces::new("pull-17")?.reading(["main"])?;
/// let (own, main) = (TaskDigest::derive("pull-17", "key")?, TaskDigest::derive("main", "key")?);
/// assert_eq!(names.to_write("key")?, own);
/// assert_eq!(names.to_read("key")?, [own, main]);
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespaces {
    own: String,
    others: Vec<String>,
}

/// The word for the empty namespace, where one has to be named.
const DEFAULT_NAMESPACE: &str = "default";

impl Namespaces {
    /// Stores in, and looks first in, this namespace. `default` and the empty name mean the one that is
    /// used where none is named.
    ///
    /// # Errors
    /// [`Error::InvalidNamespace`] for a name of more than 256 bytes or with control characters.
    pub fn new(own: &str) -> Result<Namespaces, Error> {
        Ok(Namespaces { own: name_of(own)?, others: Vec::new() })
    }

    /// Looks in these, too, in this order.
    ///
    /// # Errors
    /// As for [`Namespaces::new`].
    pub fn reading<'a>(
        mut self,
        others: impl IntoIterator<Item = &'a str>,
    ) -> Result<Namespaces, Error> {
        for other in others {
            let name = name_of(other)?;
            if name != self.own && !self.others.contains(&name) {
                self.others.push(name);
            }
        }
        Ok(self)
    }

    /// Where the entry of `key` is stored.
    ///
    /// # Errors
    /// As for [`TaskDigest::derive`].
    pub fn to_write(&self, key: &str) -> Result<TaskDigest, Error> {
        TaskDigest::derive(&self.own, key)
    }

    /// Where an entry for `key` may be, its own place first.
    ///
    /// # Errors
    /// As for [`TaskDigest::derive`].
    pub fn to_read(&self, key: &str) -> Result<Vec<TaskDigest>, Error> {
        let names = std::iter::once(&self.own).chain(&self.others);
        names.map(|name| TaskDigest::derive(name, key)).collect()
    }
}

fn name_of(name: &str) -> Result<String, Error> {
    const NAMESPACE_BYTES_MAX: usize = 256;
    if name.len() > NAMESPACE_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Error::InvalidNamespace);
    }
    Ok(if name == DEFAULT_NAMESPACE { String::new() } else { name.to_owned() })
}

impl fmt::Display for TaskDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for TaskDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskDigest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_1_to_1024_bytes() {
        for length_bytes in [0, 1025, 5000] {
            let key = "k".repeat(length_bytes);
            assert!(matches!(TaskDigest::derive("", &key), Err(Error::InvalidKey { .. })));
        }
        for key in ["k", "\0", "../../etc/passwd", "ключ 🗝", &"k".repeat(1024)] {
            assert!(TaskDigest::derive("", key).is_ok(), "{key:?} is a key");
        }
    }

    #[test]
    fn the_own_namespace_is_read_first_and_none_twice() -> Result<(), Error> {
        let names = Namespaces::new("own")?.reading(["default", "main", "own", "main", ""])?;
        let expected = ["own", "", "main"].map(|name| TaskDigest::derive(name, "key"));
        let expected: Result<Vec<TaskDigest>, Error> = expected.into_iter().collect();
        assert_eq!(names.to_read("key")?, expected?);
        assert_eq!(Namespaces::default().to_read("key")?, [TaskDigest::derive("", "key")?]);
        for bad in ["a\nb", "\0", &"n".repeat(257)] {
            assert!(matches!(Namespaces::new(bad), Err(Error::InvalidNamespace)), "{bad:?}");
        }
        Ok(())
    }

    #[test]
    fn namespace_and_key_cannot_run_into_each_other() {
        let digests = [
            TaskDigest::derive("", "ab").ok(),
            TaskDigest::derive("a", "b").ok(),
            TaskDigest::derive("ab", "c").ok(),
            TaskDigest::derive("a", "bc").ok(),
        ];
        for (index, digest) in digests.iter().enumerate() {
            assert!(digest.is_some() && !digests[..index].contains(digest));
        }
    }
}
