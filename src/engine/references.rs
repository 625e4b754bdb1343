//! References: what each entry needs, as the last mark found it, so that the next one decodes only
//! manifests that are new.
//!
//! One file, in blocks by the first byte of the task digest, so that a mark reads and writes it in
//! small pieces however many entries there are. It is written by the sweeper alone, under
//! `evict.lock`, as a whole, and replaced by a rename.
//!
//! Invariants:
//! - What an entry needs is believed only if one stat shows its manifest with the stamp that it had
//!   when it was decoded, and was not young then: where times are whole seconds, another manifest
//!   could have the same. The manifest is the truth.
//! - Each block has a checksum, keyed by incarnation and boot: a damaged block, a file of another
//!   boot and none at all cost decoding, nothing else.
//!
//! Left to others: counting (`mark`), and what is worth keeping (`evict`).

use super::Cache;
use super::entries::Loaded;
use super::mark::tag_of;
use super::uses::LastUse;
use crate::cancel::Cancel;
use crate::digest::DigestMap;
use crate::disk::{self, Dir, Stamp, Timestamp, layout};
use crate::error::Result;
use crate::identity::Identity;
use crate::key::TaskDigest;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: &[u8; 8] = b"larder-r";
const CONTEXT: &[u8] = b"larder 2026-11-23 references v1";
/// One block for each first byte of a task digest.
const BLOCKS: usize = 256;
/// Magic, the time of the mark, then offset and length of each block.
const HEADER_BYTES: usize = 8 + 16 + BLOCKS * 16;
const CHECKSUM_BYTES: usize = 32;
/// Of an entry, without its needs.
const ENTRY_BYTES: usize = 32 + 8 + 8 + 8 + 4 + 8 + 8 + 4 + 8 + 4;
/// A tag, and a number of blocks.
const NEED_BYTES: usize = 8 + 4;
/// A usual block of a filesystem; only an estimate is made with it.
const BLOCK_BYTES: u64 = 4096;
/// A longer block of entries is not read; there is one for each first byte of a task digest.
const BLOCK_LENGTH_MAX: u64 = 256 << 20;
/// Files of up to so many bytes are read and written as a whole.
const WHOLE_BYTES_MAX: u64 = 1 << 20;

/// What is known of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) task: TaskDigest,
    /// Of its manifest.
    pub(super) stamp: Stamp,
    /// Blocks of its manifest, in bytes.
    pub(super) manifest_bytes: u64,
    pub(super) last_use: LastUse,
    pub(super) duration_ms: u64,
    needs: &'a [[u8; NEED_BYTES]],
}

/// The references of a store, as they were last written; possibly none.
#[derive(Debug)]
pub(super) struct References {
    key: [u8; 32],
    file: Option<File>,
    /// Its contents, where they are few.
    contents: Vec<u8>,
    /// When the mark began that wrote it.
    written_at: Timestamp,
    /// Offset and length of each block.
    table: Vec<(u64, u64)>,
}

/// References that are being written.
#[derive(Debug)]
struct Writer<'a> {
    root: &'a Dir,
    name: OsString,
    file: File,
    began: Timestamp,
    table: Vec<(u64, u64)>,
    /// What is written, and how much waits behind it: the header first, then whole blocks.
    written_bytes: u64,
    waiting: Vec<u8>,
    /// The block under way, behind room for its checksum.
    block: Vec<u8>,
}

/// What a scan of all manifests found.
#[derive(Debug)]
pub(super) struct Scanned {
    /// Entries that only a newer Larder can read.
    pub(super) newer_entries: u64,
    /// What was written; `None` if there was no room for it.
    pub(super) references: Option<References>,
}

