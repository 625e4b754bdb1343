//! Flights: identical runs at once execute the command once, and so do schedulers on the trait.

mod common;

use common::{Lab, task};
use larder::{
    CacheBackend, CacheEntry, CacheOptions, Cancel, Claim, IRTask, LocalBackend, SingleFlight, Turn,
};
use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group, set_child_subreaper};
use std::fs;
use std::future::pending;
use std::os::unix::process::{CommandExt, ExitStatusExt};
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
        .env("PIDS", lab.path("pids"))
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

/// Starts a family that never ends, of every kind: children, orphans, a group and a session of their
/// own. Notes all of them in `$PIDS`, and then the supervisor.
const FAMILY: &str = r#"
    note() { echo $1 >> "$PIDS"; }
    note $$
    for number in 1 2 3 4 5 6 7 8 9 10; do
        sleep 1000 & note $!
    done
    (sleep 1000 & note $!)
    timeout 1000 sh -c 'echo $$ >> "$PIDS"; sleep 1000' & note $!
    setsid sh -c 'echo $$ >> "$PIDS"; sleep 1000' &
    while [ $(wc -l < "$PIDS") -lt 15 ]; do sleep 0.01; done
    echo $PPID > "$PIDS.supervisor"
    wait
"#;

fn pids(lab: &Lab) -> Vec<i32> {
    let text = fs::read_to_string(lab.path("pids")).unwrap_or_default();
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

/// The family's supervisor, once the family is complete.
fn supervisor(lab: &Lab) -> Option<Pid> {
    let text = fs::read_to_string(lab.path("pids.supervisor")).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

/// Starts the family of a `larder` in a process group of its own.
fn start_family(lab: &Lab) -> Child {
    let mut command = larder(lab, &lab.path("first"), &[], FAMILY);
    let child = command.process_group(0).spawn().expect("larder starts");
    wait_until("the family is complete", || supervisor(lab).is_some());
    assert!(pids(lab).len() == 15 && pids(lab).into_iter().all(is_there));
    child
}

/// The state of a process (proc(5)), `None` if there is no such process.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

fn is_there(pid: i32) -> bool {
    state(pid).is_some()
}

fn send(child: &Child, signal: Signal) {
    kill_process_group(Pid::from_child(child), signal).expect("the group is there");
}

#[test]
fn a_larder_that_is_killed_takes_all_that_its_command_started_with_it() {
    let lab = Lab::new();
    let mut first = start_family(&lab);
    first.kill().expect("killed");
    first.wait().expect("reaped");
    wait_until("nothing is left", || !pids(&lab).into_iter().any(is_there));
}

#[test]
fn so_does_one_whose_whole_group_is_killed() {
    let lab = Lab::new();
    let mut first = start_family(&lab);
    send(&first, Signal::KILL);
    first.wait().expect("reaped");
    wait_until("nothing is left", || !pids(&lab).into_iter().any(is_there));
}

#[test]
fn if_the_supervisor_is_killed_nothing_is_left_when_larder_ends() {
    let lab = Lab::new();
    let mut first = start_family(&lab);
    kill_process(supervisor(&lab).expect("noted"), Signal::KILL).expect("it is there");
    let status = first.wait().expect("reaped");
    assert_eq!(status.signal(), Some(9), "as if the command had been killed");
    assert!(!pids(&lab).into_iter().any(is_there));
}

#[test]
fn nobody_takes_over_before_the_last_of_the_command_is_gone() {
    // The first one starts a family; the second one looks who of them is there.
    let script = format!(
        "if mkdir ../began 2> /dev/null; then {FAMILY} else\n{}\nfi",
        r#"for pid in $(cat "$PIDS"); do [ -e /proc/$pid ] && echo $pid; done > out; true"#
    );
    let lab = Lab::new();
    let mut first = larder(&lab, &lab.path("first"), &[], &script).spawn().expect("larder starts");
    wait_until("the family is complete", || supervisor(&lab).is_some());
    let mut second =
        larder(&lab, &lab.path("second"), &[], &script).spawn().expect("larder starts");
    // Takes its time to end them. The system would let one go on that loses its last relative.
    set_child_subreaper(Some(getpid())).expect("set");
    let supervisor = supervisor(&lab).expect("noted");
    kill_process(supervisor, Signal::STOP).expect("it is there");
    first.kill().expect("killed");
    first.wait().expect("reaped");
    std::thread::sleep(Duration::from_millis(200));
    assert!(second.try_wait().expect("asked").is_none(), "it waits");
    assert!(pids(&lab).into_iter().all(is_there), "for those who are left");
    kill_process(supervisor, Signal::CONT).expect("it is there");
    finish(second);
    assert_eq!(fs::read_to_string(lab.path("second/out")).expect("it ran"), "");
}

#[test]
fn a_larder_within_a_killed_larders_command_goes_with_it() {
    let lab = Lab::new();
    let outer = format!(
        "exec '{}' --store '{}' run -i input -- sh -c '{}'",
        env!("CARGO_BIN_EXE_larder"),
        lab.store_path().display(),
        FAMILY.replace('\'', "'\\''"),
    );
    let mut first = larder(&lab, &lab.path("first"), &[], &outer).spawn().expect("larder starts");
    wait_until("the family is complete", || supervisor(&lab).is_some());
    let builds = common::files_below(&lab.store_path().join("builds"));
    assert_eq!(builds.len(), 2, "the outer one's turn and the inner one's");
    // Takes its time to end them. The outer one leaves that to it.
    let supervisor = supervisor(&lab).expect("noted");
    kill_process(supervisor, Signal::STOP).expect("it is there");
    first.kill().expect("killed");
    first.wait().expect("reaped");
    std::thread::sleep(Duration::from_millis(200));
    assert!(pids(&lab).into_iter().all(is_there), "the inner turn is not free yet");
    kill_process(supervisor, Signal::CONT).expect("it is there");
    wait_until("both turns are free", || {
        builds.iter().all(|path| {
            let file = fs::File::open(path).expect("nobody removes it");
            file.try_lock_shared().is_ok()
        })
    });
    assert!(!pids(&lab).into_iter().any(is_there), "a turn is free when the command is gone");
}

#[test]
fn an_interrupt_from_the_terminal_ends_the_command_and_larder() {
    let lab = Lab::new();
    let script = r#"echo $$ >> "$PIDS"; exec sleep 1000"#;
    let mut command = larder(&lab, &lab.path("first"), &[], script);
    let mut first = command.process_group(0).spawn().expect("larder starts");
    wait_until("the command runs", || pids(&lab).len() == 1);
    send(&first, Signal::INT);
    assert_eq!(first.wait().expect("reaped").signal(), Some(2));
    assert!(!is_there(pids(&lab)[0]));
}

#[test]
fn a_stop_from_the_terminal_stops_the_command_and_larder_until_they_go_on() {
    let lab = Lab::new();
    let script = r#"mkfifo ../go; echo $$ >> "$PIDS"; read word < ../go; echo > out"#;
    let mut command = larder(&lab, &lab.path("first"), &[], script);
    let first = command.process_group(0).spawn().expect("larder starts");
    wait_until("the command runs", || pids(&lab).len() == 1);
    let both = [first.id() as i32, pids(&lab)[0]];
    send(&first, Signal::TSTP);
    wait_until("both are stopped", || both.iter().all(|pid| state(*pid) == Some('T')));
    send(&first, Signal::CONT);
    fs::write(lab.path("go"), "go\n").expect("somebody reads it");
    finish(first);
}

/// A parent that ignores SIGCHLD hands that down, and then nobody can wait for a child's status.
#[test]
fn a_status_is_known_where_the_ends_of_children_are_ignored() {
    let lab = Lab::new();
    let mut command = larder(&lab, &lab.path("first"), &[], "exit 7");
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut ignoring = Command::new("sh");
    ignoring.args(["-c", r#"trap '' CHLD; exec "$0" "$@""#]).arg(command.get_program());
    ignoring.args(arguments).current_dir(lab.path("first")).stderr(Stdio::null());
    assert_eq!(ignoring.status().expect("sh runs").code(), Some(7));
    assert_eq!(command.status().expect("larder runs").code(), Some(7));
}

#[test]
fn what_a_command_leaves_behind_at_its_own_end_lives_on() {
    let lab = Lab::new();
    let script = r#"sleep 1000 > /dev/null 2>&1 & echo $! >> "$PIDS"; echo > out"#;
    let ran = larder(&lab, &lab.path("first"), &[], script).output().expect("larder runs");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("stored"), "{ran:?}");
    let left = pids(&lab)[0];
    assert!(is_there(left));
    kill_process(Pid::from_raw(left).expect("a process"), Signal::KILL).expect("it is there");
}

/// Children survive an exec, so whoever starts a server and then becomes `larder` hands it over.
#[test]
fn a_command_that_cannot_be_started_is_no_result_and_costs_nobody_elses_children() {
    let lab = Lab::new();
    let workspace = lab.path("workspace");
    common::write(&workspace.join("tool"), b"#!/there/is/no/such/interpreter\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(workspace.join("tool"), mode).expect("it is ours");
    let script = "sleep 1000 > /dev/null 2>&1 & echo $! > \"$PIDS\"; \
        exec \"$0\" --store \"$1\" run -i tool --cache-failures -- ./tool";
    for _ in 0..2 {
        let output = Command::new("sh")
            .current_dir(&workspace)
            .args(["-c", script, env!("CARGO_BIN_EXE_larder")])
            .arg(lab.store_path())
            .env("PIDS", lab.path("pids"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell")
            .wait_with_output()
            .expect("it ends");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(126 | 127)), "{output:?}");
        assert!(told.contains("it could not be started") && !told.contains("hit"), "{told}");
        let server = pids(&lab)[0];
        assert!(is_there(server), "it is not the command's");
        kill_process(Pid::from_raw(server).expect("a process"), Signal::KILL).expect("ours");
    }
}
