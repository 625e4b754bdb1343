//! Builds in bad weather: what the network does is drawn anew for each, and each must go on.

use crate::common::place;
use crate::common::random::{Random, contents};
use crate::faults::{FaultProxy, Network, NetworkFault};
use crate::report::Report;
use larder::{
    Cache, CacheBackend, CacheEntry, CacheOptions, CachePolicy, Cancel, IRTask, LocalBackend,
    OutputDeclaration, RemoteAccess, RemoteOptions, Repair, TieredBackend,
};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

const ROUNDS: usize = 80;
const SEED: u64 = 0x2545_f491_4f6c_dd1d;
const SILENCE: Duration = Duration::from_millis(400);

/// One build on one machine, and one on another that would like its results, while the network fails in one
/// way; then once more in good weather.
pub(crate) fn weather(server: SocketAddr, report: &mut Report) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut random = Random(SEED);
    let (mut faults, mut hits) = (0, 0);
    for round in 0..ROUNDS {
        let folder = place();
        let fault = draw(&mut random);
        let proxy = FaultProxy::start(server, Network { fault, ..Network::default() });
        let (here, there) = (
            backend(&folder.path().join("here"), &proxy),
            backend(&folder.path().join("there"), &proxy),
        );
        let workspace = folder.path().join("workspace");
        write(&workspace, &mut random);
        let (work, key) = (IRTask::new("t"), format!("storm {} {round}", std::process::id()));
        let restored = folder.path().join("restored");
        fs::create_dir(&restored).expect("made");
        runtime.block_on(async {
            let policy = CachePolicy::Normal;
            let found = here.check(&work, &key, policy).await.expect("a build goes on");
            assert!(!found.hit, "nobody has built it");
            let entry = CacheEntry::capture(&workspace, &[OutputDeclaration::new("out")]);
            let stored = here.store(&work, &key, &entry.expect("captured"), policy).await;
            stored.expect("a build goes on");
            drop(here.flush().await);
            let found = there.check(&work, &key, policy).await.expect("a build goes on");
            if found.hit {
                hits += 1;
                there.restore_outputs(&work, &key, &restored).await.expect("it is in the store");
                assert_same(&workspace, &restored);
                fs::remove_dir_all(restored.join("out")).expect("removed");
            }
            faults += proxy.faults();
            proxy.set(Network::default());
            for backend in [&here, &there] {
                whole(backend.local().cache());
            }
            // What waits is sent by whoever comes next, and then it is there for all.
            while !here.flush().await.is_ok_and(|drained| drained.waiting == 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            while !there.check(&work, &key, policy).await.expect("a build goes on").hit {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            there.restore_outputs(&work, &key, &restored).await.expect("it is in the store");
            assert_same(&workspace, &restored);
        });
    }
    report.tell("builds in bad weather that went on, all whole", ROUNDS as f64, "");
    report.tell("connections that were reset or silenced meanwhile", faults as f64, "");
    report.tell("of those builds, the other machine had the result at once", f64::from(hits), "");
}

fn draw(random: &mut Random) -> NetworkFault {
    let times = [1, 2, 5, usize::MAX][random.below(4)];
    // Most of it near the beginning, where the questions are.
    let after_bytes = (random.unit().powi(4) * 3e6) as u64;
    match random.below(8) {
        0 => NetworkFault::Refuses,
        1 => NetworkFault::BlackHole,
        2 => NetworkFault::Swallows { times, after_bytes },
        3 => NetworkFault::SwallowsUploads { times, after_bytes },
        4 | 5 => NetworkFault::Resets { times, after_bytes },
        _ => NetworkFault::ResetsUploads { times, after_bytes },
    }
}

fn backend(store: &Path, proxy: &FaultProxy) -> TieredBackend {
    let cache = Cache::open(store, CacheOptions::default()).expect("a store");
    let options = RemoteOptions::new(&proxy.url()).expect("a URL");
    let options = options
        .with_access(RemoteAccess::ReadWrite)
        .with_idle_timeout(SILENCE)
        .with_connect_timeout(SILENCE)
        .with_upload_wait_max(4 * SILENCE)
        .with_probe_after(Duration::from_millis(50));
    TieredBackend::new(LocalBackend::new(cache), options)
}

fn write(workspace: &Path, random: &mut Random) {
    fs::create_dir_all(workspace.join("out/lib")).expect("made");
    for number in 0..30 {
        let size_bytes = random.size_bytes();
        let path = workspace.join(format!("out/lib/{number}"));
        fs::write(path, contents(random.bits(), size_bytes)).expect("written");
    }
    fs::write(workspace.join("out/large"), contents(random.bits(), 5 << 20)).expect("written");
}

fn whole(cache: &Cache) {
    let report = cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean(), "{report:?}");
}

fn assert_same(one: &Path, other: &Path) {
    let read = |root: &Path| {
        let mut files: Vec<_> = fs::read_dir(root.join("out/lib")).expect("there").collect();
        files.sort_by_key(|file| file.as_ref().expect("listed").path());
        let contents = files.into_iter().map(|file| fs::read(file.expect("listed").path()));
        (
            contents.collect::<Result<Vec<_>, _>>().expect("readable"),
            fs::read(root.join("out/large")).expect("there"),
        )
    };
    assert!(read(one) == read(other), "what came is what was sent");
}
