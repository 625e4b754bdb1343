//! The tally: what entries and blobs take on disk, and how often blobs were swept.
//!
//! 96 bytes that commits and sweeps change in place, under a lock of their own, so that asking for
//! the size of a store costs one read and not a listing of it. Not synced, and bound to the boot: a
//! tally that is damaged, or older than the last boot, reads as nothing, and the store is counted
//! anew. Between two counts it errs by what was quarantined, by what killed stores left, and by
//! what other programs did in the store.
//!
//! A tally is only made in a section, and then says that nobody sweeps.

use super::Cache;
use crate::disk::{self, Dir, Lock, LockMode, layout};
use crate::identity::Identity;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: &[u8; 8] = b"larder-t";
const CONTEXT: &[u8] = b"larder 2026-11-23 tally v1";
const BODY_BYTES: usize = 64;
const TALLY_BYTES: usize = BODY_BYTES + 32;

/// What a store holds. Bytes are blocks on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    pub(super) entries: u64,
    pub(super) manifest_bytes: u64,
    pub(super) blobs: u64,
    pub(super) blob_bytes: u64,
}

/// What the tally says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// Changes with each sweep, and is odd while one is under way.
    pub(super) sweeps: u64,
    /// How many stores have committed.
    pub(super) commits: u64,
    /// Whether the totals were ever counted; else they only say what was added since.
    is_counted: bool,
    /// Whether a process was killed since then that may have published what nobody has counted.
    pub(super) is_suspect: bool,
    /// When they were counted, in minutes since 1970.
    counted_at_minutes: u32,
    totals: Totals,
}

/// The tally of one open store.
#[derive(Debug)]
pub(super) struct Tally {
    root: Dir,
    key: [u8; 32],
}

impl Totals {
    pub(super) fn bytes(&self) -> u64 {
        self.manifest_bytes + self.blob_bytes
    }

    fn add(&mut self, more: &Totals) {
        self.entries = self.entries.saturating_add(more.entries);
        self.manifest_bytes = self.manifest_bytes.saturating_add(more.manifest_bytes);
        self.blobs = self.blobs.saturating_add(more.blobs);
        self.blob_bytes = self.blob_bytes.saturating_add(more.blob_bytes);
    }

    fn subtract(&mut self, less: &Totals) {
        self.entries = self.entries.saturating_sub(less.entries);
        self.manifest_bytes = self.manifest_bytes.saturating_sub(less.manifest_bytes);
        self.blobs = self.blobs.saturating_sub(less.blobs);
        self.blob_bytes = self.blob_bytes.saturating_sub(less.blob_bytes);
    }
}

impl Reading {
    /// What the store holds; `None` if nobody has counted.
    pub(super) fn totals(&self) -> Option<Totals> {
        self.is_counted.then_some(self.totals)
    }

    /// When the totals were counted, in seconds since 1970.
    pub(super) fn counted_at(&self) -> i64 {
        i64::from(self.counted_at_minutes) * 60
    }

    pub(super) fn add(&mut self, more: &Totals) {
        self.totals.add(more);
    }

    pub(super) fn subtract(&mut self, less: &Totals) {
        self.totals.subtract(less);
    }
}

impl Tally {
    pub(super) fn new(root: Dir, identity: &Identity) -> Tally {
        let mut hasher = blake3::Hasher::new_keyed(&identity.boot_key());
        hasher.update(CONTEXT);
        Tally { root, key: *hasher.finalize().as_bytes() }
    }

    /// `None` if there is none to be believed.
    pub(super) fn read(&self) -> Option<Reading> {
        let (file, _) = self.root.open_regular(layout::TALLY.as_ref()).ok()?;
        if let Some(reading) = self.decode(&file) {
            return Some(reading);
        }
        // Somebody may be writing it just now.
        let mut again = None;
        let _ = self.update(|found| {
            again = found;
            None
        });
        again
    }

