//! Trust: signatures, writers and namespaces. Blobs are shared, trust is not.

mod common;

use common::{Lab, files_below, is_root, noise, skip, store, task, write_old};
use larder::{
    Cache, CacheBackend, CacheEntry, CacheOptions, CacheOutput, CachePolicy, Cancel, Error,
    EvictOptions, IRTask, KeyKind, LinkMode, LocalBackend, Manifest, Namespaces, Purge,
    RestoreOptions, SigningKey, SingleFlight, TaskDigest, Timestamp, TrustedKey, Turn, conformance,
};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const KINDS: &[KeyKind] = &[
    KeyKind::Blake3,
    #[cfg(feature = "ed25519")]
    KeyKind::Ed25519,
];

fn key() -> SigningKey {
    SigningKey::generate(KeyKind::Blake3).expect("the system has randomness")
}

/// Opens the lab's store as somebody who signs, trusts, both or neither.
fn open(lab: &Lab, sign: Option<&SigningKey>, trust: &[&SigningKey]) -> Cache {
    let trusted = trust.iter().map(|key| key.trusted());
    let mut options = CacheOptions::default().with_trusted(trusted);
    options.signing = sign.cloned();
    Cache::open(&lab.store_path(), options).expect("the store opens")
}

fn lab_with_outputs() -> Lab {
    let lab = Lab::new();
    write_old(&lab.workspace().join("out/large"), &noise(1, 50_000));
    write_old(&lab.workspace().join("out/small"), b"small");
    lab
}

fn manifest_path(lab: &Lab, task: &TaskDigest) -> PathBuf {
    let name = task.to_string();
    lab.store_path().join("manifests").join(&name[..2]).join(&name[2..])
}

fn restored(cache: &Cache, key: &str, place: &Path) -> larder::Result<bool> {
    let options = RestoreOptions::default();
    Ok(cache.restore(&task(key), place, options, &Cancel::new())?.is_some())
}

/// Whether an entry is there for somebody; every way to ask must agree.
fn counts_for(cache: &Cache, lab: &Lab, key: &str) -> bool {
    let hit = cache.lookup(&task(key)).expect("a lookup").is_some();
    let place = tempfile::tempdir_in(lab.folder.path()).expect("a folder");
    let answers = [
        restored(cache, key, &place.path().join("place")).expect("no error"),
        cache.logs(&task(key)).expect("no error").is_some(),
        cache.manifest(&task(key)).expect("no error").is_some(),
        cache.outputs(&task(key)).expect("no error").is_some(),
    ];
    assert_eq!(answers, [hit; 4], "restore, logs, manifest and outputs say what the lookup says");
    hit
}

// Signatures.

#[test]
fn what_is_signed_counts_for_those_who_trust_its_key_and_for_those_who_trust_all() {
    for kind in KINDS {
        let lab = lab_with_outputs();
        let (ours, other) = (SigningKey::generate(*kind).expect("made"), key());
        store(&open(&lab, Some(&ours), &[]), "k", &lab.workspace(), &["out"]);
        assert!(counts_for(&open(&lab, None, &[&ours]), &lab, "k"), "{kind}: its key");
        assert!(counts_for(&open(&lab, None, &[&other, &ours]), &lab, "k"), "{kind}: one of two");
        assert!(counts_for(&lab.reopen(), &lab, "k"), "{kind}: somebody without keys");
        assert!(!counts_for(&open(&lab, None, &[&other]), &lab, "k"), "{kind}: another key");
    }
}

#[test]
fn what_is_not_trusted_is_a_miss_that_is_left_alone_until_a_store_replaces_it() {
    let lab = lab_with_outputs();
    lab.store("k", &["out"]);
    let ours = key();
    let reader = open(&lab, Some(&ours), &[&ours]);
    assert!(!counts_for(&reader, &lab, "k"), "nobody signed it");
    assert!(lab.quarantine().is_empty() && counts_for(&lab.reopen(), &lab, "k"), "others trust it");
    store(&reader, "k", &lab.workspace(), &["out"]);
    assert!(counts_for(&reader, &lab, "k"), "signed now");
    store(&open(&lab, Some(&key()), &[]), "k", &lab.workspace(), &["out"]);
    assert!(!counts_for(&reader, &lab, "k"), "replaced, and what was said before is not believed");
}

