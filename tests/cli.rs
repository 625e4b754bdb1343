//! The command `larder` as a process: exit statuses, streams, keys, and what it stores and does not.

#![cfg(feature = "cli")]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The command, or the copy of it that an ordinary user can reach.
fn larder() -> String {
    let place = std::env::var("LARDER_TEST_COMMAND");
    place.unwrap_or_else(|_| env!("CARGO_BIN_EXE_larder").to_owned())
}

/// What scripts begin with, so that a test can count how often they ran: outside the workspace.
const COUNT: &str = "echo ran >> ../count";

const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;

// Hits and misses.

#[test]
fn a_miss_runs_the_command_and_a_hit_brings_everything_back() {
    let lab = Lab::new();
    let script = format!(
        "{COUNT}; printf 'built from '; cat src/a.txt; printf 'careful\\377' >&2; \
         mkdir -p out/empty; tr a-z A-Z < src/a.txt > out/tool; chmod 755 out/tool; ln -sf tool out/link"
    );
    let options = ["-q", "-i", "src", "-o", "out"];
    let miss = lab.run(&options, &script);
    miss.exits(0);
    assert_eq!((&*miss.stdout, &*miss.stderr), (&b"built from alpha\n"[..], &b"careful\xff"[..]));

    fs::remove_dir_all(lab.file("out")).expect("removed");
    let hit = lab.run(&options, &script);
    hit.exits(0);
    assert_eq!(hit.stdout, miss.stdout, "stdout is replayed byte for byte");
    assert_eq!(hit.stderr, miss.stderr, "stderr is replayed byte for byte, non-UTF-8 included");
    assert_eq!(lab.count(), 1, "the hit did not run the command");
    assert_eq!(lab.read("out/tool"), "ALPHA\n");
    assert_eq!(lab.mode("out/tool"), 0o755, "a small file is a private copy with its exact mode");
    assert_eq!(fs::read_link(lab.file("out/link")).expect("a symlink"), Path::new("tool"));
    assert!(lab.file("out/empty").is_dir(), "empty directories are outputs too");
}

#[test]
fn a_hit_says_so_on_stderr_and_leaves_only_what_was_stored() {
    let lab = Lab::new();
    let options = ["-i", "src", "-o", "out"];
    let script = "mkdir -p out; cp src/a.txt out/copy; echo done";
    let miss = lab.run(&options, script);
    miss.tells_in_one_line("larder: stored ");
    lab.write("out/extra", "from elsewhere");
    lab.write("out/copy", "edited");
    let hit = lab.run(&options, script);
    hit.tells_in_one_line("larder: hit ").tells("1 file").tells(" saved").exits(0).says("done\n");
    assert_eq!(lab.read("out/copy"), "alpha\n", "an edited output is replaced");
    assert!(!lab.file("out/extra").exists(), "what the manifest does not hold is removed");
}

#[test]
fn a_command_that_only_prints_is_cached_too() {
    let lab = Lab::new();
    let script = format!("{COUNT}; echo hello");
    for _ in 0..3 {
        let ran = lab.run(&[], &script);
        ran.exits(0).says("hello\n");
    }
    assert_eq!(lab.count(), 1, "without outputs there are still streams and a status");
}

#[test]
fn pieces_of_the_logs_keep_their_order() {
    let lab = Lab::new();
    let script = format!(
        "{COUNT}; printf a; sleep 0.2; printf b >&2; sleep 0.2; printf c; sleep 0.2; printf d >&2"
    );
    let options = ["-q", "-i", "src"];
    assert_eq!(lab.merged(&mut lab.run_command(&options, &script)), "abcd", "live");
    assert_eq!(lab.merged(&mut lab.run_command(&options, &script)), "abcd", "replayed");
    assert_eq!(lab.count(), 1, "the second one was a hit");
    let key = lab.key(&["-i", "src"], &script);
    assert_eq!(lab.merged(&mut lab.larder(&["logs", &key])), "abcd", "by `larder logs`");
}

#[test]
fn json_reports_a_run_as_one_line_on_stderr() {
    let lab = Lab::new();
    let options = ["--json", "-i", "src", "-o", "out"];
    let script = "cat src/a.txt > out; echo done";

    let miss = lab.run(&options, script);
    miss.tells_in_one_line("{");
    let report = miss.report();
    assert_eq!(report["result"], "stored");
    assert_eq!((&report["files"], &report["bytes"]), (&json!(1), &json!(6)), "{report}");
    assert!(report["ran_ms"].is_u64(), "{report}");

    fs::remove_file(lab.file("out")).expect("removed");
    let hit = lab.run(&options, script);
    hit.tells_in_one_line("{").exits(0).says("done\n");
    let again = hit.report();
    assert_eq!(again["result"], "hit");
    assert_eq!(again["key"], report["key"]);
    assert_eq!((&again["files"], &again["bytes"]), (&json!(1), &json!(6)), "{again}");
    let ways = ["reflinked", "hardlinked", "copied", "kept"];
    let made: u64 = ways.iter().filter_map(|way| again[way]["files"].as_u64()).sum();
    assert_eq!(made, 1, "each file came in one way: {again}");

    let failed = lab.run(&options, "exit 3");
    failed.tells_in_one_line("{").exits(3);
    assert_eq!(failed.report()["result"], "not stored");
    assert!(failed.report()["reason"].is_string(), "{failed}");

    for result in ["stored", "hit"] {
        let ran = lab.run(&options, "echo > out; printf careful >&2");
        assert_eq!(ran.report()["result"], result, "whatever stderr ended with: {ran}");
        ran.tells("careful\n{");
    }
}

#[test]
fn a_run_within_a_run_works() {
    let lab = Lab::new();
    let larder = larder();
    let inner = format!(
        "'{larder}' run -i src/a.txt -o inner -- sh -c 'echo ran >> ../inner-count; cat src/a.txt > inner'"
    );
    let script = format!("{COUNT}; {inner}; cat inner inner > outer");
    let options = ["-i", "src/a.txt", "-o", "outer"];
    let first = lab.run(&options, &script);
    first.exits(0);
    assert_eq!(lab.read("outer"), "alpha\nalpha\n");
    let second = lab.run(&options, &script);
    second.exits(0);
    assert_eq!(lab.count(), 1, "the outer one is a hit");
    let third = lab.run(&["-i", "src/a.txt", "-o", "outer", "--policy", "writeonly"], &script);
    third.exits(0);
    assert_eq!(lab.count(), 2);
    let inner_runs = fs::read_to_string(lab.path("inner-count")).expect("it ran");
    assert_eq!(inner_runs.lines().count(), 1, "the inner one is a hit within a miss");
}

