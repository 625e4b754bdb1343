//! Bundles: entries in one file, from one store to another.

#![cfg(feature = "cli")]

mod common;

use common::{Lab, noise, snapshot_read_only, task, write_old};
use larder::bundle::{Ending, Exported, Imported, Known, export, import};
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Error, KeyKind, Limits,
    OutputDeclaration, Repair, RestoreOptions, SigningKey, TaskDigest,
};
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn unlimited() -> CacheOptions {
    CacheOptions::default().with_limits(Limits::none())
}

fn lab() -> Lab {
    Lab::with(unlimited())
}

fn tasks(keys: &[&str]) -> Vec<TaskDigest> {
    keys.iter().map(|key| task(key)).collect()
}

/// A store with the entries `tree` (of a workspace, with long logs), `twin` (which shares most of its
/// blobs with that) and `quiet` (which only printed). Each has more of its own than zstd has in a block.
fn filled() -> Lab {
    let lab = lab();
    let out = lab.workspace().join("out");
    write_old(&out.join("large"), &noise(1, 600_000));
    write_old(&out.join("zeros"), &vec![0; 900_000]);
    write_old(&out.join("tool"), &noise(2, 40_000));
    write_old(&out.join("empty"), b"");
    fs::set_permissions(out.join("tool"), Permissions::from_mode(0o755)).expect("set");
    let capture = || {
        let entry = CacheEntry::capture(&lab.workspace(), &[OutputDeclaration::new("out")]);
        entry.expect("captured").with_result(0, 1000)
    };
    let entry = capture().with_stdout(noise(3, 320_000)).with_stderr("short");
    lab.cache.store(&task("tree"), &entry, &Cancel::new()).expect("stored");
    write_old(&out.join("more"), &noise(4, 310_000));
    lab.cache.store(&task("twin"), &capture(), &Cancel::new()).expect("stored");
    fs::remove_file(out.join("more")).expect("removed");
    let quiet = CacheEntry::new(7, 1).with_stdout(noise(5, 330_000));
    lab.cache.store(&task("quiet"), &quiet, &Cancel::new()).expect("stored");
    lab
}

const ALL: [&str; 3] = ["tree", "twin", "quiet"];

fn exported(cache: &Cache, keys: &[&str], known: &Known) -> (Vec<u8>, Exported) {
    let mut file = Vec::new();
    let exported = export(cache, &tasks(keys), known, &mut file, &Cancel::new());
    (file, exported.expect("exported"))
}

fn imported(cache: &Cache, file: &[u8]) -> Imported {
    import(cache, file, &Cancel::new()).expect("read")
}

fn assert_same(there: &Cache, here: &Cache, key: &str) {
    let portable = |cache: &Cache| {
        let manifest = cache.manifest(&task(key)).expect("readable").expect("there");
        manifest.encode_portable(&task(key))
    };
    assert_eq!(portable(there), portable(here), "{key}");
}

fn assert_clean(cache: &Cache) {
    let report = cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean(), "{report:?}");
}

fn known(file: &[u8]) -> Known {
    let mut known = Known::default();
    known.add(file, &Cancel::new()).expect("a whole bundle");
    known
}

#[test]
fn entries_come_out_as_they_went_in() {
    let (there, here) = (filled(), lab());
    let (file, told) = exported(&there.cache, &ALL, &Known::default());
    assert_eq!((told.entries, told.blobs), (3, 6), "each blob once: {told:?}");
    assert!(file.len() < 1_610_000, "zeros take no room: {}", file.len());
    let told = imported(&here.cache, &file);
    assert!(told.is_complete(), "{told:?}");
    assert_eq!((told.entries, told.blobs, told.untrusted_entries), (3, 6, 0));
    for key in ALL {
        assert_same(&there.cache, &here.cache, key);
        let logs = |cache: &Cache| cache.logs(&task(key)).expect("readable").expect("there");
        assert_eq!(logs(&there.cache), logs(&here.cache));
    }
    let options = RestoreOptions::default();
    here.restore("tree", &here.path("place"), options).expect("restored").expect("a hit");
    assert_eq!(snapshot_read_only(&here.path("place")), snapshot_read_only(&there.workspace()));
    assert_clean(&here.cache);
    let again = imported(&here.cache, &file);
    assert!(again.is_complete() && again.blobs == 0, "all is here: {again:?}");
}