impl Entry<'_> {
    /// The tag and the blocks in bytes of each blob that it needs.
    pub(super) fn needs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.needs.iter().map(|need| {
            let (tag, rest) = need.split_first_chunk().expect("twelve bytes");
            let blocks = u32::from_le_bytes(*rest.first_chunk().expect("four more"));
            (u64::from_le_bytes(*tag), u64::from(blocks) * BLOCK_BYTES)
        })
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.task.as_bytes());
        for number in [self.stamp.inode, self.stamp.size_bytes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.stamp.modified.seconds.to_le_bytes());
        bytes.extend_from_slice(&self.stamp.modified.nanoseconds.to_le_bytes());
        bytes.extend_from_slice(&self.manifest_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.last_use.seconds.to_le_bytes());
        bytes.extend_from_slice(&self.last_use.uses.to_le_bytes());
        bytes.extend_from_slice(&self.duration_ms.to_le_bytes());
        bytes.extend_from_slice(&(self.needs.len() as u32).to_le_bytes());
        bytes.extend_from_slice(self.needs.as_flattened());
    }

    /// The entry at the front of a block that was checked, and what follows it.
    fn decode(bytes: &[u8]) -> Option<(Entry<'_>, &[u8])> {
        let (fixed, rest) = bytes.split_first_chunk::<ENTRY_BYTES>()?;
        let number = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight"));
        let small = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("four"));
        let (needs, rest) = rest.split_at_checked(small(88) as usize * NEED_BYTES)?;
        let entry = Entry {
            task: TaskDigest::from_bytes(fixed[..32].try_into().expect("32 bytes")),
            stamp: Stamp {
                inode: number(32),
                size_bytes: number(40),
                modified: Timestamp { seconds: number(48).cast_signed(), nanoseconds: small(56) },
            },
            manifest_bytes: number(60),
            last_use: LastUse { seconds: number(68).cast_signed(), uses: small(76) },
            duration_ms: number(80),
            needs: needs.as_chunks().0,
        };
        Some((entry, rest))
    }
}

/// How many entries stand at the front of a block of these bytes; for the fuzz targets.
///
/// # Panics
/// If what decodes does not encode to the same bytes.
#[cfg(any(fuzzing, larder_rigs))]
pub(crate) fn count_references(mut block: &[u8]) -> usize {
    let mut count = 0;
    while let Some((entry, rest)) = Entry::decode(block) {
        let mut encoded = Vec::new();
        entry.encode(&mut encoded);
        assert_eq!(encoded, block[..block.len() - rest.len()], "one encoding");
        assert!(entry.needs().all(|(_, bytes)| bytes <= u64::from(u32::MAX) * BLOCK_BYTES));
        (count, block) = (count + 1, rest);
    }
    count
}

impl References {
    /// Reads where the blocks are. What cannot be read is not there.
    pub(super) fn open(root: &Dir, identity: &Identity) -> References {
        let mut hasher = blake3::Hasher::new_keyed(&identity.boot_key());
        hasher.update(CONTEXT);
        let key = *hasher.finalize().as_bytes();
        let (mut table, mut written_at) = (Vec::new(), Timestamp { seconds: 0, nanoseconds: 0 });
        let opened = root.open_regular(layout::REFERENCES.as_ref()).and_then(|(file, stat)| {
            let mut header = vec![0; HEADER_BYTES];
            file.read_exact_at(&mut header, 0)?;
            let (words, _) = header.as_chunks::<8>();
            let numbers: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
            if header.starts_with(MAGIC) {
                let nanoseconds = numbers[2] as u32;
                written_at = Timestamp { seconds: numbers[1].cast_signed(), nanoseconds };
                table = numbers[3..].chunks(2).map(|pair| (pair[0], pair[1])).collect();
            }
            Ok((file, stat.size_bytes))
        });
        let (file, size_bytes) = opened.map_or((None, 0), |(file, size)| (Some(file), size));
        References { key, file, contents: Vec::new(), written_at, table }.with_contents(size_bytes)
    }

