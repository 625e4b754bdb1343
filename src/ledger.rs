//! Ledgers: what the files of a workspace held when they were last looked at, so that nothing
//! unchanged is read again.
//!
//! A ledger is one file in the store for one *place*: a workspace together with the outputs, or the
//! inputs, that somebody asks about. It lists, sorted by path, the digest of each file and the stat
//! that it had. It is replaced whole, by a rename, and only if something in it changed.
//!
//! Invariants:
//! - A row is only written for a file that had not changed for a while (git's rule for racily fresh
//!   times: a write within the same tick of the kernel's clock leaves no trace in a stat).
//! - A row is believed only if inode, size, mode, modification and change time are all the same. A
//!   link to a blob is believed without its change time, which changes whenever another link comes
//!   or goes: exactly as far as a blob's stamp is believed ([`crate::blob`]).
//! - A ledger speaks for one boot: after a power cut a file may have lost what its inode says it has.
//! - Its loss, and any damage to it, is harmless: files are read again. Nothing here fails an
//!   operation or is synced.
//!
//! Left to others: which files to look at, and what a digest is good for (`engine`).

use crate::digest::Digest;
use crate::disk::{self, Dir, FileKind, FileStat, Stamp, Timestamp, layout};
use crate::identity::Identity;
use crate::manifest::{PATH_BYTES_MAX, compare_paths};
use std::cmp::Ordering;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const MAGIC: &[u8; 8] = b"larder-l";
const CHECKSUM_CONTEXT: &str = "larder 2026-11-23 ledger file v1";
const PLACE_CONTEXT: &str = "larder 2026-11-23 ledger place v1";
/// Magic, place, checksum of the rest.
const HEADER_BYTES: usize = 8 + 32 + 32;
/// Of a row, without its path.
const ROW_BYTES: usize = 2 + 32 + STAT_BYTES;
const STAT_BYTES: usize = 8 + 8 + 8 + 12 + 12 + 2 + 1;
/// A ledger of more bytes is neither written nor read: some two million files.
const LEDGER_BYTES_MAX: u64 = 256 << 20;
/// More workspaces than this on one machine take turns: the ledger that was written first goes.
const LEDGERS_MAX: usize = 256;
/// So many ledgers wait to be written at most: each has some hundred bytes a file.
const PENDING_MAX: usize = 8;
/// Reading files of this many bytes in all again costs less than keeping a ledger of them.
const WORTH_BYTES_MIN: u64 = 1 << 20;
/// What a file costs to read beyond its bytes, in bytes that are read in the same time.
const OPEN_COST_BYTES: u64 = 16 << 10;

/// The ledgers of one store.
#[derive(Debug)]
pub(crate) struct Ledgers {
    folder: Dir,
    key: [u8; 32],
    /// What is to be written when nobody waits. Shared with whoever reads it meanwhile.
    pending: Mutex<Vec<(Place, Arc<Ledger>)>>,
}

/// What a ledger is about, as a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place([u8; 32]);

/// How a regular file looked when its digest was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    device: u64,
    stamp: Stamp,
    changed: Timestamp,
    mode: u32,
    /// Whether it was a link to the blob.
    is_blob: bool,
}

/// One file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) digest: Digest,
    pub(crate) seen: Seen,
}

/// A ledger as it was read; empty if there was none to be believed.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    bytes: Vec<u8>,
    /// Where each row begins, in the order of their paths.
    starts: Vec<u32>,
}

/// A position in a ledger, for asking in about the order of its paths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    ledger: &'a Ledger,
    next: usize,
}

impl Seen {
    /// How a private file looks.
    pub(crate) fn private(stat: &FileStat) -> Seen {
        let FileStat { device, changed, mode, .. } = *stat;
        Seen { device, stamp: stat.stamp(), changed, mode, is_blob: false }
    }

    /// How a link to an intact blob looks. Its change time says nothing.
    pub(crate) fn blob(stat: &FileStat) -> Seen {
        Seen { changed: stat.modified, is_blob: true, ..Seen::private(stat) }
    }

    /// Whether this was a link to the blob.
    pub(crate) fn is_blob(&self) -> bool {
        self.is_blob
    }

