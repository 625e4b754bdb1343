//! Heal: a blob that is missing or was damaged comes back from a workspace that still has its bytes.
//!
//! A restore that meets damage looks into the workspace that it restores to, a repair into those that
//! it is told of. A file there is a source like any other: its bytes are copied and the copy is hashed,
//! so that a file which only looks right becomes no blob that is wanted.
//!
//! Left to others: what is damaged, and what becomes of an entry that cannot be healed (`restore`,
//! `scrub`).

use super::Cache;
use crate::blob::{Batch, Proof, Source};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::disk::{self, Dir, Timestamp};
use crate::error::{Error, Result};
use crate::ledger::Ledger;
use crate::manifest::{Manifest, NodeKind, blob_mode};
use crate::options::VerifyLevel;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The file of an entry whose blob is wanted.
struct Wanted {
    digest: Digest,
    size_bytes: u64,
    mode: u32,
    modified: Option<Timestamp>,
}

impl Cache {
    /// Brings back what is missing or damaged of an entry's outputs from the workspace that it is
    /// restored to. Reads all blobs of the entry. Whether anything came back.
    pub(super) fn heal_from_workspace(
        &self,
        manifest: &Manifest,
        workspace: &Dir,
        ledger: &Ledger,
        cancel: &Cancel,
    ) -> Result<bool> {
        let view = self.inner.blobs.view(manifest.nodes.len());
        let (mut seen, mut lost) = (HashSet::new(), HashSet::new());
        for (blob, mode) in manifest.blobs() {
            let level = VerifyLevel::Content;
            if seen.insert((blob.digest, mode))
                && !matches!(
                    self.inner
                        .blobs
                        .prove(&view, &blob.digest, mode, level, &|| !cancel.is_cancelled())?,
                    Proof::Intact(_) | Proof::Unrenewed
                )
            {
                lost.insert((blob.digest, mode));
            }
        }
        Ok(!self.heal(manifest, &lost, &[workspace], ledger, cancel)?.is_empty())
    }

    /// Ingests those of the `lost` blobs again that are outputs of this entry and whose bytes lie in a
    /// workspace: under their own name, under that of another output with the same bytes, or where the
    /// ledger saw them. Returns what came back.
    pub(super) fn heal(
        &self,
        manifest: &Manifest,
        lost: &HashSet<(Digest, u32)>,
        workspaces: &[&Dir],
        ledger: &Ledger,
        cancel: &Cancel,
    ) -> Result<Vec<(Digest, u32)>> {
        let (mut back, mut buffer) = (HashSet::new(), Vec::new());
        let batch = self.inner.blobs.batch(self.inner.options.durability, lost.len());
        for node in &manifest.nodes {
            let NodeKind::File { digest, size_bytes, mode, modified } = node.kind else { continue };
            let wanted = Wanted { digest, size_bytes, mode: blob_mode(mode), modified };
            let name = (digest, wanted.mode);
            if !lost.contains(&name) || back.contains(&name) {
                continue;
            }
            let twins = manifest.nodes.iter().filter_map(|node| match node.kind {
                NodeKind::File { digest: other, .. } if other == digest => {
                    Some(node.path.as_path())
                }
                _ => None,
            });
            let seen = ledger.rows().filter(|row| row.digest == digest);
            let paths = twins.chain(seen.map(|row| Path::new(OsStr::from_bytes(row.path))));
            for (path, workspace) in
                paths.flat_map(|path| workspaces.iter().map(move |dir| (path, dir)))
            {
                cancel.check()?;
                if ingest(&batch, &wanted, workspace, path, &mut buffer, cancel)? {
                    back.insert(name);
                    break;
                }
            }
        }
        batch.finish()?;
        self.count_published(&batch);
        Ok(back.into_iter().collect())
    }
}

/// Whether the file at `path` has the bytes that are wanted, and they are a blob now. Anything that is
/// wrong with it is a no; a cancellation and a full disk are not.
fn ingest(
    batch: &Batch<'_>,
    wanted: &Wanted,
    workspace: &Dir,
    path: &Path,
    buffer: &mut Vec<u8>,
    cancel: &Cancel,
) -> Result<bool> {
    let go_on = || !cancel.is_cancelled();
    let Ok((file, stat)) = workspace.open_regular_beneath(path) else { return Ok(false) };
    if stat.size_bytes != wanted.size_bytes {
        return Ok(false);
    }
    // First as it lies there: other bytes should not become a blob that nobody needs.
    let found = disk::hash_contents(&file, stat.size_bytes, &mut Vec::new(), &go_on);
    cancel.check()?;
    if !found.is_ok_and(|found| found == wanted.digest) {
        return Ok(false);
    }
    let source = Source::File { file: &file, stat: &stat, path, is_likely_known: false };
    let modified = wanted.modified.or(Some(stat.modified));
    match batch.add(&source, wanted.mode, modified, buffer, &go_on) {
        Err(error @ (Error::Cancelled | Error::Full { .. })) => Err(error),
        ingested => Ok(ingested.is_ok_and(|ingested| ingested.digest == wanted.digest)),
    }
}