    /// Changes the totals, if there is a tally. Best effort: the next count puts them right.
    pub(super) fn change(&self, change: impl FnOnce(&mut Reading)) {
        let _ = self.update(|found| {
            let mut reading = found?;
            change(&mut reading);
            Some(reading)
        });
    }

    /// Says that a sweep begins. Once this has returned, whoever reads the tally looks for its blobs
    /// again.
    ///
    /// # Errors
    /// If nobody can be told: then nothing may be swept.
    pub(super) fn begin_sweep(&self) -> io::Result<()> {
        self.insist(|reading| reading.sweeps |= 1)
    }

    /// Says that it has ended.
    pub(super) fn end_sweep(&self, gone: &Totals) {
        self.change(|reading| {
            reading.sweeps = (reading.sweeps | 1).wrapping_add(1);
            reading.subtract(gone);
        });
    }

    /// Says that a store commits, in its section. Once this has returned, nobody takes back a blob
    /// that it may have found.
    ///
    /// # Errors
    /// If nobody can be told: then nothing may be committed.
    pub(super) fn count_commit(&self) -> io::Result<()> {
        self.insist(|reading| reading.commits = reading.commits.wrapping_add(1))
    }

    /// Changes what others rely on. A tally that cannot be changed, or that is not ours to read, is
    /// one that says nothing afterwards.
    fn insist(&self, change: impl FnOnce(&mut Reading)) -> io::Result<()> {
        let changed = Tally::fresh().and_then(|mut reading| {
            self.update(|found| {
                if let Some(found) = found {
                    reading = found;
                }
                change(&mut reading);
                Some(reading)
            })
        });
        changed.or_else(|_| self.root.unlink(layout::TALLY.as_ref()).map(|_| ()))
    }

