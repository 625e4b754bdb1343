//! A row of the index is believed only with the checksum of its task and its store.
//!
//! The bytes are taken twice: as a whole row, and as the contents of a row whose checksum fits. Of
//! those each that has the right length is a row, and encodes to the same bytes (which
//! `decode_row` asserts).

#![no_main]

use larder::fuzzing::decode_row;
use libfuzzer_sys::fuzz_target;

const CONTENTS_BYTES: usize = 40;
const TASK: [u8; 32] = [7; 32];
const KEY: [u8; 32] = [9; 32];

fuzz_target!(|data: &[u8]| {
    decode_row(data, TASK, KEY);
    let sealed = seal(data);
    assert_eq!(decode_row(&sealed, TASK, KEY), data.len() == CONTENTS_BYTES);
    assert!(!decode_row(&sealed, KEY, KEY), "it is another task's");
    assert!(!decode_row(&sealed, TASK, TASK), "it is another store's");
});

/// A row with these contents, as DESIGN.md has it: 16 bytes of a keyed hash over task and contents,
/// then the contents.
fn seal(contents: &[u8]) -> Vec<u8> {
    let checksum = blake3::keyed_hash(&KEY, &[&TASK[..], contents].concat());
    [&checksum.as_bytes()[..16], contents].concat()
}
