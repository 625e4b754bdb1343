//! The stamp table: for each blob what recognises its inode, and the epoch in which it was published.
//!
//! A file of 32-byte slots in buckets of sixteen, behind a 64-byte header. A blob's slot lies in its
//! home bucket, or, where that is full, in one of the three after it: one read of 2 KiB. The home is
//! a monotone function of the digest, so a larger table is made from a smaller one in one pass from
//! front to back. It is a cache: a slot that is lost, overwritten, torn or damaged costs one rehash
//! of its blob, nothing else. That is why nothing here is synced or locked, and why processes may
//! write it at the same time.
//!
//! Invariants:
//! - A slot holds no stamp, but a hash of one, keyed by the store's incarnation and covering digest,
//!   mode and epoch: it speaks for the inode, the blob, and the life of the store, for which it was
//!   written, or not at all.
//! - The file never changes its size in place: a larger table is written under another name and
//!   renamed over it.
//!
//! Why not a row of the index for each blob, nor an extended attribute: DESIGN.md, section 5.

use crate::digest::Digest;
use crate::disk::{self, Dir, FileStat, Stamp, layout};
use crate::identity::Trust;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard};

const MAGIC: &[u8; 16] = b"larder-stamps-2\n";
const HEADER_BYTES: u64 = 64;
const SLOT_BYTES: usize = 32;
const BUCKET_SLOTS: usize = 16;
const BUCKET_BYTES: usize = SLOT_BYTES * BUCKET_SLOTS;
/// How many buckets a blob's slot may lie in. With four, the table is 60 to 75 % full when the first
/// slot finds no place.
const WINDOW_BUCKETS: u64 = 4;
const WINDOW_BYTES: usize = BUCKET_BYTES * WINDOW_BUCKETS as usize;
/// 128 KiB: enough for a few builds, nothing for a disk.
const BUCKETS_MIN: u64 = 256;
/// 8 GiB, 268 million slots. A header that claims more is damaged.
const BUCKETS_MAX: u64 = 1 << 24;
/// So many buckets are read and written at once where many entries lie close together.
const RUN_BUCKETS: u64 = 128;
/// A table up to this size is read whole for an operation on many blobs.
const WHOLE_BYTES_MAX: u64 = 8 << 20;

/// A blob and what is to be known of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) mode: u32,
    pub(super) stamp: Stamp,
    pub(super) epoch: u32,
}

/// What is known of a blob's inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) epoch: u32,
    seal: [u8; 16],
}

#[derive(Debug)]
pub(super) struct StampTable {
    root: Dir,
    key: [u8; 32],
    table: RwLock<Option<Table>>,
}

#[derive(Debug)]
struct Table {
    file: File,
    buckets: u64,
}

/// The table as one operation sees it: read whole, if that is cheaper than asking for each blob; and
/// which epochs are trusted.
#[derive(Debug)]
pub(crate) struct StampView {
    pub(super) trust: Trust,
    blobs: usize,
    whole: OnceLock<Option<(u64, Vec<u8>)>>,
}

impl StampTable {
    /// Opens the table of the store at `root`. A table that is missing or damaged is made when
    /// there is something to write.
    pub(super) fn open(root: Dir, key: [u8; 32]) -> StampTable {
        let table = RwLock::new(Table::open(&root));
        StampTable { root, key, table }
    }

    /// Looks whether another process has replaced the table by a larger one. Cheap (one fstat);
    /// called once for each operation of the engine.
    pub(super) fn refresh(&self) {
        let is_current = {
            let table = self.read();
            table.as_ref().is_some_and(|table| {
                disk::stat_file(&table.file).is_ok_and(|stat: FileStat| stat.links > 0)
            })
        };
        if !is_current {
            *self.table.write().unwrap_or_else(PoisonError::into_inner) = Table::open(&self.root);
        }
    }

    /// The table for an operation on so many blobs. Read at the first question.
    pub(super) fn view(trust: Trust, blobs: usize) -> StampView {
        StampView { trust, blobs, whole: OnceLock::new() }
    }

    fn read_whole(&self, blobs: usize) -> Option<(u64, Vec<u8>)> {
        let table = self.read();
        let table = table.as_ref()?;
        let length = table.bytes();
        // One read of a window costs about as much as two KiB of a long one.
        let is_worth_it =
            length <= WHOLE_BYTES_MAX.min((blobs as u64).saturating_mul(WINDOW_BYTES as u64));
        let mut bytes = vec![0; if is_worth_it { length as usize } else { return None }];
        table.file.read_exact_at(&mut bytes, HEADER_BYTES).ok()?;
        Some((table.buckets, bytes))
    }

