//! Flights: identical runs at once execute the command once, and so do schedulers on the trait.

mod common;

use common::{Lab, task};
use larder::{
    CacheBackend, CacheEntry, CacheOptions, Cancel, Claim, IRTask, LocalBackend, SingleFlight, Turn,
};
use std::fs;
use std::future::pending;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Counts its runs in a file that is no output, and takes its time.
const SLOW: &str = "echo run >> \"$RUNS\"; sleep 0.4; echo done > out; echo said";

fn larder(lab: &Lab, workspace: &Path, options: &[&str], script: &str) -> Command {
    fs::create_dir_all(workspace).expect("a workspace");
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command
        .current_dir(workspace)
        .arg("--store")
        .arg(lab.store_path())
        .args(["run", "-i", "input", "-o", "out"])
        .args(options)
        .args(["--", "sh", "-c", script])
        .env("RUNS", lab.path("runs"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    common::write(&workspace.join("input"), b"the same everywhere");
    command
}

fn runs(lab: &Lab) -> usize {
    fs::read_to_string(lab.path("runs")).unwrap_or_default().lines().count()
}

fn finish(child: Child) -> Output {
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    output
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn twenty_identical_runs_execute_the_command_once() {
    let lab = Lab::new();
    let children: Vec<Child> = (0..20)
        .map(|number| {
            let workspace = lab.path(&format!("workspace {number}"));
            larder(&lab, &workspace, &[], SLOW).spawn().expect("larder starts")
        })
        .collect();
    for child in children {
        assert_eq!(finish(child).stdout, b"said\n");
    }
    assert_eq!(runs(&lab), 1);
    for number in 0..20 {
        let out = lab.path(&format!("workspace {number}/out"));
        assert_eq!(fs::read(out).expect("everybody has the output"), b"done\n");
    }
    assert!(common::files_below(&lab.store_path().join("builds")).is_empty());
}

#[test]
fn when_the_builder_is_killed_another_takes_over() {
    let lab = Lab::new();
    let mut first = larder(&lab, &lab.path("first"), &[], SLOW).spawn().expect("larder starts");
    wait_until("the command runs", || runs(&lab) == 1);
    let others: Vec<Child> = (0..5)
        .map(|number| {
            let workspace = lab.path(&format!("workspace {number}"));
            larder(&lab, &workspace, &[], SLOW).spawn().expect("larder starts")
        })
        .collect();
    first.kill().expect("killed");
    first.wait().expect("reaped");
    for other in others {
        finish(other);
    }
    assert_eq!(runs(&lab), 2, "the first, and one of the others");
    assert!(!lab.path("first/out").exists(), "its command was killed with it");
}

#[test]
fn a_builder_that_fails_lets_the_next_one_try() {
    let lab = Lab::new();
    let script =
        "echo run >> \"$RUNS\"; sleep 0.1; test $(wc -l < \"$RUNS\") -ge 3 && echo ok > out";
    let children: Vec<Child> = (0..6)
        .map(|number| {
            let workspace = lab.path(&format!("workspace {number}"));
            larder(&lab, &workspace, &[], script).spawn().expect("larder starts")
        })
        .collect();
    let outcomes: Vec<bool> =
        children.into_iter().map(|mut child| child.wait().expect("it ends").success()).collect();
    assert_eq!(runs(&lab), 3, "two failed, the third did it for all others");
    assert_eq!(outcomes.iter().filter(|is_success| **is_success).count(), 4);
}

#[test]
fn a_command_that_runs_itself_does_not_wait_for_itself() {
    let lab = Lab::new();
    let program = env!("CARGO_BIN_EXE_larder");
    let workspace = lab.path("workspace");
    let script = workspace.join("script.sh");
    let inner = format!(
        "echo run >> \"$RUNS\"\nif [ -z \"$INNER\" ]; then\n  INNER=1 '{program}' --store '{}' run -i script.sh -o out -- sh script.sh\nelse\n  echo inner > out\nfi\n",
        lab.store_path().display()
    );
    common::write(&script, inner.as_bytes());
    let output = Command::new(program)
        .current_dir(&workspace)
        .arg("--store")
        .arg(lab.store_path())
        .args(["run", "-i", "script.sh", "-o", "out", "--", "sh", "script.sh"])
        .env("RUNS", lab.path("runs"))
        .output()
        .expect("larder runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(runs(&lab), 2);
}

#[test]
fn whoever_does_not_want_to_wait_runs_at_once() {
    let lab = Lab::new();
    let first = larder(&lab, &lab.path("first"), &[], SLOW).spawn().expect("larder starts");
    wait_until("the command runs", || runs(&lab) == 1);
    let second = larder(&lab, &lab.path("second"), &["--no-wait"], SLOW).spawn();
    let third = larder(&lab, &lab.path("third"), &["--wait", "1ms"], SLOW).spawn();
    wait_until("all three run", || runs(&lab) == 3);
    for child in [first, second.expect("larder starts"), third.expect("larder starts")] {
        finish(child);
    }
}

#[test]
fn threads_of_one_process_take_turns_too() {
    let lab = Lab::new();
    let name = task("k");
    let Claim::Mine(flight) = lab.cache.claim(&name).expect("claimed") else {
        panic!("nobody else builds");
    };
    let Claim::Building { process, .. } = lab.cache.claim(&name).expect("asked") else {
        panic!("it is taken");
    };
    assert_eq!(process, Some(std::process::id()));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            lab.cache.claim_within(&name, Duration::from_secs(20), &Cancel::new()).expect("claimed")
        });
        std::thread::sleep(Duration::from_millis(20));
        drop(flight);
        assert!(matches!(waiting.join().expect("no panic"), Claim::Mine(_)));
    });
    assert!(matches!(lab.cache.claim(&task("other")).expect("claimed"), Claim::Mine(_)));
}

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);

