//! Ways behind the checksums for the fuzz targets and the rigs. Only built with `--cfg fuzzing`, which
//! cargo-fuzz sets, or `--cfg larder_rigs`.

use crate::index::Row;
use crate::key::TaskDigest;
use crate::manifest::{Origin, wrap_body};
#[cfg(feature = "remote")]
use crate::remote::translate;
use crate::{engine, identity, ledger};

/// A manifest file with this body, taken verbatim, valid or not, and right checksums around it.
pub fn wrap_manifest_body(body: &[u8]) -> Vec<u8> {
    wrap_body(body, &TaskDigest::from_bytes([0; 32]), &Origin::default())
}

/// As [`wrap_manifest_body`], as the manifest of `task`.
pub fn wrap_manifest_of(task: &TaskDigest, body: &[u8]) -> Vec<u8> {
    wrap_body(body, task, &Origin::default())
}

/// Whether these contents are a store's identity, behind a checksum that fits.
///
/// # Panics
/// If what decodes does not encode to the same bytes. So do those below.
pub fn decode_identity(contents: &[u8]) -> bool {
    identity::decodes(contents)
}

/// The version that a `FORMAT` of this line says, behind a checksum that fits.
pub fn decode_format(line: &str) -> Option<u32> {
    identity::version_of(line)
}

/// Whether these contents are a ghost, behind a checksum that fits.
pub fn decode_ghost(contents: &[u8; 28]) -> bool {
    engine::ghost_decodes(contents)
}

/// How many entries a block of `references` of these bytes has, behind its checksum.
pub fn decode_references(block: &[u8]) -> usize {
    engine::count_references(block)
}

/// How many entries the records of a bundle have, without its header and compression.
#[cfg(feature = "bundle")]
pub fn read_bundle_records(records: &[u8]) -> usize {
    crate::bundle::count_entries(records)
}

/// How many rows a ledger of these bytes has, behind its checksum.
pub fn decode_ledger(rows: &[u8]) -> usize {
    ledger::count_rows(rows)
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

/// Whether these pieces are a result of an action that is an entry: the result, and then what it names, in
/// the order in which it is wanted; no bytes where there are no more. The name of a piece is its length,
/// with zeros for a hash, so that anything can name anything, and itself.
///
/// # Panics
/// If the entry, sent to a server and read from there, is another one.
#[cfg(feature = "remote")]
pub fn read_action_result(pieces: &[&[u8]]) -> bool {
    let entry = translate::read_pieces(pieces);
    entry.as_ref().inspect(|entry| translate::check_described(entry)).is_some()
}

/// Describes the manifest with this body, if it is one, as a result of an action.
///
/// # Panics
/// As [`read_action_result`].
#[cfg(feature = "remote")]
pub fn describe_manifest_body(body: &[u8]) {
    if let Ok((_, manifest)) = crate::Manifest::decode_any(&wrap_manifest_body(body)) {
        translate::check_described(&manifest);
    }
}
