//! What decodes as a manifest is what its encoding decodes to, and nothing panics.
//!
//! The bytes are taken twice: as a whole manifest file, and as a body behind checksums that fit.

#![no_main]

use larder::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data);
    check(&larder::fuzzing::wrap_manifest_body(data));
});

fn check(bytes: &[u8]) {
    let Ok((task, manifest)) = Manifest::decode_any(bytes) else {
        return;
    };
    let encoded = manifest.encode(&task);
    // A section that is neither known nor critical is skipped, which makes the encoding shorter.
    let is_canonical = encoded == bytes || encoded.len() < bytes.len();
    assert!(is_canonical, "{manifest:?} has two encodings");
    assert_eq!(Manifest::decode(&encoded, &task), Ok(manifest));
}
