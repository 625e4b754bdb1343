//! The stamp table: for each blob the stamp of its inode and the epoch in which it was published.
//!
//! A file of 64-byte slots behind a 64-byte header. A blob's slots are the eight of one bucket,
//! found by its digest; eight slots are one read of 512 bytes. It is a cache: a slot that is lost,
//! overwritten, torn or damaged costs one rehash of its blob, nothing else. That is why nothing
//! here is synced or locked, and why processes may write it at the same time.
//!
//! Invariants:
//! - Each slot carries a checksum keyed by the store's incarnation and covering the digest, so a
//!   slot speaks for the blob, and the life of the store, for which it was written, or not at all.
//! - The file never shrinks and never grows in place: a larger table is written under another name
//!   and renamed over it.
//!
//! Why not a row of the index for each blob, nor an extended attribute: DESIGN.md, section 5.

use crate::digest::Digest;
use crate::disk::{self, Dir, FileStat, Stamp, Timestamp, layout};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

const MAGIC: &[u8; 16] = b"larder-stamps-1\n";
const HEADER_BYTES: u64 = 64;
const SLOT_BYTES: usize = 64;
const BUCKET_SLOTS: usize = 8;
const BUCKET_BYTES: usize = SLOT_BYTES * BUCKET_SLOTS;
/// 256 KiB: enough for a few builds, nothing for a disk.
const BUCKETS_MIN: u64 = 512;
/// 8 GiB, 134 million slots. A header that claims more is damaged.
const BUCKETS_MAX: u64 = 1 << 24;

/// What is known of a blob's inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) stamp: Stamp,
    pub(super) epoch: u32,
}