#[test]
fn an_index_that_knows_an_entry_makes_it_no_more_trusted() {
    let lab = lab_with_outputs();
    lab.store("k", &["out"]);
    lab.cache.maintain().expect("rows are written");
    let reader = open(&lab, None, &[&key()]);
    for _ in 0..40 {
        assert!(reader.lookup(&task("k")).expect("a lookup").is_none());
    }
}

#[test]
fn a_body_that_was_tampered_with_is_a_miss() {
    let lab = lab_with_outputs();
    let ours = key();
    store(&open(&lab, Some(&ours), &[]), "k", &lab.workspace(), &["out"]);
    let path = manifest_path(&lab, &task("k"));
    let original = fs::read(&path).expect("there");
    let reader = open(&lab, None, &[&ours]);
    assert!(counts_for(&reader, &lab, "k"));
    let tamper: [fn(&mut Manifest); 4] = [
        |manifest| manifest.exit_code = 1,
        |manifest| drop(manifest.nodes.pop()),
        |manifest| manifest.writer = "somebody else".parse().ok(),
        |manifest| manifest.signature = None,
    ];
    for (index, tamper) in tamper.into_iter().enumerate() {
        let mut manifest = Manifest::decode(&original, &task("k")).expect("decodes");
        tamper(&mut manifest);
        // With checksums that are right: anybody can make those.
        fs::write(&path, manifest.encode(&task("k"))).expect("written");
        assert!(!counts_for(&reader, &lab, "k"), "case {index}");
        assert!(!counts_for(&open(&lab, None, &[&ours]), &lab, "k"), "case {index}, asked anew");
        assert!(counts_for(&lab.reopen(), &lab, "k"), "case {index}: without keys it is an entry");
    }
    fs::write(&path, &original).expect("written");
    assert!(counts_for(&reader, &lab, "k"), "the signed one is back");
}

#[test]
fn an_entry_that_is_moved_to_another_task_or_namespace_is_a_miss() {
    let lab = lab_with_outputs();
    let ours = key();
    store(&open(&lab, Some(&ours), &[]), "k", &lab.workspace(), &["out"]);
    let original = fs::read(manifest_path(&lab, &task("k"))).expect("there");
    let manifest = Manifest::decode(&original, &task("k")).expect("decodes");
    for target in [task("other"), TaskDigest::derive("main", "k").expect("a key")] {
        let path = manifest_path(&lab, &target);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, manifest.encode(&target)).expect("written");
        let found = open(&lab, None, &[&ours]).lookup(&target).expect("a lookup");
        assert!(found.is_none(), "the signature is for another task");
        assert!(lab.reopen().lookup(&target).expect("a lookup").is_some());
    }
}

/// A blob that somebody changed and gave its old time back looks untouched to level `stamp`. Whoever
/// can write the store can do that, and worse.
#[test]
fn who_asks_for_signatures_does_not_believe_stamps() {
    let lab = lab_with_outputs();
    let ours = key();
    store(&open(&lab, Some(&ours), &[]), "k", &lab.workspace(), &["out"]);
    let blob = lab
        .blobs()
        .into_iter()
        .find(|path| fs::metadata(path).expect("there").len() == 50_000)
        .expect("the large one");
    let modified = fs::metadata(&blob).expect("there").modified().expect("a time");
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(&blob, mode(0o644)).expect("ours");
    fs::write(&blob, noise(2, 50_000)).expect("written");
    fs::File::options()
        .write(true)
        .open(&blob)
        .expect("opens")
        .set_modified(modified)
        .expect("set");
    fs::set_permissions(&blob, mode(0o444)).expect("ours");
    let reader = open(&lab, None, &[&ours]);
    let place = lab.path("place");
    let answer = restored(&reader, "k", &place);
    assert!(matches!(answer, Err(Error::Damaged { .. })), "{answer:?}");
    assert!(!place.join("out").exists(), "nothing was restored");
}

