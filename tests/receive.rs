//! Entries that come from elsewhere and go there: all or nothing, verified while they arrive.

mod common;

use common::{Lab, Small, files_below, inode, noise, snapshot_read_only, task, write_old};
use larder::{
    BlobRef, BlobSource, Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Digest, Durability,
    Error, ErrorKind, EvictOptions, Intake, KeyKind, Limit, Limits, LinkMode, LogPiece, LogStream,
    Manifest, NodeKind, Offer, OutputDeclaration, Received, Repair, RestoreOptions, SigningKey,
};
use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a source gives instead of a blob's bytes.
type Spoil = fn(Vec<u8>) -> Box<dyn Read>;

/// A source that has blobs in memory, and remembers what it was asked for.
struct Shelf {
    blobs: HashMap<Digest, Vec<u8>>,
    asked: Mutex<Vec<Digest>>,
    spoil: Spoil,
    is_repeatable: bool,
}

fn good(bytes: Vec<u8>) -> Box<dyn Read> {
    Box::new(io::Cursor::new(bytes))
}

impl Shelf {
    fn empty() -> Shelf {
        let (blobs, asked) = (HashMap::new(), Mutex::default());
        Shelf { blobs, asked, spoil: good, is_repeatable: true }
    }

    /// All that an entry needs.
    fn of(offer: &Offer) -> Shelf {
        let read = |blob: &BlobRef| {
            let mut bytes = Vec::new();
            offer.open(&blob.digest).expect("opens").read_to_end(&mut bytes).expect("read");
            assert_eq!(bytes.len() as u64, blob.size_bytes);
            (blob.digest, bytes)
        };
        let blobs = offer.manifest().distinct_blobs().iter().map(read).collect();
        Shelf { blobs, ..Shelf::empty() }
    }

    fn spoiled(self, spoil: Spoil) -> Shelf {
        Shelf { spoil, ..self }
    }

    fn asked(&self) -> usize {
        self.asked.lock().expect("whole").len()
    }
}

impl BlobSource for Shelf {
    fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> larder::Result<()> {
        self.asked.lock().expect("whole").extend(missing.iter().map(|blob| blob.digest));
        for blob in missing {
            if let Some(bytes) = self.blobs.get(&blob.digest) {
                intake.take(blob, &mut (self.spoil)(bytes.clone()))?;
                assert!(!intake.wants(&blob.digest));
            }
        }
        Ok(())
    }

    fn is_repeatable(&self) -> bool {
        self.is_repeatable
    }
}

/// A source that does something first.
struct After<'a, F>(&'a Shelf, F);

impl<F: Fn() + Sync> BlobSource for After<'_, F> {
    fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> larder::Result<()> {
        (self.1)();
        self.0.fetch(missing, intake)
    }
}

fn unlimited() -> CacheOptions {
    CacheOptions::default().with_limits(Limits::none())
}

/// Somebody else's store, with an entry of every kind of output, and a store to take it over.
fn labs() -> (Lab, Lab) {
    let (there, here) = (Lab::with(unlimited()), Lab::with(unlimited()));
    let out = there.workspace().join("out");
    write_old(&out.join("large"), &noise(1, 700_000));
    write_old(&out.join("linked"), &noise(2, 50_000));
    write_old(&out.join("bin/tool"), &noise(3, 40_000));
    write_old(&out.join("bin/same"), &noise(3, 40_000));
    write_old(&out.join("bin/secret"), &noise(4, 60_000));
    write_old(&out.join("small"), b"small");
    write_old(&out.join("empty"), b"");
    let mut holes = noise(5, 400_000);
    holes[1000..390_000].fill(0);
    write_old(&out.join("holes"), &holes);
    fs::create_dir(out.join("nothing")).expect("made");
    symlink("../elsewhere", out.join("link")).expect("made");
    for (name, mode) in [("bin/tool", 0o755), ("bin/same", 0o644), ("bin/secret", 0o600)] {
        fs::set_permissions(out.join(name), Permissions::from_mode(mode)).expect("set");
    }
    let entry = CacheEntry::capture(&there.workspace(), &[OutputDeclaration::new("out")]);
    let mut entry = entry.expect("captured").with_result(3, 41_200).with_stdout("short");
    entry = entry.with_stderr(noise(6, 10_000));
    entry.log_order = vec![LogPiece::Stdout(5), LogPiece::Stderr(10_000)];
    entry.key_parts = Some(b"what the key was made of".as_slice().into());
    there.cache.store(&task("k"), &entry, &Cancel::new()).expect("stored");
    (there, here)
}