// Keys and inputs.

#[test]
fn the_key_changes_with_everything_that_a_run_depends_on() {
    let lab = Lab::new();
    let mut seen = BTreeSet::new();
    let mut expect_new =
        |what: &str, key: String| assert!(seen.insert(key), "{what} changes the key");
    let base = ["-i", "src/a.txt"];
    let first = lab.key(&base, ":");
    expect_new("nothing yet", first.clone());

    expect_new("another argument", lab.key(&base, ": again"));
    expect_new("another input", lab.key(&["-i", "src/a.txt", "-i", "src/b.txt"], ":"));
    expect_new("an output", lab.key(&["-i", "src/a.txt", "-o", "out/*"], ":"));
    lab.write("src/a.txt", "changed\n");
    expect_new("an input's content", lab.key(&base, ":"));
    lab.write("src/a.txt", "alpha\n");
    lab.set_mode("src/a.txt", 0o755);
    expect_new("an input's exec bit", lab.key(&base, ":"));
    lab.set_mode("src/a.txt", 0o600);
    assert_eq!(lab.key(&base, ":"), first, "times and other mode bits play no part");

    let declared = ["-i", "src/a.txt", "-e", "FLAVOUR"];
    expect_new("an absent variable", lab.key(&declared, ":"));
    for value in ["", "sweet", "sour"] {
        let key = key_of(lab.keyed(&declared, ":").env("FLAVOUR", value));
        expect_new("the value of a declared variable", key);
    }
    let undeclared = key_of(lab.keyed(&base, ":").env("FLAVOUR", "sweet"));
    assert_eq!(undeclared, first, "an undeclared variable plays no part");

    let asked = ["-i", "src/a.txt", "--tool", "cat ../version"];
    for version in ["1", "2"] {
        fs::write(lab.path("version"), version).expect("written");
        expect_new("what a tool says", lab.key(&asked, ":"));
    }

    let workspace = lab.place("workspace");
    let placed = ["-i", "src/a.txt", "--workspace", &workspace];
    assert_eq!(lab.key(&placed, ":"), first, "where the workspace lies plays no part");
    let below = key_of(lab.keyed(&placed, ":").current_dir(lab.file("src")));
    expect_new("the working directory within the workspace", below);
}

#[test]
fn the_key_changes_with_the_program_itself() {
    let lab = Lab::new();
    let key = || key_of(&mut lab.larder(&["run", "--json", "-i", "src", "--", "../program"]));
    let install = |text: &str| {
        // Written by another process: if a test beside this one forked while we held the file
        // open for writing, it could not be executed.
        let script = format!("printf '#!/bin/sh\\n{text}\\n' > ../program; chmod 755 ../program");
        lab.run(&["--policy", "disabled"], &script).exits(0);
    };
    install("exit 0");
    let first = key();
    assert_eq!(key(), first);
    install("true");
    assert_ne!(key(), first, "the executable's content is part of the key");
}

#[test]
fn patterns_are_the_same_inputs_as_the_paths_that_they_match() {
    let lab = Lab::new();
    let script = format!("{COUNT}; cat src/*.txt");
    let listed = ["--json", "-i", "src/a.txt", "-i", "src/b.txt"];
    assert_eq!(lab.run(&listed, &script).report()["result"], "stored");
    for options in
        [["--json", "-i", "src/*.txt"], ["--json", "-i", "**/*.txt"], ["--json", "-i", "./src/"]]
    {
        assert_eq!(lab.run(&options, &script).report()["result"], "hit", "{options:?}");
    }
    assert_eq!(lab.count(), 1);
    lab.write("src/c.txt", "gamma\n");
    assert_eq!(lab.run(&["--json", "-i", "src/*.txt"], &script).report()["result"], "stored");
    assert_eq!(lab.run(&listed, &script).report()["result"], "hit", "it lists what it listed");
}

#[test]
fn paths_are_taken_the_way_people_write_them() {
    let lab = Lab::new();
    let absolute = lab.place("workspace/out");
    let spellings = ["out", "./out", "out/", ".//out//", &absolute];
    let script = "mkdir -p out";
    let key = |output: &str| lab.key(&["-i", "src", "-o", output], script);
    let keys: BTreeSet<String> = spellings.into_iter().map(key).collect();
    assert_eq!(keys.len(), 1, "all of them name the same output");
}

#[test]
fn the_default_inputs_are_what_git_would_see_less_outputs_and_store() {
    let mut lab = Lab::new();
    lab.store = lab.file("cache/store");
    lab.write(".gitignore", "*.log\n/build/\n");
    for name in ["debug.log", "src/deep.log", "build/object", "out/old", ".hidden"] {
        lab.write(name, name);
    }
    let key = lab.key(&["-o", "out"], "echo > out/new");
    assert_eq!(lab.inputs_of(&key), [".gitignore", ".hidden", "src/a.txt", "src/b.txt"]);
    lab.write("debug.log", "more");
    assert_eq!(lab.key(&["-o", "out"], "echo > out/new"), key, "an ignored file plays no part");
    lab.write("src/c.txt", "gamma");
    assert_ne!(lab.key(&["-o", "out"], "echo > out/new"), key, "a new file does");
}

#[test]
fn tracked_files_are_inputs_even_if_they_are_ignored() {
    let lab = Lab::new();
    lab.write(".gitignore", "*.log\n");
    lab.write("tracked.log", "one");
    lab.write("other.log", "two");
    if !lab.git(&["init", "-q"]) {
        eprintln!("skipped: git is missing");
        return;
    }
    lab.git(&["add", "-f", "tracked.log"]);
    let key = lab.key(&[], ":");
    let expected = [".gitignore", "src/a.txt", "src/b.txt", "tracked.log"];
    assert_eq!(lab.inputs_of(&key), expected, "and nothing of .git");
    lab.write("tracked.log", "changed");
    assert_ne!(lab.key(&[], ":"), key, "its content counts");
    fs::remove_file(lab.file("tracked.log")).expect("removed");
    let without = lab.key(&[], ":");
    assert_eq!(lab.inputs_of(&without), expected[..3], "tracked and removed is not there");
}

// What is not stored.