#[test]
fn the_same_entries_make_the_same_bytes() {
    let (there, here) = (filled(), lab());
    let (file, _) = exported(&there.cache, &ALL, &Known::default());
    assert_eq!(
        exported(&there.cache, &["quiet", "twin", "tree", "twin"], &Known::default()).0,
        file
    );
    imported(&here.cache, &file);
    let manifest = here.cache.manifest(&task("twin")).expect("readable").expect("there");
    let rows = vec![[7; 32]; manifest.distinct_blobs().len()];
    assert!(here.cache.note_sha256(&task("twin"), &manifest, &rows).expect("noted"));
    let (again, told) = exported(&here.cache, &ALL, &Known::default());
    assert_eq!(again, file, "from another store, which knows more of them");
    assert_eq!(told.missing_entries, 0);
    let (_, told) = exported(&here.cache, &["nothing", "tree"], &Known::default());
    assert_eq!((told.entries, told.missing_entries), (1, 1));
}

#[test]
fn a_bundle_on_top_of_another_carries_what_that_has_not() {
    let (there, here) = (filled(), lab());
    let (base, _) = exported(&there.cache, &["tree", "quiet"], &Known::default());
    let (more, told) = exported(&there.cache, &ALL, &known(&base));
    assert_eq!((told.entries, told.known_entries, told.blobs), (1, 2, 1), "{told:?}");
    assert!(more.len() < 320_000, "{} bytes", more.len());
    let alone = imported(&here.cache, &more);
    assert_eq!((alone.entries, alone.incomplete_entries), (0, 1), "{alone:?}");
    assert!(!alone.is_complete() && alone.ending == Ending::Whole);
    assert!(imported(&here.cache, &base).is_complete());
    assert!(imported(&here.cache, &more).is_complete());
    assert_same(&there.cache, &here.cache, "twin");

    // What it names counts as there, too, whichever bundle brought it.
    let mut third = CacheEntry::new(0, 1);
    third.outputs.push(CacheOutput::bytes("x", noise(1, 600_000)));
    there.cache.store(&task("third"), &third, &Cancel::new()).expect("stored");
    let (_, told) = exported(&there.cache, &["third"], &known(&more));
    assert_eq!((told.entries, told.blobs), (1, 0));
    // Replaced since.
    there.cache.store(&task("tree"), &third, &Cancel::new()).expect("stored");
    assert_eq!(exported(&there.cache, &["tree"], &known(&base)).1.entries, 1);
}

#[test]
fn what_came_before_a_cut_is_here_and_the_rest_is_not() {
    let there = filled();
    let (file, _) = exported(&there.cache, &ALL, &Known::default());
    let mut entries_before = 0;
    let step = file.len() / 20;
    for length in (12..file.len()).step_by(step).chain([file.len() - 1]) {
        let here = lab();
        let told = imported(&here.cache, &file[..length]);
        assert_eq!(told.ending, Ending::Cut, "{length} bytes: {told:?}");
        assert_eq!((told.damaged_entries, told.incomplete_entries), (0, 0), "{told:?}");
        assert!(told.entries >= entries_before);
        entries_before = told.entries;
        let stats = here.cache.stats().expect("counted");
        assert_eq!(stats.entries, told.entries);
        assert_clean(&here.cache);
        for key in ALL {
            if here.cache.lookup(&task(key)).expect("a lookup").is_some() {
                assert_same(&there.cache, &here.cache, key);
            }
        }
    }
    assert!(entries_before >= 2, "all but the one that was cut, if any was: {entries_before}");
    for length in 0..12 {
        let refused = import(&lab().cache, &file[..length], &Cancel::new());
        assert!(matches!(refused, Err(Error::BundleRefused { .. })), "{refused:?}");
    }
    let refused = Known::default().add(&file[..file.len() / 2], &Cancel::new());
    assert!(matches!(refused, Err(Error::BundleRefused { .. })), "a base must be whole");
}