fn offer(cache: &Cache, key: &str) -> Offer {
    cache.offer(&task(key)).expect("readable").expect("there")
}

fn receive(
    cache: &Cache,
    manifest: &Manifest,
    source: &dyn BlobSource,
) -> larder::Result<Received> {
    cache.receive(&task("k"), manifest, source, &Cancel::new())
}

fn restore(cache: &Cache, place: &Path, mode: LinkMode) -> larder::Restored {
    let options = RestoreOptions::default().with_link_mode(mode);
    let restored = cache.restore(&task("k"), place, options, &Cancel::new());
    restored.expect("restored").expect("a hit")
}

/// Nothing of an entry is in a store, and nothing that a reception would leave.
fn assert_nothing_stored(lab: &Lab) {
    assert!(lab.cache.lookup(&task("k")).expect("a lookup").is_none(), "no entry");
    assert!(lab.blobs().is_empty(), "what had arrived was thrown away: {:?}", lab.blobs());
    for folder in ["staging", "holds", "quarantine"] {
        assert!(files_below(&lab.store_path().join(folder)).is_empty(), "{folder}");
    }
}

fn assert_clean(cache: &Cache) {
    let report = cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean() && report.orphan_blobs == 0, "{report:?}");
}

#[test]
fn an_entry_from_elsewhere_is_what_it_was_there() {
    for durability in [Durability::Relaxed, Durability::Durable] {
        let (there, here) = labs();
        let options = unlimited().with_durability(durability);
        let cache = Cache::open(&here.store_path(), options).expect("opens");
        let offer = offer(&there.cache, "k");
        let (manifest, shelf) = (offer.manifest().clone(), Shelf::of(&offer));
        let received = receive(&cache, &manifest, &shelf).expect("received");
        assert_eq!((received.files, received.fetched_blobs), (8, 8), "{received:?}");
        assert_eq!(shelf.asked(), 8, "no bytes need no source, and the same bytes are sent once");
        let hit = cache.lookup(&task("k")).expect("a lookup").expect("a hit");
        assert_eq!((hit.exit_code, hit.duration_ms), (3, 41_200));

        let stored = cache.manifest(&task("k")).expect("readable").expect("there");
        assert_eq!(stored.encode_portable(&task("k")), manifest.encode_portable(&task("k")));
        assert_ne!(stored.origin, manifest.origin, "stored here, now");
        let there_logs = there.cache.logs(&task("k")).expect("readable");
        assert_eq!(cache.logs(&task("k")).expect("readable"), there_logs);
        let parts = cache.key_parts(&task("k"), &stored).expect("readable");
        assert_eq!(parts.as_deref(), Some(b"what the key was made of".as_slice()));

        for mode in [LinkMode::Auto, LinkMode::Hardlink, LinkMode::Copy] {
            let place = here.path(&format!("{mode:?}"));
            let restored = restore(&cache, &place, mode);
            assert_eq!(snapshot_read_only(&place), snapshot_read_only(&there.workspace()));
            let linked = restored.hardlinked.files + restored.reflinked.files;
            let expected = if mode == LinkMode::Copy { 0 } else { 6 };
            assert!(linked >= expected, "their inodes have the recorded times: {restored:?}");
        }
        assert_clean(&cache);
    }
}

