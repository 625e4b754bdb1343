//! Corruption: damage costs what is damaged, and never gives a wrong answer.

mod common;

use common::{Lab, files_below, inode, noise, task, write, write_old};
use larder::{Cache, CacheOptions, Cancel, Error, LinkMode, MtimeMode, Repair, RestoreOptions};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn scrub(cache: &Cache, repair: Repair) -> larder::ScrubReport {
    cache.scrub(repair, &Cancel::new(), &mut |_| {}).expect("the store can be read")
}

/// A store with five entries, one of them replaced and one removed, and no process that has it open.
fn closed_lab() -> (Lab, Vec<u8>) {
    let lab = Lab::new();
    for number in 0..5 {
        write_old(&lab.workspace().join("out"), format!("old {number}").as_bytes());
        lab.store(&format!("k{number}"), &["out"]);
    }
    // The index as it was before the replacement and the removal.
    let stale_index = {
        lab.cache.maintain().expect("rows are committed");
        drop(Cache::open(&lab.store_path(), CacheOptions::default()).expect("opens"));
        fs::read(lab.store_path().join("index.redb")).expect("an index")
    };
    write_old(&lab.workspace().join("out"), b"new 1");
    lab.store("k1", &["out"]);
    assert!(lab.cache.remove(&task("k2")).expect("removed"));
    lab.cache.maintain().expect("rows are committed");
    (lab, stale_index)
}

/// A process that asks for little does without the index; this one asks for more.
fn use_index(cache: &Cache) {
    for _ in 0..20 {
        assert!(cache.lookup(&task("k0")).expect("a lookup").is_some());
    }
}

/// What must be true whatever happened to the index.
fn expect_right_answers(lab: &Lab, cache: &Cache, what: &str) {
    use_index(cache);
    for (number, expected) in
        [Some("old 0"), Some("new 1"), None, Some("old 3"), Some("old 4")].iter().enumerate()
    {
        let key = task(&format!("k{number}"));
        let hit = cache.lookup(&key).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(hit.is_some(), expected.is_some(), "k{number}, {what}");
        let place = lab.path("place");
        let restored = cache.restore(&key, &place, RestoreOptions::default(), &Cancel::new());
        let restored = restored.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(restored.is_some(), expected.is_some(), "k{number}, {what}");
        if let Some(expected) = expected {
            assert_eq!(
                fs::read(place.join("out")).expect("there"),
                expected.as_bytes(),
                "k{number}, {what}"
            );
        }
    }
}

#[test]
fn a_lost_or_older_index_loses_nothing_and_brings_nothing_back() {
    let (lab, stale_index) = closed_lab();
    let index = lab.store_path().join("index.redb");
    fs::remove_file(&index).expect("removed");
    expect_right_answers(&lab, &lab.reopen(), "the index is gone");
    fs::remove_file(&index).expect("removed");
    fs::write(&index, &stale_index).expect("written");
    expect_right_answers(&lab, &lab.reopen(), "the index is an older one");
    for (what, garbage) in [("empty", &b""[..]), ("short", b"redb"), ("text", &vec![b'x'; 100_000])]
    {
        fs::remove_file(&index).expect("removed");
        fs::write(&index, garbage).expect("written");
        expect_right_answers(&lab, &lab.reopen(), what);
        expect_right_answers(&lab, &lab.reopen(), "and again after that");
    }
    fs::remove_file(&index).expect("removed");
    fs::create_dir(&index).expect("a directory in its place");
    expect_right_answers(&lab, &lab.reopen(), "a directory");
    // Under a process that has it open.
    expect_right_answers(&lab, &lab.cache, "replaced under an open store");
    assert!(scrub(&lab.reopen(), Repair::No).is_clean());
}