/// A blob and what is to be known of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) mode: u32,
    pub(super) slot: Slot,
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

    /// What is known of a blob; `None` means that it must be rehashed.
    pub(super) fn get(&self, digest: &Digest, mode: u32) -> Option<Slot> {
        let table = self.read();
        let table = table.as_ref()?;
        let mut bucket = [0; BUCKET_BYTES];
        table.file.read_exact_at(&mut bucket, table.offset(digest)).ok()?;
        slots(&bucket).find_map(|slot| self.decode(slot, digest, mode))
    }

    /// Notes blobs. Never fails: what cannot be written is not known.
    pub(super) fn put(&self, entries: &[Entry]) {
        if entries.is_empty() {
            return;
        }
        let is_dense = {
            let table = self.read();
            table.as_ref().is_none_or(|table| {
                // Many entries at once are cheaper in one sequential write, and a table that
                // would become more than half full of them alone is too small.
                entries.len() as u64 * 2 > table.buckets * BUCKET_SLOTS as u64
                    || !entries.iter().all(|entry| self.write_in_place(table, entry))
            })
        };
        if is_dense {
            self.grow(entries);
        }
    }

    /// Writes one entry into its bucket. False if the bucket is full of other blobs' slots: then
    /// one of them has been overwritten, and it is time to grow.
    fn write_in_place(&self, table: &Table, entry: &Entry) -> bool {
        let offset = table.offset(&entry.digest);
        let mut bucket = [0; BUCKET_BYTES];
        if table.file.read_exact_at(&mut bucket, offset).is_err() {
            return false;
        }
        let (index, is_free) = self.place(&bucket, entry);
        let slot = self.encode(entry);
        let is_written = table.file.write_all_at(&slot, offset + (index * SLOT_BYTES) as u64).is_ok();
        is_free || !is_written
    }

    /// The slot for an entry: its own, else a free one, else one chosen by the digest.
    fn place(&self, bucket: &[u8; BUCKET_BYTES], entry: &Entry) -> (usize, bool) {
        let own = slots(bucket).position(|slot| slot[..22] == header_of(&entry.digest, entry.mode));
        let free = || slots(bucket).position(|slot| !self.is_valid(slot));
        match own.or_else(free) {
            Some(index) => (index, true),
            None => (entry.digest.as_bytes()[31] as usize % BUCKET_SLOTS, false),
        }
    }

    /// Writes a table with room for all that is known and `entries`, and puts it in place.
    fn grow(&self, entries: &[Entry]) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // Best effort: on a full or read-only disk the blobs are rehashed at their next use.
        if let Ok(grown) = self.rewrite(table.as_ref(), entries) {
            *table = Some(grown);
        }
    }

    fn rewrite(&self, old: Option<&Table>, entries: &[Entry]) -> io::Result<Table> {
        let mut known = Vec::new();
        if let Some(old) = old {
            let mut bucket = [0; BUCKET_BYTES];
            for index in 0..old.buckets {
                old.file.read_exact_at(&mut bucket, HEADER_BYTES + index * BUCKET_BYTES as u64)?;
                known.extend(slots(&bucket).filter(|slot| self.is_valid(slot)).map(to_array));
            }
        }
        let wanted = (known.len() + entries.len()) as u64 * 2 / BUCKET_SLOTS as u64;
        let buckets = wanted.next_power_of_two().clamp(BUCKETS_MIN, BUCKETS_MAX);
        let mut image = vec![0; buckets as usize * BUCKET_BYTES];
        let encoded = entries.iter().map(|entry| self.encode(entry));
        for slot in known.into_iter().chain(encoded) {
            let start = bucket_index(slot[..8].try_into().expect("eight bytes"), buckets) as usize * BUCKET_BYTES;
            let bucket = &mut image[start..start + BUCKET_BYTES];
            let own = bucket.chunks_exact(SLOT_BYTES).position(|other| other[..22] == slot[..22]);
            let free = || bucket.chunks_exact(SLOT_BYTES).position(|other| other[..22] == [0; 22]);
            let index = own.or_else(free).unwrap_or(slot[19] as usize % BUCKET_SLOTS);
            bucket[index * SLOT_BYTES..(index + 1) * SLOT_BYTES].copy_from_slice(&slot);
        }
        let name = format!("{}.{}", layout::STAMPS, disk::random_name()?);
        let file = self.root.create_new(name.as_ref(), 0o600)?;
        let written = file
            .write_all_at(&header(buckets), 0)
            .and_then(|()| file.write_all_at(&image, HEADER_BYTES))
            .and_then(|()| self.root.rename(name.as_ref(), &self.root, layout::STAMPS.as_ref()));
        if let Err(error) = written {
            // Best effort; what stays is swept when the store is next opened.
            let _ = self.root.unlink(name.as_ref());
            return Err(error);
        }
        Ok(Table { file, buckets })
    }

    fn encode(&self, entry: &Entry) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        slot[..22].copy_from_slice(&header_of(&entry.digest, entry.mode));
        slot[24..32].copy_from_slice(&entry.slot.stamp.inode.to_le_bytes());
        slot[32..40].copy_from_slice(&entry.slot.stamp.size_bytes.to_le_bytes());
        slot[40..48].copy_from_slice(&entry.slot.stamp.modified.seconds.to_le_bytes());
        slot[48..52].copy_from_slice(&entry.slot.stamp.modified.nanoseconds.to_le_bytes());
        slot[52..56].copy_from_slice(&entry.slot.epoch.to_le_bytes());
        let checksum = self.checksum(&slot);
        slot[56..].copy_from_slice(&checksum);
        slot
    }

    fn decode(&self, slot: &[u8], digest: &Digest, mode: u32) -> Option<Slot> {
        if slot[..22] != header_of(digest, mode) || !self.is_valid(slot) {
            return None;
        }
        let number = |start: usize| u64::from_le_bytes(slot[start..start + 8].try_into().expect("eight bytes"));
        let small = |start: usize| u32::from_le_bytes(slot[start..start + 4].try_into().expect("four bytes"));
        let modified = Timestamp { seconds: number(40) as i64, nanoseconds: small(48) };
        Some(Slot {
            stamp: Stamp { inode: number(24), size_bytes: number(32), modified },
            epoch: small(52),
        })
    }

    fn is_valid(&self, slot: &[u8]) -> bool {
        slot[..22] != [0; 22] && self.checksum(slot) == slot[56..]
    }

    fn checksum(&self, slot: &[u8]) -> [u8; 8] {
        let hash = blake3::keyed_hash(&self.key, &slot[..56]);
        hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes")
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
        let is_sane = buckets.is_power_of_two()
            && (BUCKETS_MIN..=BUCKETS_MAX).contains(&buckets)
            && found == header(buckets)
            && stat.size_bytes == HEADER_BYTES + buckets * BUCKET_BYTES as u64;
        is_sane.then_some(Table { file, buckets })
    }

    fn offset(&self, digest: &Digest) -> u64 {
        let prefix = digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes");
        HEADER_BYTES + bucket_index(prefix, self.buckets) * BUCKET_BYTES as u64
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

fn bucket_index(prefix: [u8; 8], buckets: u64) -> u64 {
    u64::from_le_bytes(prefix) & (buckets - 1)
}

/// The first 20 bytes of the digest (2^80 work to collide) and the mode.
fn header_of(digest: &Digest, mode: u32) -> [u8; 22] {
    let mut bytes = [0; 22];
    bytes[..20].copy_from_slice(&digest.as_bytes()[..20]);
    bytes[20..].copy_from_slice(&(mode as u16).to_le_bytes());
    bytes
}

fn slots(bucket: &[u8; BUCKET_BYTES]) -> impl Iterator<Item = &[u8]> {
    bucket.chunks_exact(SLOT_BYTES)
}

fn to_array(slot: &[u8]) -> [u8; SLOT_BYTES] {
    slot.try_into().expect("slots have 64 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Capabilities;

    fn entry(number: u32) -> Entry {
        let stamp = Stamp {
            inode: u64::from(number),
            size_bytes: 7,
            modified: Timestamp { seconds: -1, nanoseconds: number },
        };
        Entry { digest: Digest::of(&number.to_le_bytes()), mode: 0o444, slot: Slot { stamp, epoch: number } }
    }

    fn open(folder: &std::path::Path, key: u8) -> StampTable {
        let root = Dir::open(folder, Capabilities::all()).expect("the folder opens");
        StampTable::open(root, [key; 32])
    }

    #[test]
    fn what_is_put_is_found_while_the_table_grows() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (table, other) = (open(folder.path(), 1), open(folder.path(), 1));
        let entries: Vec<Entry> = (0..20_000).map(entry).collect();
        for batch in entries.chunks(997) {
            table.put(batch);
        }
        other.refresh();
        let known = |table: &StampTable| {
            entries.iter().filter(|entry| table.get(&entry.digest, entry.mode) == Some(entry.slot)).count()
        };
        assert!(known(&table) > 19_800, "few are lost: {}", known(&table));
        assert_eq!(known(&other), known(&table), "another process sees the same");
        assert_eq!(table.get(&entries[0].digest, 0o555), None, "another mode is another blob");
    }

    #[test]
    fn another_incarnation_and_damage_are_unknown() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let table = open(folder.path(), 1);
        table.put(&[entry(1)]);
        assert!(open(folder.path(), 1).get(&entry(1).digest, 0o444).is_some());
        assert!(open(folder.path(), 2).get(&entry(1).digest, 0o444).is_none());

        let path = folder.path().join(layout::STAMPS);
        let image = std::fs::read(&path).expect("the table");
        for position in (0..image.len()).filter(|position| image[*position] != 0) {
            let mut damaged = image.clone();
            damaged[position] ^= 4;
            std::fs::write(&path, &damaged).expect("written");
            let slot = open(folder.path(), 1).get(&entry(1).digest, 0o444);
            assert!(slot.is_none() || slot == Some(entry(1).slot), "byte {position} gave {slot:?}");
        }
        std::fs::write(&path, &image[..100]).expect("written");
        let table = open(folder.path(), 1);
        assert!(table.get(&entry(1).digest, 0o444).is_none());
        table.put(&[entry(1)]);
        assert!(table.get(&entry(1).digest, 0o444).is_some(), "a truncated table is replaced");
    }
}