#[test]
fn bytes_that_are_not_the_blobs_are_found_while_they_arrive_and_nothing_is_stored() {
    let spoils: &[(&str, Spoil)] = &[
        ("has other bytes", |mut bytes| {
            *bytes.last_mut().expect("some") ^= 1;
            good(bytes)
        }),
        ("ended early", |mut bytes| {
            bytes.pop();
            good(bytes)
        }),
        ("ended early", |_| Box::new(io::empty())),
        ("goes on for too long", |mut bytes| {
            bytes.push(0);
            good(bytes)
        }),
        ("goes on for too long", |bytes| Box::new(good(bytes).chain(io::repeat(0)))),
    ];
    let (there, here) = labs();
    let offer = offer(&there.cache, "k");
    for (expected, spoil) in spoils {
        for size_min in [0, 300_000] {
            let mut shelf = Shelf::of(&offer).spoiled(*spoil);
            // The first that is asked for is one of more, or of less, than is held in memory.
            shelf.blobs.retain(|_, bytes| bytes.len() >= size_min);
            let error = receive(&here.cache, offer.manifest(), &shelf).expect_err("spoiled");
            assert!(matches!(error, Error::WrongBytes { reason, .. } if reason == *expected));
            assert_eq!(error.kind(), ErrorKind::Source);
            assert!(error.allows_uncached_run());
            assert_nothing_stored(&here);
        }
    }
    receive(&here.cache, offer.manifest(), &Shelf::of(&offer)).expect("and then the right ones");
    assert_clean(&here.cache);
}

#[test]
fn an_endless_reader_is_read_one_byte_too_far() {
    struct Counted<'a>(&'a AtomicUsize);
    impl Read for Counted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.fetch_add(buffer.len(), Ordering::Relaxed);
            buffer.fill(7);
            Ok(buffer.len())
        }
    }
    struct Endless(AtomicUsize);
    impl BlobSource for Endless {
        fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> larder::Result<()> {
            for blob in missing {
                self.0.store(0, Ordering::Relaxed);
                assert!(intake.take(blob, &mut Counted(&self.0)).is_err());
                assert_eq!(self.0.load(Ordering::Relaxed) as u64, blob.size_bytes + 1);
            }
            Ok(())
        }
    }
    let (there, here) = labs();
    let offer = offer(&there.cache, "k");
    let error = receive(&here.cache, offer.manifest(), &Endless(AtomicUsize::new(0)));
    assert!(matches!(error, Err(Error::NoBlob { .. })), "{error:?}");
    assert_nothing_stored(&here);
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

#[test]
fn what_a_source_does_not_give_or_ends_with_leaves_nothing() {
    let (there, here) = labs();
    let offer = offer(&there.cache, "k");
    for digest in offer.manifest().distinct_blobs().iter().map(|blob| blob.digest) {
        let mut shelf = Shelf::of(&offer);
        if shelf.blobs.remove(&digest).is_some_and(|bytes| bytes.is_empty()) {
            continue;
        }
        let error = receive(&here.cache, offer.manifest(), &shelf);
        assert!(matches!(error, Err(Error::NoBlob { digest: of }) if of == digest), "{error:?}");
        assert_nothing_stored(&here);
    }
    let broken = Shelf::of(&offer).spoiled(|bytes| {
        let half = bytes.len() as u64 / 2;
        Box::new(good(bytes).take(half).chain(Broken))
    });
    let error = receive(&here.cache, offer.manifest(), &broken).expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::Io, "another's disk is full, not ours: {error}");
    assert_nothing_stored(&here);
}

#[test]
fn what_nobody_asked_for_is_refused() {
    struct Pushy;
    impl BlobSource for Pushy {
        fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> larder::Result<()> {
            let other = BlobRef { digest: Digest::of(b"other"), size_bytes: 5 };
            assert!(!intake.wants(&other.digest));
            assert!(intake.take(&other, &mut b"other".as_slice()).is_err());
            let longer = BlobRef { size_bytes: missing[0].size_bytes + 1, ..missing[0] };
            assert!(intake.take(&longer, &mut io::repeat(0)).is_err());
            Ok(())
        }
    }
    let (there, here) = labs();
    let offer = offer(&there.cache, "k");
    assert!(receive(&here.cache, offer.manifest(), &Pushy).is_err());
    assert_nothing_stored(&here);
}

#[test]
fn blobs_that_are_here_are_not_asked_for_and_damaged_ones_are() {
    let (there, here) = labs();
    let offer = offer(&there.cache, "k");
    let shelf = Shelf::of(&offer);
    receive(&here.cache, offer.manifest(), &shelf).expect("received");
    let nothing = Shelf::empty();
    let again = receive(&here.cache, offer.manifest(), &nothing).expect("all is here");
    assert_eq!((again.fetched_blobs, nothing.asked()), (0, 0));
    // Stamps are lost: they are hashed, and still not asked for.
    fs::remove_file(here.store_path().join("stamps")).expect("removed");
    receive(&here.reopen(), offer.manifest(), &nothing).expect("all is here");
    assert_eq!(nothing.asked(), 0);

    let large =
        here.blobs().into_iter().find(|path| fs::metadata(path).expect("there").len() == 700_000);
    let large = large.expect("a blob");
    fs::set_permissions(&large, Permissions::from_mode(0o644)).expect("set");
    fs::write(&large, noise(99, 700_000)).expect("written");
    let shelf = Shelf::of(&offer);
    let healed = receive(&here.reopen(), offer.manifest(), &shelf).expect("received");
    assert_eq!((healed.fetched_blobs, shelf.asked()), (1, 1));
    assert_eq!(here.quarantine().len(), 1);
    assert_clean(&here.reopen());
}