#[test]
fn a_flipped_byte_anywhere_in_the_index_gives_no_wrong_answer() {
    let (lab, _) = closed_lab();
    let store = lab.path("store copy");
    let copied =
        Command::new("cp").arg("-a").arg(lab.store_path()).arg(&store).status().expect("cp runs");
    assert!(copied.success());
    drop(Cache::open(&store, CacheOptions::default()).expect("opens"));
    let index = store.join("index.redb");
    let image = fs::read(&index).expect("an index");
    // Every byte of the header; the pages in use, and the rest, are sampled.
    let positions = (0..image.len()).filter(|position| {
        let is_used = image[*position] != 0;
        *position < 320 || (is_used && position % 61 == 0) || position % 509 == 0
    });
    let (mut count, mut set_aside) = (0, 0);
    for position in positions {
        let mut damaged = image.clone();
        damaged[position] ^= 0x24;
        fs::write(&index, &damaged).expect("written");
        let cache = Cache::open(&store, CacheOptions::default()).expect("opens");
        use_index(&cache);
        for (number, expected) in [Some("old 0"), Some("new 1"), None].iter().enumerate() {
            let key = task(&format!("k{number}"));
            let hit =
                cache.lookup(&key).unwrap_or_else(|error| panic!("byte {position}: {error:?}"));
            assert_eq!(hit.is_some(), expected.is_some(), "k{number} after byte {position}");
            assert!(
                hit.is_none_or(|hit| (hit.duration_ms, hit.exit_code) == (1000, 0)),
                "byte {position}"
            );
        }
        let entry = larder::CacheEntry::new(0, 1000);
        cache.store(&task("stored after damage"), &entry, &Cancel::new()).expect("storing goes on");
        assert!(
            cache.lookup(&task("stored after damage")).expect("a lookup").is_some(),
            "byte {position}"
        );
        cache.remove(&task("stored after damage")).expect("removed");
        drop(cache);
        count += 1;
        let quarantine = files_below(&store.join("quarantine"));
        set_aside += quarantine.len();
        for path in quarantine {
            fs::remove_file(path).expect("removed");
        }
    }
    assert!(count > 400, "{count} positions");
    println!("{count} flips: no wrong answer; the index was set aside {set_aside} times");
}

#[test]
fn a_manifest_with_any_byte_flipped_is_a_miss_and_costs_only_its_entry() {
    let (lab, _) = closed_lab();
    let manifests = files_below(&lab.store_path().join("manifests"));
    let name = task("k3").to_string();
    let path = lab.store_path().join("manifests").join(&name[..2]).join(&name[2..]);
    assert!(manifests.contains(&path));
    let image = fs::read(&path).expect("a manifest");
    for position in 0..image.len() {
        let mut damaged = image.clone();
        damaged[position] ^= 1;
        fs::write(&path, &damaged).expect("written");
        assert!(lab.cache.lookup(&task("k3")).expect("a lookup").is_none(), "byte {position}");
        assert!(!path.exists(), "it is in quarantine");
        assert!(lab.cache.lookup(&task("k4")).expect("a lookup").is_some());
    }
    // Another task's manifest under this name, and things that are no files.
    let other = task("k4").to_string();
    fs::copy(lab.store_path().join("manifests").join(&other[..2]).join(&other[2..]), &path)
        .expect("copied");
    assert!(lab.cache.lookup(&task("k3")).expect("a lookup").is_none(), "another task's manifest");
    fs::create_dir(&path).expect("a directory");
    assert!(lab.cache.lookup(&task("k3")).expect("a lookup").is_none(), "a directory");
    std::os::unix::fs::symlink("/etc/passwd", &path).expect("a symlink");
    assert!(lab.cache.lookup(&task("k3")).is_ok_and(|hit| hit.is_none()), "a symlink");
    write_old(&lab.workspace().join("out"), b"old 3");
    lab.store("k3", &["out"]);
    expect_right_answers(&lab, &lab.cache, "healed");
}

