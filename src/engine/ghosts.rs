//! Ghosts: which entries went because of a limit of size, and which of them were stored again.
//!
//! One small file of fixed size, addressed by task digest, so that a look is one read. The sweeper
//! writes a ghost for each entry that it evicts to keep a limit; whoever stores that task again says
//! when, and how long it ran. So a store can tell that its limit is below what is needed, and which
//! one would do.
//!
//! Invariants:
//! - Nobody relies on it. It is not synced, and a record that is torn, damaged or displaced makes the
//!   figures smaller, nothing else.
//! - Only eviction and store touch it, off their critical parts: a lookup never does.
//!
//! Sweepers exclude each other (`evict.lock`); stores take no lock for it, and one that changes a
//! record just when a sweeper displaces it loses one of the two.

use super::Cache;
use crate::disk::{self, layout};
use crate::key::TaskDigest;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const CONTEXT: &str = "larder 2026-11-23 ghost v1";
const RECORD_BYTES: usize = 32;
const BODY_BYTES: usize = 28;
const BUCKET_RECORDS: usize = 16;
const BUCKET_BYTES: usize = BUCKET_RECORDS * RECORD_BYTES;
const BUCKETS: u64 = 512;
/// What came back longer ago is not told any more, in seconds: 7 days.
const WINDOW_SECONDS: u32 = 7 * 24 * 3600;

/// Entries that were evicted because of a limit of size, and stored again within the last 7 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EvictedEarly {
    /// How many. A store keeps about 8,000 evictions in mind, so there may have been more.
    pub entries: u64,
    /// How long their tasks ran again, in ms.
    pub duration_ms: u64,
    /// A limit of about so many bytes would have spared nine tenths of that time; 0 if there is
    /// nothing to spare.
    pub size_bytes_max_enough: u64,
}

/// An entry that has just been evicted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ghost {
    pub(super) task: TaskDigest,
    pub(super) bytes: u64,
    pub(super) duration_ms: u64,
}

/// What is kept of it. Times are seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    tag: u64,
    evicted_at: u32,
    /// When it was stored again; 0 if it was not.
    stored_at: u32,
    size_kib: u32,
    duration_ms: u32,
    /// The limit that was kept.
    limit_mib: u32,
}

type Bucket = [Option<Record>; BUCKET_RECORDS];

impl Record {
    fn is_out(&self) -> bool {
        self.stored_at == 0
    }

    fn last_at(&self) -> u32 {
        self.evicted_at.max(self.stored_at)
    }

    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&self.tag.to_le_bytes());
        let Record { evicted_at, stored_at, size_kib, duration_ms, limit_mib, .. } = *self;
        let numbers = [evicted_at, stored_at, size_kib, duration_ms, limit_mib];
        for (number, at) in numbers.into_iter().zip((8..).step_by(4)) {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = blake3::derive_key(CONTEXT, &bytes[..BODY_BYTES]);
        bytes[BODY_BYTES..].copy_from_slice(&checksum[..RECORD_BYTES - BODY_BYTES]);
        bytes
    }

    /// `None` for whatever was not written by [`Record::encode`]; zeros are free.
    fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        if *bytes == [0; RECORD_BYTES] {
            return None;
        }
        let number =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let record = Record {
            tag: u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")),
            evicted_at: number(8),
            stored_at: number(12),
            size_kib: number(16),
            duration_ms: number(20),
            limit_mib: number(24),
        };
        (record.encode() == *bytes).then_some(record)
    }
}

/// Whether these contents are a ghost, behind a checksum that fits; for the fuzz targets.
///
/// # Panics
/// If what decodes does not encode to the same bytes.
#[cfg(any(fuzzing, larder_rigs))]
pub(crate) fn ghost_decodes(contents: &[u8; BODY_BYTES]) -> bool {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..BODY_BYTES].copy_from_slice(contents);
    let checksum = blake3::derive_key(CONTEXT, contents);
    bytes[BODY_BYTES..].copy_from_slice(&checksum[..RECORD_BYTES - BODY_BYTES]);
    let record = Record::decode(&bytes);
    assert!(record.as_ref().is_none_or(|record| record.encode() == bytes), "one encoding");
    record.is_some()
}

impl Cache {
    /// Notes entries that were evicted to keep a limit of so many bytes. Best effort.
    pub(super) fn note_evicted(&self, ghosts: impl Iterator<Item = Ghost>, size_bytes_max: u64) {
        let opened = self.inner.root.open_or_create(layout::GHOSTS.as_ref(), 0o600);
        let Ok((file, _)) = opened else { return };
        for ghost in ghosts {
            // One that was used or replaced just then was not removed.
            let manifest = layout::Shard::of_manifest(ghost.task.as_bytes());
            if !matches!(self.inner.manifests.stat(manifest.name()), Ok(None)) {
                continue;
            }
            let (tag, bucket_at) = address(&ghost.task);
            let record = Record {
                tag,
                evicted_at: now_seconds(),
                stored_at: 0,
                size_kib: narrow(ghost.bytes.div_ceil(1024)),
                duration_ms: narrow(ghost.duration_ms),
                limit_mib: narrow(size_bytes_max.div_ceil(1 << 20)),
            };
            let Ok(bucket) = read_bucket(&file, bucket_at) else { return };
            let _ = write_record(&file, bucket_at, place_for(&bucket, tag), &record);
        }
    }