#[test]
fn a_blob_that_is_here_in_another_mode_is_copied_and_not_asked_for() {
    let (there, here) = labs();
    for (number, size_bytes) in [(1, 700_000), (2, 50_000)] {
        let mut entry = CacheEntry::new(0, 1);
        entry.outputs.push(CacheOutput::bytes("x", noise(number, size_bytes)).with_mode(0o755));
        here.cache.store(&task(&number.to_string()), &entry, &Cancel::new()).expect("stored");
    }
    let offer = offer(&there.cache, "k");
    let shelf = Shelf::of(&offer);
    receive(&here.cache, offer.manifest(), &shelf).expect("received");
    assert_eq!(shelf.asked(), 6);
    restore(&here.cache, &here.path("place"), LinkMode::Hardlink);
    assert_eq!(snapshot_read_only(&here.path("place")), snapshot_read_only(&there.workspace()));
    assert_clean(&here.cache);
}

#[test]
fn trusted_keys_are_asked_before_anything_is_fetched() {
    let key = || SigningKey::generate(KeyKind::Blake3).expect("the system has randomness");
    let (ours, other) = (key(), key());
    let (there, here) = labs();
    let signing = Cache::open(&there.store_path(), unlimited().with_signing(ours.clone()));
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs.push(CacheOutput::bytes("x", "signed"));
    signing.expect("opens").store(&task("signed"), &entry, &Cancel::new()).expect("stored");
    let reader = |key: &SigningKey| {
        let options = unlimited().with_trusted([key.trusted()]).with_signing(other.clone());
        Cache::open(&here.store_path(), options).expect("opens")
    };
    let signed = offer(&there.cache, "signed");
    let shelf = Shelf::of(&signed);
    let name = task("signed");
    for (cache, manifest) in [
        (reader(&other), signed.manifest().clone()),
        (reader(&ours), offer(&there.cache, "k").manifest().clone()),
        (reader(&ours), {
            // The signature stays, and what it was made over does not.
            let mut manifest = signed.manifest().clone();
            manifest.exit_code = 1;
            manifest
        }),
    ] {
        let refused = cache.receive(&name, &manifest, &shelf, &Cancel::new());
        assert!(matches!(refused, Err(Error::Untrusted)), "{refused:?}");
        assert_eq!(shelf.asked(), 0, "nothing was asked for");
    }
    let other_task =
        reader(&ours).receive(&task("other"), signed.manifest(), &shelf, &Cancel::new());
    assert!(matches!(other_task, Err(Error::Untrusted)), "it was signed for its own task");
    assert_nothing_stored(&here);
    let cache = reader(&ours);
    cache.receive(&name, signed.manifest(), &shelf, &Cancel::new()).expect("received");
    assert!(cache.lookup(&name).expect("a lookup").is_some(), "with the signature that it had");
    let kept = here.cache.manifest(&name).expect("readable").expect("there").signature;
    assert_eq!(kept, signed.manifest().signature);
}

