//! Every name on disk. Nobody else joins paths inside a store.
//!
//! ```text
//! <root>/                 0700; 02770 if it is shared with a group, as is all that is below
//!   FORMAT                "larder store format 1" and a checksum; made first, never changed
//!   CACHEDIR.TAG          so that backups pass the store by
//!   identity              id, incarnation, boot and barriers; checked
//!   identity.lock         flock: while identity is replaced
//!   lock                  flock: shared while publishing, exclusive to repair or remove
//!   in-use                flock: shared while the store is open, exclusive to remove
//!   gate                  flock: whoever waits for `lock` waits here, one at a time
//!   evict.lock            flock: held by the one process that may remove blobs
//!   tally                 what entries and blobs take, and how often blobs were swept; can be lost
//!   marking               which blobs were committed since a sweeper began to look
//!   references            what each entry needs, as the last sweeper found it; can be lost
//!   ghosts                what was evicted for want of room, and what came back; can be lost
//!   condemned/            large blobs that were swept, until their blocks are given back
//!   builds/<hex>          flocked while a process builds the task of that name
//!   holds/<hex>           flocked while outputs that a restore returned are held: their blobs
//!   barrier.lock          flock: while the filesystem is synced
//!   index.redb            task digest -> stamp of its manifest; can be lost
//!   settings.toml         written by people: options of the store as a whole
//!   index.seal            stamp of the index as its last writer left it
//!   index.lock            flock: while the index is written to
//!   stamps                32-byte slots: blob -> seal of its stamp, epoch; can be lost
//!   blobs/ab/cdef..       contents, mode 0444
//!   blobs/ab/cdef...555   the same contents with mode 0555 (or 0500, 0400, ...)
//!   manifests/ab/cdef..   the truth: one file for each task
//!   staging/<random>/     one directory for each open store, flocked while its owner lives
//!   leases/<hex>          flock: one file for each place in a workspace that was worked on, and
//!                         each directory above it; swept by a repair
//!   leases/intents/<hex>  what a restore is about to change; flocked while it lives
//!   ledgers/<hex>         one file for each place: path -> stat, digest; can be lost
//!   quarantine/           what was found damaged, named by time and former name
//!   uploads/<64 hex>      entries that are still to be sent elsewhere; flocked while somebody does
//! ```
//!
//! In a workspace, names of ours begin with [`RESTORE_PREFIX`]; they exist only while a restore
//! runs, or after one was killed.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

pub(crate) const FORMAT: &str = "FORMAT";
pub(crate) const CACHEDIR_TAG: &str = "CACHEDIR.TAG";
pub(crate) const IDENTITY: &str = "identity";
pub(crate) const IDENTITY_LOCK: &str = "identity.lock";
pub(crate) const BARRIER_LOCK: &str = "barrier.lock";
pub(crate) const LOCK: &str = "lock";
pub(crate) const IN_USE: &str = "in-use";
pub(crate) const GATE: &str = "gate";
pub(crate) const EVICT_LOCK: &str = "evict.lock";
pub(crate) const TALLY: &str = "tally";
pub(crate) const MARKING: &str = "marking";
pub(crate) const REFERENCES: &str = "references";
pub(crate) const GHOSTS: &str = "ghosts";
pub(crate) const INDEX: &str = "index.redb";
pub(crate) const INDEX_LOCK: &str = "index.lock";
pub(crate) const INDEX_SEAL: &str = "index.seal";
pub(crate) const STAMPS: &str = "stamps";
pub(crate) const SETTINGS: &str = "settings.toml";
pub(crate) const BLOBS: &str = "blobs";
pub(crate) const MANIFESTS: &str = "manifests";
pub(crate) const STAGING: &str = "staging";
pub(crate) const LEASES: &str = "leases";
/// In [`LEASES`]; made when it is first needed.
pub(crate) const INTENTS: &str = "intents";
pub(crate) const LEDGERS: &str = "ledgers";
pub(crate) const QUARANTINE: &str = "quarantine";
pub(crate) const CONDEMNED: &str = "condemned";
pub(crate) const HOLDS: &str = "holds";
pub(crate) const BUILDS: &str = "builds";
/// Made when it is first needed.
pub(crate) const UPLOADS: &str = "uploads";

/// The folders of a store, in the order in which they are made.
pub(crate) const FOLDERS: [&str; 9] =
    [BLOBS, MANIFESTS, STAGING, LEASES, LEDGERS, QUARANTINE, CONDEMNED, HOLDS, BUILDS];

/// The files in the root of a store.
const FILES: [&str; 18] = [
    FORMAT,
    CACHEDIR_TAG,
    IDENTITY,
    IDENTITY_LOCK,
    BARRIER_LOCK,
    LOCK,
    IN_USE,
    GATE,
    EVICT_LOCK,
    TALLY,
    MARKING,
    REFERENCES,
    GHOSTS,
    INDEX,
    INDEX_LOCK,
    INDEX_SEAL,
    STAMPS,
    SETTINGS,
];

/// How every file that we put into a workspace for the time of a restore is named.
pub(crate) const RESTORE_PREFIX: &str = ".larder-restore-";

/// Whether a name in a workspace is that of a restore's private directory.
pub(crate) fn is_private_directory(name: &OsStr) -> bool {
    name.to_str().and_then(|name| name.strip_prefix(RESTORE_PREFIX)).is_some_and(is_random)
}