/// Waits for a task's result, or counts and stores one.
async fn build_or_wait(backend: LocalBackend, built: Arc<AtomicUsize>) {
    let task = IRTask::new("t");
    match backend.check_or_wait(&task, "k", task.cache_policy, LONG).await.expect("asked") {
        Turn::Mine(guard) => {
            built.fetch_add(1, Ordering::Relaxed);
            let entry = CacheEntry::new(0, 1);
            backend.store(&task, "k", &entry, task.cache_policy).await.expect("stored");
            drop(guard);
        }
        turn => assert!(matches!(turn, Turn::Hit(_)), "the limit is far: {turn:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_tasks_on_two_backends_of_one_store_build_once() {
    let lab = Lab::new();
    let backends = [LocalBackend::new(lab.cache.clone()), LocalBackend::new(lab.reopen())];
    let built = Arc::new(AtomicUsize::new(0));
    let running: Vec<_> = (0..20)
        .map(|number| tokio::spawn(build_or_wait(backends[number % 2].clone(), Arc::clone(&built))))
        .collect();
    for running in running {
        running.await.expect("no panic");
    }
    assert_eq!(built.load(Ordering::Relaxed), 1);
}

/// A wait that slept on a blocking thread would keep the one that builds from storing: here there
/// is one such thread for all of them. There is no timer either.
#[test]
fn those_who_wait_leave_the_runtime_to_the_builder() {
    let lab = Lab::new();
    let backend = LocalBackend::new(lab.cache.clone());
    let built = Arc::new(AtomicUsize::new(0));
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(1).build().expect("a runtime");
    runtime.block_on(async {
        let running: Vec<_> = (0..20)
            .map(|_| tokio::spawn(build_or_wait(backend.clone(), Arc::clone(&built))))
            .collect();
        for running in running {
            running.await.expect("no panic");
        }
    });
    assert_eq!(built.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_whose_future_is_dropped_lets_the_next_one_build() {
    let lab = Lab::new();
    let (backend, task) = (LocalBackend::new(lab.cache.clone()), IRTask::new("t"));
    let has_begun = Arc::new(AtomicUsize::new(0));
    let builder = tokio::spawn({
        let (backend, task, begun) = (backend.clone(), task.clone(), Arc::clone(&has_begun));
        async move {
            let turn = backend.check_or_claim(&task, "k", task.cache_policy).await;
            let Ok(Turn::Mine(_guard)) = turn else { panic!("nobody else builds") };
            begun.store(1, Ordering::Relaxed);
            pending::<()>().await;
        }
    });
    wait_until("the builder has its turn", || has_begun.load(Ordering::Relaxed) == 1);
    let other = LocalBackend::new(lab.reopen());
    let limit = Duration::from_millis(5);
    let turn = other.check_or_wait(&task, "k", task.cache_policy, limit).await.expect("asked");
    let own = Some(std::process::id());
    assert!(matches!(turn, Turn::Building { process, .. } if process == own), "the limit passes");
    builder.abort();
    let turn = other.check_or_wait(&task, "k", task.cache_policy, LONG).await.expect("asked");
    assert!(matches!(&turn, Turn::Mine(guard) if guard.is_exclusive()), "{turn:?}");
}

#[tokio::test]
async fn where_nobody_can_note_a_claim_everybody_builds() {
    let lab = Lab::new();
    let (backend, task) = (LocalBackend::new(lab.reopen()), IRTask::new("t"));
    fs::remove_dir(lab.store_path().join("builds")).expect("it is empty");
    common::write(&lab.store_path().join("builds"), b"in the way");
    let turn = backend.check_or_claim(&task, "k", task.cache_policy).await.expect("asked");
    assert!(matches!(&turn, Turn::Mine(guard) if !guard.is_exclusive()), "{turn:?}");
}

#[tokio::test]
async fn the_command_and_a_scheduler_take_turns() {
    let lab = Lab::new();
    let options = ["--json"];
    let first = larder(&lab, &lab.path("first"), &options, SLOW).output().expect("larder runs");
    let report = String::from_utf8(first.stderr).expect("text");
    let report: serde_json::Value = serde_json::from_str(report.trim()).expect("JSON");
    let key = report["key"].as_str().expect("a key");
    assert!(lab.cache.remove(&task(key)).expect("removed"));

    // The scheduler builds.
    let (backend, task) =
        (LocalBackend::open(&lab.store_path(), CacheOptions::default()), IRTask::new("t"));
    let backend = backend.expect("the store opens");
    let turn = backend.check_or_claim(&task, key, task.cache_policy).await.expect("asked");
    let Turn::Mine(guard) = turn else { panic!("nobody else builds: {turn:?}") };
    let mut second = larder(&lab, &lab.path("second"), &[], SLOW).spawn().expect("larder starts");
    std::thread::sleep(Duration::from_millis(100));
    assert!(second.try_wait().expect("asked").is_none(), "it waits");
    let entry = CacheEntry::new(0, 1).with_stdout("from the scheduler\n");
    backend.store(&task, key, &entry, task.cache_policy).await.expect("stored");
    drop(guard);
    assert_eq!(finish(second).stdout, b"from the scheduler\n");
    assert!(lab.cache.remove(&common::task(key)).expect("removed"));

    // The command builds.
    let third = larder(&lab, &lab.path("third"), &[], SLOW).spawn().expect("larder starts");
    wait_until("the command runs", || runs(&lab) == 2);
    let turn = backend.check_or_claim(&task, key, task.cache_policy).await.expect("asked");
    assert!(matches!(turn, Turn::Building { process, .. } if process == Some(third.id())));
    let turn = backend.check_or_wait(&task, key, task.cache_policy, LONG).await.expect("asked");
    assert!(matches!(turn, Turn::Hit(_)), "{turn:?}");
    finish(third);
    assert_eq!(runs(&lab), 2);
}