    /// What is known of a blob; `None` means that it must be rehashed.
    pub(super) fn get(&self, view: &StampView, digest: &Digest, mode: u32) -> Option<Slot> {
        if let Some((buckets, bytes)) = view.whole.get_or_init(|| self.read_whole(view.blobs)) {
            let start = home(prefix_of(digest), *buckets) as usize * BUCKET_BYTES;
            let found = self.find(&bytes[start..start + WINDOW_BYTES], digest, mode);
            if found.is_some() {
                return found;
            }
            // It may have been noted since.
        }
        self.get_now(digest, mode)
    }

    /// As [`StampTable::get`], past what the view has read.
    pub(super) fn get_now(&self, digest: &Digest, mode: u32) -> Option<Slot> {
        let table = self.read();
        let table = table.as_ref()?;
        let mut window = [0; WINDOW_BYTES];
        table.file.read_exact_at(&mut window, offset(table.home(digest))).ok()?;
        self.find(&window, digest, mode)
    }

    /// Whether a slot was written for an inode with this stamp.
    pub(super) fn fits(&self, slot: &Slot, digest: &Digest, mode: u32, stamp: Stamp) -> bool {
        self.seal(&Entry { digest: *digest, mode, stamp, epoch: slot.epoch }) == slot.seal
    }

    /// Notes blobs. Never fails: what cannot be written is not known.
    pub(super) fn put(&self, entries: &[Entry]) {
        if entries.is_empty() {
            return;
        }
        let wanted = (entries.len() as u64 * 2).div_ceil(BUCKET_SLOTS as u64);
        if self.read().as_ref().is_none_or(|table| table.buckets < wanted) {
            self.grow(wanted);
        }
        while let Some(crowded) = self.write(entries) {
            // A quarter more: what is never more than half empty takes at most 67 bytes a blob.
            let buckets = crowded + crowded.div_ceil(4);
            if buckets > BUCKETS_MAX || !self.grow(buckets) {
                return;
            }
        }
    }

    /// Forgets blobs. Best effort; what stays fits no other inode, but for one that looks the same.
    pub(super) fn forget(&self, blobs: &[(Digest, u32)]) {
        let table = self.read();
        let Some(table) = table.as_ref() else { return };
        let mut window = [0; WINDOW_BYTES];
        for (digest, mode) in blobs {
            let start = offset(table.home(digest));
            if table.file.read_exact_at(&mut window, start).is_err() {
                continue;
            }
            let tag = tag_of(digest, *mode);
            for (number, slot) in slots(&window).enumerate() {
                if slot[..10] == tag {
                    // Windows are read whole, so a free slot in the middle of one hides nothing.
                    let at = start + (number * SLOT_BYTES) as u64;
                    let _ = table.file.write_all_at(&[0; SLOT_BYTES], at);
                }
            }
        }
    }

    /// Writes all entries into their buckets. Returns the table's size if one found no place, so that
    /// it is time to grow; what did not fit is written after that.
    fn write(&self, entries: &[Entry]) -> Option<u64> {
        let table = self.read();
        let table = table.as_ref()?;
        let mut is_crowded = false;
        let mut entries: Vec<&Entry> = entries.iter().collect();
        entries.sort_unstable_by_key(|entry| prefix_of(&entry.digest));
        // Neighbours are one read and one write.
        let close = |a: &&Entry, b: &&Entry| {
            table.home(&a.digest) / RUN_BUCKETS == table.home(&b.digest) / RUN_BUCKETS
        };
        let mut bytes = Vec::new();
        for run in entries.chunk_by(close) {
            let [first, last] = [run[0], run[run.len() - 1]].map(|entry| table.home(&entry.digest));
            bytes.resize((last + WINDOW_BUCKETS - first) as usize * BUCKET_BYTES, 0);
            if table.file.read_exact_at(&mut bytes, offset(first)).is_err() {
                return None;
            }
            for entry in run {
                let start = (table.home(&entry.digest) - first) as usize * BUCKET_BYTES;
                let window = &mut bytes[start..start + WINDOW_BYTES];
                let place = self.place(window, tag_of(&entry.digest, entry.mode));
                is_crowded |= place.is_none();
                // The loser is rehashed at its next use.
                let place = place.unwrap_or(entry.digest.as_bytes()[31] as usize % BUCKET_SLOTS);
                window[place * SLOT_BYTES..(place + 1) * SLOT_BYTES]
                    .copy_from_slice(&self.encode(entry));
            }
            if table.file.write_all_at(&bytes, offset(first)).is_err() {
                return None;
            }
        }
        is_crowded.then_some(table.buckets)
    }

