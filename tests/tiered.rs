//! Two stores and a server between them: what one has the other gets, and whatever the server or the
//! network does, each goes on by itself.

#![cfg(feature = "remote")]

mod common;
#[path = "common/faults.rs"]
mod faults;
#[path = "common/reapi/mod.rs"]
mod reapi_server;

use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use common::{Lab, noise, snapshot, task, write_old};
use faults::{FaultProxy, Network, NetworkFault};
use larder::{
    Cache, CacheBackend, CacheEntry, CacheOptions, CachePolicy, Cancel, Error, ErrorKind,
    ExactLogs, IRTask, KeyKind, LinkMode, LocalBackend, Manifest, OutputDeclaration, RemoteAccess,
    RemoteBackend, RemoteOptions, RemoteTier, Repair, RestoreOptions, SigningKey, TieredBackend,
    Turn, conformance,
};
use reapi_server::{FakeServer, Method, ReadFault, WriteFault};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// `BLAKE3` in the protocol's list of digest functions.
const BLAKE3: i32 = 9;
/// Short enough for tests of silence, long enough for a busy machine.
const SILENCE: Duration = Duration::from_millis(1500);
const KEY: &str = "a key";

fn options(url: &str) -> RemoteOptions {
    RemoteOptions::new(url)
        .expect("a URL")
        .with_access(RemoteAccess::ReadWrite)
        .with_idle_timeout(SILENCE)
        .with_connect_timeout(SILENCE)
        .with_probe_after(Duration::from_millis(100))
}

/// The server's kinds: those that differ in how blobs are named and travel.
fn servers() -> Vec<(&'static str, FakeServer)> {
    let blake3 = FakeServer::start();
    blake3.claim(|cache| cache.digest_functions.push(BLAKE3));
    let compressed = FakeServer::start();
    compressed.claim(|cache| cache.supported_compressors = vec![1]);
    compressed.claim(|cache| cache.supported_batch_update_compressors = vec![1]);
    let chunked = FakeServer::start();
    chunked.claim(|cache| {
        cache.digest_functions.push(BLAKE3);
        cache.split_blob_support = true;
        cache.splice_blob_support = true;
        cache.fast_cdc_2020_params =
            Some(reapi::FastCdc2020Params { avg_chunk_size_bytes: 64 << 10, seed: 0 });
    });
    vec![
        ("SHA-256", FakeServer::start()),
        ("BLAKE3", blake3),
        ("compressed", compressed),
        ("chunks", chunked),
    ]
}

