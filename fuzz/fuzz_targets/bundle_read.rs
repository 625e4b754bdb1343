//! Reading a bundle ends, in bounded memory, whatever it holds, and nothing panics.
//!
//! The bytes are taken twice: as a whole bundle, and as the records within one.

#![no_main]

use larder::Cancel;
use larder::bundle::Known;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Known::default().add(data, &Cancel::new());
    let entries = larder::fuzzing::read_bundle_records(data);
    // Each needs a manifest, and a header of its own.
    assert!(entries <= data.len() / 9, "more entries than there are bytes for");
});
