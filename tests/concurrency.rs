//! Concurrency: several processes and threads on one store and one workspace.

mod common;

use common::{Lab, noise, snapshot_read_only, task, write};
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Error, LinkMode, Repair, RestoreOptions,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const TASKS: u64 = 1000;

/// The body of a worker process; does nothing in an ordinary test run.
#[test]
fn worker() {
    let Some(place) = std::env::var_os("LARDER_TEST_WORKER") else {
        return;
    };
    let number: u64 = std::env::var("LARDER_TEST_NUMBER").expect("set").parse().expect("a number");
    work(Path::new(&place), number);
}

fn work(place: &Path, number: u64) {
    let cache = Cache::open(&place.join("store"), CacheOptions::default()).expect("opens");
    let workspace = place.join(format!("workspace {number}"));
    for round in 0..TASKS {
        // Half of the tasks are everybody's, half are our own; contents are shared widely.
        let (key, seed) = if round % 2 == 0 {
            (format!("all {round}"), round)
        } else {
            (format!("{number} {round}"), round / 4)
        };
        let mut entry = CacheEntry::new(0, round).with_stdout(format!("task {round}"));
        entry.outputs = vec![
            CacheOutput::bytes("out/a", noise(seed, 3000)),
            CacheOutput::bytes("out/b", noise(seed + 1, 40_000)).with_executable(round % 3 == 0),
            CacheOutput::directory("out"),
        ];
        cache.store(&task(&key), &entry, &Cancel::new()).expect("stored");
        let link_mode = [LinkMode::Auto, LinkMode::Copy, LinkMode::Hardlink][round as usize % 3];
        let options = RestoreOptions::default().with_link_mode(link_mode);
        let restored =
            cache.restore(&task(&key), &workspace, options, &Cancel::new()).expect("restored");
        assert!(restored.is_some(), "what was stored is a hit");
        assert_eq!(
            fs::read(workspace.join("out/a")).expect("there"),
            noise(seed, 3000),
            "round {round}"
        );
        assert_eq!(
            fs::read(workspace.join("out/b")).expect("there"),
            noise(seed + 1, 40_000),
            "round {round}"
        );
    }
}

fn spawn_worker(place: &Path, number: u64) -> Child {
    let program = std::env::current_exe().expect("this binary");
    Command::new(program)
        .args(["--exact", "worker", "--nocapture"])
        .env("LARDER_TEST_WORKER", place)
        .env("LARDER_TEST_NUMBER", number.to_string())
        .spawn()
        .expect("a worker starts")
}

#[test]
fn two_processes_store_and_restore_a_thousand_tasks_each() {
    let lab = Lab::new();
    let workers: Vec<Child> =
        (0..2).map(|number| spawn_worker(lab.folder.path(), number)).collect();
    for mut worker in workers {
        assert!(worker.wait().expect("it ends").success(), "a worker met an error");
    }
    let report = lab.cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.entries, TASKS / 2 * 3);
    assert_eq!(
        common::files_below(&lab.store_path().join("staging")),
        Vec::<PathBuf>::new(),
        "no staging is left"
    );
    println!(
        "{} entries, {} blobs, {} stale rows",
        report.entries, report.blobs, report.stale_rows
    );
}

#[test]
fn killed_processes_leave_a_store_that_works() {
    let lab = Lab::new();
    for round in 0..6 {
        let mut worker = spawn_worker(lab.folder.path(), round);
        std::thread::sleep(std::time::Duration::from_millis(60 + round * 35));
        worker.kill().expect("killed");
        worker.wait().expect("reaped");
    }
    let cache = lab.reopen();
    let report = cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean(), "a kill damages nothing: {report:?}");
    assert!(report.entries > 0, "something had been stored");
    assert_eq!(common::files_below(&lab.store_path().join("staging")), Vec::<PathBuf>::new());
    let after = cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
    assert_eq!(after.orphan_blobs, 0);
}