    /// The length that it had.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.stamp.size_bytes
    }

    /// Whether a file that looks like this now holds what it held then.
    pub(crate) fn fits(&self, now: &FileStat) -> bool {
        let is_same_change = if self.is_blob { now.links > 1 } else { self.changed == now.changed };
        is_same_change
            && self.stamp == now.stamp()
            && self.device == now.device
            && self.mode == now.mode
            && now.kind == FileKind::Regular
    }

    /// Whether a write from now on must change the stat.
    fn is_settled(&self, now: Timestamp) -> bool {
        !self.stamp.modified.max(self.changed).is_young_at(now)
    }
}

impl Place {
    /// The place of some outputs or inputs in a workspace. `purpose` tells the two apart.
    pub(crate) fn new<'a>(
        workspace: &'a Path,
        purpose: &'a str,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> Place {
        use std::os::unix::ffi::OsStrExt;
        let mut hasher = blake3::Hasher::new_derive_key(PLACE_CONTEXT);
        for part in [purpose.as_bytes(), workspace.as_os_str().as_bytes()].into_iter().chain(parts)
        {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Place(*hasher.finalize().as_bytes())
    }

    fn name(&self) -> String {
        layout::place_name(&self.0)
    }
}

impl Ledgers {
    /// The ledgers in the folder of that name; no I/O.
    pub(crate) fn new(folder: Dir, identity: &Identity) -> Ledgers {
        Ledgers { folder, key: identity.boot_key(), pending: Mutex::default() }
    }

    /// Reads the ledger of a place.
    pub(crate) fn read(&self, place: Place) -> Arc<Ledger> {
        let pending = self.lock_pending();
        if let Some((_, ledger)) = pending.iter().find(|(about, _)| *about == place) {
            return Arc::clone(ledger);
        }
        drop(pending);
        let read = (|| {
            let (file, stat) = self.folder.open_regular(place.name().as_ref())?;
            let mut bytes = Vec::new();
            if stat.size_bytes <= LEDGER_BYTES_MAX {
                disk::read_exactly(&file, stat.size_bytes as usize, &mut bytes)?;
            }
            io::Result::Ok(bytes)
        })();
        let bytes = read.unwrap_or_default();
        let is_ours = bytes.len() >= HEADER_BYTES
            && bytes[..40] == header(place)
            && bytes[40..HEADER_BYTES] == self.checksum(&bytes[HEADER_BYTES..]);
        if !is_ours {
            return Arc::default();
        }
        let starts = starts(&bytes);
        Arc::new(Ledger { bytes, starts })
    }