#[test]
fn no_damage_becomes_an_entry() {
    let there = filled();
    let (file, _) = exported(&there.cache, &ALL, &Known::default());
    for position in (0..file.len()).step_by(file.len() / 30).chain(0..24) {
        let here = lab();
        let mut damaged = file.clone();
        damaged[position] ^= 1 << (position % 8);
        match import(&here.cache, damaged.as_slice(), &Cancel::new()) {
            Err(error) => assert!(matches!(error, Error::BundleRefused { .. }), "{error:?}"),
            Ok(told) if position > 24 => assert!(!told.is_complete(), "byte {position}: {told:?}"),
            Ok(_) => {}
        }
        assert_clean(&here.cache);
        for key in ALL {
            if here.cache.lookup(&task(key)).expect("a lookup").is_some() {
                assert_same(&there.cache, &here.cache, key);
            }
        }
    }
}

#[test]
fn something_behind_the_end_is_told() {
    let there = filled();
    let (mut file, _) = exported(&there.cache, &["quiet"], &Known::default());
    file.push(0);
    let told = imported(&lab().cache, &file);
    assert!(matches!(told.ending, Ending::Damaged { .. }) && told.entries == 1, "{told:?}");
}

#[test]
fn an_input_that_fails_is_an_error_and_no_cut() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let (there, here) = (filled(), lab());
    let (file, _) = exported(&there.cache, &ALL, &Known::default());
    for length in [0, 5, 100, file.len() / 2, file.len() - 1] {
        let told = import(&here.cache, file[..length].chain(Failing), &Cancel::new());
        assert!(matches!(told, Err(Error::Io { .. })), "{told:?}");
        assert_clean(&here.cache);
    }
}

#[test]
fn only_what_a_trusted_key_has_signed_is_taken_over_with_all_its_blobs() {
    let key = || SigningKey::generate(KeyKind::Blake3).expect("the system has randomness");
    let (ours, other) = (key(), key());
    let (there, here) = (lab(), lab());
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs.push(CacheOutput::bytes("x", noise(1, 400_000)));
    let mut names = Vec::new();
    for (number, signer) in [Some(&ours), Some(&other), None, Some(&ours)].iter().enumerate() {
        let mut options = unlimited();
        options.signing = signer.cloned();
        let cache = Cache::open(&there.store_path(), options).expect("opens");
        names.push(task(&number.to_string()));
        cache.store(&names[number], &entry, &Cancel::new()).expect("stored");
    }
    let mut file = Vec::new();
    let told = export(&there.cache, &names, &Known::default(), &mut file, &Cancel::new());
    assert_eq!(told.expect("exported").blobs, 3, "once for each signer, whoever comes first");
    let reader = Cache::open(&here.store_path(), unlimited().with_trusted([ours.trusted()]));
    let told = imported(&reader.expect("opens"), &file);
    assert_eq!((told.entries, told.untrusted_entries, told.blobs), (2, 2, 1), "{told:?}");
    assert!(told.is_complete());
    assert_eq!(here.cache.stats().expect("counted").entries, 2);
    // And of what is exported with keys.
    let reader = Cache::open(&there.store_path(), unlimited().with_trusted([ours.trusted()]));
    let told =
        export(&reader.expect("opens"), &names, &Known::default(), io::sink(), &Cancel::new());
    assert_eq!(told.expect("exported").entries, 2);
}

#[test]
fn a_damaged_entry_is_left_out_of_a_bundle() {
    let there = filled();
    let more =
        there.blobs().into_iter().find(|path| fs::metadata(path).expect("there").len() == 310_000);
    let more = more.expect("a blob");
    fs::set_permissions(&more, Permissions::from_mode(0o644)).expect("set");
    fs::write(&more, noise(9, 310_000)).expect("written");
    let (file, told) = exported(&there.cache, &ALL, &Known::default());
    assert_eq!((told.entries, told.damaged_entries), (2, 1), "{told:?}");
    assert!(imported(&lab().cache, &file).is_complete());
    assert!(there.cache.lookup(&task("twin")).expect("a lookup").is_none());
}

// The command.

fn larder() -> String {
    let place = std::env::var("LARDER_TEST_COMMAND");
    place.unwrap_or_else(|_| env!("CARGO_BIN_EXE_larder").to_owned())
}

