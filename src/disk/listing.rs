//! `Listing`: the names in one directory, sorted, in space that is used again for the next one.

use super::stat::FileKind;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Some five hundred names a call.
const BUFFER_BYTES: usize = 16 * 1024;

/// The names in a directory, in the order of their bytes.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// What the system fills.
    buffer: Vec<u8>,
    names: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    start: usize,
    end: usize,
    kind: FileKind,
}

impl Listing {
    /// Empties the listing; gives its buffer out for the time of the listing.
    pub(super) fn begin(&mut self) -> Vec<u8> {
        self.names.clear();
        self.entries.clear();
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.reserve(BUFFER_BYTES);
        buffer
    }

    /// Takes the buffer back and sorts what was listed.
    pub(super) fn end(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
        let names = &self.names;
        self.entries.sort_unstable_by_key(|entry| &names[entry.start..entry.end]);
    }

    pub(super) fn push(&mut self, name: &OsStr, kind: FileKind) {
        let start = self.names.len();
        self.names.extend_from_slice(name.as_bytes());
        self.entries.push(Entry { start, end: self.names.len(), kind });
    }

    /// Each name and what it is.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&OsStr, FileKind)> {
        let entries = self.entries.iter();
        entries.map(|entry| (OsStr::from_bytes(&self.names[entry.start..entry.end]), entry.kind))
    }

    /// Whether there is such a name.
    pub(crate) fn contains(&self, name: &OsStr) -> bool {
        let name_of = |entry: &Entry| &self.names[entry.start..entry.end];
        self.entries.binary_search_by(|entry| name_of(entry).cmp(name.as_bytes())).is_ok()
    }
}