    /// The slot for a blob: its own, else a free one; `None` if there is neither.
    fn place(&self, window: &[u8], tag: [u8; 10]) -> Option<usize> {
        let own = slots(window).position(|slot| slot[..10] == tag && self.is_ours(slot));
        own.or_else(|| slots(window).position(|slot| !self.is_ours(slot)))
    }

    fn find(&self, window: &[u8], digest: &Digest, mode: u32) -> Option<Slot> {
        let tag = tag_of(digest, mode);
        let slot = slots(window).find(|slot| slot[..10] == tag && self.is_ours(slot))?;
        Some(Slot {
            epoch: u32::from_le_bytes(slot[10..14].try_into().expect("four bytes")),
            seal: slot[16..].try_into().expect("sixteen bytes"),
        })
    }

    /// Replaces the table by one of at least `wanted` buckets that knows all that this one knows.
    fn grow(&self, wanted: u64) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have grown it meanwhile.
        let least = table.as_ref().map_or(BUCKETS_MIN, |table| table.buckets);
        let buckets = wanted.clamp(least, BUCKETS_MAX);
        // Best effort: on a full or read-only disk the blobs are rehashed at their next use.
        match self.rewrite(table.as_ref(), buckets) {
            Ok(grown) => *table = Some(grown),
            Err(_) => return false,
        }
        true
    }

    /// Writes the larger table from front to back, in pieces.
    fn rewrite(&self, old: Option<&Table>, buckets: u64) -> io::Result<Table> {
        const PIECE_BUCKETS: u64 = 2048;
        let name = format!("{}.{}", layout::STAMPS, disk::random_name()?);
        let file = self.root.create_new(name.as_ref(), 0o600)?;
        let table = Table { file, buckets };
        let written = (|| {
            table.file.write_all_at(&header(buckets), 0)?;
            // What is never written reads as zeros: free slots.
            table.file.set_len(HEADER_BYTES + table.bytes())?;
            let Some(old) = old else { return Ok(()) };
            let mut source = Vec::new();
            // What overflowed from the piece before.
            let mut carried = vec![0; WINDOW_BYTES];
            for start in (0..buckets).step_by(PIECE_BUCKETS as usize) {
                let end = buckets.min(start + PIECE_BUCKETS);
                let homes = |bucket: u64| {
                    (u128::from(bucket) * u128::from(old.buckets) / u128::from(buckets)) as u64
                };
                let last = old.buckets.min(homes(end) + 1) + WINDOW_BUCKETS - 1;
                source.resize((last - homes(start)) as usize * BUCKET_BYTES, 0);
                old.file.read_exact_at(&mut source, offset(homes(start)))?;
                let mut target = std::mem::take(&mut carried);
                target.resize((end - start + WINDOW_BUCKETS) as usize * BUCKET_BYTES, 0);
                for slot in slots(&source).filter(|slot| self.is_ours(slot)) {
                    let prefix = slot[..8].try_into().expect("eight bytes");
                    let home = home(prefix, buckets);
                    if !(start..end).contains(&home) {
                        continue;
                    }
                    let at = (home - start) as usize * BUCKET_BYTES;
                    let window = &mut target[at..at + WINDOW_BYTES];
                    if let Some(place) =
                        self.place(window, slot[..10].try_into().expect("ten bytes"))
                    {
                        window[place * SLOT_BYTES..(place + 1) * SLOT_BYTES].copy_from_slice(slot);
                    }
                }
                carried = target.split_off((end - start) as usize * BUCKET_BYTES);
                table.file.write_all_at(&target, offset(start))?;
            }
            carried.truncate((WINDOW_BUCKETS as usize - 1) * BUCKET_BYTES);
            table.file.write_all_at(&carried, offset(buckets))
        })();
        let placed = written
            .and_then(|()| self.root.rename(name.as_ref(), &self.root, layout::STAMPS.as_ref()));
        if let Err(error) = placed {
            // Best effort; a repair sweeps what stays.
            let _ = self.root.unlink(name.as_ref());
            return Err(error);
        }
        Ok(table)
    }

    fn encode(&self, entry: &Entry) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        slot[..10].copy_from_slice(&tag_of(&entry.digest, entry.mode));
        slot[10..14].copy_from_slice(&entry.epoch.to_le_bytes());
        slot[14..16].copy_from_slice(&self.life());
        slot[16..].copy_from_slice(&self.seal(entry));
        slot
    }

    /// One block of BLAKE3.
    fn seal(&self, entry: &Entry) -> [u8; 16] {
        let Stamp { inode, size_bytes, modified } = entry.stamp;
        // A mode has twelve bits; seconds beyond the other 52 are no times.
        let seconds_and_mode = (modified.seconds as u64) << 12 | u64::from(entry.mode & 0o7777);
        let mut block = [0; 64];
        block[..32].copy_from_slice(entry.digest.as_bytes());
        block[32..40].copy_from_slice(&inode.to_le_bytes());
        block[40..48].copy_from_slice(&size_bytes.to_le_bytes());
        block[48..56].copy_from_slice(&seconds_and_mode.to_le_bytes());
        block[56..60].copy_from_slice(&modified.nanoseconds.to_le_bytes());
        block[60..].copy_from_slice(&entry.epoch.to_le_bytes());
        let hash = blake3::keyed_hash(&self.key, &block);
        hash.as_bytes()[..16].try_into().expect("a hash has 32 bytes")
    }

    /// Two bytes that tell the slots of this incarnation from free ones and from those of another.
    fn life(&self) -> [u8; 2] {
        [self.key[0] | 1, self.key[1]]
    }

    fn is_ours(&self, slot: &[u8]) -> bool {
        slot[14..16] == self.life()
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Table>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn open(root: &Dir) -> Option<Table> {
        let (file, stat) = root
            .open_for_update(layout::STAMPS.as_ref())
            .or_else(|_| root.open_regular(layout::STAMPS.as_ref()))
            .ok()?;
        let mut found = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut found, 0).ok()?;
        let buckets = u64::from_le_bytes(found[16..24].try_into().expect("eight bytes"));
        let is_known = (BUCKETS_MIN..=BUCKETS_MAX).contains(&buckets) && found == header(buckets);
        let table = Table { file, buckets };
        (is_known && stat.size_bytes == HEADER_BYTES + table.bytes()).then_some(table)
    }

    /// Length of all buckets; the last home has a whole window, too.
    fn bytes(&self) -> u64 {
        (self.buckets + WINDOW_BUCKETS - 1) * BUCKET_BYTES as u64
    }

    fn home(&self, digest: &Digest) -> u64 {
        home(prefix_of(digest), self.buckets)
    }
}