fn run(lab: &Lab, words: &[&str], stdin: &[u8]) -> Output {
    let mut command = Command::new(larder());
    command.arg("--store").arg(lab.store_path()).args(words).current_dir(lab.folder.path());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("it starts");
    let mut input = child.stdin.take().expect("a pipe");
    let stdin = stdin.to_vec();
    let writer = std::thread::spawn(move || drop(input.write_all(&stdin)));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic");
    output
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

#[test]
fn the_command_carries_entries_by_files_and_by_pipes() {
    let (there, here) = (filled(), lab());
    let file = there.path("all.larder");
    let name = file.to_str().expect("text");
    fs::write(&file, "what was there before").expect("written");
    let done = run(&there, &["bundle", "export", name], b"");
    assert_eq!(status(&done), 0, "{done:?}");
    assert!(String::from_utf8_lossy(&done.stdout).starts_with("exported 3 entries"), "{done:?}");
    let all = fs::read(&file).expect("written");
    assert_eq!(all, exported(&there.cache, &ALL, &Known::default()).0);
    let left: Vec<_> = fs::read_dir(there.folder.path()).expect("listed").collect();
    assert_eq!(left.len(), 3, "no part of a file is left: {left:?}");

    let piped = run(&there, &["bundle", "export", "-", "--key", "tree", "--key", "quiet"], b"");
    assert_eq!(status(&piped), 0, "{piped:?}");
    let done = run(&here, &["--json", "bundle", "import", "-"], &piped.stdout);
    assert_eq!(status(&done), 0, "{done:?}");
    let told: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!((told["entries"].as_u64(), told["ending"].as_str()), (Some(2), Some("whole")));

    let base = here.path("base.larder");
    fs::write(&base, &piped.stdout).expect("written");
    let base = base.to_str().expect("text");
    let more = run(&there, &["bundle", "export", "-", "--base", base], b"");
    assert_eq!(status(&more), 0, "{more:?}");
    assert!(more.stdout.len() < 320_000);
    assert_eq!(
        status(&run(&lab(), &["bundle", "import", "-"], &more.stdout)),
        1,
        "not all is there"
    );
    assert_eq!(status(&run(&here, &["bundle", "import", "-"], &more.stdout)), 0);
    assert_same(&there.cache, &here.cache, "twin");

    let cut = run(&lab(), &["bundle", "import", "-"], &all[..all.len() - 9]);
    assert_eq!(status(&cut), 1, "{cut:?}");
    assert!(String::from_utf8_lossy(&cut.stderr).contains("ends early"), "{cut:?}");
    assert!(!String::from_utf8_lossy(&cut.stdout).contains("imported 0"), "{cut:?}");
    let mut spoiled = all.clone();
    *spoiled.last_mut().expect("some") ^= 1;
    spoiled.push(1);
    assert_eq!(status(&run(&lab(), &["bundle", "import", "-"], &spoiled)), 3);
    assert_eq!(status(&run(&lab(), &["bundle", "import", "-"], b"something else, and long")), 3);
    assert_eq!(status(&run(&lab(), &["bundle", "import", "/nowhere"], b"")), 2);
}

#[test]
fn the_command_exports_what_was_used_since() {
    let there = filled();
    let set_use = |key: &str| {
        let hex = task(key).to_string();
        let path = there.store_path().join("manifests").join(&hex[..2]).join(&hex[2..]);
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        let file = fs::File::options().write(true).open(path).expect("opens");
        file.set_times(fs::FileTimes::new().set_accessed(long_ago)).expect("set");
    };
    there.cache.maintain().expect("uses are written");
    set_use("tree");
    set_use("twin");
    let recent = run(&there, &["bundle", "export", "-", "--since", "1h"], b"");
    assert_eq!(status(&recent), 0, "{recent:?}");
    let here = lab();
    assert_eq!(imported(&here.cache, &recent.stdout).entries, 1);
    assert!(here.cache.lookup(&task("quiet")).expect("a lookup").is_some());
    let missing = run(&there, &["bundle", "export", "x", "--key", "quiet", "--key", "none"], b"");
    assert_eq!(status(&missing), 1, "{missing:?}");
    assert!(Path::new(&there.path("x")).exists(), "with what is there");
    let nowhere = run(&there, &["bundle", "export", "no/such/folder"], b"");
    assert_eq!(status(&nowhere), 2, "{nowhere:?}");
}