#[test]
fn a_manifest_that_lies_is_refused() {
    let (there, here) = labs();
    let offer = offer(&there.cache, "k");
    let lie = |change: fn(&mut u64), name: &str| {
        let mut manifest = offer.manifest().clone();
        for node in &mut manifest.nodes {
            let is_named = node.path.as_path().ends_with(name);
            if let NodeKind::File { size_bytes, .. } = &mut node.kind
                && is_named
            {
                change(size_bytes);
            }
        }
        let error = receive(&here.cache, &manifest, &Shelf::of(&offer)).expect_err("a lie");
        assert_eq!(error.kind(), ErrorKind::Source, "{error:?}");
        assert_nothing_stored(&here);
    };
    lie(|size| *size += 1, "large");
    lie(|size| *size -= 1, "large");
    lie(|size| *size = u64::MAX, "linked");
    lie(|size| *size = 0, "linked");
    lie(|size| *size = 1, "empty");
    // One content, two sizes.
    lie(|size| *size += 1, "tool");
    let mut unsorted = offer.manifest().clone();
    unsorted.nodes.reverse();
    let refused = receive(&here.cache, &unsorted, &Shelf::of(&offer));
    assert!(matches!(refused, Err(Error::EntryRefused { .. })), "{refused:?}");
    let mut hoarder = offer.manifest().clone();
    hoarder.logs.stdout = LogStream::Inline(vec![0; 5000].into());
    hoarder.logs.order = Vec::new();
    let refused = receive(&here.cache, &hoarder, &Shelf::of(&offer));
    assert!(matches!(refused, Err(Error::EntryRefused { .. })), "{refused:?}");

    // What the store has tells, too.
    receive(&here.cache, offer.manifest(), &Shelf::of(&offer)).expect("received");
    let mut longer = offer.manifest().clone();
    if let NodeKind::File { size_bytes, .. } = &mut longer.nodes.last_mut().expect("some").kind {
        *size_bytes += 1;
    }
    let refused = receive(&here.cache, &longer, &Shelf::of(&offer));
    assert!(matches!(refused, Err(Error::EntryRefused { .. })), "{refused:?}");
    assert_clean(&here.cache);
}

fn evict_all(cache: &Cache) {
    let mut options = EvictOptions::default();
    options.limits = Limits::none().with_size_bytes_max(Limit::At(1));
    cache.evict(&options, &Cancel::new(), &mut |_| {}).expect("evicted");
}

#[test]
fn what_was_found_stays_while_the_rest_is_fetched() {
    let (there, here) = labs();
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs.push(CacheOutput::bytes("x", noise(1, 700_000)));
    here.cache.store(&task("neighbour"), &entry, &Cancel::new()).expect("stored");
    let (offer, other) = (offer(&there.cache, "k"), here.reopen());
    let shelf = Shelf::of(&offer);
    let evict = || {
        assert!(other.remove(&task("neighbour")).is_ok());
        evict_all(&other);
    };
    receive(&here.cache, offer.manifest(), &After(&shelf, evict)).expect("received");
    assert_eq!(shelf.asked(), 7, "all but one, once");
    restore(&here.cache, &here.path("place"), LinkMode::Hardlink);
    assert_eq!(snapshot_read_only(&here.path("place")), snapshot_read_only(&there.workspace()));
    assert_clean(&here.cache);
}

/// A hold is a courtesy; what the entry rests on is the second look in its section.
#[test]
fn what_is_swept_in_spite_of_all_is_asked_for_again() {
    let (there, here) = labs();
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs.push(CacheOutput::bytes("x", noise(1, 700_000)));
    here.cache.store(&task("neighbour"), &entry, &Cancel::new()).expect("stored");
    let (offer, other, store) = (offer(&there.cache, "k"), here.reopen(), here.store_path());
    let shelf = Shelf::of(&offer);
    let evict = || {
        for hold in files_below(&store.join("holds")) {
            fs::remove_file(hold).expect("removed");
        }
        evict_all(&other);
    };
    let received = receive(&here.cache, offer.manifest(), &After(&shelf, evict)).expect("received");
    assert_eq!(
        (shelf.asked(), received.fetched_blobs),
        (8, 8),
        "seven, and then the one that went"
    );
    assert_clean(&here.cache);
}

