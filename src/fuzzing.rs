//! Ways behind the checksums for the fuzz targets. Only built with `--cfg fuzzing`, which cargo-fuzz
//! sets.

use crate::index::Row;
use crate::key::TaskDigest;
use crate::manifest::{Origin, wrap_body};

/// A manifest file with this body, taken verbatim, valid or not, and right checksums around it.
pub fn wrap_manifest_body(body: &[u8]) -> Vec<u8> {
    wrap_body(body, &TaskDigest::from_bytes([0; 32]), &Origin::default())
}

/// Whether `bytes` are a row of this task in the store with this row key.
///
/// # Panics
/// If what decodes does not encode to the same bytes.
pub fn decode_row(bytes: &[u8], task: [u8; 32], key: [u8; 32]) -> bool {
    let task = TaskDigest::from_bytes(task);
    let row = Row::decode(bytes, &task, &key);
    if let Some(row) = row {
        assert_eq!(row.encode(&task, &key), bytes, "one row has one encoding");
    }
    row.is_some()
}