#[test]
fn a_failure_is_stored_only_for_those_who_ask_for_it() {
    let lab = Lab::new();
    let script = format!("{COUNT}; echo broken >&2; exit 7");
    for runs in 1..=2 {
        let ran = lab.run(&["-i", "src"], &script);
        ran.exits(7);
        assert_eq!(lab.count(), runs);
        ran.tells("not stored: the command failed");
    }
    assert_eq!(lab.entries(), 0);
    let asked = ["-i", "src", "--cache-failures"];
    lab.run(&asked, &script).exits(7);
    assert_eq!(lab.count(), 3);
    let hit = lab.run(&asked, &script);
    hit.exits(7);
    assert_eq!(lab.count(), 3, "a hit replays the exit code");
    hit.tells("broken\nlarder: hit ");
    let ran = lab.run(&["-i", "src"], &script);
    ran.exits(7);
    assert_eq!(lab.count(), 4, "a stored failure answers nobody else");
}

#[test]
fn a_command_killed_by_a_signal_ends_larder_by_the_same() {
    let lab = Lab::new();
    for policy in ["normal", "disabled"] {
        let ran = lab.run(&["-i", "src", "--cache-failures", "--policy", policy], "kill -TERM $$");
        ran.is_killed_by(SIGTERM);
        let is_told = ran.words().contains("not stored: it was interrupted");
        assert_eq!(is_told, policy == "normal", "{ran}");
    }
    assert_eq!(lab.entries(), 0, "not even with --cache-failures");
}

#[test]
fn sigterm_is_passed_on_and_nothing_is_stored() {
    let script = "trap 'kill $!; echo caught; exit 0' TERM; \
                  sleep 60 > /dev/null 2>&1 & echo > ../started; wait";
    for policy in ["normal", "disabled"] {
        let lab = Lab::new();
        let ran = lab.terminate(&mut lab.run_command(&["-i", "src", "--policy", policy], script));
        // The command decides how it ends.
        ran.exits(0).says("caught\n");
        assert_eq!(lab.entries(), 0, "an interrupted success is none");

        let lab = Lab::new();
        let script = "echo > ../started; exec sleep 60";
        let ran = lab.terminate(&mut lab.run_command(&["-i", "src", "--policy", policy], script));
        ran.is_killed_by(SIGTERM);
    }
}

#[test]
fn a_result_with_a_missing_output_is_not_stored() {
    let lab = Lab::new();
    let ran = lab.run(&["-i", "src", "-o", "out", "-o", "absent"], "echo > out");
    ran.exits(0).tells("not stored: ").tells("absent does not exist");
    assert_eq!(lab.entries(), 0);
}

#[test]
fn a_result_whose_inputs_changed_meanwhile_is_not_stored() {
    let changes = [
        ("echo more >> src/a.txt", "src/a.txt changed"),
        ("chmod 755 src/a.txt", "src/a.txt changed"),
        ("rm src/b.txt", "src/b.txt changed"),
        ("echo new > src/c.txt", "src/c.txt appeared"),
    ];
    let variants: [&[&str]; 3] = [&[], &["-i", "src"], &["-i", "src/*.txt"]];
    for inputs in variants {
        for (script, reason) in changes {
            let lab = Lab::new();
            let ran = lab.run(inputs, script);
            ran.exits(0).tells("not stored: ").tells(reason);
            assert_eq!(lab.entries(), 0, "{script}");
        }
    }
    let lab = Lab::new();
    lab.run(&["-i", "src"], "touch src/a.txt");
    assert_eq!(lab.entries(), 1, "the same content with another time is no change");
}

#[test]
fn stdin_is_empty_unless_inherited_and_then_nothing_is_cached() {
    let lab = Lab::new();
    fs::write(lab.path("data"), "data\n").expect("written");
    let stdin = || File::open(lab.path("data")).expect("opens");
    let script = format!("{COUNT}; cat; echo end");
    for policy in ["normal", "disabled"] {
        let mut command = lab.run_command(&["-i", "src/a.txt", "--policy", policy], &script);
        let ran = Ran::of(command.stdin(stdin()));
        ran.exits(0).says("end\n");
    }
    assert_eq!((lab.count(), lab.entries()), (2, 1));
    for runs in 3..=4 {
        let mut command = lab.run_command(&["-i", "src/b.txt", "--stdin", "inherit"], &script);
        let ran = Ran::of(command.stdin(stdin()));
        ran.exits(0).says("data\nend\n");
        assert_eq!((lab.count(), lab.entries()), (runs, 1), "nothing is cached");
    }
}

#[test]
fn policies_forbid_reading_and_writing() {
    let lab = Lab::new();
    let script = format!("{COUNT}; echo out");
    // The policy; how often the command has run after it, and how many entries there are.
    let steps = [
        ("readonly", 1, 0),
        ("normal", 2, 1),
        ("readonly", 2, 1),
        ("normal", 2, 1),
        ("writeonly", 3, 1),
        ("disabled", 4, 1),
    ];
    for (step, (policy, runs, entries)) in steps.into_iter().enumerate() {
        let ran = lab.run(&["-i", "src", "--policy", policy], &script);
        ran.exits(0).says("out\n");
        assert_eq!((lab.count(), lab.entries()), (runs, entries), "step {step}, {policy}");
    }
    let ran = Ran::of(lab.run_command(&["-i", "src"], &script).env("LARDER_POLICY", "disabled"));
    assert_eq!((ran.words().as_str(), lab.count()), ("", 5), "the environment counts too");
}

#[test]
fn clean_removes_outputs_before_a_miss_and_otherwise_they_stay() {
    let variants: [(&[&str], bool); 2] = [(&[], true), (&["--clean"], false)];
    for (options, stays) in variants {
        for policy in ["normal", "disabled"] {
            let lab = Lab::new();
            lab.write("out/stale", "");
            lab.write("stale.o", "");
            let common = ["-i", "src", "-o", "out", "-o", "*.o", "--policy", policy];
            let args: [&[&str]; 2] = [&common, options];
            let ran = lab.run(&args.concat(), "ls; mkdir -p out; ls out; echo > out/new");
            ran.exits(0).says(if stays { "out\nsrc\nstale.o\nstale\n" } else { "src\n" });
            assert_eq!(lab.file("out/stale").exists(), stays, "{options:?}, {policy}");
            assert!(lab.file("src/a.txt").exists(), "only outputs are removed");
        }
    }
}

// Errors.

