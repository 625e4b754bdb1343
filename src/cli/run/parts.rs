//! Key parts: what a run depends on, piece by piece.
//!
//! The key is a hash over typed, length-prefixed parts, so no two lists of parts run into each
//! other. The same list is kept with the entry, so that a later command can say what changed; there
//! the values of variables are hashed under a key of the store, and cannot be read or guessed
//! elsewhere.

use larder::Digest;
use std::fmt::Write;
use std::ops::Range;

/// Covers the meaning of the parts: another meaning is another version, and other keys.
const KEY_CONTEXT: &str = "larder 2026-11-23 run key v1";
const MAGIC: &[u8] = b"larder-key-1\n";

/// The kind of a part; the number is what is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Argument = 1,
    Executable = 2,
    WorkingDirectory = 3,
    Variable = 4,
    Tool = 5,
    File = 6,
    Symlink = 7,
    Platform = 8,
    Output = 9,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Argument, "argument"),
    (Kind::Executable, "executable"),
    (Kind::WorkingDirectory, "directory"),
    (Kind::Variable, "variable"),
    (Kind::Tool, "tool"),
    (Kind::File, "file"),
    (Kind::Symlink, "symlink"),
    (Kind::Platform, "platform"),
    (Kind::Output, "output"),
];

/// A list of parts in the making, as it is hashed.
#[derive(Debug)]
pub(super) struct Parts {
    bytes: Vec<u8>,
    /// Where the values of variables lie, with their lengths.
    variables: Vec<Range<usize>>,
}

const LENGTH_BYTES: usize = size_of::<u64>();

impl Parts {
    pub(super) fn new() -> Parts {
        Parts { bytes: MAGIC.to_vec(), variables: Vec::new() }
    }

    pub(super) fn add(&mut self, kind: Kind, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.add_joined(kind, name.as_ref(), &[value.as_ref()]);
    }

    /// Adds a part whose value is made of several pieces.
    pub(super) fn add_joined(&mut self, kind: Kind, name: &[u8], value: &[&[u8]]) {
        self.bytes.push(kind as u8);
        add_text(&mut self.bytes, &[name]);
        let start = self.bytes.len();
        add_text(&mut self.bytes, value);
        if kind == Kind::Variable {
            self.variables.push(start..self.bytes.len());
        }
    }

    /// The run's key: 64 hex digits.
    pub(super) fn key(&self) -> String {
        Digest::from_bytes(blake3::derive_key(KEY_CONTEXT, &self.bytes)).to_string()
    }

    /// The parts as they are kept.
    pub(super) fn describe(&self, secret_key: &[u8; 32]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(self.bytes.len());
        let mut next = 0;
        for text in &self.variables {
            kept.extend_from_slice(&self.bytes[next..text.start]);
            let value = &self.bytes[text.start + LENGTH_BYTES..text.end];
            add_text(&mut kept, &[blake3::keyed_hash(secret_key, value).as_bytes()]);
            next = text.end;
        }
        kept.extend_from_slice(&self.bytes[next..]);
        kept
    }
}

fn add_text(bytes: &mut Vec<u8>, pieces: &[&[u8]]) {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    bytes.extend_from_slice(&(length as u64).to_le_bytes());
    for piece in pieces {
        bytes.extend_from_slice(piece);
    }
}

/// Reads kept parts for people: kind and text. Stops at the first thing that it does not know.
pub(in crate::cli) fn describe(bytes: &[u8]) -> Vec<(String, String)> {
    let mut described = Vec::new();
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        return described;
    };
    while let Some(part) = take_part(&mut rest) {
        described.push(part);
    }
    described
}

fn take_part(rest: &mut &[u8]) -> Option<(String, String)> {
    let (number, after) = rest.split_first()?;
    let (kind, word) = KINDS.iter().find(|(kind, _)| *kind as u8 == *number)?;
    let mut after = after;
    let name = take_text(&mut after)?;
    let value = take_text(&mut after)?;
    *rest = after;
    let value = match (kind, value) {
        // A file's value is its digest and whether it can be executed.
        (Kind::File, [digest @ .., 1]) => format!("{} executable", hex(digest)),
        (Kind::File, [digest @ .., _])
        | (Kind::Executable | Kind::Variable | Kind::Tool, digest) => hex(digest),
        _ => String::from_utf8_lossy(value).into_owned(),
    };
    let texts = [String::from_utf8_lossy(name).into_owned(), value];
    let texts: Vec<&str> =
        texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    Some(((*word).to_owned(), texts.join(" ")))
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (text, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let keys = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc")].map(|(name, value)| {
            let mut parts = Parts::new();
            parts.add(Kind::Argument, name, value);
            parts.key()
        });
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key));
        }
    }

    #[test]
    fn values_of_variables_are_not_kept() {
        let mut parts = Parts::new();
        parts.add(Kind::Variable, "TOKEN", "hunter2");
        parts.add(Kind::File, "src/main.rs", [0xab; 33]);
        let kept = parts.describe(&[1; 32]);
        assert!(!kept.windows(7).any(|window| window == b"hunter2"));
        assert_ne!(kept, parts.describe(&[2; 32]), "another store keeps something else");
        let described = describe(&kept);
        assert_eq!(described[1].0, "file");
        assert!(described[1].1.starts_with("src/main.rs abab"));
        assert_eq!(describe(&kept[..kept.len() - 1]).len(), 1, "damage ends the list");
    }
}