#[test]
fn a_blob_damaged_in_any_way_is_caught_and_healed() {
    let damages: [(&str, fn(&Path)); 6] = [
        ("a flipped byte", |path| {
            let mut bytes = fs::read(path).expect("readable");
            bytes[1000] ^= 1;
            fs::set_permissions(path, Permissions::from_mode(0o644)).expect("a mode");
            fs::write(path, bytes).expect("written");
        }),
        ("truncated", |path| {
            fs::set_permissions(path, Permissions::from_mode(0o644)).expect("a mode");
            File::options().write(true).open(path).expect("opens").set_len(7).expect("truncated");
        }),
        ("removed", |path| fs::remove_file(path).expect("removed")),
        ("a directory", |path| {
            fs::remove_file(path).expect("removed");
            fs::create_dir(path).expect("made");
        }),
        ("a symlink", |path| {
            fs::remove_file(path).expect("removed");
            std::os::unix::fs::symlink("/etc/passwd", path).expect("linked");
        }),
        ("a fifo", |path| {
            fs::remove_file(path).expect("removed");
            assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo runs").success());
        }),
    ];
    for (what, damage) in damages {
        for link_mode in [LinkMode::Copy, LinkMode::Hardlink, LinkMode::Reflink, LinkMode::Auto] {
            let lab = Lab::new();
            let good = noise(1, 50_000);
            write_old(&lab.workspace().join("out"), &good);
            lab.store("k", &["out"]);
            let blobs = lab.blobs();
            assert_eq!(blobs.len(), 1);
            damage(&blobs[0]);
            let options = RestoreOptions::default()
                .with_link_mode(link_mode)
                .with_mtime_mode(MtimeMode::Linked);
            let caught = lab.restore("k", &lab.path("place"), options);
            assert!(
                matches!(caught, Err(Error::Damaged { .. })),
                "{what}, {link_mode}: {caught:?}"
            );
            assert!(!lab.path("place/out").exists(), "{what}, {link_mode}");
            assert!(
                lab.cache.lookup(&task("k")).expect("a lookup").is_none(),
                "{what}, {link_mode}"
            );
            lab.store("k", &["out"]);
            lab.restore("k", &lab.path("place"), options).expect("healed").expect("a hit");
            assert_eq!(
                fs::read(lab.path("place/out")).expect("there"),
                good,
                "{what}, {link_mode}"
            );
        }
    }
}

#[test]
fn verify_finds_damage_and_repair_leaves_the_rest() {
    let lab = Lab::new();
    for number in 0..20 {
        write_old(&lab.workspace().join("out/own"), format!("own {number}").as_bytes());
        write_old(&lab.workspace().join("out/shared"), b"shared by all");
        lab.store(&format!("k{number}"), &["out"]);
    }
    assert!(scrub(&lab.cache, Repair::No).is_clean());
    let victim = lab
        .blobs()
        .into_iter()
        .find(|path| fs::read(path).is_ok_and(|bytes| bytes == b"own 7"))
        .expect("the blob of entry 7");
    fs::remove_file(&victim).expect("removed");
    fs::write(&victim, "rot").expect("written");
    let broken = task("k9").to_string();
    fs::write(lab.store_path().join("manifests").join(&broken[..2]).join(&broken[2..]), "rot")
        .expect("written");
    let report = scrub(&lab.cache, Repair::No);
    assert!(!report.is_clean());
    assert_eq!((report.damaged_blobs.len(), report.damaged_manifests.len()), (1, 1));
    assert_eq!(report.broken_entries, [task("k7").to_string()]);
    assert_eq!(scrub(&lab.cache, Repair::No), report, "looking changes nothing");
    scrub(&lab.cache, Repair::Yes);
    let after = scrub(&lab.cache, Repair::No);
    assert!(after.is_clean(), "{after:?}");
    assert_eq!(
        (after.entries, after.orphan_blobs),
        (18, 0),
        "what only entry 9 needed is gone, too"
    );
    for number in (0..20).filter(|number| ![7, 9].contains(number)) {
        let place = lab.path(&format!("place {number}"));
        lab.restore(&format!("k{number}"), &place, RestoreOptions::default())
            .expect("restored")
            .expect("a hit");
        assert_eq!(
            fs::read(place.join("out/own")).expect("there"),
            format!("own {number}").as_bytes()
        );
    }
}

#[test]
fn a_restore_heals_a_blob_from_the_workspace_that_it_restores_to() {
    let lab = Lab::new();
    let good = noise(1, 300_000);
    for name in ["out/first", "out/second"] {
        write_old(&lab.workspace().join(name), &good);
    }
    write_old(&lab.workspace().join("out/third"), b"third");
    lab.store("k", &["out"]);
    let blob = lab.blobs().into_iter().find(|path| fs::read(path).is_ok_and(|bytes| bytes == good));
    let blob = blob.expect("the blob of both");
    // One of the two is still there.
    fs::remove_file(lab.workspace().join("out/second")).expect("removed");
    fs::remove_file(&blob).expect("removed");
    fs::write(&blob, noise(2, 300_000)).expect("written");
    let options = RestoreOptions::default().with_link_mode(LinkMode::Copy);
    lab.restore("k", &lab.workspace(), options).expect("healed").expect("a hit");
    assert!(fs::read(lab.workspace().join("out/second")).expect("there") == good);
    assert!(fs::read(&blob).expect("there") == good);
    assert_eq!(files_below(&lab.store_path().join("quarantine")).len(), 1);
    assert!(scrub(&lab.cache, Repair::No).is_clean());
    // Nothing has it: the entry goes. What only looks like it is no help.
    for name in ["out/first", "out/second"] {
        fs::remove_file(lab.workspace().join(name)).expect("removed");
        write_old(&lab.workspace().join(name), &noise(3, 300_000));
    }
    fs::remove_file(&blob).expect("removed");
    let blobs = lab.blobs().len();
    let caught = lab.restore("k", &lab.workspace(), options);
    assert!(matches!(caught, Err(Error::Damaged { .. })), "{caught:?}");
    assert_eq!(lab.blobs().len(), blobs, "what has other bytes was not taken in");
    assert!(lab.cache.lookup(&task("k")).expect("a lookup").is_none());
}

