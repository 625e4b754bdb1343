//! Import: a bundle's entries into a store.
//!
//! Each entry is received (`engine`) with the rest of the bundle as its source. So it is there whole or
//! not at all, whatever comes after it, and a kill leaves those that came before.

use super::records::{Record, RecordReader, Stop};
use crate::cancel::Cancel;
use crate::digest::{Digest, DigestMap};
use crate::engine::{BlobSource, Cache, Intake};
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{BlobRef, DecodeError, Manifest};
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an import did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Imported {
    /// Entries that are in the store now.
    pub entries: u64,
    /// Blobs that the store did not have.
    pub blobs: u64,
    /// Bytes in those.
    pub blob_bytes: u64,
    /// Entries that none of the trusted keys has signed.
    pub untrusted_entries: u64,
    /// Entries that need a blob which neither the bundle nor the store has.
    pub incomplete_entries: u64,
    /// Entries that are not what they should be, or whose blobs are not.
    pub damaged_entries: u64,
    /// Entries that only a newer version of Larder can read.
    pub newer_entries: u64,
    /// How the bundle ended.
    pub ending: Ending,
}

impl Imported {
    /// Whether everything in the bundle is in the store, but for what is not trusted.
    pub fn is_complete(&self) -> bool {
        let left_out = self.incomplete_entries + self.damaged_entries + self.newer_entries;
        left_out == 0 && self.ending == Ending::Whole
    }
}

/// How a bundle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Ending {
    /// All of it is as it was written.
    #[default]
    Whole,
    /// It ends early. Entries that were complete before that are in the store.
    Cut,
    /// From some place on it is no bundle.
    Damaged {
        /// What is wrong.
        reason: &'static str,
    },
}