#[test]
fn wrong_calls_end_with_2_and_run_nothing() {
    let elsewhere = "/larder-elsewhere";
    let calls: &[&[&str]] = &[
        &["-o", "."],
        &["-o", "./"],
        &["-o", ""],
        &["-o", ".."],
        &["-o", "../out"],
        &["-o", "src/../out"],
        &["-o", elsewhere],
        &["-o", "**"],
        &["-o", ".git"],
        &["-o", ".git/hooks"],
        &["-o", "cache"],
        &["-o", "cache/store"],
        &["-i", "src/a.txt", "-o", "src/a.txt"],
        &["-i", "src/a.txt", "-o", "src"],
        &["-i", "src/*.txt", "-o", "src/*.txt"],
        &["-i", "absent"],
        &["-i", elsewhere],
        &["--workspace", elsewhere],
        &["--no-such-option"],
        &["--policy", "sometimes"],
        &["--link-mode", "glue"],
    ];
    for options in calls {
        let mut lab = Lab::new();
        lab.store = lab.file("cache/store");
        let ran = lab.run(options, COUNT);
        ran.exits(2);
        assert!(!ran.stderr.is_empty(), "{options:?} is told");
        assert_eq!(lab.count(), 0, "{options:?} runs nothing");
    }
    let lab = Lab::new();
    // No command; two options that contradict each other; a workspace that we are not in.
    lab.call(&["run", "-i", "src"]).exits(2);
    lab.call(&["stats", "-q", "-v"]).exits(2);
    let below = lab.place("workspace/src");
    lab.run(&["-i", "src", "--workspace", &below], COUNT).exits(2);
}

#[test]
fn a_key_has_1_to_1024_bytes() {
    let lab = Lab::new();
    for (length_bytes, code) in [(0, 2), (1, 1), (1024, 1), (1025, 2)] {
        let key = "k".repeat(length_bytes);
        for verb in ["check", "logs", "show", "restore", "rm"] {
            let ran = lab.call(&[verb, &key]);
            ran.exits(code);
        }
    }
}

#[test]
fn a_command_that_is_not_there_ends_with_127() {
    let lab = Lab::new();
    for policy in ["normal", "disabled"] {
        for program in ["larder-no-such-program", "./no-such-file"] {
            let ran = lab.call(&["run", "-i", "src", "--policy", policy, "--", program]);
            ran.exits(127).tells(program);
        }
    }
    assert_eq!(lab.entries(), 0);
}

#[test]
fn a_command_that_cannot_be_executed_ends_with_126() {
    let lab = Lab::new();
    for policy in ["normal", "disabled"] {
        let ran = lab.call(&["run", "-i", "src", "--policy", policy, "--", "./src/a.txt"]);
        ran.exits(126).tells("./src/a.txt");
    }
}

#[test]
fn a_tool_that_fails_costs_the_cache_and_not_the_build() {
    let lab = Lab::new();
    let ran = lab.run(&["-i", "src", "--tool", "exit 3"], &format!("{COUNT}; exit 5"));
    ran.exits(5);
    assert_eq!(lab.count(), 1);
    ran.tells("warning: running without the cache");
}

#[test]
fn a_broken_store_never_breaks_the_build() {
    let breakages: [fn(&Path) -> PathBuf; 5] = [
        |root| {
            fs::write(root.join("file"), "").expect("written");
            root.join("file")
        },
        |root| {
            fs::write(root.join("file"), "").expect("written");
            root.join("file/store")
        },
        |root| {
            fs::create_dir(root.join("full")).expect("made");
            fs::write(root.join("full/thesis.txt"), "").expect("written");
            root.join("full")
        },
        |root| {
            symlink("workspace", root.join("link")).expect("linked");
            root.join("link")
        },
        |root| {
            fs::create_dir(root.join("newer")).expect("made");
            fs::write(root.join("newer/FORMAT"), newer_format()).expect("written");
            root.join("newer")
        },
    ];
    for break_it in breakages {
        let mut lab = Lab::new();
        lab.store = break_it(&lab.root);
        let ran = lab.run(&["-i", "src"], &format!("{COUNT}; echo out; exit 5"));
        ran.exits(5).says("out\n");
        ran.tells_in_one_line("larder: warning: running without the cache: ");
        assert_eq!(lab.count(), 1);
        // What needs a store says that there is none.
        lab.call(&["check", "k"]).exits(4);
    }
}

#[test]
fn a_store_of_a_newer_version_is_left_untouched() {
    let lab = Lab::new();
    fs::create_dir(&lab.store).expect("made");
    fs::write(lab.store.join("FORMAT"), newer_format()).expect("written");
    let calls: [&[&str]; 3] = [&["check", "k"], &["stats"], &["verify", "--repair"]];
    for args in calls {
        let ran = lab.call(args);
        ran.exits(4).tells("format 2");
    }
    let names = fs::read_dir(&lab.store).expect("listed").count();
    assert_eq!(names, 1, "nothing was added");
    assert_eq!(fs::read_to_string(lab.store.join("FORMAT")).expect("read"), newer_format());
}

#[test]
fn not_one_byte_of_a_full_store_of_a_newer_version_is_changed() {
    let lab = Lab::new();
    lab.run(&["-i", "src", "-o", "out"], "mkdir -p out; echo text > out/file; echo said").exits(0);
    lab.call(&["store", "k", "-o", "src"]).exits(0);
    lab.call(&["verify"]).exits(0);
    fs::write(lab.store.join("FORMAT"), newer_format()).expect("written");
    let before = everything_below(&lab.store);
    assert!(before.len() > 10, "there is something to lose: {before:?}");
    let out = lab.place("restored");
    let calls: [&[&str]; 12] = [
        &["check", "k"],
        &["store", "k", "-o", "src"],
        &["store", "k2", "-o", "src"],
        &["restore", "k", "--workspace", &out],
        &["logs", "k"],
        &["show", "k"],
        &["rm", "k"],
        &["stats"],
        &["gc", "--max-size", "1"],
        &["verify"],
        &["verify", "--repair"],
        &["health"],
    ];
    for args in calls {
        lab.call(args).exits(4).tells("format 2; this version of larder knows formats up to 1");
    }
    let ran = lab.run(&["-i", "src", "-o", "out"], "echo said");
    ran.exits(0).says("said\n").tells("running without the cache").tells("format 2");
    assert_eq!(everything_below(&lab.store), before);
}

#[test]
fn a_store_that_is_being_removed_is_done_without() {
    let lab = Lab::new();
    assert_eq!(lab.entries(), 0, "the store is made");
    let in_use = File::options().read(true).write(true).open(lab.store.join("in-use"));
    let in_use = in_use.expect("opens");
    in_use.lock().expect("locked, as `destroy` does");
    let ran = lab.run(&["-i", "src"], &format!("{COUNT}; exit 5"));
    ran.exits(5);
    assert_eq!(lab.count(), 1);
    ran.tells("warning: running without the cache");
    lab.call(&["check", "k"]).exits(4);
}

