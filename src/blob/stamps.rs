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
//! - The file never changes its size in place: a larger table is written under another name and
//!   renamed over it.
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
        let wanted = (entries.len() as u64 * 2).div_ceil(BUCKET_SLOTS as u64);
        if self.read().as_ref().is_none_or(|table| table.buckets < wanted) {
            self.grow(wanted);
        }
        while let Some(crowded) = self.write(entries) {
            let buckets = crowded * 2;
            if buckets > BUCKETS_MAX || !self.grow(buckets) {
                return;
            }
        }
    }

    /// Writes all entries into their buckets. Returns the table's size if too many buckets are full,
    /// so that it is time to grow; what did not fit is written after that.
    fn write(&self, entries: &[Entry]) -> Option<u64> {
        let table = self.read();
        let table = table.as_ref()?;
        let mut is_crowded = false;
        // The entries of one bucket are one read and one write.
        let mut entries: Vec<&Entry> = entries.iter().collect();
        entries.sort_by_key(|entry| table.offset(&entry.digest));
        for run in entries.chunk_by(|a, b| table.offset(&a.digest) == table.offset(&b.digest)) {
            let offset = table.offset(&run[0].digest);
            let mut bucket = [0; BUCKET_BYTES];
            if table.file.read_exact_at(&mut bucket, offset).is_err() {
                return None;
            }
            for entry in run {
                let index = self.place(&bucket, entry);
                is_crowded |= index.is_none();
                let start = index.unwrap_or(entry.digest.as_bytes()[31] as usize % BUCKET_SLOTS)
                    * SLOT_BYTES;
                bucket[start..start + SLOT_BYTES].copy_from_slice(&self.encode(entry));
            }
            if table.file.write_all_at(&bucket, offset).is_err() {
                return None;
            }
        }
        is_crowded.then_some(table.buckets)
    }

    /// The slot for an entry: its own, else a free one; `None` if there is neither.
    fn place(&self, bucket: &[u8; BUCKET_BYTES], entry: &Entry) -> Option<usize> {
        let own = slots(bucket).position(|slot| slot[..22] == header_of(&entry.digest, entry.mode));
        own.or_else(|| slots(bucket).position(|slot| !self.is_valid(slot)))
    }

    /// Replaces the table by one of at least `wanted` buckets that knows all that this one knows.
    fn grow(&self, wanted: u64) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have grown it meanwhile.
        let least = table.as_ref().map_or(BUCKETS_MIN, |table| table.buckets);
        let buckets = wanted.next_power_of_two().clamp(least, BUCKETS_MAX);
        // Best effort: on a full or read-only disk the blobs are rehashed at their next use.
        match self.rewrite(table.as_ref(), buckets) {
            Ok(grown) => *table = Some(grown),
            Err(_) => return false,
        }
        true
    }

    /// Writes the larger table from front to back, in pieces: the bucket `b` of a table of `n` is
    /// spread over the buckets `b`, `b + n`, `b + 2n` and so on of the larger one.
    fn rewrite(&self, old: Option<&Table>, buckets: u64) -> io::Result<Table> {
        const PIECE_BUCKETS: u64 = 2048;
        let name = format!("{}.{}", layout::STAMPS, disk::random_name()?);
        let file = self.root.create_new(name.as_ref(), 0o600)?;
        let written = (|| {
            file.write_all_at(&header(buckets), 0)?;
            // What is never written reads as zeros: free slots.
            file.set_len(HEADER_BYTES + buckets * BUCKET_BYTES as u64)?;
            let Some(old) = old else { return Ok(()) };
            let length = PIECE_BUCKETS.min(old.buckets);
            let (mut source, mut target) = (vec![0; length as usize * BUCKET_BYTES], Vec::new());
            for start in (0..buckets).step_by(length as usize) {
                let at = HEADER_BYTES + (start % old.buckets) * BUCKET_BYTES as u64;
                old.file.read_exact_at(&mut source, at)?;
                target.clear();
                target.resize(source.len(), 0);
                for (index, slot) in source.chunks_exact(SLOT_BYTES).enumerate() {
                    let home = start + (index / BUCKET_SLOTS) as u64;
                    let prefix = slot[..8].try_into().expect("eight bytes");
                    if self.is_valid(slot) && bucket_index(prefix, buckets) == home {
                        target[index * SLOT_BYTES..(index + 1) * SLOT_BYTES].copy_from_slice(slot);
                    }
                }
                file.write_all_at(&target, HEADER_BYTES + start * BUCKET_BYTES as u64)?;
            }
            Ok(())
        })();
        let placed = written
            .and_then(|()| self.root.rename(name.as_ref(), &self.root, layout::STAMPS.as_ref()));
        if let Err(error) = placed {
            // Best effort; a repair sweeps what stays.
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
        let number = |start: usize| {
            u64::from_le_bytes(slot[start..start + 8].try_into().expect("eight bytes"))
        };
        let small = |start: usize| {
            u32::from_le_bytes(slot[start..start + 4].try_into().expect("four bytes"))
        };
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
        HEADER_BYTES + bucket_index(prefix_of(digest), self.buckets) * BUCKET_BYTES as u64
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

fn prefix_of(digest: &Digest) -> [u8; 8] {
    digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes")
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
        Entry {
            digest: Digest::of(&number.to_le_bytes()),
            mode: 0o444,
            slot: Slot { stamp, epoch: number },
        }
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
            entries
                .iter()
                .filter(|entry| table.get(&entry.digest, entry.mode) == Some(entry.slot))
                .count()
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
