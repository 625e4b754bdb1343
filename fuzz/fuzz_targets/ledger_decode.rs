//! No bytes make a ledger panic, and each row that is read is found by its path.
//!
//! They are the rows of a ledger whose checksum fits.

#![no_main]

use larder::fuzzing::decode_ledger;
use libfuzzer_sys::fuzz_target;

/// Of each row, besides its path.
const ROW_BYTES: usize = 85;

fuzz_target!(|data: &[u8]| {
    assert!(decode_ledger(data) <= data.len() / ROW_BYTES);
});