#[test]
fn on_a_full_disk_room_is_made_if_the_source_can_be_asked_again() {
    let Some(small) = Small::mount("size=6m,nr_inodes=900") else { return };
    let path = small.path().join("store");
    let cache = Cache::open(&path, unlimited()).expect("opens");
    let entry = |seed, size_bytes| {
        let mut entry = CacheEntry::new(0, 1);
        entry.outputs.push(CacheOutput::bytes("x", noise(seed, size_bytes)));
        entry
    };
    for number in 0..80 {
        let name = task(&number.to_string());
        cache.store(&name, &entry(number, 100_000), &Cancel::new()).expect("stored");
    }
    let there = Lab::with(unlimited());
    there.cache.store(&task("k"), &entry(99, 3 << 20), &Cancel::new()).expect("stored");
    let offer = offer(&there.cache, "k");
    let before = cache.stats().expect("counted");
    let once = Shelf { is_repeatable: false, ..Shelf::of(&offer) };
    let refused = receive(&cache, offer.manifest(), &once);
    assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
    let after = cache.stats().expect("counted");
    assert_eq!((after.entries, after.blobs), (before.entries, before.blobs), "nothing went");
    let again = Shelf::of(&offer);
    receive(&cache, offer.manifest(), &again).expect("there is room now");
    assert_eq!(again.asked(), 2);
    assert!(cache.lookup(&task("k")).expect("a lookup").is_some());
    assert!(cache.stats().expect("counted").entries < before.entries);
    assert_clean(&cache);
}

#[test]
fn a_cancelled_reception_leaves_nothing() {
    struct Stuck(Cancel);
    impl BlobSource for Stuck {
        fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> larder::Result<()> {
            let mut reads = 0;
            let mut reader = Slow(&mut reads, &self.0);
            let taken = missing.iter().try_for_each(|blob| intake.take(blob, &mut reader));
            assert!(intake.is_cancelled());
            taken
        }
    }
    struct Slow<'a>(&'a mut usize, &'a Cancel);
    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            *self.0 += 1;
            if *self.0 == 10 {
                self.1.cancel();
            }
            buffer[0] = 0;
            Ok(1)
        }
    }
    let (there, here) = labs();
    let offer = offer(&there.cache, "k");
    let shelf = Shelf::of(&offer);
    let cancel = Cancel::new();
    let source = After(&shelf, || cancel.cancel());
    let error = here.cache.receive(&task("k"), offer.manifest(), &source, &cancel);
    assert!(matches!(error, Err(Error::Cancelled)), "{error:?}");
    assert_nothing_stored(&here);

    // In the middle of a blob that never ends.
    let cancel = Cancel::new();
    let source = Stuck(cancel.clone());
    let error = here.cache.receive(&task("k"), offer.manifest(), &source, &cancel);
    assert!(matches!(error, Err(Error::Cancelled)), "{error:?}");
    assert_nothing_stored(&here);
}

#[test]
fn many_receive_one_entry_at_once_from_many_threads() {
    struct Crowd<'a>(&'a Shelf);
    impl BlobSource for Crowd<'_> {
        fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> larder::Result<()> {
            std::thread::scope(|scope| {
                // Each blob is given twice.
                let threads: Vec<_> = (0..2)
                    .flat_map(|_| missing.chunks(3))
                    .map(|part| scope.spawn(move || self.0.fetch(part, intake)))
                    .collect();
                threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
            })
        }
    }
    let (there, here) = labs();
    let offer = offer(&there.cache, "k");
    let shelf = Shelf::of(&offer);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let cache = here.reopen();
                let received = receive(&cache, offer.manifest(), &Crowd(&shelf));
                let received = received.expect("received");
                assert!(received.fetched_blobs <= 8, "{received:?}");
            });
        }
    });
    assert_eq!(here.blobs().len(), 10, "each content and mode once");
    restore(&here.cache, &here.path("place"), LinkMode::Hardlink);
    assert_eq!(snapshot_read_only(&here.path("place")), snapshot_read_only(&there.workspace()));
    assert_clean(&here.cache);
}

/// Receives, and dies when half has arrived.
#[test]
fn victim() {
    struct Dying(Offer);
    impl BlobSource for Dying {
        fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> larder::Result<()> {
            for blob in &missing[..missing.len() / 2] {
                intake.take(blob, &mut self.0.open(&blob.digest)?)?;
            }
            std::process::abort();
        }
    }
    let Some(there) = std::env::var_os("LARDER_TEST_THERE") else { return };
    let here = std::env::var_os("LARDER_TEST_HERE").expect("a store");
    let open = |path| Cache::open(Path::new(path), unlimited()).expect("opens");
    let offer = offer(&open(&there), "k");
    let manifest = offer.manifest().clone();
    let _ = receive(&open(&here), &manifest, &Dying(offer));
}