#[test]
fn a_damaged_blob_costs_a_rerun_and_is_healed_by_it() {
    let lab = Lab::new();
    let options = ["-i", "src", "-o", "out"];
    let script = format!("{COUNT}; tr a-z A-Z < src/a.txt > out");
    lab.run(&options, &script).exits(0);
    lab.damage(&lab.blob_with("ALPHA\n"));
    fs::remove_file(lab.file("out")).expect("removed");
    let ran = lab.run(&options, &script);
    ran.exits(0);
    assert_eq!(lab.count(), 2);
    ran.tells("warning: the entry cannot be restored");
    assert_eq!(lab.read("out"), "ALPHA\n");
    fs::remove_file(lab.file("out")).expect("removed");
    let hit = lab.run(&options, &script);
    hit.exits(0);
    assert_eq!(lab.count(), 2);
    assert_eq!(lab.read("out"), "ALPHA\n");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let lab = Lab::new();
    let endless = read_one_byte(&mut lab.larder(&["run", "-i", "src", "--", "yes"]));
    endless.is_killed_by(SIGPIPE).tells("not stored");
    assert!(!endless.words().contains("panicked"), "{endless}");
    assert_eq!(lab.entries(), 0, "what nobody read to the end is not stored");

    let options = ["-i", "src"];
    let script = "seq 1 200000";
    assert!(lab.run(&options, script).stdout.ends_with(b"\n200000\n"));
    let hit = read_one_byte(&mut lab.run_command(&options, script));
    hit.exits(0).tells_in_one_line("larder: hit ");
}

// Settings.

#[test]
fn the_store_is_named_by_flag_then_environment_then_file_then_home() {
    let lab = Lab::new();
    let script = format!("{COUNT}; echo out");
    let run = |options: &[&str]| lab.run_command(&[&["-i", "src"][..], options].concat(), &script);
    let is_store = |name: &str| lab.path(name).join("FORMAT").exists();

    Ran::of(run(&[]).env_remove("LARDER_DIR")).exits(0);
    assert!(is_store(".cache/larder"), "without any word it lies in the home");
    let cache = lab.path("xdg");
    let mut command = run(&[]);
    Ran::of(command.env_remove("LARDER_DIR").env("XDG_CACHE_HOME", &cache));
    assert!(is_store("xdg/larder"), "or where the system keeps caches");

    lab.write("larder.toml", "store = \"../by-file\"\n");
    Ran::of(run(&[]).env_remove("LARDER_DIR"));
    assert!(is_store("by-file"), "the file's path is relative to the workspace");
    assert!(!is_store("store"));
    Ran::of(&mut run(&[]));
    assert!(is_store("store"), "the environment wins over the file");
    Ran::of(&mut run(&["--store", "../by-flag"]));
    assert!(is_store("by-flag"), "a flag wins over the environment");
    assert_eq!(lab.count(), 5, "five stores, each empty at first");
    Ran::of(run(&[]).env_remove("LARDER_DIR"));
    assert_eq!(lab.count(), 5, "and a hit in the one that the file names");
}

#[test]
fn every_subcommand_uses_the_store_that_the_workspaces_file_names() {
    let lab = Lab::new();
    lab.write("larder.toml", "store = \"../by-file\"\n");
    let calls: [&[&str]; 8] = [
        &["store", "k", "-o", "src"],
        &["check", "k"],
        &["logs", "k"],
        &["show", "k"],
        &["restore", "k"],
        &["verify"],
        &["rm", "k"],
        &["destroy"],
    ];
    for args in calls {
        Ran::of(lab.larder(args).env_remove("LARDER_DIR")).exits(0);
    }
    assert!(!lab.path("by-file").exists(), "and it is what was destroyed");
    assert!(!lab.path(".cache").exists(), "no other store was made");
}

#[test]
fn the_workspaces_file_sets_link_mode_and_policy_unless_flag_or_environment_do() {
    let lab = Lab::new();
    let options = ["--json", "-i", "src", "-o", "out"];
    let copied = ["--json", "-i", "src", "-o", "out", "--link-mode", "copy"];
    let script = "cat src/a.txt > out";
    lab.run(&options, script);
    // In mode `hardlink` a file that is copied all the same (this one may be too young to be
    // linked) has a reason; in mode `copy` it has none.
    let is_plain_copy = |command: &mut Command| {
        fs::remove_file(lab.file("out")).expect("removed");
        let report = Ran::of(command).report();
        assert_eq!(report["result"], "hit", "{report}");
        report["copied"]["files"] == 1 && report["copy_reasons"] == json!({})
    };
    assert!(is_plain_copy(&mut lab.run_command(&options, script)), "a small file, mode auto");
    lab.write("larder.toml", "link-mode = \"hardlink\"\n");
    assert!(!is_plain_copy(&mut lab.run_command(&options, script)), "the file counts");
    assert!(is_plain_copy(&mut lab.run_command(&copied, script)), "the flag wins");
    let mut command = lab.run_command(&options, script);
    assert!(is_plain_copy(command.env("LARDER_LINK_MODE", "copy")), "the environment wins");

    lab.write("larder.toml", "policy = \"disabled\"\n");
    assert_eq!(lab.run(&options, script).words(), "", "no larder at all");
    let normal = ["--json", "-i", "src", "-o", "out", "--policy", "normal"];
    assert_eq!(lab.run(&normal, script).report()["result"], "hit", "the flag wins");
}

#[test]
fn mistakes_in_the_workspaces_file_are_usage_errors() {
    let lab = Lab::new();
    for text in ["sotre = \"x\"\n", "link-mode = \"glue\"\n", "policy = \"maybe\"\n", "store = \n"]
    {
        lab.write("larder.toml", text);
        let ran = lab.run(&["-i", "src"], COUNT);
        ran.exits(2);
        assert_eq!(lab.count(), 0);
        assert!(!ran.words().is_empty(), "{text}");
    }
    lab.write("larder.toml", "link-mode = \"glue\"\n");
    // What a flag overrides is not looked at.
    lab.run(&["-i", "src", "--link-mode", "copy"], ":").exits(0);
}

// The other subcommands.