#[test]
fn restores_to_one_root_take_turns() {
    let lab = Lab::new();
    for key in ["one", "two"] {
        let _ = fs::remove_dir_all(lab.workspace().join("out"));
        for number in 0..30 {
            write(&lab.workspace().join(format!("out/{key}/{number}")), key.as_bytes());
            write(
                &lab.workspace().join(format!("out/both/{number}")),
                format!("{key} {number}").as_bytes(),
            );
        }
        lab.store(key, &["out"]);
        lab.restore(key, &lab.path(key), RestoreOptions::default()).expect("restored");
    }
    let expected = ["one", "two"].map(|key| snapshot_read_only(&lab.path(key)));
    let place = lab.path("place");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (lab, place, expected) = (&lab, &place, &expected);
            scope.spawn(move || {
                let cache = lab.reopen();
                for round in 0..10 {
                    let key = ["one", "two"][(thread + round) % 2];
                    cache
                        .restore(&task(key), place, RestoreOptions::default(), &Cancel::new())
                        .expect("restored");
                    let _ = expected;
                }
            });
        }
    });
    let found = snapshot_read_only(&place);
    assert!(expected.contains(&found), "the last restore's tree, whole");
}

#[test]
fn stores_of_the_same_contents_at_once_agree() {
    let lab = Lab::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let lab = &lab;
            scope.spawn(move || {
                let cache = lab.reopen();
                for round in 0..25 {
                    let mut entry = CacheEntry::new(0, 1);
                    entry.outputs.push(CacheOutput::bytes("out", noise(round, 300_000)));
                    cache
                        .store(&task(&format!("{thread} {round}")), &entry, &Cancel::new())
                        .expect("stored");
                }
            });
        }
    });
    assert_eq!(lab.blobs().len(), 25, "each content once");
    assert!(lab.cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable").is_clean());
}

#[test]
fn a_source_that_changes_while_it_is_stored_is_refused_or_whole() {
    use std::io::{Seek, SeekFrom, Write};
    use std::sync::atomic::{AtomicBool, Ordering};
    let lab = Lab::new();
    // Small files go through memory, large ones through the kernel.
    for length_bytes in [100_000, 3_000_000] {
        let path = lab.workspace().join("out");
        write(&path, &vec![b'0'; length_bytes]);
        let is_done = AtomicBool::new(false);
        let (mut stored, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = fs::File::options().write(true).open(&path).expect("opens");
                let mut digit = 0;
                while !is_done.load(Ordering::Relaxed) {
                    digit = (digit + 1) % 10;
                    file.seek(SeekFrom::Start(0)).expect("seeks");
                    // From front to back, so a torn copy has two digits.
                    for _ in 0..length_bytes / 10_000 {
                        file.write_all(&[b'0' + digit; 10_000]).expect("written");
                    }
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            });
            let _stop = StopOnDrop(&is_done);
            for round in 0..60 {
                let entry =
                    CacheEntry::capture(&lab.workspace(), &[larder::OutputDeclaration::new("out")]);
                let key = task(&format!("{length_bytes} {round}"));
                match lab.cache.store(&key, &entry.expect("captured"), &Cancel::new()) {
                    Ok(_) => {
                        let options = RestoreOptions::default().with_link_mode(LinkMode::Copy);
                        lab.cache
                            .restore(&key, &lab.path("place"), options, &Cancel::new())
                            .expect("restored");
                        let bytes = fs::read(lab.path("place/out")).expect("there");
                        assert_eq!(bytes.len(), length_bytes);
                        assert!(is_a_state_of_the_file(&bytes), "torn bytes were stored");
                        stored += 1;
                    }
                    Err(Error::SourceChanged { .. }) => refused += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
        println!("{length_bytes} bytes: {stored} stored whole, {refused} refused");
        assert_eq!(stored + refused, 60);
    }
}

/// Lets the writer end also when an assertion fails.
struct StopOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The writer replaces one digit by the next, in pieces of 10,000 bytes from front to back; between
/// two pieces the file is some of the new and the rest of the old. Anything else is torn.
fn is_a_state_of_the_file(bytes: &[u8]) -> bool {
    let (first, last) = (bytes[0], bytes[bytes.len() - 1]);
    let boundary = bytes.iter().position(|byte| *byte != first).unwrap_or(bytes.len());
    let is_next = first == last || (first - b'0') == (last - b'0' + 1) % 10;
    is_next && boundary % 10_000 == 0 && bytes[boundary..].iter().all(|byte| *byte == last)
}
