//! Flights: identical runs at once execute the command once.

mod common;

use common::{Lab, task};
use larder::{Cancel, Claim};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
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