    /// Replaces the ledger of a place, if it is worth one and says something new: it keeps the rows of
    /// `old` at these positions, which ascend, and gets the fresh ones, whose paths ascend, but for
    /// those of files that may still change without a trace. Others see it after
    /// [`Ledgers::flush`].
    pub(crate) fn replace<'a>(
        &self,
        place: Place,
        old: &Ledger,
        kept: &[u32],
        fresh: impl Iterator<Item = Row<'a>>,
    ) {
        let now = disk::now();
        let mut fresh = fresh
            .filter(|row| row.seen.is_settled(now) && row.path.len() <= PATH_BYTES_MAX)
            .peekable();
        if fresh.peek().is_none() && kept.len() == old.len() {
            return;
        }
        let mut kept = kept.iter().filter_map(|position| old.row(*position as usize)).peekable();
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&header(place));
        bytes.resize(HEADER_BYTES, 0);
        let (mut starts, mut worth) = (Vec::new(), 0_u64);
        loop {
            let order = match (kept.peek(), fresh.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(kept), Some(fresh)) => compare_paths(kept.path, fresh.path),
            };
            let known = if order.is_le() { kept.next() } else { None };
            let Some(row) = (if order.is_ge() { fresh.next() } else { known }) else { break };
            starts.push(bytes.len() as u32);
            encode(&row, &mut bytes);
            worth = worth.saturating_add(row.seen.size_bytes()).saturating_add(OPEN_COST_BYTES);
        }
        if (worth < WORTH_BYTES_MIN && old.starts.is_empty())
            || bytes.len() as u64 > LEDGER_BYTES_MAX
        {
            return;
        }
        let mut pending = self.lock_pending();
        pending.retain(|(about, _)| *about != place);
        pending.push((place, Arc::new(Ledger { bytes, starts })));
        let is_full = pending.len() > PENDING_MAX;
        drop(pending);
        if is_full {
            self.flush();
        }
    }

    /// Writes what was replaced, for other processes and later ones. Best effort: on a full or
    /// read-only disk files are read again.
    pub(crate) fn flush(&self) {
        let pending = std::mem::take(&mut *self.lock_pending());
        for (place, ledger) in pending {
            let _ = self.write(place, &ledger.bytes);
        }
    }

    fn write(&self, place: Place, bytes: &[u8]) -> io::Result<()> {
        let (name, contents) = (place.name(), &bytes[HEADER_BYTES..]);
        if self.folder.stat(name.as_ref())?.is_none() {
            self.make_room();
        }
        let staged = format!("{name}.{}", disk::random_name()?);
        let mut file = self.folder.create_new(staged.as_ref(), 0o600)?;
        let written = (|| {
            file.write_all(&header(place))?;
            file.write_all(&self.checksum(contents))?;
            file.write_all(contents)?;
            self.folder.rename(staged.as_ref(), &self.folder, name.as_ref())
        })();
        if written.is_err() {
            // Best effort; it is the first to go when there is no room.
            let _ = self.folder.unlink(staged.as_ref());
        }
        written
    }

    /// Removes the ledgers that were written first if there are too many.
    fn make_room(&self) {
        let Ok(entries) = self.folder.entries() else { return };
        if entries.len() < LEDGERS_MAX {
            return;
        }
        let modified = |name: &OsString| Some(self.folder.stat(name).ok()??.modified);
        let mut aged: Vec<(Timestamp, OsString)> =
            entries.into_iter().filter_map(|(name, _)| Some((modified(&name)?, name))).collect();
        aged.sort();
        for (_, name) in &aged[..aged.len().saturating_sub(LEDGERS_MAX / 2)] {
            let _ = self.folder.unlink(name);
        }
    }

    fn lock_pending(&self) -> MutexGuard<'_, Vec<(Place, Arc<Ledger>)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keyed by store and boot.
    fn checksum(&self, contents: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(CHECKSUM_CONTEXT.as_bytes());
        hasher.update(contents);
        *hasher.finalize().as_bytes()
    }
}

impl Drop for Ledgers {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Ledger {
    /// Asks from the beginning.
    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor { ledger: self, next: 0 }
    }

    /// Number of files.
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// All of them.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).filter_map(|position| self.row(position))
    }

    fn row(&self, position: usize) -> Option<Row<'_>> {
        let start = *self.starts.get(position)? as usize;
        decode(self.bytes.get(start..start + ROW_BYTES)?, self.path(position))
    }

    fn path(&self, index: usize) -> &[u8] {
        let start = self.starts[index] as usize;
        let length = u16::from_le_bytes([self.bytes[start], self.bytes[start + 1]]);
        &self.bytes[start + ROW_BYTES..start + ROW_BYTES + length as usize]
    }
}

impl<'a> Cursor<'a> {
    /// The row of a path, and its position: at once if it is the one after the last that was found.
    pub(crate) fn find(&mut self, path: &[u8]) -> Option<(u32, Row<'a>)> {
        let ledger = self.ledger;
        let is_next = self.next < ledger.len() && ledger.path(self.next) == path;
        let position = if is_next {
            self.next
        } else {
            let (mut low, mut high) = (0, ledger.len());
            while low < high {
                let middle = low.midpoint(high);
                match compare_paths(ledger.path(middle), path) {
                    Ordering::Less => low = middle + 1,
                    Ordering::Equal => (low, high) = (middle, middle),
                    Ordering::Greater => high = middle,
                }
            }
            (low < ledger.len() && ledger.path(low) == path).then_some(low)?
        };
        self.next = position + 1;
        Some((position as u32, ledger.row(position)?))
    }
}

/// How many rows a ledger of these bytes has, behind its checksum; for the fuzz targets.
///
/// # Panics
/// If a row that is there is not the one that is found by its path, where the paths are sorted.
#[cfg(any(fuzzing, larder_rigs))]
pub(crate) fn count_rows(rows: &[u8]) -> usize {
    let bytes = [&[0; HEADER_BYTES], rows].concat();
    let ledger = Ledger { starts: starts(&bytes), bytes };
    let paths: Vec<&[u8]> = ledger.rows().map(|row| row.path).collect();
    assert_eq!(paths.len(), ledger.len(), "each has a row");
    let is_sorted = paths.windows(2).all(|pair| compare_paths(pair[0], pair[1]) == Ordering::Less);
    let mut cursor = ledger.cursor();
    for (position, path) in paths.iter().enumerate().rev() {
        let found = cursor.find(path);
        assert!(found.is_some() || !is_sorted, "a row is lost");
        assert!(!is_sorted || found.is_some_and(|(at, _)| at as usize == position));
    }
    ledger.len()
}