    /// Notes that a task was stored, which ran so long: if its entry had been evicted, that was too
    /// early. Best effort; where nothing was ever evicted, one open that finds nothing.
    pub(super) fn note_stored_again(&self, task: &TaskDigest, duration_ms: u64) {
        let Ok((file, _)) = self.inner.root.open_for_update(layout::GHOSTS.as_ref()) else {
            return;
        };
        let (tag, bucket_at) = address(task);
        let Ok(bucket) = read_bucket(&file, bucket_at) else { return };
        if let Some((place, record)) = find_out(&bucket, tag) {
            let duration_ms = narrow(duration_ms);
            let record = Record { stored_at: now_seconds(), duration_ms, ..record };
            let _ = write_record(&file, bucket_at, place, &record);
        }
    }

    /// What came back within the last 7 days. What cannot be read is not told.
    pub(super) fn evicted_early(&self) -> EvictedEarly {
        let Ok((file, _)) = self.inner.root.open_regular(layout::GHOSTS.as_ref()) else {
            return EvictedEarly::default();
        };
        let buckets =
            (0..BUCKETS).map_while(|number| read_bucket(&file, number * BUCKET_BYTES as u64).ok());
        let records: Vec<Record> = buckets.flatten().flatten().collect();
        sum_up(&records, now_seconds())
    }
}

/// What records say. Their number is bounded, so that its square is some ten milliseconds.
fn sum_up(records: &[Record], now_seconds: u32) -> EvictedEarly {
    let is_recent = |record: &&Record| {
        !record.is_out() && now_seconds.saturating_sub(record.stored_at) <= WINDOW_SECONDS
    };
    // For an entry still to be there, there must have been room for it and for all that went after
    // it and was not back yet either.
    let enough_kib = |record: &Record| {
        let absent = records.iter().filter(|other| {
            (record.evicted_at..=record.last_at()).contains(&other.evicted_at)
                && (other.is_out() || other.stored_at >= record.stored_at)
        });
        let missing_kib = absent.map(|other| u64::from(other.size_kib)).sum::<u64>();
        (u64::from(record.limit_mib) << 10).saturating_add(missing_kib)
    };
    let mut back: Vec<(u64, u64)> = records
        .iter()
        .filter(is_recent)
        .map(|record| (enough_kib(record), u64::from(record.duration_ms)))
        .collect();
    back.sort_unstable();
    let duration_ms: u64 = back.iter().map(|(_, duration_ms)| duration_ms).sum();
    let mut spared_ms = 0;
    let enough = back.iter().find(|(_, more_ms)| {
        spared_ms += more_ms;
        spared_ms >= duration_ms - duration_ms / 10
    });
    EvictedEarly {
        entries: back.len() as u64,
        duration_ms,
        size_bytes_max_enough: enough.map_or(0, |(kib, _)| kib << 10),
    }
}

