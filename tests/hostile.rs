//! Hostile store files: sizes that only a file with holes can have, FIFOs where files are expected,
//! a store that everybody may write to. They cost an error or an entry, and no memory, hang or panic.

mod common;

use common::{Lab, noise, task, write_old};
use larder::{
    Cache, CacheEntry, CacheOptions, Cancel, Claim, Error, EvictOptions, Limit, OutputDeclaration,
    Repair,
};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// More than any machine has, and than a process may ask for.
const HUGE_BYTES: u64 = 8 << 40;

/// Makes a file claim so much; false where the filesystem knows no such size.
fn grow(path: &Path) -> bool {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    file.expect("opens").set_len(HUGE_BYTES).is_ok()
}

fn lab_with_an_entry() -> Lab {
    let lab = Lab::new();
    write_old(&lab.workspace().join("out"), &noise(1, 50_000));
    let entry = CacheEntry::capture(&lab.workspace(), &[OutputDeclaration::new("out")]);
    let entry = entry.expect("captured").with_stdout(noise(2, 10_000));
    lab.cache.store(&task("k"), &entry, &Cancel::new()).expect("stored");
    lab
}

#[test]
fn files_that_claim_any_size_take_no_memory() {
    let lab = lab_with_an_entry();
    let store = lab.store_path();
    let evict = |cache: &Cache| {
        cache.evict(&EvictOptions::default(), &Cancel::new(), &mut |_| {}).map(|_| ())
    };
    evict(&lab.cache).expect("references are written");
    for name in ["references", "ghosts", "tally", "stamps", "identity", "index.seal", "index.redb"]
    {
        if !grow(&store.join(name)) {
            common::skip("the filesystem has no files of 8 TiB");
            return;
        }
    }
    let hold = store.join("holds/0123456789abcdef");
    fs::create_dir_all(store.join("holds")).expect("made");
    assert!(grow(&hold));
    // Somebody holds it.
    let held = File::open(&hold).expect("opens");
    flock(&held, FlockOperation::NonBlockingLockExclusive).expect("locked");
    let cache = lab.reopen();
    evict(&cache).expect("what is too large is passed over");
    for _ in 0..40 {
        assert!(cache.lookup(&task("k")).expect("a lookup").is_some(), "the manifest says so");
    }
    let report = cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("mended");
    assert_eq!(report.entries, 1, "{report:?}");
    // Whoever removes blobs reads what is held.
    let mut options = EvictOptions::default();
    options.limits.size_bytes_max = Limit::At(1);
    let evicted = cache.evict(&options, &Cancel::new(), &mut |_| {}).expect("evicted");
    assert!(evicted.entries == 1 && evicted.blobs > 0, "{evicted:?}");
}

/// A blob of a log, read whole into memory, was asked for as many bytes as manifest and file claimed.
#[test]
fn a_log_that_claims_any_size_is_an_error() {
    // There a process gets any memory that it asks for, until it uses it.
    let overcommit = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    if overcommit.trim() == "1" {
        common::skip("the system promises memory that it does not have");
        return;
    }
    let lab = lab_with_an_entry();
    let name = task("k").to_string();
    let path = lab.store_path().join("manifests").join(&name[..2]).join(&name[2..]);
    let bytes = fs::read(&path).expect("there");
    let mut manifest = larder::Manifest::decode(&bytes, &task("k")).expect("decodes");
    let larder::LogStream::Blob(blob) = &mut manifest.logs.stdout else { panic!("a long log") };
    blob.size_bytes = HUGE_BYTES;
    manifest.logs.order.clear();
    let digest = blob.digest.to_string();
    fs::write(&path, manifest.encode(&task("k"))).expect("written");
    let blob =
        lab.store_path().join("blobs").join(&digest[..2]).join(format!("{}.400", &digest[2..]));
    fs::set_permissions(&blob, Permissions::from_mode(0o600)).expect("ours");
    if !grow(&blob) {
        common::skip("the filesystem has no files of 8 TiB");
        return;
    }
    let answer = lab.reopen().logs(&task("k"));
    assert!(answer.as_ref().is_err_and(Error::allows_uncached_run), "{answer:?}");
}

#[test]
fn a_claim_whose_file_was_made_huge_names_nobody() {
    let lab = Lab::new();
    let Ok(Claim::Mine(flight)) = lab.cache.claim(&task("k")) else { panic!("it is free") };
    let file = lab.store_path().join("builds").join(&task("k").to_string()[..32]);
    if !grow(&file) {
        common::skip("the filesystem has no files of 8 TiB");
        return;
    }
    let other = lab.reopen().claim(&task("k")).expect("an answer");
    assert!(matches!(other, Claim::Building { .. }), "{other:?}");
    drop(flight);
}

#[test]
fn a_store_that_everybody_may_write_to_is_refused() {
    for is_made in [false, true] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("store");
        if is_made {
            drop(Cache::open(&path, CacheOptions::default()).expect("opens"));
        } else {
            fs::create_dir(&path).expect("made");
        }
        for mode in [0o777, 0o702, 0o1777, 0o2772] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
            let opened = Cache::open(&path, CacheOptions::default());
            assert!(matches!(opened, Err(Error::StoreRefused { .. })), "{mode:o}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("ours");
        assert!(Cache::open(&path, CacheOptions::default()).is_ok(), "others may only list it");
    }
}

#[test]
fn what_is_shown_of_a_store_for_debugging_holds_no_key() {
    let lab = Lab::new();
    let shown = format!("{:?} {:?}", lab.cache, larder::LocalBackend::new(lab.cache.clone()));
    let key = format!("{:?}", &lab.cache.secret_key()[..4]);
    assert!(!shown.contains(key.trim_matches(['[', ']'])) && !shown.contains("key"), "{shown}");
}

/// The command opened the store's settings as any file: a FIFO there, which another member of a group
/// can plant, held every command up for ever.
#[cfg(feature = "cli")]
#[test]
fn settings_that_are_no_file_are_told_and_not_waited_for() {
    let lab = lab_with_an_entry();
    let settings = lab.store_path().join("settings.toml");
    let check = || {
        let larder = env!("CARGO_BIN_EXE_larder");
        let mut command = std::process::Command::new(larder);
        command.env("LARDER_DIR", lab.store_path()).current_dir(lab.folder.path());
        let output = command.args(["check", "k"]).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check().0, Some(0));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &settings, mode).expect("made");
    let (status, told) = check();
    assert!(status == Some(2) && told.contains("not a regular file"), "{status:?} {told}");
    fs::remove_file(&settings).expect("removed");
    fs::write(&settings, vec![b'#'; 17 << 20]).expect("written");
    let (status, told) = check();
    assert!(status == Some(2) && told.contains("too large"), "{status:?} {told}");
}
