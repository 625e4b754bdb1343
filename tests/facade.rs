//! The asynchronous facade: runtimes, dropped futures, logs.

mod common;

use common::{Lab, noise, snapshot};
use larder::{
    CacheBackend, CacheEntry, CacheOutput, CachePolicy, Error, ExactLogs, IRTask, LocalBackend,
    LogPiece, OutputDeclaration, Repair,
};
use std::fs::{self};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

fn backend(lab: &Lab) -> LocalBackend {
    LocalBackend::new(lab.cache.clone())
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