/// Whether a name in the root of a store is one that we write. Replaced files have a random suffix
/// while they are made.
pub(crate) fn is_ours(name: &str) -> bool {
    let is_name = FILES.contains(&name) || FOLDERS.contains(&name) || name == UPLOADS;
    is_name || is_replacement(name) || name == "lost+found"
}

/// Whether a name in the root of a store is that of a file or folder which was not ready for its own
/// name yet. Such ones live for milliseconds; one that is older was left by a process that died.
pub(crate) fn is_replacement(name: &str) -> bool {
    let suffix = |file: &str| name.strip_prefix(file).and_then(|rest| rest.strip_prefix('.'));
    FILES.into_iter().chain(FOLDERS).chain([UPLOADS]).filter_map(suffix).any(is_random)
}

fn is_random(suffix: &str) -> bool {
    suffix.len() == 16 && suffix.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What no pattern reaches: a repository's own folder is nobody's output.
pub(crate) const GIT_FOLDER: &str = ".git";

/// The newest store format that this build reads and writes.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// How the format file begins.
pub(crate) const FORMAT_WORDS: &str = "larder store format ";

/// The signature that the [Cache Directory Tagging Specification](https://bford.info/cachedir/) asks for.
pub(crate) const CACHEDIR_TAG_CONTENTS: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
# This directory is a cache made by larder. Removing it costs rebuilding, nothing else.\n";

/// Where a digest's file lies below `blobs` or `manifests`: `ab/cdef..`.
///
/// This is the one name of two components that is given to [`super::Dir`]'s verbs: the fan-out
/// folders are our own, and opening each for each file would cost as much as the work itself,
/// keeping all of them open 512 descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    bytes: [u8; SHARD_BYTES_MAX],
    length: usize,
}

/// Two hex digits, a slash, 62 more, a dot and three octal digits.
const SHARD_BYTES_MAX: usize = 69;

impl Shard {
    /// Where a blob with these permission bits lies. 0444 is the usual case and has no suffix.
    pub(crate) fn of_blob(digest: &[u8; 32], mode: u32) -> Shard {
        let mut shard = Shard::of_manifest(digest);
        if mode != 0o444 {
            let octal = |shift: u32| b'0' + (mode >> shift & 7) as u8;
            shard.bytes[65..].copy_from_slice(&[b'.', octal(6), octal(3), octal(0)]);
            shard.length = SHARD_BYTES_MAX;
        }
        shard
    }

    /// Where the manifest of a task lies.
    pub(crate) fn of_manifest(digest: &[u8; 32]) -> Shard {
        let hex = blake3::Hash::from_bytes(*digest).to_hex();
        let mut bytes = [0; SHARD_BYTES_MAX];
        bytes[..2].copy_from_slice(&hex.as_bytes()[..2]);
        bytes[2] = b'/';
        bytes[3..65].copy_from_slice(&hex.as_bytes()[2..]);
        Shard { bytes, length: 65 }
    }

    /// The fan-out folder.
    pub(crate) fn folder(&self) -> &OsStr {
        OsStr::from_bytes(&self.bytes[..2])
    }

    /// Folder and name.
    pub(crate) fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.bytes[..self.length])
    }

    /// Reads folder and file name back; `None` for names that we do not write.
    pub(crate) fn parse(folder: &str, name: &str) -> Option<([u8; 32], u32)> {
        let (hex, mode) = match name.split_once('.') {
            None => (name, 0o444),
            Some((hex, octal)) => (hex, parse_mode(octal)?),
        };
        let (mut digits, length) = ([0; 64], folder.len() + hex.len());
        if folder.len() != 2 || length != digits.len() {
            return None;
        }
        digits[..2].copy_from_slice(folder.as_bytes());
        digits[2..].copy_from_slice(hex.as_bytes());
        let digest: crate::Digest = std::str::from_utf8(&digits).ok()?.parse().ok()?;
        Some((*digest.as_bytes(), mode))
    }
}

/// The name of the lease, or of the ledger, of one place in one workspace.
pub(crate) fn place_name(place: &[u8; 32]) -> String {
    place[..16].iter().fold(String::new(), |mut name, byte| {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

fn parse_mode(octal: &str) -> Option<u32> {
    let mode = u32::from_str_radix(octal, 8).ok()?;
    (octal.len() == 3 && mode & !0o555 == 0 && mode != 0o444).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_names_read_back_and_nothing_else_does() {
        let digest = *crate::Digest::of(b"x").as_bytes();
        for mode in [0o444, 0o555, 0o400, 0o500, 0o440] {
            let shard = Shard::of_blob(&digest, mode);
            let folder = shard.folder().to_string_lossy();
            let name = shard.name().to_string_lossy();
            let (_, name) = name.split_once('/').expect("two components");
            assert_eq!(Shard::parse(&folder, name), Some((digest, mode)));
        }
        let shard = Shard::of_manifest(&digest);
        let folder = shard.folder().to_string_lossy();
        let name = shard.name().to_string_lossy();
        let (_, name) = name.split_once('/').expect("two components");
        for bad in [
            "",
            "x",
            &format!("{name}.444"),
            &format!("{name}.755"),
            &format!("{name}.5"),
            &name[1..],
        ] {
            assert_eq!(Shard::parse(&folder, bad), None, "{bad:?}");
        }
        assert_eq!(Shard::parse("zz", name), None);
    }
}
