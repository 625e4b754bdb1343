//! Bundles: entries in one file, to be carried to another store without a network.
//!
//! A bundle is a header and one zstd frame of records (DESIGN.md, section 4.13): each entry as its
//! portable manifest, followed by the blobs that the reader does not have by then, each in full. So a
//! bundle is read like any other source of blobs, in one pass, and into the very inodes that its entries
//! want; and what came before a cut is whole.
//!
//! Invariants:
//! - Memory does not grow with a blob: blobs are streams on both sides.
//! - Nothing is believed of a bundle that was not checked: an entry is received (`engine`) or not at all,
//!   and no more is read of a blob than its manifest says.
//! - The same entries make the same bytes.
//!
//! Left to others: what entries and blobs are (`engine`), files and words (`cli`).

mod export;
mod import;
mod known;
mod records;

pub use export::{Exported, export};
pub use import::{Ending, Imported, import};
pub use known::Known;
#[cfg(any(fuzzing, larder_rigs))]
pub(crate) use known::count_entries;

use crate::manifest::Manifest;
use crate::signature::{KeyId, KeyKind};
use std::path::{Path, PathBuf};

/// Who claims to have signed an entry. Whoever reads a bundle takes the entries of a signer, or leaves
/// them; so a blob that two signers' entries need comes once for each.
type Signer = Option<(KeyKind, KeyId)>;

fn signer_of(manifest: &Manifest) -> Signer {
    manifest.signature.as_ref().map(|signature| (signature.kind, signature.key))
}

/// What a bundle is called in messages: it may be a pipe.
fn place() -> PathBuf {
    Path::new("(the bundle)").to_path_buf()
}