fn header(buckets: u64) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..16].copy_from_slice(MAGIC);
    header[16..24].copy_from_slice(&buckets.to_le_bytes());
    let checksum = blake3::hash(&header[..32]);
    header[32..].copy_from_slice(checksum.as_bytes());
    header
}

/// Where a bucket lies in the file.
fn offset(bucket: u64) -> u64 {
    HEADER_BYTES + bucket * BUCKET_BYTES as u64
}

/// The home bucket: the digest's first bytes as a fraction of the table, so that digests in order
/// have homes in order.
fn home(prefix: [u8; 8], buckets: u64) -> u64 {
    ((u128::from(u64::from_be_bytes(prefix)) * u128::from(buckets)) >> 64) as u64
}

/// The first eight bytes of the digest, and the mode. Two blobs of one tag share a slot, which fits
/// one of them.
fn tag_of(digest: &Digest, mode: u32) -> [u8; 10] {
    let mut tag = [0; 10];
    tag[..8].copy_from_slice(&prefix_of(digest));
    tag[8..].copy_from_slice(&(mode as u16).to_le_bytes());
    tag
}

fn slots(buckets: &[u8]) -> impl Iterator<Item = &[u8]> {
    buckets.chunks_exact(SLOT_BYTES)
}

fn prefix_of(digest: &Digest) -> [u8; 8] {
    digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Capabilities, Timestamp};

    fn entry(number: u32) -> Entry {
        let stamp = Stamp {
            inode: u64::from(number),
            size_bytes: 7,
            modified: Timestamp { seconds: -1, nanoseconds: number },
        };
        let digest = Digest::of(&number.to_le_bytes());
        Entry { digest, mode: 0o444, stamp, epoch: number }
    }

    fn open(folder: &std::path::Path, key: u8) -> StampTable {
        let root = Dir::open(folder, Capabilities::all()).expect("the folder opens");
        StampTable::open(root, [key; 32])
    }

    /// Whether a table vouches for an inode: with its slots read one by one, and read at once.
    fn vouches(table: &StampTable, entry: &Entry) -> bool {
        let [one, other] = [0, usize::MAX].map(|blobs| {
            let slot =
                table.get(&StampTable::view(Trust::default(), blobs), &entry.digest, entry.mode);
            slot.is_some_and(|slot| {
                slot.epoch == entry.epoch
                    && table.fits(&slot, &entry.digest, entry.mode, entry.stamp)
            })
        });
        assert_eq!(one, other);
        one
    }

    #[test]
    fn what_is_put_is_found_while_the_table_grows() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (table, other) = (open(folder.path(), 1), open(folder.path(), 1));
        let entries: Vec<Entry> = (0..20_000).map(entry).collect();
        for batch in entries.chunks(97) {
            table.put(batch);
        }
        other.refresh();
        let known =
            |table: &StampTable| entries.iter().filter(|entry| vouches(table, entry)).count();
        assert!(known(&table) > 19_980, "few are lost: {}", known(&table));
        assert_eq!(known(&other), known(&table), "another process sees the same");
        let file = std::fs::metadata(folder.path().join(layout::STAMPS)).expect("the table");
        assert!(file.len() < 20_000 * 72, "{} bytes for 20,000 blobs", file.len());
    }

    #[test]
    fn a_slot_speaks_for_one_inode_of_one_blob() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let table = open(folder.path(), 1);
        let noted = entry(1);
        table.put(&[noted]);
        assert!(vouches(&table, &noted));
        let Stamp { inode, size_bytes, modified } = noted.stamp;
        for stamp in [
            Stamp { inode: inode + 1, ..noted.stamp },
            Stamp { size_bytes: size_bytes + 1, ..noted.stamp },
            Stamp { modified: Timestamp { seconds: 0, ..modified }, ..noted.stamp },
            Stamp { modified: Timestamp { nanoseconds: 0, ..modified }, ..noted.stamp },
        ] {
            assert!(!vouches(&table, &Entry { stamp, ..noted }), "{stamp:?}");
        }
        assert!(!vouches(&table, &Entry { mode: 0o555, ..noted }), "another mode, another blob");
        let mut twin = *noted.digest.as_bytes();
        twin[31] ^= 1;
        assert!(!vouches(&table, &Entry { digest: Digest::from_bytes(twin), ..noted }));
    }

    #[test]
    fn what_is_forgotten_is_unknown_and_its_neighbours_are_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let table = open(folder.path(), 1);
        let entries: Vec<Entry> = (0..1000).map(entry).collect();
        table.put(&entries);
        let gone: Vec<(Digest, u32)> =
            entries.iter().step_by(3).map(|entry| (entry.digest, entry.mode)).collect();
        table.forget(&gone);
        for (number, entry) in entries.iter().enumerate() {
            assert_eq!(vouches(&table, entry), number % 3 != 0, "{number}");
        }
    }

    #[test]
    fn another_incarnation_and_damage_are_unknown() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let table = open(folder.path(), 1);
        table.put(&[entry(1)]);
        assert!(vouches(&open(folder.path(), 1), &entry(1)));
        assert!(!vouches(&open(folder.path(), 2), &entry(1)));

        let path = folder.path().join(layout::STAMPS);
        let image = std::fs::read(&path).expect("the table");
        for position in (0..image.len()).filter(|position| image[*position] != 0) {
            let mut damaged = image.clone();
            damaged[position] ^= 4;
            std::fs::write(&path, &damaged).expect("written");
            let is_known = vouches(&open(folder.path(), 1), &entry(1));
            assert!(!is_known, "byte {position} is covered");
        }
        std::fs::write(&path, &image[..100]).expect("written");
        let table = open(folder.path(), 1);
        assert!(!vouches(&table, &entry(1)));
        table.put(&[entry(1)]);
        assert!(vouches(&table, &entry(1)), "a truncated table is replaced");
    }
}