#[test]
fn a_repair_heals_blobs_from_the_workspaces_that_it_is_told_of() {
    let lab = Lab::new();
    for number in 0..6 {
        write_old(&lab.workspace().join(format!("out/{number}")), &noise(number, 5000));
    }
    lab.store("all", &["out"]);
    write_old(&lab.path("elsewhere/dist"), b"another workspace");
    let entry = larder::CacheEntry::capture(
        &lab.path("elsewhere"),
        &[larder::OutputDeclaration::new("dist")],
    );
    let entry = entry.expect("captured").with_stdout(noise(9, 6000));
    lab.cache.store(&task("other"), &entry, &Cancel::new()).expect("stored");
    let log = fs::canonicalize(
        lab.blobs()
            .into_iter()
            .find(|path| fs::read(path).is_ok_and(|bytes| bytes == noise(9, 6000)))
            .expect("the log"),
    )
    .expect("there");
    for blob in lab.blobs().iter().filter(|path| **path != log) {
        fs::remove_file(blob).expect("removed");
    }
    // One file is not what it was.
    write(&lab.workspace().join("out/3"), &noise(33, 5000));
    let workspaces = [lab.workspace(), lab.path("elsewhere")];
    let report = lab.cache.repair_from(&workspaces, &Cancel::new(), &mut |_| {});
    let report = report.expect("repaired");
    assert_eq!(
        (report.healed_blobs, &report.broken_entries[..]),
        (6, &[task("all").to_string()][..])
    );
    let after = scrub(&lab.cache, Repair::Yes);
    assert!(after.is_clean(), "{after:?}");
    lab.restore("other", &lab.path("place"), RestoreOptions::default())
        .expect("good")
        .expect("a hit");
    assert_eq!(fs::read(lab.path("place/dist")).expect("there"), b"another workspace");
    // Nobody has a log.
    fs::remove_file(&log).expect("removed");
    let report = lab.cache.repair_from(&workspaces, &Cancel::new(), &mut |_| {});
    assert_eq!(report.expect("repaired").broken_entries, [task("other").to_string()]);
}

/// A bad sector below a large blob, or below a log, ended each restore with an I/O error, and nothing
/// healed it.
#[test]
fn what_the_disk_cannot_read_is_damage_however_large() {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIPPED: there is no strace to make reads fail");
        return;
    }
    let lab = Lab::new();
    for (words, is_log) in
        [(["restore", "k", "--link-mode", "copy"].as_slice(), false), (&["logs", "k"], true)]
    {
        let size_bytes = if is_log { 6000 } else { 600_000 };
        let content = noise(7, size_bytes);
        let mut entry = larder::CacheEntry::new(0, 1);
        if is_log {
            entry = entry.with_stdout(&content);
        } else {
            entry.outputs.push(larder::CacheOutput::bytes("out", &content));
        }
        lab.cache.store(&task("k"), &entry, &Cancel::new()).expect("stored");
        lab.cache.maintain().expect("rows are committed");
        let blob = lab
            .blobs()
            .into_iter()
            .find(|path| fs::metadata(path).is_ok_and(|found| found.len() == size_bytes as u64));
        let blob = fs::canonicalize(blob.expect("the blob")).expect("there");
        let place = lab.path("place");
        fs::create_dir_all(&place).expect("made");
        let failed = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", "inject=pread64,copy_file_range:error=EIO", "-P"])
            .arg(&blob)
            .arg(env!("CARGO_BIN_EXE_larder"))
            .arg("--store")
            .arg(lab.store_path())
            .args(words)
            .current_dir(&place)
            .output()
            .expect("strace runs");
        let told = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!(failed.status.code(), Some(3), "{words:?}: {told}");
        assert!(!blob.exists(), "{words:?}: it is in quarantine");
        assert!(lab.cache.lookup(&task("k")).expect("a lookup").is_none(), "{words:?}");
        lab.cache.store(&task("k"), &entry, &Cancel::new()).expect("stored");
        assert!(lab.cache.logs(&task("k")).expect("healed").is_some());
        let restored = lab.restore("k", &lab.path("other"), RestoreOptions::default());
        assert!(restored.expect("healed").is_some());
    }
}

