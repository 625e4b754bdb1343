//! How much heap does a large output take on its way up and down?

use crate::common::place;
use crate::common::random::contents;
use crate::heap;
use crate::report::Report;
use larder::{
    Cache, CacheEntry, CacheOptions, Cancel, OutputDeclaration, RemoteAccess, RemoteOptions,
    RemoteTier, TaskDigest,
};
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

const OUTPUT_BYTES: u64 = 2 << 30;
const PIECE_BYTES: usize = 1 << 20;
const HEAP_BYTES_MAX: f64 = 64.0;

pub(crate) fn measure(server: SocketAddr, report: &mut Report) {
    let folder = place();
    let workspace = folder.path().join("workspace");
    fs::create_dir(&workspace).expect("made");
    write(&workspace.join("large"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let task = TaskDigest::derive("", &format!("large {}", std::process::id())).expect("a key");
    let tier = |name: &str| {
        let cache = Cache::open(&folder.path().join(name), CacheOptions::default());
        let options = RemoteOptions::new(&format!("grpc://{server}")).expect("a URL");
        let options = options.with_access(RemoteAccess::ReadWrite);
        RemoteTier::new(cache.expect("a store"), options)
    };
    let (here, there) = (tier("here"), tier("there"));
    let entry = CacheEntry::capture(&workspace, &[OutputDeclaration::new("large")]);
    here.cache().store(&task, &entry.expect("captured"), &Cancel::new()).expect("stored");

    let begun = Instant::now();
    let (pushed, heap_bytes) =
        heap::peak_bytes_of(|| runtime.block_on(here.push(&task, &Cancel::new())));
    assert!(pushed.expect("sent").is_some());
    report.tell("output of 2 GiB up, time", begun.elapsed().as_secs_f64(), "s");
    report.hold("output of 2 GiB up, heap", mebibytes(heap_bytes), "MiB", HEAP_BYTES_MAX);

    let begun = Instant::now();
    let (pulled, heap_bytes) =
        heap::peak_bytes_of(|| runtime.block_on(there.pull(&task, &Cancel::new())));
    assert!(pulled.expect("asked").is_some());
    report.tell("output of 2 GiB down, time", begun.elapsed().as_secs_f64(), "s");
    report.hold("output of 2 GiB down, heap", mebibytes(heap_bytes), "MiB", HEAP_BYTES_MAX);
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A file whose every piece is different.
fn write(path: &Path) {
    let mut piece = contents(7, PIECE_BYTES);
    let mut file = File::create(path).expect("made");
    for number in 0..OUTPUT_BYTES / PIECE_BYTES as u64 {
        piece[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&piece).expect("there is room");
    }
}
