//! What a restore did, in numbers.

use crate::disk::Stamp;
use crate::manifest::Manifest;
use std::collections::BTreeMap;
use std::fmt;

/// What a restore did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Restored {
    /// What was restored.
    pub manifest: Manifest,
    /// Of the file of that manifest.
    pub(in crate::engine) stamp: Stamp,
    /// Files cloned, sharing their blocks with the store.
    pub reflinked: MethodCounts,
    /// Files that are names of the store's own inodes: read-only.
    pub hardlinked: MethodCounts,
    /// Files copied.
    pub copied: MethodCounts,
    /// Files that were there already, and right.
    pub kept: MethodCounts,
    /// Things that the task had not left there and that are gone now.
    pub removed: u64,
    /// Why files were not linked, and how many: only where a link was wanted.
    pub copy_reasons: BTreeMap<CopyReason, u64>,
}

/// Files and the bytes in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MethodCounts {
    /// Number of files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Why a file was not linked, or cloned, though that was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CopyReason {
    /// Store and workspace lie on different filesystems, or different mounts of one.
    OtherFilesystem,
    /// The filesystem cannot do it.
    Unsupported,
    /// The blob's inode belongs to another user of a shared store, and the system forbids links to it
    /// (`protected_hardlinks`).
    OtherOwner,
    /// The blob's inode has another modification time than the one recorded.
    ModificationTime,
    /// The blob's inode cannot have the recorded mode: its owner could not read it.
    Mode,
    /// The blob was written so recently that a later write might not change its time.
    Young,
    /// The blob's inode may have been written to, and cannot be replaced, since the store may only be
    /// read. The bytes were right, and are hashed again as they are copied.
    Unrenewed,
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CopyReason::OtherFilesystem => "store and workspace are on different filesystems",
            CopyReason::Unsupported => "not supported by the filesystem",
            CopyReason::OtherOwner => "the stored inode belongs to another user",
            CopyReason::ModificationTime => "the stored inode has another modification time",
            CopyReason::Mode => "the stored inode cannot have the recorded mode",
            CopyReason::Young => "stored too recently to prove it unchanged",
            CopyReason::Unrenewed => "the stored inode is doubtful, and the store may only be read",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Reflinked,
    Hardlinked,
    Copied,
    Kept,
}

/// What one thread did; the threads' counters are added up.
#[derive(Debug, Default)]
pub(super) struct Counters {
    methods: [MethodCounts; 4],
    reasons: [u64; REASONS.len()],
    pub(super) removed: u64,
}

const REASONS: [CopyReason; 7] = [
    CopyReason::OtherFilesystem,
    CopyReason::Unsupported,
    CopyReason::OtherOwner,
    CopyReason::ModificationTime,
    CopyReason::Mode,
    CopyReason::Young,
    CopyReason::Unrenewed,
];

impl Counters {
    pub(super) fn count(&mut self, method: Method, bytes: u64) {
        let counts = &mut self.methods[method as usize];
        counts.files += 1;
        counts.bytes += bytes;
    }

    pub(super) fn explain(&mut self, reason: CopyReason) {
        self.reasons[reason as usize] += 1;
    }

    pub(super) fn add(&mut self, other: &Counters) {
        for (counts, more) in self.methods.iter_mut().zip(&other.methods) {
            counts.files += more.files;
            counts.bytes += more.bytes;
        }
        for (count, more) in self.reasons.iter_mut().zip(&other.reasons) {
            *count += more;
        }
        self.removed += other.removed;
    }

    pub(super) fn restored(&self, manifest: Manifest, stamp: Stamp) -> Restored {
        let counts = |method: Method| self.methods[method as usize];
        let reasons = REASONS.into_iter().zip(self.reasons);
        Restored {
            manifest,
            stamp,
            reflinked: counts(Method::Reflinked),
            hardlinked: counts(Method::Hardlinked),
            copied: counts(Method::Copied),
            kept: counts(Method::Kept),
            removed: self.removed,
            copy_reasons: reasons.filter(|(_, count)| *count > 0).collect(),
        }
    }
}