/// Outputs of every kind.
fn build(workspace: &Path) {
    write_old(&workspace.join("dist/app"), &noise(1, 3 << 20));
    fs::set_permissions(workspace.join("dist/app"), fs::Permissions::from_mode(0o755))
        .expect("set");
    write_old(&workspace.join("dist/lib/small.txt"), b"a few bytes\n");
    write_old(&workspace.join("dist/lib/again.txt"), b"a few bytes\n");
    write_old(&workspace.join("dist/lib/prose.txt"), &b"lorem ipsum ".repeat(20_000));
    write_old(&workspace.join("dist/lib/empty"), b"");
    fs::create_dir(workspace.join("dist/nothing")).expect("made");
    symlink("lib/small.txt", workspace.join("dist/link")).expect("made");
    symlink("../dist/app", workspace.join("latest")).expect("made");
    write_old(&workspace.join("report.json"), br#"{"passed": 12}"#);
}

fn declared() -> Vec<OutputDeclaration> {
    ["dist", "report.json", "latest"].map(OutputDeclaration::new).to_vec()
}

fn entry(workspace: &Path) -> CacheEntry {
    let entry = CacheEntry::capture(workspace, &declared()).expect("all are there");
    entry.with_result(0, 4200).with_stdout(noise(2, 40_000)).with_stderr("careful\n")
}

fn store(lab: &Lab) {
    build(&lab.workspace());
    lab.cache.store(&task(KEY), &entry(&lab.workspace()), &Cancel::new()).expect("stored");
}

fn tier(cache: &Cache, url: &str) -> RemoteTier {
    RemoteTier::new(cache.clone(), options(url))
}

async fn pull(cache: &Cache, url: &str) -> larder::Result<bool> {
    Ok(tier(cache, url).pull(&task(KEY), &Cancel::new()).await?.is_some())
}

async fn push(cache: &Cache, url: &str) -> larder::Result<bool> {
    Ok(tier(cache, url).push(&task(KEY), &Cancel::new()).await?.is_some())
}

/// The entry of another store comes back from this one as it was.
fn assert_has_it(lab: &Lab, other: &Lab, what: &str) {
    let private = RestoreOptions::default().with_link_mode(LinkMode::Copy);
    let place = lab.path("restored");
    let restored = lab.restore(KEY, &place, private).expect("it can be restored");
    restored.unwrap_or_else(|| panic!("{what}: there is no entry"));
    assert_eq!(snapshot(&place), snapshot(&other.workspace()), "{what}");
    let logs = lab.cache.logs(&task(KEY)).expect("readable").expect("there");
    let expected = other.cache.logs(&task(KEY)).expect("readable").expect("there");
    assert_eq!((logs.stdout, logs.stderr), (expected.stdout, expected.stderr), "{what}");
    fs::remove_dir_all(&place).expect("removed");
}

/// Nothing is there, and nothing is wrong.
fn assert_has_nothing(lab: &Lab, what: &str) {
    assert!(lab.cache.lookup(&task(KEY)).expect("a lookup").is_none(), "{what}");
    assert_whole(lab, what);
}

fn assert_whole(lab: &Lab, what: &str) {
    let report = lab.cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean(), "{what}: {report:?}");
}

// Between two stores.

#[tokio::test]
async fn what_one_store_pushes_another_pulls() -> larder::Result<()> {
    for (kind, server) in servers() {
        let (here, there) = (Lab::new(), Lab::new());
        store(&here);
        let pushed = tier(&here.cache, &server.url()).push(&task(KEY), &Cancel::new()).await?;
        let pushed = pushed.expect("the server can hold it");
        assert!(pushed.blobs > 5 && pushed.sent_bytes > 3 << 20, "{kind}: {pushed:?}");
        assert!(pull(&there.cache, &server.url()).await?, "{kind}");
        assert_has_it(&there, &here, kind);
        assert_whole(&there, kind);
        let (ours, theirs) = (here.cache.manifest(&task(KEY))?, there.cache.manifest(&task(KEY))?);
        let portable = |manifest: Option<Manifest>| {
            let mut manifest = manifest.expect("there");
            manifest.sha256.clear();
            manifest.encode_portable(&task(KEY))
        };
        assert_eq!(portable(ours), portable(theirs), "{kind}: nothing is lost between two Larders");

        let again = tier(&here.cache, &server.url()).push(&task(KEY), &Cancel::new()).await?;
        assert_eq!(again.map(|pushed| pushed.blobs), Some(0), "{kind}: all is there");
    }
    Ok(())
}

#[tokio::test]
async fn what_nobody_stored_is_a_miss() -> larder::Result<()> {
    for (kind, server) in servers() {
        let lab = Lab::new();
        assert!(!pull(&lab.cache, &server.url()).await?, "{kind}");
        assert!(!push(&lab.cache, &server.url()).await?, "{kind}: there is nothing to send");
        assert_eq!(server.count(Method::UpdateAction), 0);
    }
    Ok(())
}