#[test]
fn a_shared_store_gives_copies_to_those_who_ask_for_signatures() {
    if !is_root() {
        skip("to give a directory to a group needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, ours) = (folder.path().join("store"), key());
    let options =
        CacheOptions::default().with_sharing(larder::Sharing::Group).with_signing(ours.clone());
    let cache = Cache::open(&path, options).expect("opens");
    let work = folder.path().join("work");
    write_old(&work.join("out/large"), &noise(1, 50_000));
    store(&cache, "k", &work, &["out"]);
    for (trusted, links) in [(vec![], 2), (vec![ours.trusted()], 1)] {
        let cache = Cache::open(&path, CacheOptions::default().with_trusted(trusted));
        let place = folder.path().join(format!("links {links}"));
        let options = RestoreOptions::default().with_link_mode(LinkMode::Hardlink);
        let cache = cache.expect("opens");
        cache
            .restore(&task("k"), &place, options, &Cancel::new())
            .expect("restored")
            .expect("a hit");
        assert_eq!(fs::metadata(place.join("out/large")).expect("there").nlink(), links);
    }
}

// Writers.

fn store_as(lab: &Lab, writer: Option<&str>, sign: Option<&SigningKey>, key: &str) {
    let mut options = CacheOptions::default();
    options.writer = writer.map(|writer| writer.parse().expect("a name"));
    options.signing = sign.cloned();
    let cache = Cache::open(&lab.store_path(), options).expect("opens");
    store(&cache, key, &lab.workspace(), &["out"]);
}

fn present(lab: &Lab) -> Vec<&'static str> {
    let cache = lab.reopen();
    let keys = ["none", "good", "bad", "worse", "signed"];
    keys.into_iter().filter(|key| cache.lookup(&task(key)).expect("a lookup").is_some()).collect()
}

#[test]
fn what_a_writer_or_a_key_stored_is_purged_and_nothing_else() {
    let lab = lab_with_outputs();
    let bad_key = key();
    store_as(&lab, None, None, "none");
    store_as(&lab, Some("good"), None, "good");
    store_as(&lab, Some("bad"), None, "bad");
    store_as(&lab, Some("bad"), Some(&bad_key), "worse");
    store_as(&lab, Some("good"), Some(&bad_key), "signed");
    let cache = &lab.cache;
    let bad = || Purge::default().with_writer("bad".parse().expect("a name"));
    let run = |purge: &Purge| cache.purge(purge, &Cancel::new()).expect("purged");

    assert_eq!(run(&Purge::default()).removed, 0, "who names nobody removes nothing");
    assert_eq!(run(&bad().with_since(Timestamp { seconds: i64::MAX, nanoseconds: 0 })).removed, 0);
    let told = run(&bad().with_dry_run(true));
    assert_eq!((told.removed, told.examined), (2, 5));
    assert_eq!(present(&lab).len(), 5, "a dry run only says so");
    let torn = manifest_path(&lab, &task("none"));
    let whole = fs::read(&torn).expect("there");
    fs::set_permissions(&torn, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
    fs::write(&torn, &whole[..40]).expect("written");
    assert_eq!(run(&bad().with_dry_run(true)).examined, 4);
    assert!(torn.exists() && lab.quarantine().is_empty(), "and it leaves damage where it is");
    fs::write(&torn, &whole).expect("written");

    let both = bad().with_signer(bad_key.id()).with_since(Timestamp { seconds: 0, nanoseconds: 0 });
    assert_eq!(run(&both).removed, 1, "both must fit");
    assert_eq!(present(&lab), ["none", "good", "bad", "signed"]);
    assert_eq!(run(&bad()).removed, 1);
    assert_eq!(run(&Purge::default().with_signer(bad_key.id())).removed, 1);
    assert_eq!(present(&lab), ["none", "good"]);

    let report = cache.scrub(larder::Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean() && report.entries == 2, "{report:?}");
    assert!(counts_for(&lab.reopen(), &lab, "good"), "blobs that others need are still there");
}

#[test]
fn a_purge_goes_by_time_and_does_not_believe_a_manifest_that_makes_itself_old() {
    let lab = lab_with_outputs();
    store_as(&lab, Some("bad"), None, "bad");
    let path = manifest_path(&lab, &task("bad"));
    let mut manifest =
        Manifest::decode(&fs::read(&path).expect("there"), &task("bad")).expect("ok");
    let stored_at = manifest.origin.stored_at;
    manifest.origin.stored_at = Timestamp { seconds: 1, nanoseconds: 0 };
    fs::write(&path, manifest.encode(&task("bad"))).expect("written");
    let purge = Purge::default().with_writer("bad".parse().expect("a name"));
    let later = Timestamp { seconds: stored_at.seconds + 3600, ..stored_at };
    let cache = lab.reopen();
    let run = |since| cache.purge(&purge.clone().with_since(since), &Cancel::new());
    assert_eq!(run(later).expect("purged").removed, 0, "not stored since then");
    assert_eq!(run(stored_at).expect("purged").removed, 1, "the file's time tells");
}

#[test]
fn what_a_purge_leaves_is_swept_and_counted_like_any_removal() {
    let lab = lab_with_outputs();
    store_as(&lab, Some("bad"), None, "bad");
    write_old(&lab.workspace().join("out/large"), &noise(3, 60_000));
    store_as(&lab, Some("good"), None, "good");
    let purge = Purge::default().with_writer("bad".parse().expect("a name"));
    assert_eq!(lab.cache.purge(&purge, &Cancel::new()).expect("purged").removed, 1);
    lab.cache.evict(&EvictOptions::default(), &Cancel::new(), &mut |_| {}).expect("evicted");
    assert_eq!(lab.cache.stats().expect("counted").entries, 1);
    lab.cache.scrub(larder::Repair::Yes, &Cancel::new(), &mut |_| {}).expect("mended");
    let sizes: Vec<u64> = files_below(&lab.store_path().join("blobs"))
        .iter()
        .map(|path| fs::metadata(path).expect("there").len())
        .collect();
    assert!(!sizes.contains(&50_000) && sizes.contains(&60_000), "{sizes:?}");
    assert!(counts_for(&lab.reopen(), &lab, "good"));
}

// Namespaces.

fn backend(lab: &Lab, own: &str, others: &[&str]) -> LocalBackend {
    let names = Namespaces::new(own).and_then(|names| names.reading(others.iter().copied()));
    LocalBackend::new(lab.reopen()).with_namespaces(names.expect("names"))
}

async fn put(backend: &LocalBackend, digest: &str, text: &str) {
    let mut entry = CacheEntry::new(0, 1).with_stdout(text);
    entry.outputs.push(CacheOutput::bytes("out.txt", text));
    let stored = backend.store(&IRTask::new("t"), digest, &entry, CachePolicy::Normal).await;
    stored.expect("stored");
}

/// What somebody finds; all ways to ask must agree.
async fn found(backend: &LocalBackend, lab: &Lab, digest: &str) -> Option<String> {
    let task = IRTask::new("t");
    let hit = backend.check(&task, digest, CachePolicy::Normal).await.expect("a check").hit;
    let place = tempfile::tempdir_in(lab.folder.path()).expect("a folder");
    let outputs = backend.restore_outputs(&task, digest, place.path()).await;
    let (stdout, _) = backend.get_logs(&task, digest).await.expect("logs");
    if !hit {
        assert!(matches!(outputs, Err(Error::Miss)) && stdout.is_none());
        return None;
    }
    assert_eq!(outputs.expect("restored").len(), 1);
    let text = fs::read_to_string(place.path().join("out.txt")).expect("restored");
    assert_eq!(stdout.as_ref(), Some(&text), "logs and outputs are of one entry");
    Some(text)
}

#[tokio::test]
async fn a_pull_request_reads_the_main_line_and_writes_only_its_own() {
    let lab = Lab::new();
    let main = backend(&lab, "main", &[]);
    let (pull, other) = (backend(&lab, "pull-1", &["main"]), backend(&lab, "pull-2", &["main"]));
    put(&main, "a", "main's a").await;
    put(&pull, "b", "pull's b").await;
    assert_eq!(found(&pull, &lab, "a").await.as_deref(), Some("main's a"));
    assert_eq!(found(&pull, &lab, "b").await.as_deref(), Some("pull's b"));
    assert_eq!(found(&main, &lab, "b").await, None, "the main line does not see it");
    assert_eq!(found(&other, &lab, "b").await, None, "nor does another pull request");

    put(&pull, "a", "pull's a").await;
    assert_eq!(found(&pull, &lab, "a").await.as_deref(), Some("pull's a"), "the own one first");
    assert_eq!(found(&main, &lab, "a").await.as_deref(), Some("main's a"), "as it was");
    assert_eq!(found(&other, &lab, "a").await.as_deref(), Some("main's a"));
    assert_eq!(found(&backend(&lab, "", &[]), &lab, "a").await, None, "nor who names none");
}

#[tokio::test]
async fn a_turn_is_taken_in_the_own_namespace_and_a_hit_in_any() {
    let lab = Lab::new();
    let (main, pull) = (backend(&lab, "main", &[]), backend(&lab, "pull", &["main"]));
    let task = IRTask::new("t");
    let turn = pull.check_or_claim(&task, "a", CachePolicy::Normal).await.expect("a turn");
    assert!(matches!(&turn, Turn::Mine(guard) if guard.is_exclusive()), "{turn:?}");
    let second = main.check_or_claim(&task, "a", CachePolicy::Normal).await.expect("a turn");
    assert!(matches!(&second, Turn::Mine(_)), "the main line does not wait for a pull request");
    put(&main, "a", "text").await;
    drop(turn);
    let turn = pull.check_or_claim(&task, "a", CachePolicy::Normal).await.expect("a turn");
    assert!(matches!(turn, Turn::Hit(_)), "{turn:?}");
}

#[tokio::test]
async fn local_conforms_with_keys_and_namespaces() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ours = key();
    let options = CacheOptions::default()
        .with_trusted([ours.trusted()])
        .with_signing(ours)
        .with_writer("conformance".parse().expect("a name"));
    let backend = LocalBackend::open(&folder.path().join("store"), options)
        .expect("opens")
        .with_namespaces(Namespaces::new("own").expect("a name").reading(["main"]).expect("names"));
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).expect("made");
    conformance::all(&backend, &scratch).await;
    conformance::single_flight(&backend).await;
}

