//! No bytes make what a store keeps about itself panic, and what decodes has one encoding.
//!
//! They are taken as an identity, as the line of `FORMAT`, as a ghost and as a block of references, each
//! behind a checksum that fits. The tally and the seal are compared with what they ought to be, and so
//! are not decoded.

#![no_main]

use larder::fuzzing::{decode_format, decode_ghost, decode_identity, decode_references};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    decode_identity(data);
    decode_identity(&[&b"larder-i"[..], data].concat());
    assert!(decode_references(data) <= data.len() / 92);
    if let Some(ghost) = data.first_chunk() {
        decode_ghost(ghost);
    }
    if let Ok(line) = std::str::from_utf8(data) {
        assert!(decode_format(line).is_none() || line.starts_with("larder store format "));
    }
});