    /// Writes totals that were counted, from when the tally was `before`: what others have added or
    /// removed since is kept. For a caller in a section, as [`Tally::begin`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn replace(&self, counted: Totals, before: Option<Reading>) -> io::Result<()> {
        let fresh = Tally::fresh()?;
        self.update(|found| {
            let mut reading = Reading { totals: counted, ..found.unwrap_or(fresh) };
            if let (Some(before), Some(found)) = (before, found) {
                reading.totals.add(&found.totals);
                reading.totals.subtract(&before.totals);
            }
            let counted_at_minutes = u32::try_from(disk::now().seconds / 60).unwrap_or_default();
            Some(Reading { is_counted: true, is_suspect: false, counted_at_minutes, ..reading })
        })
    }

    /// Makes a tally if there is none to be believed, for sweeps to be counted. Best effort. For a
    /// caller in a section, since a sweep that cannot write the tally goes on without one.
    pub(super) fn begin(&self) {
        if let Ok(fresh) = Tally::fresh() {
            let _ = self.update(|found| Some(found.unwrap_or(fresh)));
        }
    }

    /// A new one begins anywhere, so that it is not taken for one that was lost.
    fn fresh() -> io::Result<Reading> {
        let [sweeps, commits] = [disk::random_bytes()?, disk::random_bytes()?];
        Ok(Reading {
            sweeps: u64::from_le_bytes(sweeps) & !1,
            commits: u64::from_le_bytes(commits),
            is_counted: false,
            is_suspect: false,
            counted_at_minutes: 0,
            totals: Totals::default(),
        })
    }

    fn update(&self, change: impl FnOnce(Option<Reading>) -> Option<Reading>) -> io::Result<()> {
        let (file, _) = self.root.open_or_create(layout::TALLY.as_ref(), 0o600)?;
        let again = file.try_clone()?;
        let _lock = Lock::acquire(again, LockMode::Exclusive, disk::EAGER, &|| false)?;
        match change(self.decode(&file)) {
            Some(reading) => file.write_all_at(&self.encode(&reading), 0),
            None => Ok(()),
        }
    }

    fn encode(&self, reading: &Reading) -> [u8; TALLY_BYTES] {
        let Totals { entries, manifest_bytes, blobs, blob_bytes } = reading.totals;
        let mut bytes = [0; TALLY_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        let numbers = [reading.sweeps, entries, manifest_bytes, blobs, blob_bytes];
        for (number, at) in numbers.into_iter().zip((8..).step_by(8)) {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[48] = u8::from(reading.is_counted);
        bytes[49] = u8::from(reading.is_suspect);
        bytes[50..54].copy_from_slice(&reading.counted_at_minutes.to_le_bytes());
        bytes[56..64].copy_from_slice(&reading.commits.to_le_bytes());
        let checksum = blake3::keyed_hash(&self.key, &bytes[..BODY_BYTES]);
        bytes[BODY_BYTES..].copy_from_slice(checksum.as_bytes());
        bytes
    }

    fn decode(&self, file: &File) -> Option<Reading> {
        let mut bytes = [0; TALLY_BYTES];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let number =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let totals = Totals {
            entries: number(16),
            manifest_bytes: number(24),
            blobs: number(32),
            blob_bytes: number(40),
        };
        let reading = Reading {
            sweeps: number(8),
            commits: number(56),
            is_counted: bytes[48] == 1,
            is_suspect: bytes[49] == 1,
            counted_at_minutes: u32::from_le_bytes(bytes[50..54].try_into().expect("four bytes")),
            totals,
        };
        (self.encode(&reading) == bytes).then_some(reading)
    }
}

impl Cache {
    /// How often blobs were swept; `None` while a sweep is under way, or if nobody can tell. As long
    /// as it says the same, no blob that was found is gone.
    pub(super) fn sweeps(&self) -> Option<u64> {
        self.inner.tally.read().map(|reading| reading.sweeps).filter(|sweeps| sweeps % 2 == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Capabilities;

    #[test]
    fn what_is_counted_is_read_and_damage_reads_as_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = |key| {
            let root = Dir::open(folder.path(), Capabilities::all()).expect("the folder opens");
            Tally { root, key: [key; 32] }
        };
        let tally = open(1);
        assert_eq!(tally.read(), None);
        tally.change(|reading| reading.sweeps += 1);
        assert_eq!(tally.read(), None, "there is nothing to change");
        tally.begin();
        assert_eq!(tally.read().map(|reading| reading.totals()), Some(None), "not counted yet");
        let totals = Totals { entries: 1, manifest_bytes: 4096, blobs: 2, blob_bytes: 8192 };
        tally.replace(totals, None).expect("written");
        tally.change(|reading| reading.add(&totals));
        let reading = tally.read().expect("written");
        assert_eq!(reading.totals().map(|totals| totals.bytes()), Some(2 * (4096 + 8192)));
        assert_eq!(reading.sweeps % 2, 0);
        tally.replace(Totals::default(), Some(reading)).expect("written");
        assert_eq!(tally.read().and_then(|reading| reading.totals()), Some(Totals::default()));
        tally.change(|reading| reading.add(&totals));
        tally.replace(Totals::default(), Some(reading)).expect("written");
        let kept = tally.read().and_then(|reading| reading.totals());
        assert_eq!(kept, Some(Totals::default()), "less was there than before");
        tally.begin_sweep().expect("written");
        assert!(tally.read().is_some_and(|reading| reading.sweeps % 2 == 1));
        tally.end_sweep(&Totals::default());
        let after = tally.read().expect("written").sweeps;
        assert!(after % 2 == 0 && after != reading.sweeps);
        open(2).begin_sweep().expect("written");
        assert_eq!(tally.read(), None, "whoever cannot read it knows nothing");
        tally.replace(totals, None).expect("written");
        assert_eq!(open(2).read(), None, "another boot");
        let path = folder.path().join(layout::TALLY);
        let image = std::fs::read(&path).expect("the tally");
        for position in 0..image.len() {
            let mut damaged = image.clone();
            damaged[position] ^= 1;
            std::fs::write(&path, &damaged).expect("written");
            assert_eq!(tally.read(), None, "byte {position}");
        }
    }
}