#[test]
fn a_key_file_that_cannot_be_used_says_which_and_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("key");
    fs::write(&path, "larder-key-1 blake3-secret 00\n").expect("written");
    let error = TrustedKey::load(&path).expect_err("no key");
    let text = error.to_string();
    assert!(text.contains(path.to_str().expect("UTF-8")) && !text.contains(" 00"), "{text}");
    assert!(!error.allows_uncached_run(), "a mistake in the call");
}

// The command.

#[cfg(feature = "cli")]
mod command {
    use super::*;
    use serde_json::Value;
    use std::process::{Command, Output};

    struct Shop {
        lab: Lab,
        variables: Vec<(&'static str, String)>,
    }

    impl Shop {
        fn new() -> Shop {
            Shop { lab: lab_with_outputs(), variables: Vec::new() }
        }

        fn run(&self, args: &[&str]) -> Output {
            let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
            for (name, _) in std::env::vars_os() {
                if name.to_string_lossy().starts_with("LARDER_") {
                    command.env_remove(&name);
                }
            }
            command.env("LARDER_DIR", self.lab.store_path()).current_dir(self.lab.workspace());
            command.envs(self.variables.iter().map(|(name, value)| (name, value)));
            command.args(args).output().expect("it runs")
        }

        fn status(&self, args: &[&str]) -> Option<i32> {
            self.run(args).status.code()
        }

