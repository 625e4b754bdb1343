//! Servers and a client that are not ours: what we store another client reads, and the other way round.
//!
//! `LARDER_TEST_SERVERS` names servers, as `name=URL,name=URL`, and `LARDER_TEST_PYTHON` a Python that has
//! what `tests/remote/second_client.py` needs: `scripts/servers.sh` starts and prints them. Without them
//! these tests say that they are skipped; with `LARDER_TEST_REQUIRE=1` they fail.

#![cfg(feature = "remote")]

mod common;

use common::{Lab, noise, task, write_old};
use larder::{
    CacheBackend, CacheEntry, CacheOutput, CachePolicy, Cancel, Error, IRTask, LinkMode,
    LocalBackend, Namespaces, OutputDeclaration, RemoteAccess, RemoteBackend, RemoteOptions,
    RemoteTier, RestoreOptions, TieredBackend, conformance,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A server that runs.
struct Server {
    name: String,
    url: String,
    python: PathBuf,
}

#[expect(clippy::print_stderr, reason = "a test that skips itself says so")]
fn servers() -> Vec<Server> {
    let (servers, python) =
        (std::env::var("LARDER_TEST_SERVERS"), std::env::var("LARDER_TEST_PYTHON"));
    let (Ok(servers), Ok(python)) = (servers, python) else {
        assert!(
            std::env::var_os("LARDER_TEST_REQUIRE").is_none(),
            "LARDER_TEST_SERVERS and LARDER_TEST_PYTHON are required"
        );
        eprintln!("SKIPPED: LARDER_TEST_SERVERS names no servers (scripts/servers.sh starts some)");
        return Vec::new();
    };
    let parse = |text: &str| {
        let (name, url) = text.split_once('=').expect("name=URL");
        Server { name: name.to_owned(), url: url.to_owned(), python: python.clone().into() }
    };
    servers.split(',').map(parse).collect()
}

/// A key that nobody has used.
fn fresh(word: &str) -> String {
    format!("{word} {} {:?}", std::process::id(), std::time::SystemTime::now())
}

impl Server {
    fn options(&self) -> RemoteOptions {
        let options = RemoteOptions::new(&self.url).expect("a URL");
        options.with_access(RemoteAccess::ReadWrite)
    }

    fn second_client(&self, arguments: &[&str]) -> serde_json::Value {
        let output = Command::new(&self.python)
            .arg("tests/remote/second_client.py")
            .args(arguments)
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {arguments:?}: {error}", self.name);
        serde_json::from_str(said.trim()).unwrap_or_default()
    }
}

/// A tree: kinds, bytes, modes of files, targets; and times of files where both sides have them.
fn tree(root: &Path, with_times: bool) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, at: &Path, with_times: bool, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(at).expect("a directory") {
            let path = entry.expect("listed").path();
            let facts = fs::symlink_metadata(&path).expect("there");
            let text = if facts.is_symlink() {
                format!("-> {}", fs::read_link(&path).expect("a link").display())
            } else if facts.is_dir() {
                walk(root, &path, with_times, found);
                "directory".to_owned()
            } else {
                let digest = larder::Digest::of(&fs::read(&path).expect("a file"));
                let time = if with_times { facts.mtime() } else { 0 };
                format!("{:o} {digest} {time}", facts.permissions().mode() & 0o777)
            };
            found.insert(path.strip_prefix(root).expect("below").to_path_buf(), text);
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, with_times, &mut found);
    found
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn another_client_reads_what_we_store() {
    for server in servers() {
        let lab = Lab::new();
        let root = lab.workspace();
        write_old(&root.join("out/bin/tool"), &noise(1, 9 << 20));
        fs::set_permissions(root.join("out/bin/tool"), fs::Permissions::from_mode(0o755))
            .expect("set");
        write_old(&root.join("out/lib/a.txt"), b"some text\n");
        write_old(&root.join("out/lib/b.txt"), b"some text\n");
        fs::set_permissions(root.join("out/lib/b.txt"), fs::Permissions::from_mode(0o640))
            .expect("set");
        write_old(&root.join("out/empty.txt"), b"");
        fs::create_dir_all(root.join("out/nothing/here")).expect("made");
        symlink("../bin/tool", root.join("out/lib/link")).expect("made");
        write_old(&root.join("report.xml"), b"<report/>\n");
        symlink("out/bin", root.join("latest")).expect("made");
        let declared = ["out", "report.xml", "latest"].map(OutputDeclaration::new);
        let entry = CacheEntry::capture(&root, &declared).expect("all there").with_result(0, 1234);
        let entry = entry.with_stdout("out\n").with_stderr(noise(2, 70_000));
        let key = fresh("ours");
        lab.cache.store(&task(&key), &entry, &Cancel::new()).expect("stored");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let tier = RemoteTier::new(lab.cache.clone(), server.options());
        let pushed = runtime.block_on(tier.push(&task(&key), &Cancel::new())).expect("sent");
        assert!(pushed.is_some(), "{}", server.name);

        let there = lab.path("there");
        let said =
            server.second_client(&["read", &server.url, &task(&key).to_string(), text(&there)]);
        assert_eq!(said["duration_ms"], 1234, "{}: {said}", server.name);
        assert_eq!(tree(&there.join("outputs"), true), tree(&root, true), "{}", server.name);
        assert_eq!(fs::read(there.join("stdout")).expect("there"), b"out\n");
        assert_eq!(fs::read(there.join("stderr")).expect("there"), noise(2, 70_000));
    }
}

#[test]
fn we_restore_what_another_client_stores() {
    for server in servers() {
        for like in ["bazel", "buildstream", "moon"] {
            let what = format!("{} like {like}", server.name);
            // The server loses one, takes none of the other: tests/remote/second_client.py says why.
            match (&*server.name, like) {
                ("buildgrid", "buildstream") | ("casd", "bazel") => continue,
                _ => {}
            }
            let lab = Lab::new();
            let (sample, key) = (lab.path("sample"), fresh(like));
            server.second_client(&["sample", text(&sample)]);
            let name = task(&key).to_string();
            server.second_client(&["write", &server.url, &name, text(&sample), "--like", like]);
            let backend =
                TieredBackend::new(LocalBackend::new(lab.cache.clone()), server.options());
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let work = IRTask::new("t");
            let found = runtime.block_on(backend.check(&work, &key, CachePolicy::Normal));
            assert!(found.expect("asked").hit, "{what}");
            let place = lab.path("restored");
            let private = RestoreOptions::default().with_link_mode(LinkMode::Copy);
            lab.restore(&key, &place, private).expect("restored").expect("there");
            let (mut expected, mut restored) =
                (tree(&sample.join("outputs"), like != "bazel"), tree(&place, like != "bazel"));
            match like {
                // It knows the executable bit only.
                "bazel" => {
                    for text in expected.values_mut().chain(restored.values_mut()) {
                        if let Some((mode, rest)) = text.split_once(' ')
                            && let Ok(mode) = u32::from_str_radix(mode, 8)
                        {
                            *text = format!("{} {rest}", mode & 0o111 != 0);
                        }
                    }
                }
                // It sends no directories.
                "moon" => expected.retain(|_, text| text != "directory"),
                _ => {}
            }
            if like == "moon" {
                restored.retain(|_, text| text != "directory");
            }
            assert_eq!(restored, expected, "{what}");
            let logs = lab.cache.logs(&task(&key)).expect("readable").expect("there");
            assert_eq!(logs.stdout, fs::read(sample.join("stdout")).expect("there"), "{what}");
            assert_eq!(logs.stderr, fs::read(sample.join("stderr")).expect("there"), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_backends_conform_on_servers_of_others() {
    for server in servers() {
        for is_tiered in [false, true] {
            let (lab, scratch) = (Lab::new(), tempfile::tempdir().expect("a folder"));
            // The suite's keys are always the same, and so is the server.
            let name = format!("suite-{}-{is_tiered}", std::process::id());
            let namespaces = Namespaces::new(&name).expect("a name");
            let local = LocalBackend::new(lab.cache.clone()).with_namespaces(namespaces);
            let options = server.options();
            if is_tiered {
                let backend = TieredBackend::new(local, options);
                conformance::all(&backend, scratch.path()).await;
                let flushed = backend.flush().await.expect("the server is there");
                assert_eq!(flushed.waiting, 0, "{}", server.name);
            } else {
                let backend = RemoteBackend::new(local, options);
                conforms_alone(&backend, scratch.path()).await;
            }
        }
    }
}

/// The suite; without its check of absolute symlinks, if the server says that it takes none. Such an
/// entry is refused then, since only the server would keep it.
async fn conforms_alone(backend: &RemoteBackend, scratch: &Path) {
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs.push(CacheOutput::symlink("absolute", "/no/such/place"));
    match backend.store(&IRTask::new("t"), "absolute", &entry, CachePolicy::Normal).await {
        Ok(()) => return conformance::all(backend, scratch).await,
        Err(error) => assert!(matches!(error, Error::EntryRefused { .. }), "{error:?}"),
    }
    conformance::policies_are_honoured(backend, scratch).await;
    conformance::keys_are_any_string_of_the_right_length(backend, scratch).await;
    conformance::a_miss_is_a_miss_everywhere(backend, scratch).await;
    conformance::captured_outputs_come_back_as_they_were(backend, scratch).await;
    conformance::a_restore_removes_what_the_task_did_not_leave(backend, scratch).await;
    conformance::a_restore_owns_only_its_roots(backend, scratch).await;
    conformance::patterns_never_reach_into_a_repository(backend, scratch).await;
    conformance::storing_again_replaces(backend, scratch).await;
    conformance::logs_come_back(backend, scratch).await;
    conformance::bad_outputs_are_refused_and_store_nothing(backend, scratch).await;
    conformance::a_restore_never_writes_through_a_symlink(backend, scratch).await;
    backend.health_check().await.expect("the server is there");
}