#[tokio::test]
async fn trees_are_fetched_only_where_the_manifest_is_gone() -> larder::Result<()> {
    for (kind, server) in servers() {
        let (here, there, later) = (Lab::new(), Lab::new(), Lab::new());
        store(&here);
        assert!(push(&here.cache, &server.url()).await?);
        let trees: Vec<String> = {
            let state = server.state();
            let results = state.actions.values().flat_map(|result| &result.output_directories);
            results.filter_map(|folder| Some(folder.tree_digest.as_ref()?.hash.clone())).collect()
        };
        assert!(!trees.is_empty(), "{kind}");
        let held: Vec<_> = {
            let mut state = server.state();
            trees
                .iter()
                .map(|tree| (tree.clone(), state.blobs.remove(tree).expect("sent")))
                .collect()
        };
        assert!(pull(&there.cache, &server.url()).await?, "{kind}: the manifest says it all");
        assert_has_it(&there, &here, kind);

        let rider = {
            let mut state = server.state();
            state.blobs.extend(held);
            let blobs = &state.blobs;
            let rider = blobs.iter().find(|(_, bytes)| bytes.starts_with(b"larder-m"));
            rider.expect("our manifest").0.clone()
        };
        server.state().blobs.remove(&rider);
        assert!(pull(&later.cache, &server.url()).await?, "{kind}: the Trees do");
        assert_has_it(&later, &here, kind);
    }
    Ok(())
}

#[tokio::test]
async fn a_result_of_which_the_server_forgot_a_blob_is_a_miss() -> larder::Result<()> {
    for (kind, server) in servers() {
        let here = Lab::new();
        store(&here);
        assert!(push(&here.cache, &server.url()).await?);
        let needed = |bytes: &[u8]| {
            bytes == b"a few bytes\n" || bytes.len() == 3 << 20 || bytes.len() == 40_000
        };
        let blobs = server.state().blobs.clone();
        for (hash, _) in blobs.iter().filter(|(_, bytes)| needed(bytes)) {
            server.state().blobs.remove(hash);
            server.state().chunks.remove(hash);
            let there = Lab::new();
            assert!(!pull(&there.cache, &server.url()).await?, "{kind}");
            assert_has_nothing(&there, kind);
            server.state().blobs.clone_from(&blobs);
        }
    }
    Ok(())
}

#[tokio::test]
async fn only_what_the_store_lacks_is_fetched() -> larder::Result<()> {
    for (kind, server) in servers() {
        let (here, there) = (Lab::new(), Lab::new());
        store(&here);
        assert!(push(&here.cache, &server.url()).await?);
        assert!(pull(&there.cache, &server.url()).await?);
        write_old(&here.workspace().join("dist/lib/small.txt"), b"other bytes\n");
        here.cache.store(&task(KEY), &entry(&here.workspace()), &Cancel::new())?;
        assert!(push(&here.cache, &server.url()).await?);
        let proxy = FaultProxy::start(server.address(), Network::default());
        assert!(pull(&there.cache, &proxy.url()).await?);
        assert_has_it(&there, &here, kind);
        let bytes = proxy.bytes_to_client();
        assert!(bytes < 20_000, "{kind}: {bytes} bytes for a file of 12");
    }
    Ok(())
}

