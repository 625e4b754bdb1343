//! No result of a server makes reading it panic, or take more than it may; and what is an entry comes back
//! the same from a server.
//!
//! The bytes are taken twice: as a result and the messages that it names, each behind its length (two bytes,
//! little-endian), and as the body of a manifest, which is described and read.

#![no_main]

use larder::fuzzing::{describe_manifest_body, read_action_result};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut pieces = Vec::new();
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (piece, after) = after.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    read_action_result(&pieces);
    describe_manifest_body(data);
});