fn read_bucket(file: &File, at: u64) -> io::Result<Bucket> {
    let mut bytes = [0; BUCKET_BYTES];
    let mut length = 0;
    // The file ends behind the last record that was written.
    while length < BUCKET_BYTES {
        match file.read_at(&mut bytes[length..], at + length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
    let mut bucket = [None; BUCKET_RECORDS];
    for (place, record) in bucket.iter_mut().zip(records) {
        *place = Record::decode(record);
    }
    Ok(bucket)
}

fn write_record(file: &File, bucket_at: u64, place: usize, record: &Record) -> io::Result<()> {
    file.write_all_at(&record.encode(), bucket_at + (place * RECORD_BYTES) as u64)
}

/// The tag of a task, and where its bucket begins: from bytes that the tag leaves out.
fn address(task: &TaskDigest) -> (u64, u64) {
    let number = |at: usize| {
        u64::from_le_bytes(task.as_bytes()[at..at + 8].try_into().expect("eight bytes"))
    };
    (number(0), number(8) % BUCKETS * BUCKET_BYTES as u64)
}

/// The entry of this tag that was not stored again.
fn find_out(bucket: &Bucket, tag: u64) -> Option<(usize, Record)> {
    let mut places = bucket.iter().enumerate();
    places.find_map(|(place, record)| {
        record.filter(|record| record.tag == tag && record.is_out()).map(|record| (place, record))
    })
}

/// Where a new ghost goes: onto its older self, to a free place, or onto what happened longest ago.
fn place_for(bucket: &Bucket, tag: u64) -> usize {
    let older_self = find_out(bucket, tag).map(|(place, _)| place);
    let free = || bucket.iter().position(Option::is_none);
    let oldest = || {
        let age_of = |place: &usize| bucket[*place].map_or(0, |record| record.last_at());
        (0..BUCKET_RECORDS).min_by_key(age_of).expect("a bucket has places")
    };
    older_self.or_else(free).unwrap_or_else(oldest)
}

fn now_seconds() -> u32 {
    disk::now().seconds.clamp(1, i64::from(u32::MAX)) as u32
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(tag: u64, evicted_at: u32, stored_at: u32) -> Record {
        let (size_kib, duration_ms, limit_mib) = (10, 1000, 3);
        Record { tag, evicted_at, stored_at, size_kib, duration_ms, limit_mib }
    }

    #[test]
    fn a_record_reads_back_and_nothing_else_does() {
        let written = record(u64::MAX - 5, 1_800_000_000, 7);
        let bytes = written.encode();
        assert_eq!(Record::decode(&bytes), Some(written));
        assert_eq!(Record::decode(&[0; RECORD_BYTES]), None, "free");
        for position in 0..RECORD_BYTES {
            let mut damaged = bytes;
            damaged[position] ^= 1;
            assert_eq!(Record::decode(&damaged), None, "byte {position}");
        }
    }

    #[test]
    fn a_ghost_takes_its_own_place_then_a_free_one_then_the_oldest() {
        let mut bucket: Bucket = [None; BUCKET_RECORDS];
        bucket[0] = Some(record(1, 100, 0));
        bucket[1] = Some(record(2, 50, 200));
        assert_eq!(place_for(&bucket, 1), 0, "it went twice and was never missed");
        assert_eq!(place_for(&bucket, 2), 2, "what came back is still to be told");
        for (place, free) in bucket.iter_mut().enumerate().skip(2) {
            *free = Some(record(10 + place as u64, 300, 0));
        }
        assert_eq!(place_for(&bucket, 99), 0, "evicted longest ago");
        assert_eq!(find_out(&bucket, 2), None);
        bucket[0] = Some(record(1, 100, 250));
        assert_eq!(place_for(&bucket, 99), 1, "what came back counts from then");
    }

    #[test]
    fn enough_is_room_for_what_went_later_and_is_not_back() {
        const NOW: u32 = 1_000_000;
        let evicted = [
            record(1, NOW - 100, NOW - 50),
            // Went before, so it would have gone first in a larger store, too.
            record(2, NOW - 200, 0),
            // Went later, was there again before.
            record(3, NOW - 90, NOW - 60),
            // Went later, and is still out, or came back later.
            record(4, NOW - 80, 0),
            record(5, NOW - 70, NOW - 40),
            // Went when the first was back already.
            record(6, NOW - 30, 0),
            // Came back long ago.
            record(7, 1, 2),
        ];
        let early = sum_up(&evicted, NOW);
        assert_eq!((early.entries, early.duration_ms), (3, 3000));
        // When the third was needed, 3, 4 and 5 were away; for the first 1, 4 and 5; for the fifth 4 and 5.
        assert_eq!(early.size_bytes_max_enough, (3 << 20) + 3 * 10 * 1024);
        let later = sum_up(&evicted, NOW + 2 * WINDOW_SECONDS);
        assert_eq!(later, EvictedEarly::default(), "what is long ago is not told");
        assert_eq!(sum_up(&evicted, 1).entries, 4, "a clock that was set back forgets nothing");
    }

    #[test]
    fn a_tenth_of_the_time_needs_no_room() {
        let rare = Record { size_kib: 1_000_000, duration_ms: 10, ..record(1, 100, 400) };
        let often = Record { duration_ms: 1000, ..record(2, 200, 300) };
        let early = sum_up(&[rare, often], 500);
        assert_eq!((early.entries, early.duration_ms), (2, 1010));
        assert_eq!(early.size_bytes_max_enough, (3 << 20) + 10 * 1024);
    }

    proptest! {
        #[test]
        fn sums_never_overflow(
            numbers in prop::collection::vec(any::<(u64, [u32; 5])>(), 0..64),
            now_seconds: u32,
        ) {
            let records: Vec<Record> = numbers
                .into_iter()
                .map(|(tag, [evicted_at, stored_at, size_kib, duration_ms, limit_mib])| {
                    let record =
                        Record { tag, evicted_at, stored_at, size_kib, duration_ms, limit_mib };
                    assert_eq!(Record::decode(&record.encode()), Some(record));
                    record
                })
                .collect();
            let early = sum_up(&records, now_seconds);
            prop_assert!(early.entries <= records.len() as u64);
            prop_assert!((early.entries == 0) <= (early.duration_ms == 0));
        }
    }
}