#[test]
fn store_check_logs_show_and_rm_speak_text_and_json() {
    let lab = Lab::new();
    lab.make_entry("k");
    let check = lab.call(&["check", "k"]);
    check.exits(0).says("hit · exit code 3 · ran 1.5 s\n");
    let check = lab.call(&["check", "k", "--json"]);
    assert_eq!(check.json(), json!({ "hit": true, "exit_code": 3, "duration_ms": 1500 }));

    let logs = lab.call(&["logs", "k"]);
    assert_eq!((&*logs.stdout, &*logs.stderr), (&b"out\xff"[..], &b"err\n"[..]), "exact bytes");
    let logs = lab.call(&["logs", "k", "--json"]).json();
    assert_eq!(logs, json!({ "stdout": "out\u{fffd}", "stderr": "err\n" }), "text, lossy");

    let show = lab.call(&["show", "k"]);
    show.exits(0);
    for part in
        ["exit code 3", "ran 1.5 s", "root directory out", "0755", "out/tool", "link -> tool"]
    {
        show.shows(part);
    }
    let show = lab.call(&["show", "k", "--json"]).json();
    assert_eq!((&show["exit_code"], &show["duration_ms"]), (&json!(3), &json!(1500)), "{show}");
    assert_eq!((&show["stdout_bytes"], &show["stderr_bytes"]), (&json!(4), &json!(4)), "{show}");
    assert_eq!(show["roots"], json!([{ "path": "out", "type": "directory" }]));
    let outputs = show["outputs"].as_array().expect("a list");
    let kinds: Vec<_> = outputs.iter().map(|node| (&node["path"], &node["type"])).collect();
    let (out, link, tool) = (json!("out"), json!("out/link"), json!("out/tool"));
    let (directory, symlink, file) = (json!("directory"), json!("symlink"), json!("file"));
    assert_eq!(kinds, [(&out, &directory), (&link, &symlink), (&tool, &file)], "{show}");
    assert_eq!((&outputs[2]["bytes"], &outputs[2]["mode"]), (&json!(4), &json!(0o755)), "{show}");

    let removed = lab.call(&["rm", "k"]);
    removed.exits(0).says("removed\n");
    let again = lab.call(&["rm", "k", "--json"]);
    assert_eq!(again.exits(1).json(), json!({ "removed": false }));
    lab.call(&["check", "k"]).exits(1);
}

#[test]
fn restore_makes_the_workspace_and_says_what_it_did() {
    let lab = Lab::new();
    lab.make_entry("k");
    let restored = lab.call(&["restore", "k", "--workspace", "../again"]);
    restored.exits(0).shows("restored 1 file, 4 B");
    let tool = lab.path("again/out/tool");
    assert_eq!(fs::read(&tool).expect("restored"), b"tool");
    assert_eq!(fs::metadata(&tool).expect("restored").permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_link(lab.path("again/out/link")).expect("restored"), Path::new("tool"));

    let json = lab.call(&["restore", "k", "--workspace", "../again", "--json"]).json();
    assert_eq!((&json["files"], &json["bytes"]), (&json!(1), &json!(4)), "{json}");
    assert_eq!(json["kept"], json!({ "files": 1, "bytes": 4 }), "it is there already: {json}");
    assert!(json["took_ms"].is_number(), "{json}");
}

#[test]
fn store_refuses_what_it_cannot_cache() {
    let lab = Lab::new();
    for output in ["absent", "..", "../count", "/etc/passwd"] {
        let ran = lab.call(&["store", "k", "-o", output]);
        ran.exits(2).tells("error: ");
    }
    lab.call(&["store", "k", "--stdout", "absent"]).exits(2);
    assert_eq!(lab.entries(), 0);
}

#[test]
fn a_miss_ends_with_1() {
    let lab = Lab::new();
    let check = lab.call(&["check", "k"]);
    check.exits(1).says("miss\n");
    let check = lab.call(&["check", "k", "--json"]);
    assert_eq!(check.exits(1).json(), json!({ "hit": false }));
    for verb in ["logs", "show", "restore"] {
        let ran = lab.call(&[verb, "k"]);
        ran.exits(1).says("").tells("no entry for this key");
    }
}

#[test]
fn stats_and_health_speak_text_and_json() {
    let lab = Lab::new();
    lab.make_entry("k");
    let text = lab.call(&["stats"]);
    text.exits(0);
    for word in ["entries", "blobs", "on disk", &lab.place("store")] {
        text.shows(word);
    }
    let stats = lab.call(&["stats", "--json"]).json();
    assert_eq!((&stats["entries"], &stats["blobs"]), (&json!(1), &json!(1)), "{stats}");
    assert_eq!(stats["quarantined"], 0, "{stats}");
    assert!(stats["total_bytes"].as_u64() >= stats["blob_bytes"].as_u64(), "{stats}");
    let nothing = json!({ "entries": 0, "duration_ms": 0, "size_bytes_max_enough": 0 });
    assert_eq!(stats["evicted_early"], nothing);
    lab.call(&["gc", "--max-size", "1KiB"]).exits(0);
    lab.make_entry("k");
    let text = lab.call(&["stats", "--max-size", "1KiB"]);
    text.shows("evicted early 1 result in the last 7 days, 1.5 s of rebuilding; a limit of ");
    lab.call(&["stats"]).shows("the present limit would have spared most of it");

    let text = lab.call(&["health"]);
    text.exits(0).shows("writable      yes");
    let health = lab.call(&["health", "--workspace", "src", "--json"]).json();
    assert_eq!((&health["writable"], &health["index"]), (&json!(true), &json!(true)), "{health}");
    assert!(health["workspace"]["filesystem"].is_string(), "{health}");
    assert!(health["workspace"]["hardlink"].is_boolean(), "{health}");
    assert_eq!(
        fs::read_dir(lab.file("src")).expect("listed").count(),
        2,
        "it leaves nothing behind"
    );
}

#[test]
fn verify_finds_damage_and_repairs_it() {
    let lab = Lab::new();
    lab.make_entry("k");
    let clean = lab.call(&["verify"]);
    clean.exits(0).shows("\nclean\n");
    let report = lab.call(&["verify", "--json"]).json();
    assert_eq!((&report["clean"], &report["entries"]), (&json!(true), &json!(1)), "{report}");

    lab.damage(&lab.blob_with("tool"));
    let damaged = lab.call(&["verify"]);
    damaged.exits(3).shows("damaged blob ");
    let damaged = lab.call(&["verify", "--json"]);
    let report = damaged.exits(3).json();
    assert_eq!(report["clean"], false, "looking mended nothing");
    for list in ["damaged_blobs", "broken_entries"] {
        assert_eq!(report[list].as_array().map(Vec::len), Some(1), "{list} in {report}");
    }

    let repaired = lab.call(&["verify", "--repair"]);
    repaired.exits(3).shows(": quarantined").shows(": dropped");
    // Then the store is clean, and the entry a miss.
    lab.call(&["verify"]).exits(0);
    lab.call(&["check", "k"]).exits(1);
    assert_eq!(lab.call(&["stats", "--json"]).json()["quarantined"], 1);
    lab.make_entry("k");
    // Storing again heals it.
    lab.call(&["check", "k"]).exits(0);
}

