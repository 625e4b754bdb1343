//! The asynchronous facade: runtimes, dropped futures, memory.

#![expect(unsafe_code, reason = "an allocator that counts is unsafe by nature")]

mod common;

use common::{Lab, noise, snapshot};
use larder::{
    CacheBackend, CacheEntry, CacheOutput, CachePolicy, Error, ExactLogs, IRTask, LinkMode,
    LocalBackend, LogPiece, OutputContent, OutputDeclaration, Repair, RestoreOptions,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::future::Future;
use std::io::{Read, Write};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Counts what is allocated, and the most that ever was.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards to the system's allocator and only counts beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(
            NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size(),
            Ordering::Relaxed,
        );
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

fn backend(lab: &Lab) -> LocalBackend {
    LocalBackend::new(lab.cache.clone())
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
    NOW.store(0, Ordering::Relaxed);
    PEAK.store(0, Ordering::Relaxed);
    let shared: Arc<dyn CacheBackend> = Arc::new(backend(&lab));
    let entry = CacheEntry::capture(&lab.workspace(), &task.outputs).expect("captured");
    shared.store(&task, "k", &entry, CachePolicy::Normal).await.expect("stored");
    fs::remove_file(&path).expect("removed");
    for link_mode in [LinkMode::Auto, LinkMode::Copy] {
        let backend =
            backend(&lab).with_restore_options(RestoreOptions::default().with_link_mode(link_mode));
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
    let peak_mib = PEAK.load(Ordering::Relaxed) >> 20;
    println!("peak of the heap: {peak_mib} MiB");
    assert!(peak_mib < 64, "{peak_mib} MiB");
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let lab = Lab::new();
    let backend = backend(&lab);
    let task = IRTask::new("t");
    let entry = CacheEntry::new(0, 1);
    let mut context = Context::from_waker(Waker::noop());
    let mut stored = pin!(backend.store(&task, "k", &entry, CachePolicy::Normal));
    assert!(matches!(stored.as_mut().poll(&mut context), Poll::Ready(Err(Error::NoRuntime))));
    let place = lab.workspace();
    let mut restored = pin!(backend.restore_outputs(&task, "k", &place));
    assert!(matches!(restored.as_mut().poll(&mut context), Poll::Ready(Err(Error::NoRuntime))));
    let mut checked = pin!(backend.check(&task, "k", CachePolicy::Normal));
    assert!(
        matches!(checked.as_mut().poll(&mut context), Poll::Ready(Ok(_))),
        "a lookup needs none"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_dropped_future_stops_its_work_and_the_next_operation_waits() {
    let lab = Lab::new();
    for number in 0..3000 {
        common::write(
            &lab.workspace().join(format!("out/{}/{number}", number % 50)),
            &noise(number, 4000),
        );
    }
    let backend = backend(&lab);
    let task = IRTask::new("t").with_outputs([OutputDeclaration::new("out")]);
    let entry = CacheEntry::capture(&lab.workspace(), &task.outputs).expect("captured");
    for millis in [0, 1, 3, 8, 20] {
        let stored = tokio::time::timeout(
            Duration::from_millis(millis),
            backend.store(&task, "k", &entry, CachePolicy::Normal),
        );
        let is_stored = stored.await.is_ok();
        let found = backend.check(&task, "k", CachePolicy::Normal).await.expect("a check");
        if !is_stored && found.hit {
            // It was past its last look at the flag; then the entry is whole.
            break;
        }
        assert_eq!(found.hit, is_stored, "all or nothing after {millis} ms");
    }
    backend.store(&task, "k", &entry, CachePolicy::Normal).await.expect("stored");
    let place = lab.path("place");
    for millis in [0, 1, 3, 8, 20, 40] {
        let _ = fs::remove_dir_all(place.join("out"));
        let restored = tokio::time::timeout(
            Duration::from_millis(millis),
            backend.restore_outputs(&task, "k", &place),
        );
        let _ = restored.await;
        // At once, while the dropped one may still be at work.
        backend.restore_outputs(&task, "k", &place).await.expect("restored");
        assert_eq!(snapshot(&place), snapshot(&lab.workspace()), "after {millis} ms");
    }
    let report =
        lab.cache.scrub(Repair::No, &larder::Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_logs_keep_bytes_and_order() {
    let lab = Lab::new();
    let backend = backend(&lab);
    let task = IRTask::new("t");
    let mut entry = CacheEntry::new(3, 1).with_stdout(b"ab\xff").with_stderr(noise(1, 10_000));
    entry.log_order = vec![LogPiece::Stdout(1), LogPiece::Stderr(10_000), LogPiece::Stdout(2)];
    backend.store(&task, "k", &entry, CachePolicy::Normal).await.expect("stored");
    let logs = backend.get_exact_logs(&task, "k").await.expect("read").expect("there");
    assert_eq!((&*logs.stdout, &*logs.stderr), (&b"ab\xff"[..], &*noise(1, 10_000)));
    assert_eq!(logs.order, entry.log_order);
}

#[tokio::test]
async fn many_operations_at_once_on_one_backend() {
    let lab = Lab::new();
    let shared: Arc<dyn CacheBackend> = Arc::new(backend(&lab));
    let mut running = Vec::new();
    for number in 0..64_u64 {
        let (shared, place) = (Arc::clone(&shared), lab.path(&format!("place {}", number % 8)));
        running.push(tokio::spawn(async move {
            let task = IRTask::new("t");
            let mut entry = CacheEntry::new(0, number);
            entry.outputs.push(CacheOutput::bytes("out", noise(number % 5, 50_000)));
            let key = format!("k{}", number % 16);
            shared.store(&task, &key, &entry, CachePolicy::Normal).await.expect("stored");
            shared.restore_outputs(&task, &key, &place).await.expect("restored");
            shared.get_logs(&task, &key).await.expect("logs");
        }));
    }
    for running in running {
        running.await.expect("no panic");
    }
}
