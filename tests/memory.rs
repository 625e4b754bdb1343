//! Memory: large outputs go through the trait without sitting in the heap.
//!
//! One test in a program of its own, since the counting allocator counts everybody.

#![expect(unsafe_code, reason = "an allocator that counts is unsafe by nature")]

mod common;

use common::{Lab, noise};
use larder::{
    CacheBackend, CacheEntry, CachePolicy, IRTask, LinkMode, LocalBackend, OutputContent,
    OutputDeclaration, RestoreOptions,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Counts what is allocated, and the most that ever was. Never set back, so it cannot go below what
/// is still to be freed.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards to the system's allocator and only counts beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = NOW.fetch_add(layout.size(), Ordering::Relaxed);
        PEAK.fetch_max(before.wrapping_add(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An entry of 128 MiB goes into a bundle and out of it.
#[cfg(feature = "bundle")]
fn carry(lab: &Lab) {
    use larder::{Cache, CacheOptions, Cancel, bundle};
    const LENGTH_BYTES: u64 = 128 << 20;
    let (path, block, cancel) = (lab.workspace().join("carried"), noise(2, 1 << 20), Cancel::new());
    let mut file = File::create(&path).expect("made");
    for number in 0..LENGTH_BYTES >> 20 {
        file.write_all(&number.to_le_bytes()).expect("written");
        file.write_all(&block[8..]).expect("written");
    }
    common::store(&lab.cache, "carried", &lab.workspace(), &["carried"]);
    let (task, place) = (common::task("carried"), lab.path("bundle"));
    let output = File::create(&place).expect("made");
    let exported = bundle::export(&lab.cache, &[task], &bundle::Known::default(), output, &cancel);
    assert_eq!(exported.expect("exported").blob_bytes, LENGTH_BYTES);
    let other = Cache::open(&lab.path("other"), CacheOptions::default()).expect("opens");
    let input = File::open(&place).expect("opens");
    let imported = bundle::import(&other, input, &cancel).expect("imported");
    assert!(imported.is_complete() && imported.blob_bytes == LENGTH_BYTES, "{imported:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_goes_in_and_comes_out_within_64_mib_of_heap() {
    const LENGTH_BYTES: u64 = 1 << 30;
    let lab = Lab::new();
    let path = lab.workspace().join("large");
    let digest = {
        let block = noise(1, 1 << 20);
        let (mut file, mut hasher) = (File::create(&path).expect("made"), blake3::Hasher::new());
        for number in 0..LENGTH_BYTES >> 20 {
            let mut block = block.clone();
            block[..8].copy_from_slice(&number.to_le_bytes());
            file.write_all(&block).expect("written");
            hasher.update(&block);
        }
        larder::Digest::from(hasher.finalize())
    };
    common::set_age(&path, Duration::from_secs(3600));
    let task = IRTask::new("large").with_outputs([OutputDeclaration::new("large")]);
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let shared: Arc<dyn CacheBackend> = Arc::new(LocalBackend::new(lab.cache.clone()));
    let entry = CacheEntry::capture(&lab.workspace(), &task.outputs).expect("captured");
    shared.store(&task, "k", &entry, CachePolicy::Normal).await.expect("stored");
    fs::remove_file(&path).expect("removed");
    for link_mode in [LinkMode::Auto, LinkMode::Copy] {
        let backend = LocalBackend::new(lab.cache.clone())
            .with_restore_options(RestoreOptions::default().with_link_mode(link_mode));
        let place = lab.path(&link_mode.to_string());
        let outputs = backend.restore_outputs(&task, "k", &place).await.expect("restored");
        assert_eq!(fs::metadata(place.join("large")).expect("there").len(), LENGTH_BYTES);
        let OutputContent::Stored(blob) = &outputs[0].content else { panic!("a stored blob") };
        assert_eq!(blob.digest(), digest);
        if link_mode == LinkMode::Copy {
            let (mut reader, mut buffer, mut length) =
                (blob.open().expect("opens"), vec![0; 1 << 16], 0);
            loop {
                match reader.read(&mut buffer).expect("verified bytes") {
                    0 => break,
                    read => length += read as u64,
                }
            }
            assert_eq!(length, LENGTH_BYTES);
        }
        fs::remove_dir_all(&place).expect("removed");
    }
    #[cfg(feature = "bundle")]
    carry(&lab);
    let peak_mib = (PEAK.load(Ordering::Relaxed) - before) >> 20;
    println!("peak of the heap: {peak_mib} MiB");
    assert!(peak_mib < 64, "{peak_mib} MiB");
}