#[test]
fn restoring_damage_ends_with_3_and_leaves_the_workspace_alone() {
    let lab = Lab::new();
    lab.make_entry("k");
    lab.damage(&lab.blob_with("tool"));
    let ran = lab.call(&["restore", "k", "--workspace", "../again"]);
    ran.exits(3).says("").tells("damaged bytes");
    assert!(!lab.path("again/out").exists(), "nothing was restored");
    // The entry is dropped.
    lab.call(&["check", "k"]).exits(1);
}

#[test]
fn destroy_removes_a_store_and_nothing_else() {
    let lab = Lab::new();
    let workspace = lab.place("workspace");
    let refused = lab.call(&["destroy", "--store", &workspace]);
    refused.exits(4);
    assert_eq!(lab.read("src/a.txt"), "alpha\n", "nothing was touched");
    // There is none yet.
    lab.call(&["destroy"]).exits(4);

    lab.make_entry("k");
    fs::write(lab.store.join("thesis.txt"), "mine").expect("written");
    // Something that is not ours lies in it; nothing is touched.
    lab.call(&["destroy"]).exits(4);
    lab.call(&["check", "k"]).exits(0);
    fs::remove_file(lab.store.join("thesis.txt")).expect("removed");

    // A store that somebody has open stays.
    lab.run(&["-i", "src"], &format!("'{}' destroy", larder())).exits(4);
    let destroyed = lab.call(&["destroy", "--json"]);
    assert_eq!(destroyed.exits(0).json(), json!({ "removed": lab.place("store") }));
    assert!(!lab.store.exists(), "it is gone");
}

// What the tests share.

/// A workspace, and beside it a store, in a folder that is also the home.
struct Lab {
    root: PathBuf,
    /// What `LARDER_DIR` says.
    store: PathBuf,
    _folder: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = fs::canonicalize(folder.path()).expect("it has a real name");
        let lab = Lab { store: root.join("store"), root, _folder: folder };
        lab.write("src/a.txt", "alpha\n");
        lab.write("src/b.txt", "beta\n");
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A path as an argument.
    fn place(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().expect("the temporary folder is UTF-8")
    }

    /// A path in the workspace.
    fn file(&self, name: &str) -> PathBuf {
        self.path("workspace").join(name)
    }

    fn write(&self, name: &str, contents: &str) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().expect("the workspace is above")).expect("made");
        fs::write(path, contents).expect("written");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).expect("the file is there")
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.file(name)).expect("the file is there").permissions().mode() & 0o777
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.file(name), Permissions::from_mode(mode)).expect("we own it");
    }

    /// How often scripts that begin with [`COUNT`] ran.
    fn count(&self) -> usize {
        fs::read_to_string(self.path("count")).map_or(0, |text| text.lines().count())
    }

    /// How many entries the store has.
    fn entries(&self) -> u64 {
        self.call(&["stats", "--json"]).json()["entries"].as_u64().expect("a number")
    }

    /// A command in the workspace whose environment knows of no settings but the store.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ["LARDER_", "GIT_", "XDG_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.current_dir(self.file("")).env("HOME", &self.root).env("LARDER_DIR", &self.store);
        command
    }

    fn larder(&self, args: &[&str]) -> Command {
        let mut command = self.command(&larder());
        command.args(args);
        command
    }

    fn call(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.larder(args))
    }

    /// `larder run` over a shell script.
    fn run_command(&self, options: &[&str], script: &str) -> Command {
        let args: [&[&str]; 3] = [&["run"], options, &["--", "sh", "-c", script]];
        self.larder(&args.concat())
    }

    fn run(&self, options: &[&str], script: &str) -> Ran {
        Ran::of(&mut self.run_command(options, script))
    }

    /// The same, for [`key_of`].
    fn keyed(&self, options: &[&str], script: &str) -> Command {
        let args: [&[&str]; 2] = [&["--json"], options];
        self.run_command(&args.concat(), script)
    }

    fn key(&self, options: &[&str], script: &str) -> String {
        key_of(&mut self.keyed(options, script))
    }

    /// The files that a run's key was made of.
    fn inputs_of(&self, key: &str) -> Vec<String> {
        let shown = self.call(&["show", key, "--json"]).json();
        let parts = shown["key"].as_array().expect("a list of parts");
        let files = parts.iter().filter(|part| part[0] == "file");
        let names = files.filter_map(|part| part[1].as_str()?.split(' ').next().map(str::to_owned));
        names.collect()
    }

    /// What a command writes if stdout and stderr are one file.
    fn merged(&self, command: &mut Command) -> String {
        let path = self.path("merged");
        let file = File::create(&path).expect("created");
        let twin = file.try_clone().expect("a second descriptor");
        let status = command.stdin(Stdio::null()).stdout(file).stderr(twin).status();
        assert_eq!(status.expect("larder starts").code(), Some(0));
        fs::read_to_string(path).expect("text")
    }

    /// Sends SIGTERM to larder as soon as its command has made `../started`.
    fn terminate(&self, command: &mut Command) -> Ran {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("larder starts");
        let begun = Instant::now();
        while !self.path("started").exists() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the command does not start");
            sleep(Duration::from_millis(5));
        }
        kill_process(Pid::from_child(&child), Signal::TERM).expect("it still runs");
        Ran::new(command, child.wait_with_output().expect("it ends"))
    }

    /// Runs git in the workspace; false if there is none.
    fn git(&self, args: &[&str]) -> bool {
        match self.command("git").env("GIT_CONFIG_NOSYSTEM", "1").args(args).status() {
            Ok(status) => {
                assert!(status.success(), "git {args:?} works");
                true
            }
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => panic!("git does not start: {error}"),
        }
    }

    /// Stores an entry with a directory, a file of 4 bytes, a symlink, logs and a failure.
    fn make_entry(&self, key: &str) {
        fs::write(self.path("stdout"), b"out\xff").expect("written");
        fs::write(self.path("stderr"), "err\n").expect("written");
        self.write("out/tool", "tool");
        self.set_mode("out/tool", 0o755);
        if !self.file("out/link").exists() {
            symlink("tool", self.file("out/link")).expect("linked");
        }
        let files = ["-o", "out", "--stdout", "../stdout", "--stderr", "../stderr"];
        let args: [&[&str]; 3] =
            [&["store", key], &files, &["--exit-code", "3", "--duration-ms", "1500", "--json"]];
        let stored = self.call(&args.concat());
        stored.exits(0);
        let report = stored.json();
        assert_eq!((&report["files"], &report["bytes"]), (&json!(1), &json!(4)), "{report}");
    }

    /// The blob that holds these bytes.
    fn blob_with(&self, contents: &str) -> PathBuf {
        let list = |folder: PathBuf| fs::read_dir(folder).expect("a folder of the store");
        let folders = list(self.store.join("blobs")).map(|folder| folder.expect("listed").path());
        let mut blobs = folders.flat_map(list).map(|blob| blob.expect("listed").path());
        let is_it = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes == contents.as_bytes());
        blobs.find(is_it).expect("there is such a blob")
    }

    /// Adds a byte to a blob.
    fn damage(&self, blob: &Path) {
        assert!(blob.starts_with(&self.store), "only what is ours");
        fs::set_permissions(blob, Permissions::from_mode(0o644)).expect("we own it");
        let mut file = File::options().append(true).open(blob).expect("opens");
        file.write_all(b"!").expect("written");
    }
}