    /// Reads the whole file, if it is small.
    fn with_contents(mut self, size_bytes: u64) -> References {
        if let Some(file) = self.file.as_ref().filter(|_| size_bytes <= WHOLE_BYTES_MAX) {
            let read = disk::read_exactly(file, size_bytes as usize, &mut self.contents);
            // Then its blocks are read one by one.
            read.unwrap_or_else(|_| self.contents.clear());
        }
        self
    }

    /// Looks at every manifest, and calls `take` for each entry that can be read. Manifests that are
    /// known are not read again; those that are damaged go to quarantine. Writes what it found.
    pub(super) fn scan(
        &self,
        cache: &Cache,
        cancel: &Cancel,
        mut take: impl FnMut(&Entry<'_>),
    ) -> Result<Scanned> {
        let mut newer_entries = 0;
        // Best effort: on a full disk the next one decodes again.
        let now = disk::now();
        let mut writer = Writer::begin(&cache.inner.root, now).ok();
        let (mut number, mut block, mut known) = (None, Vec::new(), DigestMap::default());
        let mut needs = Vec::new();
        cache.for_each_manifest(|task, folder, name, stat| {
            cancel.check()?;
            let first = task.as_bytes()[0];
            if number != Some(first) {
                self.end_block(&mut writer, number, now);
                number = Some(first);
                block = self.block(first);
                known = positions(&block);
            }
            let found = known.get(&task).and_then(|at| Entry::decode(&block[*at..]));
            let is_same = |entry: &Entry<'_>| {
                entry.stamp == stat.stamp() && !entry.stamp.modified.is_young_at(self.written_at)
            };
            let entry = match found.filter(|(entry, _)| is_same(entry)) {
                Some((entry, _)) => Entry { last_use: LastUse::of(&stat), ..entry },
                None => match cache.load_manifest(folder, name, &task)? {
                    Loaded::Entry(manifest, stat) => {
                        needs.clear();
                        needs.extend(manifest.blobs().map(|(blob, mode)| {
                            let blocks = blob.size_bytes.div_ceil(BLOCK_BYTES);
                            encode_need(tag_of(&blob.digest, mode), blocks)
                        }));
                        Entry {
                            task,
                            stamp: stat.stamp(),
                            manifest_bytes: stat.allocated_bytes,
                            last_use: LastUse::of(&stat),
                            duration_ms: manifest.duration_ms,
                            needs: &needs,
                        }
                    }
                    Loaded::Newer => {
                        newer_entries += 1;
                        return Ok(());
                    }
                    Loaded::Gone => return Ok(()),
                },
            };
            take(&entry);
            if let Some(writer) = &mut writer {
                entry.encode(&mut writer.block);
            }
            Ok(())
        })?;
        self.end_block(&mut writer, number, now);
        let references = writer.and_then(|writer| writer.publish(self.key).ok());
        Ok(Scanned { newer_entries, references })
    }