/// A rig found: a folder of blobs, or of manifests, that is none stopped all that needed it for ever.
#[test]
fn a_folder_that_is_none_costs_what_was_in_it_and_is_made_anew() {
    for parent in ["blobs", "manifests"] {
        for damage in ["a file", "a symlink", "a symlink to a file", "nothing"] {
            let lab = Lab::new();
            write_old(&lab.workspace().join("out"), b"content");
            lab.store("k", &["out"]);
            let folders = fs::read_dir(lab.store_path().join(parent)).expect("listed");
            for folder in folders.map(|folder| folder.expect("listed").path()) {
                fs::remove_dir_all(&folder).expect("removed");
                match damage {
                    "a file" => write(&folder, b"x"),
                    "a symlink" => {
                        std::os::unix::fs::symlink("/nowhere/at/all", &folder).expect("linked");
                    }
                    "a symlink to a file" => {
                        std::os::unix::fs::symlink("/etc/passwd", &folder).expect("linked");
                    }
                    _ => {}
                }
            }
            let restored = lab.restore("k", &lab.path("place"), RestoreOptions::default());
            assert!(
                matches!(restored, Ok(None) | Err(Error::Damaged { .. })),
                "{parent}, {damage}: {restored:?}"
            );
            lab.store("k", &["out"]);
            let restored = lab.restore("k", &lab.path("place"), RestoreOptions::default());
            assert!(restored.is_ok_and(|hit| hit.is_some()), "{parent}, {damage}");
            scrub(&lab.cache, Repair::Yes);
            assert!(scrub(&lab.cache, Repair::No).is_clean(), "{parent}, {damage}");
        }
    }
}

/// A log whose blob was no file could not be read, and the entry was never healed.
#[test]
fn a_log_that_is_no_file_is_damage() {
    let lab = Lab::new();
    let entry = larder::CacheEntry::new(0, 1).with_stdout(noise(1, 6000));
    for damage in ["a directory", "a symlink", "a fifo"] {
        lab.cache.store(&task("k"), &entry, &Cancel::new()).expect("stored");
        let blob = lab.blobs().remove(0);
        fs::remove_file(&blob).expect("removed");
        match damage {
            "a directory" => fs::create_dir(&blob).expect("made"),
            "a symlink" => std::os::unix::fs::symlink("/etc/passwd", &blob).expect("linked"),
            _ => {
                assert!(Command::new("mkfifo").arg(&blob).status().expect("mkfifo runs").success());
            }
        }
        let caught = lab.cache.logs(&task("k"));
        assert!(matches!(caught, Err(Error::Damaged { .. })), "{damage}: {caught:?}");
        assert!(lab.cache.lookup(&task("k")).expect("a lookup").is_none(), "{damage}");
        assert!(fs::symlink_metadata(&blob).is_err(), "{damage}: it is in quarantine");
    }
}