        fn json(&self, args: &[&str]) -> Value {
            let output = self.run(&[args, &["--json"]].concat());
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
        }

        fn place(&self, name: &str) -> String {
            self.lab.path(name).to_str().expect("UTF-8").to_owned()
        }

        /// Makes a key; its files and its id.
        fn key(&self, name: &str) -> (String, String, String) {
            let secret = self.place(name);
            let made = self.json(&["key", "new", &secret]);
            let text = |field: &str| made[field].as_str().expect("a text").to_owned();
            assert_eq!(self.json(&["key", "show", &secret])["key"], made["key"]);
            (secret, text("public"), text("key"))
        }
    }

    #[test]
    fn keys_sign_and_are_trusted_by_flag_environment_and_file() {
        let mut shop = Shop::new();
        let (secret, public, id) = shop.key("ours");
        let (_, other, _) = shop.key("other");
        assert_eq!(shop.status(&["store", "k", "-o", "out", "--sign", &secret]), Some(0));
        assert_eq!(shop.status(&["check", "k", "--trust", &public]), Some(0));
        assert_eq!(shop.status(&["check", "k", "--trust", &secret]), Some(0), "the secret will do");
        assert_eq!(shop.status(&["check", "k", "--trust", &other]), Some(1));
        assert_eq!(shop.status(&["check", "k", "--trust", &other, "--trust", &public]), Some(0));
        assert_eq!(shop.status(&["restore", "k", "--trust", &other]), Some(1));
        assert_eq!(shop.status(&["logs", "k", "--trust", &other]), Some(1));

        for (trust, verdict) in [(&public, "trusted"), (&other, "not trusted")] {
            let shown = shop.json(&["show", "k", "--trust", trust]);
            assert_eq!(shown["signature"], verdict);
            assert_eq!(shown["signer"], *id);
        }
        assert_eq!(shop.json(&["show", "k"])["signature"], "not checked");

        fs::write(shop.lab.workspace().join("larder.toml"), "trust = ['../other.pub']")
            .expect("written");
        assert_eq!(shop.status(&["check", "k"]), Some(1), "by larder.toml");
        shop.variables = vec![("LARDER_TRUST", public)];
        assert_eq!(shop.status(&["check", "k"]), Some(0), "the environment replaces the file");
        shop.variables = vec![("LARDER_TRUST", other)];
        fs::write(shop.lab.workspace().join("larder.toml"), "trust = ['../ours.pub']")
            .expect("written");
        assert_eq!(shop.status(&["check", "k"]), Some(1), "no workspace adds a key of its own");
    }