    /// Calls `take` for each entry that was written. Reads no manifest.
    pub(super) fn replay(&self, cancel: &Cancel, mut take: impl FnMut(&Entry<'_>)) -> Result<()> {
        for number in 0..=u8::MAX {
            cancel.check()?;
            let block = self.block(number);
            let mut rest = block.as_slice();
            while let Some((entry, more)) = Entry::decode(rest) {
                take(&entry);
                rest = more;
            }
        }
        Ok(())
    }

    /// The entries of a block; none if it is not what was written.
    fn block(&self, number: u8) -> Vec<u8> {
        let Some((offset, length)) = self.table.get(usize::from(number)).copied() else {
            return Vec::new();
        };
        self.read_block(offset, length)
            .filter(|block| {
                let checked = block.split_first_chunk::<CHECKSUM_BYTES>();
                checked.is_some_and(|(checksum, rest)| {
                    self.checksum(number, rest, self.written_at) == *checksum
                })
            })
            .map(|mut block| block.split_off(CHECKSUM_BYTES))
            .unwrap_or_default()
    }

    fn read_block(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        let end = offset.checked_add(length)?;
        if !self.contents.is_empty() {
            return self.contents.get(offset as usize..end as usize).map(<[u8]>::to_vec);
        }
        let file = self.file.as_ref()?;
        // No memory for a length that only a damaged table claims, also of a file with holes.
        if length > BLOCK_LENGTH_MAX || end > disk::stat_file(file).ok()?.size_bytes {
            return None;
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// Ends the block under way, if there is one. A writer that fails is given up.
    fn end_block(&self, writer: &mut Option<Writer<'_>>, number: Option<u8>, now: Timestamp) {
        if let (Some(under_way), Some(number)) = (writer.as_mut(), number) {
            let checksum = self.checksum(number, &under_way.block[CHECKSUM_BYTES..], now);
            if under_way.end_block(number, &checksum).is_err() {
                *writer = None;
            }
        }
    }

    fn checksum(&self, number: u8, entries: &[u8], at: Timestamp) -> [u8; CHECKSUM_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&encode_time(at)).update(&[number]).update(entries);
        *hasher.finalize().as_bytes()
    }
}

impl<'a> Writer<'a> {
    fn begin(root: &'a Dir, now: Timestamp) -> io::Result<Writer<'a>> {
        let name = OsString::from(format!("{}.{}", layout::REFERENCES, disk::random_name()?));
        let file = root.create_new(&name, 0o600)?;
        Ok(Writer {
            root,
            name,
            file,
            began: now,
            table: vec![(0, 0); BLOCKS],
            written_bytes: 0,
            waiting: vec![0; HEADER_BYTES],
            block: vec![0; CHECKSUM_BYTES],
        })
    }

    fn end_block(&mut self, number: u8, checksum: &[u8]) -> io::Result<()> {
        self.block[..CHECKSUM_BYTES].copy_from_slice(checksum);
        let offset = self.written_bytes + self.waiting.len() as u64;
        self.table[usize::from(number)] = (offset, self.block.len() as u64);
        self.waiting.append(&mut self.block);
        self.block.resize(CHECKSUM_BYTES, 0);
        if self.waiting.len() as u64 >= WHOLE_BYTES_MAX {
            self.write_waiting()?;
        }
        Ok(())
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.waiting, self.written_bytes)?;
        self.written_bytes += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    fn publish(mut self, key: [u8; 32]) -> io::Result<References> {
        self.write_waiting()?;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&encode_time(self.began));
        for (offset, length) in &self.table {
            header.extend_from_slice(&offset.to_le_bytes());
            header.extend_from_slice(&length.to_le_bytes());
        }
        self.file.write_all_at(&header, 0)?;
        self.root.rename(&self.name, self.root, layout::REFERENCES.as_ref())?;
        // What is dropped now must not take the name away.
        let file = self.file.try_clone()?;
        let (written_at, table) = (self.began, self.table.clone());
        let references =
            References { key, file: Some(file), contents: Vec::new(), written_at, table };
        Ok(references.with_contents(self.written_bytes))
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // Best effort; a published file does not have this name any more.
        let _ = self.root.unlink(&self.name);
    }
}

/// Where the entry of each task begins in a block.
fn positions(block: &[u8]) -> DigestMap<TaskDigest, usize> {
    let mut positions = DigestMap::default();
    let mut rest = block;
    while let Some((entry, more)) = Entry::decode(rest) {
        positions.insert(entry.task, block.len() - rest.len());
        rest = more;
    }
    positions
}

fn encode_time(time: Timestamp) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&time.seconds.to_le_bytes());
    bytes[8..12].copy_from_slice(&time.nanoseconds.to_le_bytes());
    bytes
}