#[test]
fn a_reception_that_is_killed_leaves_what_a_sweep_takes() {
    let (there, here) = labs();
    let mut victim = Command::new(std::env::current_exe().expect("this binary"));
    let victim = victim
        .args(["--exact", "victim", "--nocapture"])
        .env("LARDER_TEST_THERE", there.store_path())
        .env("LARDER_TEST_HERE", here.store_path());
    assert!(!victim.status().expect("it starts").success(), "it was killed");
    assert!(here.cache.lookup(&task("k")).expect("a lookup").is_none());
    assert!(!here.blobs().is_empty(), "some had arrived");
    assert_eq!(files_below(&here.store_path().join("holds")).len(), 1);
    here.reopen().scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("repaired");
    assert!(here.blobs().is_empty(), "nobody needs them, and nobody holds them");
    assert_nothing_stored(&here);
    assert_clean(&here.cache);
}

// What goes elsewhere.

#[test]
fn what_is_offered_can_be_read_whatever_becomes_of_the_entry() {
    let (there, _) = labs();
    let offer = offer(&there.cache, "k");
    let other = there.reopen();
    other.remove(&task("k")).expect("removed");
    evict_all(&other);
    other.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("repaired");
    let blobs = offer.manifest().distinct_blobs();
    offer.verify(&blobs, &Cancel::new()).expect("all is well");
    assert_eq!(Shelf::of(&offer).blobs.len(), blobs.len());
    let stranger = Digest::of(b"not of this entry");
    assert!(matches!(offer.open(&stranger), Err(Error::NoBlob { .. })));
    drop(offer);
    other.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("repaired");
    assert!(there.blobs().is_empty(), "nobody holds them any more");
    assert!(other.offer(&task("k")).expect("readable").is_none());
}

#[test]
fn damage_is_never_handed_out_whole_and_goes_with_its_entry() {
    for size_bytes in [50_000, 700_000] {
        for is_shorter in [false, true] {
            let (there, _) = labs();
            let offer = offer(&there.cache, "k");
            let blob = there
                .blobs()
                .into_iter()
                .find(|path| fs::metadata(path).expect("there").len() == size_bytes);
            let path = blob.expect("a blob");
            let digest = Digest::of(&fs::read(&path).expect("readable"));
            let mut first = offer.open(&digest).expect("opens");
            fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("set");
            if is_shorter {
                fs::File::options()
                    .write(true)
                    .open(&path)
                    .expect("opens")
                    .set_len(9)
                    .expect("cut");
            } else {
                let mut bytes = fs::read(&path).expect("readable");
                bytes[0] ^= 1;
                fs::write(&path, bytes).expect("written");
            }
            // Somebody who reads as much as there is, and does not ask for the end.
            let mut bytes = vec![0; size_bytes as usize];
            assert!(first.read_exact(&mut bytes).is_err());
            assert!(first.read(&mut bytes).is_err(), "nor later");
            assert_eq!(there.quarantine().len(), 1, "it is set aside");
            assert!(there.cache.lookup(&task("k")).expect("a lookup").is_none(), "with its entry");
            assert!(offer.open(&digest).is_err());
        }
    }
}

#[test]
fn damage_is_found_before_anything_is_sent_where_that_is_asked_for() {
    let (there, _) = labs();
    let offer = offer(&there.cache, "k");
    let blobs = offer.manifest().distinct_blobs();
    let path =
        there.blobs().into_iter().find(|path| fs::metadata(path).expect("there").len() > 600_000);
    let path = path.expect("a blob");
    let modified = fs::metadata(&path).expect("there").modified().expect("a time");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("set");
    fs::write(&path, noise(99, 700_000)).expect("written");
    // Its stamp is right.
    fs::File::options()
        .write(true)
        .open(&path)
        .expect("opens")
        .set_modified(modified)
        .expect("set");
    fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("set");
    let error = offer.verify(&blobs, &Cancel::new());
    assert!(matches!(error, Err(Error::Damaged { .. })), "{error:?}");
    assert_eq!(there.quarantine().len(), 1);
    assert!(there.cache.lookup(&task("k")).expect("a lookup").is_none());
}

#[test]
fn a_reader_that_skips_checks_what_it_skips() {
    let (there, _) = labs();
    let offer = offer(&there.cache, "k");
    let bytes = noise(1, 700_000);
    let mut reader = offer.open(&Digest::of(&bytes)).expect("opens");
    assert_eq!(reader.size_bytes(), 700_000);
    reader.skip(300_001).expect("skipped");
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).expect("read");
    assert_eq!(rest, bytes[300_001..]);
    let mut reader = offer.open(&Digest::of(b"")).expect("opens");
    assert_eq!(reader.read_to_end(&mut rest).expect("read"), 0);
}