fn header(place: Place) -> [u8; 40] {
    let mut header = [0; 40];
    header[..8].copy_from_slice(MAGIC);
    header[8..].copy_from_slice(&place.0);
    header
}

fn encode(row: &Row<'_>, bytes: &mut Vec<u8>) {
    let Seen { device, stamp, changed, mode, is_blob } = row.seen;
    let mut fixed = [0; ROW_BYTES];
    fixed[..2].copy_from_slice(&(row.path.len() as u16).to_le_bytes());
    fixed[2..34].copy_from_slice(row.digest.as_bytes());
    for (number, at) in [(device, 34), (stamp.inode, 42), (stamp.size_bytes, 50)] {
        fixed[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    for (time, at) in [(stamp.modified, 58), (changed, 70)] {
        fixed[at..at + 8].copy_from_slice(&time.seconds.to_le_bytes());
        fixed[at + 8..at + 12].copy_from_slice(&time.nanoseconds.to_le_bytes());
    }
    fixed[82..84].copy_from_slice(&(mode as u16).to_le_bytes());
    fixed[84] = u8::from(is_blob);
    bytes.extend_from_slice(&fixed);
    bytes.extend_from_slice(row.path);
}

fn decode<'a>(bytes: &[u8], path: &'a [u8]) -> Option<Row<'a>> {
    let digest = Digest::from_bytes(bytes[2..34].try_into().ok()?);
    let number = |start: usize| Some(u64::from_le_bytes(bytes[start..start + 8].try_into().ok()?));
    let time = |start: usize| {
        let nanoseconds = u32::from_le_bytes(bytes[start + 8..start + 12].try_into().ok()?);
        Some(Timestamp { seconds: number(start)? as i64, nanoseconds })
    };
    let stamp = Stamp { inode: number(42)?, size_bytes: number(50)?, modified: time(58)? };
    let mode = u32::from(u16::from_le_bytes([bytes[82], bytes[83]]));
    let (device, changed, is_blob) = (number(34)?, time(70)?, bytes[84] == 1);
    Some(Row { path, digest, seen: Seen { device, stamp, changed, mode, is_blob } })
}