    #[test]
    fn a_run_brings_back_only_what_is_trusted_and_goes_on_without_a_key() {
        let mut shop = Shop::new();
        let (secret, public, _) = shop.key("ours");
        let run = [
            "run",
            "-i",
            "out/small",
            "-o",
            "made",
            "--",
            "sh",
            "-c",
            "echo >> ../count; touch made",
        ];
        let count = |shop: &Shop| fs::read(shop.lab.path("count")).map_or(0, |bytes| bytes.len());
        let said =
            |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
        for _ in 0..2 {
            assert_eq!(shop.status(&run), Some(0));
        }
        assert_eq!(count(&shop), 1, "unsigned, and that will do");
        shop.variables = vec![("LARDER_TRUST", public), ("LARDER_SIGN", secret.clone())];
        for _ in 0..2 {
            assert_eq!(shop.status(&run), Some(0));
        }
        assert_eq!(count(&shop), 2, "run again, signed, and a hit");
        fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .expect("ours");
        let hit = shop.run(&run);
        assert_eq!(
            (hit.status.code(), count(&shop)),
            (Some(0), 2),
            "to read needs no key that signs"
        );
        assert!(!said(&hit).contains("0600"), "and nobody is told of one: {hit:?}");
        fs::write(shop.lab.workspace().join("out/small"), "changed").expect("written");
        for count_expected in [3, 4] {
            let ran = shop.run(&run);
            assert_eq!((ran.status.code(), count(&shop)), (Some(0), count_expected));
            assert!(said(&ran).contains("not stored") && said(&ran).contains("0600"), "{ran:?}");
        }
        assert_eq!(shop.status(&["check", "k"]), Some(1), "a miss, and no error");
        assert_eq!(shop.status(&["store", "k", "-o", "out"]), Some(2), "to store does need it");
        assert_eq!(shop.status(&["stats"]), Some(0), "who looks after a store needs no key");
        shop.variables = vec![("LARDER_TRUST", ":".to_owned())];
        assert_eq!(shop.status(&["check", "k"]), Some(2), "a list without a key is a mistake");
        assert_eq!(shop.status(&run), Some(2), "also of a run: it would trust everybody");
    }