#[tokio::test]
async fn a_small_change_of_a_large_tree_moves_little() -> larder::Result<()> {
    for (kind, server) in servers() {
        let (here, there, other) = (Lab::new(), Lab::new(), Lab::new());
        for number in 0..2000 {
            let path = here.workspace().join(format!("out/{}/{number}.txt", number % 40));
            write_old(&path, &noise(number, 200));
        }
        let build = |key: &str| {
            common::store(&here.cache, key, &here.workspace(), &["out"]);
            task(key)
        };
        let proxy = FaultProxy::start(server.address(), Network::default());
        let pull = async |lab: &Lab, key: &str| {
            let before = proxy.bytes_to_client();
            let pulled = tier(&lab.cache, &proxy.url()).pull(&task(key), &Cancel::new()).await;
            assert!(pulled.expect("asked").is_some(), "{kind}");
            let place = lab.path(key);
            let private = RestoreOptions::default().with_link_mode(LinkMode::Copy);
            lab.restore(key, &place, private).expect("restored").expect("there");
            assert_eq!(snapshot(&place), snapshot(&here.workspace()), "{kind}, {key}");
            assert_whole(lab, kind);
            proxy.bytes_to_client() - before
        };
        for key in ["first", "second", "third"] {
            write_old(&here.workspace().join("out/0/40.txt"), key.as_bytes());
            write_old(&here.workspace().join(format!("out/new {key}")), key.as_bytes());
            let sent = tier(&here.cache, &server.url()).push(&build(key), &Cancel::new()).await?;
            assert!(sent.is_some(), "{kind}");
            let bytes = pull(&there, key).await;
            match key {
                "first" => assert!(bytes > 2000 * 200, "{kind}: {bytes}"),
                _ => assert!(bytes < 12_000, "{kind}, {key}: {bytes} bytes for two files"),
            }
        }
        // Who has no base fetches the manifest, and who has lost blobs of the base those.
        pull(&other, "third").await;
        let third = there.path("third");
        fs::remove_dir_all(third).expect("removed");
        there.cache.remove(&task("third"))?;
        fs::remove_file(&there.blobs()[7]).expect("ours");
        pull(&there, "third").await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_several_want_at_once_are_fetched_once() -> larder::Result<()> {
    let server = FakeServer::start();
    let (here, there) = (Lab::new(), Lab::new());
    store(&here);
    for number in 0..6 {
        let key = format!("key {number}");
        here.cache.store(&task(&key), &entry(&here.workspace()), &Cancel::new())?;
        let pushed = tier(&here.cache, &server.url()).push(&task(&key), &Cancel::new()).await?;
        assert!(pushed.is_some());
    }
    server.behave(|behaviour| behaviour.delay = Duration::from_millis(30));
    let proxy = FaultProxy::start(server.address(), Network::default());
    let tier = tier(&there.cache, &proxy.url());
    let pulls = (0..6).map(|number| {
        let (tier, key) = (tier.clone(), task(&format!("key {number}")));
        tokio::spawn(async move { tier.pull(&key, &Cancel::new()).await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        assert!(pull.await.expect("no panic")?.is_some());
    }
    let bytes = proxy.bytes_to_client();
    assert!(bytes < (3 << 20) * 3 / 2, "{bytes} bytes for six entries of the same 3 MiB");
    Ok(())
}

#[tokio::test]
async fn a_pull_brings_what_another_key_needs_to_heal() -> larder::Result<()> {
    let server = FakeServer::start();
    let (here, there) = (Lab::new(), Lab::new());
    store(&here);
    assert!(push(&here.cache, &server.url()).await?);
    let backend =
        TieredBackend::new(LocalBackend::new(there.cache.clone()), options(&server.url()));
    let work = IRTask::new("t").with_outputs(declared());
    let key = KEY.to_owned();
    assert!(backend.check(&work, &key, CachePolicy::Normal).await?.hit);
    for blob in there.blobs() {
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).expect("ours");
        fs::write(&blob, b"rot").expect("written");
    }
    let place = there.path("restored");
    backend.restore_outputs(&work, &key, &place).await?;
    assert_eq!(common::snapshot_read_only(&place), common::snapshot_read_only(&here.workspace()));
    let logs = backend.get_exact_logs(&work, &key).await?.expect("there");
    assert_eq!(logs.stdout, noise(2, 40_000));
    Ok(())
}

#[tokio::test]
async fn entries_that_nobody_trusted_has_signed_are_misses() -> larder::Result<()> {
    for (kind, server) in servers() {
        let key = SigningKey::generate(KeyKind::Blake3).expect("random bytes");
        let trusting = || Lab::with(CacheOptions::default().with_trusted([key.trusted()]));
        let unsigned = Lab::new();
        store(&unsigned);
        assert!(push(&unsigned.cache, &server.url()).await?);
        let there = trusting();
        assert!(!pull(&there.cache, &server.url()).await?, "{kind}: nobody signed it");
        assert_has_nothing(&there, kind);

        let signing = Lab::with(CacheOptions::default().with_signing(key.clone()));
        store(&signing);
        assert!(push(&signing.cache, &server.url()).await?);
        assert!(pull(&there.cache, &server.url()).await?, "{kind}: it is signed");
        assert_has_it(&there, &signing, kind);

        // Without the manifest nobody has signed anything.
        server.state().blobs.retain(|_, bytes| !bytes.starts_with(b"larder-m"));
        assert!(!pull(&trusting().cache, &server.url()).await?, "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_server_cannot_hold_is_not_sent() -> larder::Result<()> {
    let server = FakeServer::start();
    let lab = Lab::new();
    build(&lab.workspace());
    symlink("/etc/hosts", lab.workspace().join("dist/absolute")).expect("made");
    lab.cache.store(&task(KEY), &entry(&lab.workspace()), &Cancel::new())?;
    assert!(!push(&lab.cache, &server.url()).await?, "it takes no absolute symlinks");
    assert!(server.state().actions.is_empty());
    server.claim(|cache| cache.symlink_absolute_path_strategy = 2);
    assert!(push(&lab.cache, &server.url()).await?);
    let there = Lab::new();
    assert!(pull(&there.cache, &server.url()).await?);
    assert_has_it(&there, &lab, "an absolute symlink");
    Ok(())
}

// Servers that lie, fail and vanish.

#[tokio::test]
async fn a_server_that_lies_costs_a_miss() -> larder::Result<()> {
    for (kind, server) in servers() {
        let here = Lab::new();
        store(&here);
        assert!(push(&here.cache, &server.url()).await?);
        let faults = [
            ReadFault::Corrupts,
            ReadFault::TooLong,
            ReadFault::Truncates { after_bytes: 100 },
            ReadFault::Endless,
            ReadFault::EndlessNothing,
            ReadFault::Hangs,
        ];
        for fault in faults {
            let what = format!("{kind}, {fault:?}");
            server.behave(|behaviour| behaviour.read = fault);
            let there = Lab::new();
            let local = LocalBackend::new(there.cache.clone());
            let backend = TieredBackend::new(local, options(&server.url()));
            let found = backend.check(&IRTask::new("t"), KEY, CachePolicy::Normal).await?;
            if found.hit {
                // What comes after all that was asked for is nobody's concern.
                let is_after = matches!(
                    fault,
                    ReadFault::Endless | ReadFault::EndlessNothing | ReadFault::Hangs
                );
                assert!(is_after, "{what}");
                assert_has_it(&there, &here, &what);
            } else {
                assert_has_nothing(&there, &what);
            }
        }
        server.behave(|behaviour| behaviour.read = ReadFault::None);
        server.behave(|behaviour| behaviour.names_another = true);
        let there = Lab::new();
        // All that was asked for may have come before the other one.
        if pull(&there.cache, &server.url()).await.unwrap_or(false) {
            assert_has_it(&there, &here, kind);
        } else {
            assert_has_nothing(&there, kind);
        }
        server.behave(|behaviour| behaviour.names_another = false);
        assert!(pull(&there.cache, &server.url()).await?, "{kind}: honest again");
        assert_has_it(&there, &here, kind);
    }
    Ok(())
}

/// A task runner's day with a server or a network that does something: store, check from elsewhere,
/// restore, flush. Nothing fails, the entry of this store is whole, and when all is well again the
/// other gets it.
async fn goes_on(what: &str, url: &str, mend: impl FnOnce()) -> larder::Result<()> {
    let (here, there) = (Lab::new(), Lab::new());
    build(&here.workspace());
    let backend = |lab: &Lab| {
        let impatient = options(url).with_upload_wait_max(SILENCE);
        TieredBackend::new(LocalBackend::new(lab.cache.clone()), impatient)
    };
    let (ours, theirs) = (backend(&here), backend(&there));
    let (work, policy) = (IRTask::new("t").with_outputs(declared()), CachePolicy::Normal);
    assert!(!ours.check(&work, KEY, policy).await?.hit, "{what}");
    ours.store(&work, KEY, &entry(&here.workspace()), policy).await?;
    assert!(ours.check(&work, KEY, policy).await?.hit, "{what}: our own store has it");
    let begun = Instant::now();
    drop(ours.flush().await);
    assert!(begun.elapsed() < SILENCE * 10, "{what}: a run's end waits a while only");
    theirs.check(&work, KEY, policy).await?;
    assert_whole(&here, what);
    assert_whole(&there, what);
    assert_has_it(&here, &here, what);

    mend();
    // Whoever comes next sends what waits; the server is left alone for a moment after an outage.
    let next = backend(&here);
    let ends = Instant::now() + Duration::from_secs(60);
    while !next.flush().await.is_ok_and(|drained| drained.waiting == 0) {
        assert!(Instant::now() < ends, "{what}: it is never sent");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while !theirs.check(&work, KEY, policy).await?.hit {
        assert!(Instant::now() < ends, "{what}: it never arrives");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_has_it(&there, &here, what);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_network_does_the_build_goes_on() -> larder::Result<()> {
    let faults = [
        NetworkFault::None,
        NetworkFault::Refuses,
        NetworkFault::BlackHole,
        NetworkFault::Resets { times: usize::MAX, after_bytes: 500 },
        NetworkFault::ResetsUploads { times: usize::MAX, after_bytes: 100_000 },
        NetworkFault::ResetsUploads { times: 2, after_bytes: 1 << 20 },
        NetworkFault::Swallows { times: usize::MAX, after_bytes: 1000 },
        NetworkFault::SwallowsUploads { times: usize::MAX, after_bytes: 1 << 20 },
    ];
    for fault in faults {
        let server = FakeServer::start();
        let proxy = FaultProxy::start(server.address(), Network { fault, ..Network::default() });
        let url = proxy.url();
        goes_on(&format!("{fault:?}"), &url, || proxy.set(Network::default())).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_server_says_the_build_goes_on() -> larder::Result<()> {
    let methods = [
        Method::Capabilities,
        Method::FindMissing,
        Method::BatchUpdate,
        Method::Write,
        Method::GetAction,
        Method::UpdateAction,
    ];
    let codes =
        [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::PermissionDenied];
    for method in methods {
        for code in codes {
            let server = FakeServer::start();
            let status = Status::new(code, "told to fail");
            server.behave(|behaviour| {
                behaviour.always.insert(method, status);
            });
            let mend = || server.behave(|behaviour| behaviour.always.clear());
            goes_on(&format!("{method:?}, {code:?}"), &server.url(), mend).await?;
        }
    }
    for fault in [WriteFault::Hangs, WriteFault::Commits(7), WriteFault::BreaksAndClaims(1 << 40)] {
        let server = FakeServer::start();
        server.behave(|behaviour| behaviour.write = fault);
        let mend = || server.behave(|behaviour| behaviour.write = WriteFault::None);
        goes_on(&format!("{fault:?}"), &server.url(), mend).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_outage_is_told_once_and_costs_little() -> larder::Result<()> {
    let lab = Lab::new();
    // A port that was free a moment ago.
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("it is bound")
    };
    let patient = options(&format!("grpc://{address}")).with_probe_after(Duration::from_secs(3600));
    let backend = TieredBackend::new(LocalBackend::new(lab.cache.clone()), patient);
    for number in 0..100 {
        let key = format!("key {number}");
        assert!(!backend.check(&IRTask::new("t"), &key, CachePolicy::Normal).await?.hit);
    }
    assert!(backend.tier().take_outage().is_some() && backend.tier().take_outage().is_none());
    assert!(!backend.tier().is_available());
    assert!(backend.health_check().await.is_ok(), "the store is well");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_sent_holds_up_nothing_else() -> larder::Result<()> {
    let (server, another) = (FakeServer::start(), FakeServer::start());
    let lab = Lab::new();
    build(&lab.workspace());
    let tier = tier(&lab.cache, &server.url());
    let bad = b"this one the server does not take".repeat(200_000);
    for key in ["first", "bad", "last"] {
        let bytes = if key == "bad" { bad.clone() } else { noise(9, 5 << 20) };
        let entry = CacheEntry::new(0, 1).with_stdout(bytes);
        lab.cache.store(&task(key), &entry, &Cancel::new())?;
        tier.queue(&task(key))?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tier.queue(&task("not there"))?;
    let other = RemoteTier::new(lab.cache.clone(), options(&another.url()));
    assert_eq!((tier.waiting()?, other.waiting()?), (4, 0), "each server has its own queue");
    assert_eq!(other.drain(SILENCE, &Cancel::new()).await?, larder::Drained::default());
    // The whole of it is refused, for what it is.
    server.claim(|cache| cache.max_cas_blob_size_bytes = 6 << 20);
    let drained = tier.drain(SILENCE * 10, &Cancel::new()).await?;
    assert_eq!((drained.sent, drained.dropped, drained.waiting), (2, 2, 0), "{drained:?}");

    // What is refused for what it is waits; the others are sent.
    let picky = FakeServer::start();
    let tier = RemoteTier::new(lab.cache.clone(), options(&picky.url()));
    let bytes = noise(10, 100_000);
    let name = another.put(&bytes).hash;
    let refusals = vec![reapi_server::blob_status(Code::InvalidArgument); 20];
    picky.behave(|behaviour| {
        behaviour.blob_failures.insert(name, refusals.into());
        behaviour.always.insert(Method::Write, Status::invalid_argument("not like this"));
    });
    for (key, stdout) in [("refused", &bytes[..]), ("small", b"few")] {
        let entry = CacheEntry::new(0, 1).with_stdout(stdout);
        lab.cache.store(&task(key), &entry, &Cancel::new())?;
        tier.queue(&task(key))?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(tier.drain(SILENCE * 10, &Cancel::new()).await.is_err(), "it is told");
    assert_eq!((tier.waiting()?, picky.state().actions.len()), (1, 1));
    picky.behave(|behaviour| {
        behaviour.blob_failures.clear();
        behaviour.always.clear();
    });
    let drained = tier.drain(SILENCE * 10, &Cancel::new()).await?;
    assert_eq!((drained.sent, drained.waiting), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_only_read_is_never_written_to() -> larder::Result<()> {
    let server = FakeServer::start();
    let lab = Lab::new();
    build(&lab.workspace());
    let reading = options(&server.url()).with_access(RemoteAccess::ReadOnly);
    let backend = TieredBackend::new(LocalBackend::new(lab.cache.clone()), reading);
    let work = IRTask::new("t").with_outputs(declared());
    backend.store(&work, KEY, &entry(&lab.workspace()), CachePolicy::Normal).await?;
    assert_eq!(backend.flush().await?, larder::Drained::default());
    assert!(!backend.tier().may_push() && backend.tier().waiting()? == 0);
    let error = backend.tier().push(&task(KEY), &Cancel::new()).await.expect_err("not allowed");
    assert!(matches!(error, Error::Remote { .. }) && error.kind() == ErrorKind::Source);
    for method in [Method::BatchUpdate, Method::Write, Method::UpdateAction, Method::Splice] {
        assert_eq!(server.count(method), 0, "{method:?}");
    }
    Ok(())
}

#[tokio::test]
async fn policies_hold_for_the_server_too() -> larder::Result<()> {
    let server = FakeServer::start();
    let (here, there) = (Lab::new(), Lab::new());
    store(&here);
    assert!(push(&here.cache, &server.url()).await?);
    let calls = server.state().calls.len();
    let backend =
        TieredBackend::new(LocalBackend::new(there.cache.clone()), options(&server.url()));
    for policy in [CachePolicy::Disabled, CachePolicy::Writeonly] {
        assert!(!backend.check(&IRTask::new("t"), KEY, policy).await?.hit, "{policy:?}");
    }
    assert_eq!(server.state().calls.len(), calls, "nobody asks");
    assert!(backend.check(&IRTask::new("t"), KEY, CachePolicy::Readonly).await?.hit);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_want_a_remote_entry_one_brings_it() -> larder::Result<()> {
    use larder::SingleFlight;
    let server = FakeServer::start();
    let (here, there) = (Lab::new(), Lab::new());
    store(&here);
    assert!(push(&here.cache, &server.url()).await?);
    let asked = server.count(Method::GetAction);
    server.behave(|behaviour| behaviour.delay = Duration::from_millis(20));
    let backend =
        TieredBackend::new(LocalBackend::new(there.cache.clone()), options(&server.url()));
    let waits = (0..8).map(|_| {
        let backend = backend.clone();
        tokio::spawn(async move {
            let wait = Duration::from_secs(60);
            backend.check_or_wait(&IRTask::new("t"), KEY, CachePolicy::Normal, wait).await
        })
    });
    for wait in waits.collect::<Vec<_>>() {
        let turn = wait.await.expect("no panic")?;
        assert!(matches!(turn, Turn::Hit(_)), "{turn:?}");
    }
    assert_eq!(server.count(Method::GetAction) - asked, 1, "in its turn");
    Ok(())
}

// The contract.

#[tokio::test(flavor = "multi_thread")]
async fn both_backends_conform() -> larder::Result<()> {
    for ((kind, alone), (_, behind)) in servers().into_iter().zip(servers()) {
        // Absolute symlinks are among what must come back.
        for server in [&alone, &behind] {
            server.claim(|cache| cache.symlink_absolute_path_strategy = 2);
        }
        let (lab, scratch) = (Lab::new(), tempfile::tempdir().expect("a folder"));
        let backend =
            RemoteBackend::new(LocalBackend::new(lab.cache.clone()), options(&alone.url()));
        conformance::all(&backend, scratch.path()).await;

        let (lab, scratch) = (Lab::new(), tempfile::tempdir().expect("a folder"));
        let local = LocalBackend::new(lab.cache.clone());
        let backend = TieredBackend::new(local, options(&behind.url()));
        conformance::all(&backend, scratch.path()).await;
        conformance::single_flight(&backend).await;
        assert_eq!(backend.flush().await?.waiting, 0, "{kind}");
        assert_whole(&lab, kind);
    }
    Ok(())
}

#[tokio::test]
async fn a_server_alone_answers_for_itself() -> larder::Result<()> {
    let server = FakeServer::start();
    let (here, there) = (Lab::new(), Lab::new());
    store(&here);
    let backend = RemoteBackend::new(LocalBackend::new(here.cache.clone()), options(&server.url()));
    let found = backend.check(&IRTask::new("t"), KEY, CachePolicy::Normal).await?;
    assert!(!found.hit, "what only lies in the place to land is no answer of the server's");
    let work = IRTask::new("t").with_outputs(declared());
    backend.store(&work, KEY, &entry(&here.workspace()), CachePolicy::Normal).await?;
    let other = RemoteBackend::new(LocalBackend::new(there.cache.clone()), options(&server.url()));
    assert!(other.check(&work, KEY, CachePolicy::Normal).await?.hit);
    other.restore_outputs(&work, KEY, &there.path("restored")).await?;
    assert_has_it(&there, &here, "a server alone");
    server.state().actions.clear();
    assert!(!other.check(&work, KEY, CachePolicy::Normal).await?.hit, "each time anew");
    drop(server);
    assert!(!other.check(&work, KEY, CachePolicy::Normal).await?.hit, "an outage is a miss");
    assert!(other.health_check().await.is_err());
    let entry = entry(&here.workspace());
    assert!(other.store(&work, KEY, &entry, CachePolicy::Normal).await.is_err(), "and it is told");
    Ok(())
}