/// Where the rows begin. The checksum was right, so what does not fit is ours to be wrong about.
fn starts(bytes: &[u8]) -> Vec<u32> {
    let mut starts = Vec::with_capacity(bytes.len() / (ROW_BYTES + 32));
    let mut start = HEADER_BYTES;
    while let Some(head) = bytes.get(start..start + ROW_BYTES) {
        let end = start + ROW_BYTES + usize::from(u16::from_le_bytes([head[0], head[1]]));
        if end > bytes.len() {
            break;
        }
        starts.push(start as u32);
        start = end;
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Capabilities;

    fn stat(number: u64) -> FileStat {
        let time = Timestamp { seconds: 1_000, nanoseconds: number as u32 + 1 };
        FileStat {
            kind: FileKind::Regular,
            mode: 0o644,
            size_bytes: 1 << 20,
            allocated_bytes: 4096,
            device: 9,
            inode: number,
            links: 1,
            user: 0,
            group: 0,
            accessed: time,
            modified: time,
            changed: Timestamp { seconds: 2_000, ..time },
        }
    }

    fn ledgers(folder: &Path, key: u8) -> Ledgers {
        let folder = Dir::open(folder, Capabilities::all()).expect("the folder opens");
        Ledgers { folder, key: [key; 32], pending: Mutex::default() }
    }

    fn row(path: &[u8], number: u64) -> Row<'_> {
        Row { path, digest: Digest::of(path), seen: Seen::private(&stat(number)) }
    }

    fn place(text: &str) -> Place {
        Place::new(Path::new("/w"), text, std::iter::empty())
    }

    #[test]
    fn what_is_written_is_found_in_any_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ledgers = ledgers(folder.path(), 1);
        let paths: Vec<String> =
            (0..100).map(|number| format!("d{}/{number}", number % 7)).collect();
        let rows = (0..100).map(|number| row(paths[number as usize].as_bytes(), number));
        let mut rows: Vec<Row<'_>> = rows.collect();
        rows.sort_by(|one, other| compare_paths(one.path, other.path));
        ledgers.replace(place("a"), &Ledger::default(), &[], rows.into_iter());
        let ledger = ledgers.read(place("a"));
        assert_eq!(ledger.len(), 100);
        let mut cursor = ledger.cursor();
        for number in (0..100).rev() {
            let path = &paths[number as usize];
            let (_, found) = cursor.find(path.as_bytes()).expect("written");
            assert_eq!(found.digest, Digest::of(path.as_bytes()));
            assert!(found.seen.fits(&stat(number)) && !found.seen.fits(&stat(number + 1)));
        }
        assert!(cursor.find(b"elsewhere").is_none());
        assert_eq!(ledgers.read(place("b")).len(), 0, "another place");

        let (position, _) = ledger.cursor().find(b"d0/7").expect("written");
        ledgers.replace(place("a"), &ledger, &[position], [row(b"new", 7)].into_iter());
        let ledger = ledgers.read(place("a"));
        assert_eq!(ledger.len(), 2, "one was kept, one is fresh");
        assert!(ledger.cursor().find(b"d0/7").is_some() && ledger.cursor().find(b"new").is_some());
    }

    #[test]
    fn a_change_of_any_kind_is_seen_and_a_link_may_gain_and_lose_names() {
        let then = stat(1);
        let later = Timestamp { seconds: 5_000, nanoseconds: 1 };
        for now in [
            FileStat { inode: 2, ..then },
            FileStat { device: 2, ..then },
            FileStat { size_bytes: 2, ..then },
            FileStat { mode: 0o755, ..then },
            FileStat { modified: later, ..then },
            FileStat { kind: FileKind::Directory, ..then },
        ] {
            assert!(!Seen::private(&then).fits(&now) && !Seen::blob(&then).fits(&now), "{now:?}");
        }
        let touched = FileStat { changed: later, ..then };
        assert!(!Seen::private(&then).fits(&touched), "a time that was set back");
        assert!(!Seen::private(&then).fits(&FileStat { links: 2, ..touched }));
        assert!(Seen::blob(&then).fits(&FileStat { links: 2, ..touched }));
    }

    #[test]
    fn damage_another_boot_and_young_files_read_as_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ledgers_1 = ledgers(folder.path(), 1);
        let young = Seen::private(&FileStat { changed: disk::now(), ..stat(2) });
        let rows = [row(b"old", 1), Row { seen: young, ..row(b"young", 2) }];
        ledgers_1.replace(place("a"), &Ledger::default(), &[], rows.into_iter());
        ledgers_1.flush();
        assert_eq!(ledgers_1.read(place("a")).len(), 1);
        assert_eq!(ledgers(folder.path(), 2).read(place("a")).len(), 0);
        let path = folder.path().join(place("a").name());
        let image = std::fs::read(&path).expect("the ledger");
        for position in 0..image.len() {
            let mut damaged = image.clone();
            damaged[position] ^= 1;
            std::fs::write(&path, &damaged).expect("written");
            assert_eq!(ledgers_1.read(place("a")).len(), 0, "byte {position}");
            std::fs::write(&path, &image[..position]).expect("written");
            assert_eq!(ledgers_1.read(place("a")).len(), 0, "{position} bytes");
        }
    }

    #[test]
    fn the_oldest_ledgers_make_room() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ledgers = ledgers(folder.path(), 1);
        for number in 0..LEDGERS_MAX + 10 {
            ledgers.replace(
                place(&number.to_string()),
                &Ledger::default(),
                &[],
                [row(b"x", 1)].into_iter(),
            );
        }
        ledgers.flush();
        let count = std::fs::read_dir(folder.path()).expect("listed").count();
        assert!((LEDGERS_MAX / 2..LEDGERS_MAX).contains(&count), "{count} ledgers");
        assert_eq!(ledgers.read(place(&(LEDGERS_MAX + 9).to_string())).len(), 1);
    }
}