#[test]
fn a_reader_of_stderr_that_goes_away_is_no_panic() {
    let lab = Lab::new();
    let command = format!("'{}' run -i src -- sh -c 'exit 7'", larder());
    // The reader is gone before larder writes.
    let script = format!(
        "( sleep 0.2; {command}; echo $? > ../status ) 2>&1 | true; sleep 1; cat ../status"
    );
    lab.run(&["--policy", "disabled"], &script).exits(0).says("7\n");
}

#[test]
fn patterns_never_reach_into_git_or_an_explicit_input() {
    let lab = Lab::new();
    lab.write(".git/HEAD", "x");
    lab.run(&["--clean", "-i", "src", "-o", ".*"], ":");
    assert!(lab.file(".git/HEAD").exists(), "a pattern never reaches into .git");
    lab.run(&["--clean", "-i", "src/a.txt", "-o", "src/*"], ":").exits(2);
    assert!(lab.file("src/a.txt").exists(), "an input is never removed");
}

/// How a process ended, and what it wrote. Its assertions show all of it.
struct Ran {
    call: String,
    code: Option<i32>,
    signal: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ran {
    fn of(command: &mut Command) -> Ran {
        let output = command.output().expect("it starts");
        Ran::new(command, output)
    }

    fn new(command: &Command, output: Output) -> Ran {
        let Output { status, stdout, stderr } = output;
        let call = format!("{command:?}");
        Ran { call, code: status.code(), signal: status.signal(), stdout, stderr }
    }

    /// Its stdout as text.
    fn said(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its stderr as text.
    fn words(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The one JSON object on stdout.
    #[track_caller]
    fn json(&self) -> Value {
        let parsed = serde_json::from_slice(&self.stdout);
        parsed.unwrap_or_else(|error| panic!("no JSON on stdout, {error}: {self}"))
    }

    /// The JSON object that `run` leaves on the last line of stderr.
    #[track_caller]
    fn report(&self) -> Value {
        let words = self.words();
        let parsed = serde_json::from_str(words.lines().last().unwrap_or_default());
        parsed.unwrap_or_else(|error| panic!("no JSON on stderr, {error}: {self}"))
    }

    #[track_caller]
    fn exits(&self, code: i32) -> &Ran {
        assert_eq!((self.code, self.signal), (Some(code), None), "the exit status of {self}");
        self
    }

    #[track_caller]
    fn is_killed_by(&self, signal: i32) -> &Ran {
        assert_eq!((self.code, self.signal), (None, Some(signal)), "the end of {self}");
        self
    }

    /// Stdout is this and nothing else.
    #[track_caller]
    fn says(&self, text: &str) -> &Ran {
        assert_eq!(self.said(), text, "stdout of {self}");
        self
    }

    /// Stdout has this somewhere.
    #[track_caller]
    fn shows(&self, text: &str) -> &Ran {
        assert!(self.said().contains(text), "{text:?} is missing on stdout of {self}");
        self
    }

    /// Stderr has this somewhere.
    #[track_caller]
    fn tells(&self, text: &str) -> &Ran {
        assert!(self.words().contains(text), "{text:?} is missing on stderr of {self}");
        self
    }

    #[track_caller]
    fn tells_in_one_line(&self, start: &str) -> &Ran {
        let words = self.words();
        let is_line = words.starts_with(start) && words.lines().count() == 1;
        assert!(is_line, "stderr is not one line that begins with {start:?}: {self}");
        self
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ran { call, code, signal, .. } = self;
        let (said, words) = (self.said(), self.words());
        write!(f, "{call}\ncode {code:?}, signal {signal:?}\nstdout: {said}\nstderr: {words}")
    }
}

/// The key of a `larder run --json`.
fn key_of(command: &mut Command) -> String {
    let report = Ran::of(command).report();
    let is_cached = report["result"] == "stored" || report["result"] == "hit";
    assert!(is_cached, "{report}");
    report["key"].as_str().expect("a key").to_owned()
}

/// Reads one byte of what a command writes to stdout, as `head -c 1` does, and goes away.
fn read_one_byte(command: &mut Command) -> Ran {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("larder starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0]).expect("a byte");
    drop(stdout);
    Ran::new(command, child.wait_with_output().expect("it ends"))
}

/// Each file and folder, with all that a change would change.
fn everything_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("a stat");
        let times = [(meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec())];
        let contents = if meta.is_dir() {
            found.extend(everything_below(&path));
            Vec::new()
        } else {
            fs::read(&path).expect("a file")
        };
        let digest = larder::Digest::of(&contents);
        let (inode, mode, size) = (meta.ino(), meta.mode(), meta.size());
        found.push(format!("{} {inode} {mode:o} {size} {times:?} {digest}", path.display()));
    }
    found.sort();
    found
}

/// The format file of a store that a later version made.
fn newer_format() -> String {
    let line = "larder store format 2";
    format!("{line}\n{}\n", larder::Digest::of(line.as_bytes()))
}