#[test]
fn a_repair_after_much_damage_leaves_the_rest_and_says_what_was_lost_on_one_screen() {
    const ENTRIES: u64 = 250;
    let lab = Lab::new();
    let contents = |entry: u64, file: u64| noise(entry * 100 + file, 100 + (file * 37) as usize);
    for number in 0..ENTRIES {
        let mut entry = larder::CacheEntry::new(0, 1);
        for file in 0..16 {
            entry
                .outputs
                .push(larder::CacheOutput::bytes(format!("out/{file}"), contents(number, file)));
        }
        lab.cache.store(&task(&format!("k{number}")), &entry, &Cancel::new()).expect("stored");
    }
    let mut files = lab.blobs();
    files.extend(files_below(&lab.store_path().join("manifests")));
    files.sort();
    assert_eq!(files.len() as u64, ENTRIES * 17);
    // Every hundredth: flipped, cut short, or gone.
    let mut hit = 0;
    for (at, path) in files.iter().step_by(100).enumerate() {
        let mut bytes = fs::read(path).expect("readable");
        fs::remove_file(path).expect("removed");
        match at % 3 {
            0 => bytes[50] ^= 4,
            1 => bytes.truncate(20),
            _ => continue,
        }
        fs::write(path, bytes).expect("written");
        hit += 1;
    }
    let larder = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.arg("--store").arg(lab.store_path()).args(words);
        let output = command.output().expect("larder runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (_, listed) = larder(&["--json", "verify"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let broken: Vec<&str> = listed["broken_entries"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(serde_json::Value::as_str)
        .collect();
    let damaged: Vec<&str> = listed["damaged_manifests"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(serde_json::Value::as_str)
        .collect();
    let damaged_blobs = listed["damaged_blobs"].as_array().expect("a list").len();
    assert_eq!(damaged_blobs + damaged.len(), hit, "--json lists all");
    let (status, told) = larder(&["verify", "--repair"]);
    assert_ne!(status, Some(0), "damage was found");
    assert!(told.lines().count() <= 24, "more than a screen:\n{told}");
    assert!(told.contains("and ") && told.contains("--json"), "{told}");
    let (status, told) = larder(&["verify"]);
    assert_eq!((status, told.lines().last()), (Some(0), Some("clean")), "{told}");
    let mut lost = 0;
    for number in 0..ENTRIES {
        let key = format!("k{number}");
        let name = task(&key).to_string();
        let place = lab.path(&format!("place {number}"));
        let restored =
            lab.restore(&key, &place, RestoreOptions::default()).expect("no damage is left");
        let shard = lab.store_path().join("manifests").join(&name[..2]).join(&name[2..]);
        if broken.contains(&name.as_str()) || damaged.contains(&name.as_str()) || !shard.exists() {
            assert!(restored.is_none(), "{key} was lost");
            lost += 1;
            continue;
        }
        assert!(restored.is_some(), "{key} was not damaged");
        for file in 0..16 {
            let found = fs::read(place.join(format!("out/{file}"))).expect("there");
            assert!(found == contents(number, file), "{key}, file {file}");
        }
    }
    assert!(lost <= files.len() as u64 / 100 + 1, "{lost} entries for {} files", files.len() / 100);
}

/// Found by fuzzing: the process that repaired a damaged index went on calling it damaged.
#[test]
fn a_repair_settles_a_damaged_index() {
    let (lab, _) = closed_lab();
    fs::write(lab.store_path().join("index.redb"), vec![b'x'; 100_000]).expect("written");
    let cache = lab.reopen();
    let report = scrub(&cache, Repair::No);
    assert!(report.is_index_damaged && !report.is_clean(), "{report:?}");
    scrub(&cache, Repair::Yes);
    assert!(scrub(&cache, Repair::No).is_clean());
    expect_right_answers(&lab, &cache, "repaired");
}

#[test]
fn a_repair_leaves_blobs_alone_while_somebody_holds_them() {
    let lab = Lab::new();
    write_old(&lab.workspace().join("out"), b"held");
    lab.store("k", &["out"]);
    let outputs = lab.cache.outputs(&task("k")).expect("readable").expect("there");
    lab.cache.remove(&task("k")).expect("removed");
    scrub(&lab.reopen(), Repair::Yes);
    let larder::OutputContent::Stored(blob) = &outputs[0].content else { panic!("a stored blob") };
    assert_eq!(blob.read().expect("still there"), b"held");
    drop(outputs);
    let report = scrub(&lab.reopen(), Repair::Yes);
    assert_eq!(report.orphan_blobs, 1);
    assert!(lab.blobs().is_empty(), "nobody holds it any more");
}

#[test]
fn a_store_that_travelled_in_an_archive_is_rehashed_in_place() {
    let lab = Lab::new();
    for number in 0..10 {
        write_old(&lab.workspace().join(format!("out/{number}")), &noise(number, 40_000));
    }
    lab.store("k", &["out"]);
    let moved = lab.path("moved");
    fs::create_dir(&moved).expect("made");
    let tar = lab.path("store.tar");
    let run = |command: &mut Command| assert!(command.status().expect("tar runs").success());
    run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(lab.folder.path()).arg("store"));
    run(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&moved));
    let cache = Cache::open(&moved.join("store"), CacheOptions::default()).expect("opens");
    let before: Vec<u64> =
        files_below(&moved.join("store/blobs")).iter().map(|path| inode(path)).collect();
    let options = RestoreOptions::default()
        .with_link_mode(LinkMode::Hardlink)
        .with_mtime_mode(MtimeMode::Linked);
    let restored = cache.restore(&task("k"), &lab.path("place"), options, &Cancel::new());
    assert_eq!(restored.expect("restored").expect("a hit").hardlinked.files, 10);
    let after: Vec<u64> =
        files_below(&moved.join("store/blobs")).iter().map(|path| inode(path)).collect();
    assert_eq!(before, after, "no blob was copied");
    // A blob that rotted on the way is found, though its size is right and its stamp is unknown.
    let second = lab.path("second");
    fs::create_dir(&second).expect("made");
    run(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&second));
    let rotten = &files_below(&second.join("store/blobs"))[3];
    fs::set_permissions(rotten, Permissions::from_mode(0o644)).expect("a mode");
    fs::write(rotten, noise(99, 40_000)).expect("written");
    fs::set_permissions(rotten, Permissions::from_mode(0o444)).expect("a mode");
    let cache = Cache::open(&second.join("store"), CacheOptions::default()).expect("opens");
    let caught = cache.restore(&task("k"), &lab.path("other place"), options, &Cancel::new());
    assert!(matches!(caught, Err(Error::Damaged { .. })), "{caught:?}");
}

