//! The public conformance suite on every backend, and on the engine over each fallback.

use larder::{
    Cache, CacheBackend, CacheOptions, Capabilities, DisabledBackend, Durability, LinkMode,
    LocalBackend, MemoryBackend, RestoreOptions, SingleFlight, VerifyLevel, conformance,
};
use std::sync::Arc;

/// Link modes whose restored files carry the recorded modes exactly.
const PRIVATE_MODES: [LinkMode; 3] = [LinkMode::Auto, LinkMode::Copy, LinkMode::Reflink];

fn capabilities() -> Vec<Capabilities> {
    let mut variants = vec![Capabilities::all(), Capabilities::portable()];
    let without: [fn(&mut Capabilities); 5] = [
        |capabilities| capabilities.openat2 = false,
        |capabilities| capabilities.rename_noreplace = false,
        |capabilities| capabilities.reflink = false,
        |capabilities| capabilities.hardlink = false,
        |capabilities| capabilities.copy_file_range = false,
    ];
    for remove in without {
        let mut capabilities = Capabilities::all();
        remove(&mut capabilities);
        variants.push(capabilities);
    }
    variants
}

async fn check_local(options: CacheOptions, restore_options: RestoreOptions) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = Cache::open(&folder.path().join("store"), options).expect("the store opens");
    let backend = LocalBackend::new(cache).with_restore_options(restore_options);
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch).expect("made");
    conformance::all(&backend, &scratch).await;
    conformance::single_flight(&backend).await;
}

#[tokio::test]
async fn local_conforms_over_every_fallback() {
    for capabilities in capabilities() {
        check_local(
            CacheOptions::default().with_capabilities(capabilities),
            RestoreOptions::default(),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn local_conforms_durably_in_every_private_mode_and_at_every_level() {
    for link_mode in PRIVATE_MODES {
        for verify_level in [VerifyLevel::Stamp, VerifyLevel::Content] {
            let options = CacheOptions::default().with_durability(Durability::Durable);
            let restore_options =
                RestoreOptions::default().with_link_mode(link_mode).with_verify_level(verify_level);
            check_local(options, restore_options).await;
        }
    }
}

#[tokio::test]
async fn memory_conforms() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = MemoryBackend::new();
    conformance::all(&backend, folder.path()).await;
    conformance::single_flight(&backend).await;
}

#[tokio::test]
async fn disabled_conforms_to_being_switched_off() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    conformance::disabled(&DisabledBackend, folder.path()).await;
    conformance::single_flight_disabled(&DisabledBackend).await;
}

#[tokio::test]
async fn pointers_forward_the_trait() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shared: Arc<dyn CacheBackend> = Arc::new(MemoryBackend::new());
    conformance::all(&shared, folder.path()).await;
    let owned: Box<dyn CacheBackend> = Box::new(MemoryBackend::new());
    conformance::all(&owned, &folder.path().join("boxed")).await;
    let shared: Arc<dyn SingleFlight> = Arc::new(MemoryBackend::new());
    conformance::single_flight(&shared).await;
    let owned: Box<dyn SingleFlight> = Box::new(MemoryBackend::new());
    conformance::single_flight(&owned).await;
}