    #[test]
    fn show_prefers_what_would_be_brought_back() {
        let shop = Shop::new();
        let (secret, public, id) = shop.key("ours");
        assert_eq!(shop.status(&["store", "k", "-o", "out", "--namespace", "pull"]), Some(0));
        assert_eq!(shop.status(&["store", "k", "-o", "out", "--sign", &secret]), Some(0));
        let show = ["show", "k", "--namespace", "pull", "--read-namespace", "default"];
        assert_eq!(shop.json(&show)["signature"], "unsigned", "the own one goes first");
        let shown = shop.json(&[&show[..], &["--trust", &public]].concat());
        assert_eq!(shown["signer"], *id, "but not before one that counts");
    }

    #[test]
    fn a_key_to_trust_that_everybody_may_write_is_refused() {
        let shop = Shop::new();
        let (_, public, _) = shop.key("ours");
        for (mode, status) in [(0o666, 2), (0o664, 1), (0o644, 1)] {
            fs::set_permissions(&public, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("ours");
            assert_eq!(shop.status(&["check", "k", "--trust", &public]), Some(status), "{mode:o}");
        }
    }

    #[test]
    fn namespaces_by_flag_environment_and_file() {
        let mut shop = Shop::new();
        assert_eq!(shop.status(&["store", "k", "-o", "out"]), Some(0));
        let pull = ["--namespace", "pull", "--read-namespace", "default"];
        assert_eq!(shop.status(&["check", "k", "--namespace", "pull"]), Some(1));
        assert_eq!(shop.status(&[&["check", "k"][..], &pull].concat()), Some(0));
        assert_eq!(shop.status(&[&["store", "own", "-o", "out"][..], &pull].concat()), Some(0));
        assert_eq!(shop.status(&["check", "own"]), Some(1), "who names none does not see it");
        assert_eq!(shop.status(&[&["rm", "k"][..], &pull].concat()), Some(1), "not its own");
        fs::write(
            shop.lab.workspace().join("larder.toml"),
            "namespace = 'pull'\nread-namespaces = ['default']",
        )
        .expect("written");
        assert_eq!(
            (shop.status(&["check", "own"]), shop.status(&["check", "k"])),
            (Some(0), Some(0))
        );
        shop.variables =
            vec![("LARDER_NAMESPACE", "third".into()), ("LARDER_READ_NAMESPACES", "x,pull".into())];
        assert_eq!(
            (shop.status(&["check", "own"]), shop.status(&["check", "k"])),
            (Some(0), Some(1))
        );
        assert_eq!(shop.status(&["check", "k", "--namespace", "a\nb"]), Some(2));
    }

    #[test]
    fn what_a_writer_stored_is_removed_by_name_key_and_time() {
        let mut shop = Shop::new();
        let (secret, _, id) = shop.key("bad");
        assert_eq!(shop.status(&["store", "good", "-o", "out"]), Some(0));
        shop.variables = vec![("LARDER_WRITER", "ci-7".into())];
        assert_eq!(shop.status(&["store", "one", "-o", "out"]), Some(0));
        assert_eq!(
            shop.status(&["store", "two", "-o", "out", "--namespace", "n", "--sign", &secret]),
            Some(0)
        );
        assert_eq!(shop.json(&["show", "one"])["writer"], "ci-7");
        let removed = |args: &[&str]| shop.json(&[&["rm"], args].concat())["removed"].clone();
        assert_eq!(removed(&["--writer", "ci-8"]), 0);
        assert_eq!(removed(&["--writer", "ci-7", "--since", "2100-01-01T00:00:00Z"]), 0);
        assert_eq!(removed(&["--writer", "ci-7", "--since", "1h", "--dry-run"]), 2);
        assert_eq!(removed(&["--signer", &id]), 1);
        assert_eq!(removed(&["--writer", "ci-7", "--since", "1h"]), 1);
        assert_eq!(shop.status(&["check", "good"]), Some(0));
        for wrong in [&["rm"][..], &["rm", "--since", "1h"], &["rm", "k", "--writer", "w"]] {
            assert_eq!(shop.status(wrong), Some(2), "{wrong:?}");
        }
    }
}