#[test]
fn a_store_that_is_removed_or_replaced_while_open_is_noticed() {
    let lab = Lab::new();
    write(&lab.workspace().join("out"), b"x");
    lab.store("k", &["out"]);
    fs::rename(lab.store_path(), lab.path("aside")).expect("moved away");
    let entry = larder::CacheEntry::new(0, 1).with_stdout("x");
    let refused = lab.cache.store(&task("lost"), &entry, &Cancel::new());
    assert!(matches!(refused, Err(Error::StoreRefused { .. })), "{refused:?}");
    let other = lab.reopen();
    let refused = lab.cache.store(&task("lost"), &entry, &Cancel::new());
    assert!(
        matches!(refused, Err(Error::StoreRefused { .. })),
        "another store is in its place: {refused:?}"
    );
    assert!(other.lookup(&task("lost")).expect("a lookup").is_none());
    fs::remove_dir_all(lab.store_path()).expect("removed");
    let refused = other.store(&task("lost"), &entry, &Cancel::new());
    assert!(matches!(refused, Err(Error::StoreRefused { .. })), "removed altogether: {refused:?}");
}

#[test]
fn places_that_are_no_store_of_ours_are_refused_untouched() {
    let lab = Lab::new();
    let foreign = lab.path("foreign");
    write(&foreign.join("precious"), b"mine");
    std::os::unix::fs::symlink(lab.store_path(), lab.path("link")).expect("linked");
    write(&lab.path("file"), b"x");
    for name in ["foreign", "link", "file"] {
        let opened = Cache::open(&lab.path(name), CacheOptions::default());
        assert!(matches!(opened, Err(Error::StoreRefused { .. })), "{name}: {opened:?}");
    }
    for name in ["foreign", "link", "file", "nothing"] {
        let destroyed = larder::destroy(&lab.path(name));
        assert!(matches!(destroyed, Err(Error::StoreRefused { .. })), "{name}: {destroyed:?}");
    }
    assert_eq!(files_below(&foreign), [foreign.join("precious")]);
    let busy = larder::destroy(&lab.store_path());
    assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
    let path = lab.store_path();
    drop(lab.cache);
    larder::destroy(&path).expect("destroyed");
    assert!(!path.exists());
}

/// Restores make empty files without their blob, so one that was no file any more was first met by a
/// scrub, and ended it with an error.
#[test]
fn a_blob_of_no_bytes_that_is_no_file_is_damage_to_a_scrub() {
    let lab = Lab::new();
    write(&lab.workspace().join("out/empty"), b"");
    lab.store("k", &["out"]);
    let blob = lab.blobs().remove(0);
    fs::remove_file(&blob).expect("removed");
    std::os::unix::fs::symlink("/etc/passwd", &blob).expect("linked");
    assert_eq!(scrub(&lab.cache, Repair::No).damaged_blobs.len(), 1);
    scrub(&lab.cache, Repair::Yes);
    assert!(scrub(&lab.cache, Repair::No).is_clean());
}
