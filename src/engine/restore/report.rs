//! What a restore did, in numbers.

use crate::manifest::Manifest;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a restore did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Restored {
    /// What was restored.
    pub manifest: Manifest,
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
    /// The filesystem cannot do it, or the system forbids it (`protected_hardlinks`).
    Unsupported,
    /// The blob's inode has another modification time than the one recorded.
    ModificationTime,
    /// The blob's inode cannot have the recorded mode: its owner could not read it.
    Mode,
    /// The blob was written so recently that a later write might not change its time.
    Young,
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CopyReason::OtherFilesystem => "store and workspace are on different filesystems",
            CopyReason::Unsupported => "not supported by the filesystem",
            CopyReason::ModificationTime => "the stored inode has another modification time",
            CopyReason::Mode => "the stored inode cannot have the recorded mode",
            CopyReason::Young => "stored too recently to prove it unchanged",
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

/// Counts that several threads add to.
#[derive(Debug, Default)]
pub(super) struct Counters {
    methods: [(AtomicU64, AtomicU64); 4],
    reasons: [AtomicU64; 5],
    pub(super) removed: AtomicU64,
}

const REASONS: [CopyReason; 5] = [
    CopyReason::OtherFilesystem,
    CopyReason::Unsupported,
    CopyReason::ModificationTime,
    CopyReason::Mode,
    CopyReason::Young,
];

impl Counters {
    pub(super) fn count(&self, method: Method, bytes: u64) {
        let (files, total) = &self.methods[method as usize];
        files.fetch_add(1, Ordering::Relaxed);
        total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn explain(&self, reason: CopyReason) {
        self.reasons[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn restored(&self, manifest: Manifest) -> Restored {
        let counts = |method: Method| MethodCounts {
            files: self.methods[method as usize].0.load(Ordering::Relaxed),
            bytes: self.methods[method as usize].1.load(Ordering::Relaxed),
        };
        let reasons = REASONS
            .into_iter()
            .map(|reason| (reason, self.reasons[reason as usize].load(Ordering::Relaxed)));
        Restored {
            manifest,
            reflinked: counts(Method::Reflinked),
            hardlinked: counts(Method::Hardlinked),
            copied: counts(Method::Copied),
            kept: counts(Method::Kept),
            removed: self.removed.load(Ordering::Relaxed),
            copy_reasons: reasons.filter(|(_, count)| *count > 0).collect(),
        }
    }
}