fn encode_need(tag: u64, blocks: u64) -> [u8; NEED_BYTES] {
    let mut need = [0; NEED_BYTES];
    need[..8].copy_from_slice(&tag.to_le_bytes());
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    need[8..].copy_from_slice(&blocks.to_le_bytes());
    need
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheEntry, CacheOptions, CacheOutput};
    use std::collections::BTreeMap;
    use std::fs;

    /// Task, duration, and what it needs.
    type Needs = BTreeMap<[u8; 32], (u64, Vec<(u64, u64)>)>;

    fn scan(references: &References, cache: &Cache) -> (Needs, Scanned) {
        let mut needs = Needs::new();
        let scanned = references
            .scan(cache, &Cancel::new(), |entry| note(&mut needs, entry))
            .expect("every manifest can be looked at");
        (needs, scanned)
    }

    fn replay(references: &References) -> Needs {
        let mut needs = Needs::new();
        references.replay(&Cancel::new(), |entry| note(&mut needs, entry)).expect("not cancelled");
        needs
    }

    fn note(needs: &mut Needs, entry: &Entry<'_>) {
        needs.insert(*entry.task.as_bytes(), (entry.duration_ms, entry.needs().collect()));
    }

    #[test]
    fn what_was_decoded_once_is_not_read_again_and_damage_costs_decoding() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::open(&folder.path().join("store"), CacheOptions::default());
        let cache = cache.expect("a new store");
        let mut manifests = Vec::new();
        for number in 0_u64..20 {
            let task = TaskDigest::derive("", &number.to_string()).expect("a key");
            let mut entry = CacheEntry::new(0, number);
            for output in 0..number {
                let bytes = vec![number as u8; 3000 * output as usize];
                entry.outputs.push(CacheOutput::bytes(format!("out/{output}"), bytes));
            }
            cache.store(&task, &entry, &Cancel::new()).expect("stored");
            manifests.push(cache.manifest_path(&task));
        }
        let open = || References::open(&cache.inner.root, &cache.inner.identity);
        // What is young is decoded again.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let (decoded, scanned) = scan(&open(), &cache);
        assert_eq!(decoded.len(), 20);
        assert_eq!(decoded.values().map(|(_, needs)| needs.len()).sum::<usize>(), 19 * 20 / 2);
        assert_eq!(replay(&scanned.references.expect("written")), decoded);
        assert_eq!(replay(&open()), decoded);

        // Manifests that could not be decoded any more, and look as before.
        let originals: Vec<Vec<u8>> =
            manifests.iter().map(|path| fs::read(path).expect("a manifest")).collect();
        let write = |path, bytes: &[u8]| {
            let stat = disk::stat_file(&File::open(path).expect("a manifest")).expect("a stat");
            fs::write(path, bytes).expect("written");
            let file = File::options().write(true).open(path).expect("a manifest");
            disk::set_modified(&file, stat.modified).expect("set");
        };
        for (path, bytes) in manifests.iter().zip(&originals) {
            write(path, &vec![0; bytes.len()]);
        }
        assert_eq!(scan(&open(), &cache).0, decoded, "none was read again");
        for (path, bytes) in manifests.iter().zip(&originals) {
            write(path, bytes);
        }

        let path = cache.path().join(layout::REFERENCES);
        let task = TaskDigest::derive("", "5").expect("a key");
        let mut replaced = CacheEntry::new(0, 5);
        replaced.outputs.push(CacheOutput::bytes("other", b"contents"));
        cache.store(&task, &replaced, &Cancel::new()).expect("stored");
        let (known, _) = scan(&open(), &cache);
        fs::remove_file(&path).expect("the references");
        let (decoded_anew, _) = scan(&open(), &cache);
        assert!(known == decoded_anew && known != decoded, "the entry of now");
        let decoded = known;

        let image = fs::read(&path).expect("the references");
        for position in (0..image.len()).step_by(7) {
            let mut damaged = image.clone();
            damaged[position] ^= 0x10;
            fs::write(&path, &damaged).expect("written");
            assert_eq!(scan(&open(), &cache).0, decoded, "byte {position}");
        }
        for length in [0, 7, HEADER_BYTES, image.len() - 1] {
            fs::write(&path, &image[..length]).expect("written");
            assert_eq!(scan(&open(), &cache).0, decoded, "{length} bytes");
        }
    }
}