#[test]
fn sha256_is_noted_in_an_entry_that_is_still_the_same_and_changes_nothing_else() {
    for durability in [Durability::Relaxed, Durability::Durable] {
        let (there, here) = labs();
        let options = unlimited().with_durability(durability);
        let cache = Cache::open(&there.store_path(), options).expect("opens");
        let manifest = offer(&cache, "k").manifest().clone();
        let rows: Vec<[u8; 32]> = (0..9).map(|row| [row; 32]).collect();
        let hex = task("k").to_string();
        let path = there.store_path().join("manifests").join(&hex[..2]).join(&hex[2..]);
        let before = fs::metadata(&path).expect("there");
        let origin = cache.manifest(&task("k")).expect("readable").expect("there").origin;
        assert_eq!(manifest.distinct_blobs().len(), 9);
        assert!(cache.note_sha256(&task("k"), &manifest, &rows[1..]).is_err(), "not one for each");
        assert!(cache.note_sha256(&task("k"), &manifest, &rows).expect("noted"));
        let noted = inode(&path);
        assert!(cache.note_sha256(&task("k"), &manifest, &rows).expect("noted"));
        assert_eq!(inode(&path), noted, "it is known already");

        let after = fs::metadata(&path).expect("there");
        assert_eq!(after.modified().expect("a time"), before.modified().expect("a time"));
        assert_eq!(after.accessed().expect("a time"), before.accessed().expect("a time"));
        let stored = cache.manifest(&task("k")).expect("readable").expect("there");
        assert_eq!((&stored.sha256, stored.origin), (&rows, origin));
        let again = offer(&cache, "k");
        assert_eq!(again.manifest().sha256, rows);
        let usage =
            (cache.usage().expect("counted").entries, cache.stats().expect("counted").entries);
        assert_eq!(usage, (1, 1));
        assert!(cache.lookup(&task("k")).expect("a lookup").is_some());
        restore(&cache, &there.path("place"), LinkMode::Hardlink);
        assert_clean(&cache);

        receive(&here.cache, again.manifest(), &Shelf::of(&again)).expect("received");
        let received = here.cache.manifest(&task("k")).expect("readable").expect("there");
        assert!(received.sha256.is_empty(), "nobody vouches for it");
        let key = SigningKey::generate(KeyKind::Blake3).expect("the system has randomness");
        let signer = Cache::open(&there.store_path(), unlimited().with_signing(key));
        assert!(offer(&signer.expect("opens"), "k").manifest().sha256.is_empty());

        cache.store(&task("k"), &CacheEntry::new(0, 1), &Cancel::new()).expect("stored");
        assert!(!cache.note_sha256(&task("k"), &manifest, &rows).expect("looked"), "another entry");
        cache.remove(&task("k")).expect("removed");
        assert!(!cache.note_sha256(&task("k"), &manifest, &rows).expect("looked"), "no entry");
    }
}

#[test]
fn entries_are_listed_by_their_last_use() {
    let (there, _) = labs();
    there.cache.store(&task("other"), &CacheEntry::new(0, 1), &Cancel::new()).expect("stored");
    let mut all = [task("k"), task("other")];
    all.sort_unstable();
    let since = |seconds| {
        let since = larder::Timestamp { seconds, nanoseconds: 0 };
        there.cache.used_since(since).expect("listed")
    };
    assert_eq!(since(i64::MIN), all);
    assert_eq!(since(i64::MAX), []);
    let hex = task("other").to_string();
    let path = there.store_path().join("manifests").join(&hex[..2]).join(&hex[2..]);
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    let times = fs::FileTimes::new().set_accessed(long_ago);
    fs::File::options().write(true).open(path).expect("opens").set_times(times).expect("set");
    // What this process has noted is written first.
    there.reopen().maintain().expect("maintained");
    let cache = there.reopen();
    let recent = cache.used_since(larder::Timestamp { seconds: 2000, nanoseconds: 0 });
    assert_eq!(recent.expect("listed"), [task("k")]);
}