/// Takes over the entries of a bundle, in place of those that the store has for the same tasks. Each one
/// is all or nothing, verified, and durable if the cache is; where keys are trusted, only what one of
/// them has signed. What is wrong with one entry does not keep out the others. Blocking; memory does not
/// grow with a blob. Looks at `cancel` for each blob and each piece of it.
///
/// # Errors
/// [`Error::BundleRefused`] if it is no bundle, or one of a newer version; [`Error::Full`] and whatever
/// else speaks of the store or the input. Entries that came before stay.
///
/// # Examples
/// ```
/// use larder::{Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, TaskDigest, bundle};
/// # let folder = tempfile::tempdir()?;
/// let open = |name| Cache::open(&folder.path().join(name), CacheOptions::default());
/// let (there, here, cancel) = (open("there")?, open("here")?, Cancel::new());
/// let (task, mut entry) = (TaskDigest::derive("", "key")?, CacheEntry::new(0, 1000));
/// entry.outputs.push(CacheOutput::bytes("out.txt", "made there"));
/// there.store(&task, &entry, &cancel)?;
///
/// let mut file = Vec::new();
/// bundle::export(&there, &[task], &bundle::Known::default(), &mut file, &cancel)?;
/// let imported = bundle::import(&here, file.as_slice(), &cancel)?;
/// assert!(imported.is_complete() && imported.entries == 1);
/// assert!(here.lookup(&task)?.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn import(cache: &Cache, input: impl Read + Send, cancel: &Cancel) -> Result<Imported> {
    let (mut records, mut imported) = (RecordReader::open(input)?, Imported::default());
    let mut last: Option<TaskDigest> = None;
    let mut next = records.next();
    loop {
        cancel.check()?;
        let bytes = match next {
            Ok(Record::Entry(bytes)) => bytes,
            Ok(Record::End) => return Ok(imported),
            Ok(Record::Blob(_)) => return Ok(damaged(imported, "a blob belongs to no entry")),
            Err(Stop::Cut) => return Ok(Imported { ending: Ending::Cut, ..imported }),
            Err(Stop::Damaged(reason)) => return Ok(damaged(imported, reason)),
            Err(stop @ Stop::Input(_)) => return Err(stop.into_error()),
        };
        let (task, manifest) = match Manifest::decode_any(&bytes) {
            Ok(decoded) => decoded,
            Err(DecodeError::Newer) => {
                imported.newer_entries += 1;
                next = records.next();
                while let Ok(Record::Blob(_)) = next {
                    cancel.check()?;
                    next = records.next();
                }
                continue;
            }
            Err(_) => return Ok(damaged(imported, "a manifest is damaged")),
        };
        drop(bytes);
        if last.replace(task).is_some_and(|last| last >= task) {
            return Ok(damaged(imported, "its entries are not in order"));
        }
        let rest = Rest::of(&manifest, &mut records);
        let received = cache.receive(&task, &manifest, &rest, cancel);
        let (after, was_stopped) = rest.finish(cancel)?;
        next = after;
        match received {
            Ok(received) => {
                imported.entries += 1;
                imported.blobs += received.fetched_blobs;
                imported.blob_bytes += received.fetched_bytes;
            }
            Err(Error::Untrusted) => imported.untrusted_entries += 1,
            // What would have come is told by how the bundle ended.
            Err(Error::NoBlob { .. }) if was_stopped => {}
            Err(Error::NoBlob { .. }) => imported.incomplete_entries += 1,
            Err(Error::WrongBytes { .. } | Error::EntryRefused { .. }) => {
                imported.damaged_entries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn damaged(imported: Imported, reason: &'static str) -> Imported {
    Imported { ending: Ending::Damaged { reason }, ..imported }
}

/// The rest of a bundle, of which the next records are blobs of the entry at hand.
struct Rest<'a, R: Read> {
    /// Where each blob stands among those of the entry, and its size.
    places: DigestMap<Digest, (usize, u64)>,
    records: Mutex<Ahead<'a, R>>,
}

struct Ahead<'a, R: Read> {
    records: &'a mut RecordReader<R>,
    /// So many of the entry's blobs were passed.
    passed: usize,
    /// What comes behind the entry, once it was read.
    behind: Option<Result<Record, Stop>>,
}

impl<'a, R: Read> Rest<'a, R> {
    fn of(manifest: &Manifest, records: &'a mut RecordReader<R>) -> Rest<'a, R> {
        let blobs = manifest.distinct_blobs();
        let blobs = blobs.iter().enumerate();
        let places = blobs.map(|(place, blob)| (blob.digest, (place, blob.size_bytes))).collect();
        Rest { places, records: Mutex::new(Ahead { records, passed: 0, behind: None }) }
    }

    fn lock(&self) -> MutexGuard<'_, Ahead<'a, R>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `take` for each blob of the entry that comes. What `take` does not read is passed over.
    fn for_each(
        &self,
        mut take: impl FnMut(&BlobRef, &mut RecordReader<R>) -> Result<()>,
    ) -> Result<()> {
        let mut ahead = self.lock();
        while ahead.behind.is_none() {
            let next = ahead.records.next();
            let blob = match next {
                Ok(Record::Blob(blob)) => blob,
                behind => {
                    ahead.behind = Some(behind);
                    break;
                }
            };
            // No more comes than the entry says, and nothing twice.
            match self.places.get(&blob.digest) {
                Some((place, size_bytes))
                    if *place >= ahead.passed && *size_bytes == blob.size_bytes =>
                {
                    ahead.passed = place + 1;
                }
                _ => {
                    let stop = Stop::Damaged("a blob does not belong to its entry");
                    ahead.behind = Some(Err(stop));
                    break;
                }
            }
            let taken = take(&blob, ahead.records);
            // Then the next record says what happened.
            if taken.is_err() && ahead.records.stopped().is_none() {
                taken?;
            }
        }
        Ok(())
    }

    /// What comes behind the entry, and whether the bundle ended there.
    fn finish(self, cancel: &Cancel) -> Result<(Result<Record, Stop>, bool)> {
        self.for_each(|_, _| cancel.check())?;
        let ahead = self.records.into_inner().unwrap_or_else(PoisonError::into_inner);
        let behind = ahead.behind.unwrap_or(Err(Stop::Cut));
        let was_stopped = behind.is_err();
        Ok((behind, was_stopped))
    }
}

impl<R: Read + Send> BlobSource for Rest<'_, R> {
    fn fetch(&self, _: &[BlobRef], intake: &Intake<'_>) -> Result<()> {
        let mut wrong = Ok(());
        self.for_each(|blob, records| {
            if !intake.wants(&blob.digest) {
                return Ok(());
            }
            match intake.take(blob, records) {
                // The others may still be good for entries that follow; this one is not stored.
                Err(error @ Error::WrongBytes { .. }) => {
                    wrong = Err(error);
                    Ok(())
                }
                taken => taken,
            }
        })?;
        wrong
    }

    /// What was read once is gone.
    fn is_repeatable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::{RecordWriter, header};
    use super::*;
    use crate::engine::{CacheEntry, CacheOutput};
    use crate::options::{CacheOptions, Limits};
    use std::io::Write;
    use tempfile::TempDir;

    const LARGE_BYTES: usize = 300_000;

    struct Lab {
        folder: TempDir,
        stores: usize,
    }

    impl Lab {
        fn new() -> Lab {
            Lab { folder: tempfile::tempdir().expect("a folder"), stores: 0 }
        }

        fn store(&mut self) -> Cache {
            self.stores += 1;
            let path = self.folder.path().join(self.stores.to_string());
            let options = CacheOptions::default().with_limits(Limits::none());
            Cache::open(&path, options).expect("opens")
        }
    }

    /// An entry of two blobs, as a bundle has it.
    struct Sample {
        task: TaskDigest,
        portable: Vec<u8>,
        blobs: Vec<(BlobRef, Vec<u8>)>,
    }

    fn sample(cache: &Cache, key: &str) -> Sample {
        let task = TaskDigest::derive("", key).expect("a key");
        let contents = [vec![1; LARGE_BYTES], b"small".to_vec()];
        let mut entry = CacheEntry::new(0, 1).with_stdout(key);
        for (name, bytes) in ["large", "small"].iter().zip(&contents) {
            entry.outputs.push(CacheOutput::bytes(name, bytes));
        }
        cache.store(&task, &entry, &Cancel::new()).expect("stored");
        let manifest = cache.manifest(&task).expect("readable").expect("there");
        let blobs = manifest.distinct_blobs().into_iter().zip(contents).collect();
        Sample { task, portable: manifest.encode_portable(&task), blobs }
    }

    type Writer<'a> = RecordWriter<&'a mut Vec<u8>>;

    fn bundle(write: impl FnOnce(&mut Writer<'_>) -> std::io::Result<()>) -> Vec<u8> {
        let mut file = Vec::new();
        let mut records = RecordWriter::begin(&mut file).expect("written");
        write(&mut records).and_then(|()| records.end()).expect("written");
        file
    }

    impl Sample {
        fn write(&self, records: &mut Writer<'_>) -> std::io::Result<()> {
            records.entry(&self.portable)?;
            (0..self.blobs.len()).try_for_each(|number| self.write_blob(records, number))
        }

        fn write_blob(&self, records: &mut Writer<'_>, number: usize) -> std::io::Result<()> {
            let (blob, bytes) = &self.blobs[number];
            records.blob(blob)?;
            records.bytes(bytes)
        }
    }

    /// Imports into a new store; what is there is what it should be.
    fn take(lab: &mut Lab, file: &[u8]) -> Imported {
        let cache = lab.store();
        let imported = import(&cache, file, &Cancel::new()).expect("read");
        let report = cache.scrub(crate::Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.entries, imported.entries);
        imported
    }

    type Case = fn(&Sample, &mut Writer<'_>) -> std::io::Result<()>;

    /// What is wrong, how many entries came before that, and how it is written.
    const BROKEN: &[(&str, u64, Case)] = &[
        ("a blob first", 0, |sample, records| sample.write_blob(records, 1)),
        ("a stranger", 1, |sample, records| {
            sample.write(records)?;
            records.blob(&BlobRef { digest: Digest::of(b"x"), size_bytes: 1 })?;
            records.bytes(b"x")
        }),
        ("a blob twice", 1, |sample, records| {
            sample.write(records)?;
            sample.write_blob(records, 1)
        }),
        ("another order", 0, |sample, records| {
            records.entry(&sample.portable)?;
            sample.write_blob(records, 1)?;
            sample.write_blob(records, 0)
        }),
        ("another size", 0, |sample, records| {
            records.entry(&sample.portable)?;
            sample.write_blob(records, 0)?;
            records.blob(&BlobRef { size_bytes: 6, ..sample.blobs[1].0 })?;
            records.bytes(b"longer")
        }),
        ("an entry twice", 1, |sample, records| {
            sample.write(records)?;
            records.entry(&sample.portable)
        }),
        ("no manifest", 0, |_, records| records.entry(b"larder-m and so on")),
        ("an unknown kind", 0, |_, records| records.bytes(&[3])),
        ("a manifest that has no end", 0, |_, records| {
            records.bytes(&[1])?;
            records.bytes(&u64::MAX.to_le_bytes())
        }),
    ];

    #[test]
    fn what_is_not_as_it_was_written_ends_the_reading() {
        let mut lab = Lab::new();
        let sample = sample(&lab.store(), "a");
        assert!(take(&mut lab, &bundle(|records| sample.write(records))).is_complete());
        for (what, entries, write) in BROKEN {
            let imported = take(&mut lab, &bundle(|records| write(&sample, records)));
            assert!(matches!(imported.ending, Ending::Damaged { .. }), "{what}: {imported:?}");
            assert_eq!(imported.entries, *entries, "{what}");
        }
    }

    #[test]
    fn wrong_bytes_cost_their_entry_and_no_other() {
        let mut lab = Lab::new();
        let cache = lab.store();
        let mut samples = [sample(&cache, "a"), sample(&cache, "b")];
        samples.sort_by_key(|sample| sample.task);
        for (_, bytes) in &mut samples[0].blobs {
            bytes[0] ^= 1;
        }
        let file = bundle(|records| samples.iter().try_for_each(|sample| sample.write(records)));
        let imported = take(&mut lab, &file);
        assert_eq!((imported.entries, imported.damaged_entries), (1, 1), "{imported:?}");
        assert!(!imported.is_complete() && imported.ending == Ending::Whole);
    }

    #[test]
    fn a_blob_without_an_end_takes_neither_memory_nor_disk() {
        let mut lab = Lab::new();
        let cache = lab.store();
        let Sample { task, portable, blobs } = sample(&cache, "a");
        let mut manifest = Manifest::decode(&portable, &task).expect("a manifest");
        for node in &mut manifest.nodes {
            if let crate::NodeKind::File { digest, size_bytes, .. } = &mut node.kind
                && *digest == blobs[0].0.digest
            {
                *size_bytes = u64::MAX;
            }
        }
        let endless = BlobRef { size_bytes: u64::MAX, ..blobs[0].0 };
        let file = bundle(|records| {
            records.entry(&manifest.encode_portable(&task))?;
            records.blob(&endless)?;
            (0..64).try_for_each(|_| records.bytes(&vec![0; 1 << 20]))
        });
        assert!(file.len() < 20_000, "{} bytes", file.len());
        let imported = take(&mut lab, &file);
        assert_eq!((imported.entries, imported.ending), (0, Ending::Cut), "{imported:?}");
    }

    #[test]
    fn a_frame_that_wants_much_memory_is_refused() {
        let mut lab = Lab::new();
        let mut file = header().to_vec();
        let mut frame = zstd::Encoder::new(&mut file, 1).expect("made");
        frame.window_log(27).expect("set");
        frame.write_all(&vec![0; 1 << 20]).expect("written");
        frame.finish().expect("written");
        let imported = take(&mut lab, &file);
        let reason = "it cannot be decompressed";
        assert_eq!(imported.ending, Ending::Damaged { reason });
    }

    #[test]
    fn a_newer_bundle_is_refused_and_a_newer_entry_passed_over() {
        let mut lab = Lab::new();
        let cache = lab.store();
        let mut samples = [sample(&cache, "a"), sample(&cache, "b")];
        samples.sort_by_key(|sample| sample.task);
        // A version that does not exist yet, behind a checksum that fits.
        let length = samples[0].portable.len() - 32;
        samples[0].portable[8] = 2;
        let checksum = blake3::derive_key(
            "larder 2026-11-23 manifest file v1",
            &samples[0].portable[..length],
        );
        samples[0].portable[length..].copy_from_slice(&checksum);
        let write =
            |records: &mut Writer<'_>| samples.iter().try_for_each(|sample| sample.write(records));
        let mut file = bundle(write);
        let imported = take(&mut lab, &file);
        assert_eq!((imported.entries, imported.newer_entries), (1, 1), "{imported:?}");
        assert!(!imported.is_complete());
        file[8] = 2;
        let refused = import(&lab.store(), file.as_slice(), &Cancel::new());
        assert!(matches!(refused, Err(Error::BundleRefused { .. })), "{refused:?}");
    }
}
