//! Receive: an entry that was made elsewhere becomes one of this store, all of it or nothing.
//!
//! The steps, and what a crash after each leaves:
//! 1. check the manifest: it must be one, and signed by a trusted key where there are any. Nothing was
//!    asked for, and nothing is left;
//! 2. hold the blobs that it names, look which of them the store has, ask the source for the others,
//!    and publish each as soon as it has arrived and was verified: blobs that nothing refers to, and a
//!    hold that nobody has locked, both swept;
//! 3. note their slots and, if the store is durable, sync; stage the manifest: the same;
//! 4. in a shared section, publish the manifest: the entry is there, its row follows with a later
//!    commit, or at a lookup;
//! 5. note the row: done.
//!
//! From step 3 on this is a store (`commit`). Unlike a store it is never prepared within a section,
//! since nobody knows how long a source takes: what was swept in spite of the hold is asked for again,
//! and if that happens again the entry is given up.
//!
//! Invariants:
//! - What a source sends is a blob only if it has the digest and the size that the manifest names.
//! - Writer and signature stay as they came. The origin is ours, and what no signature covers (SHA-256)
//!   is not taken over.
//! - No lock is held while a source is asked, but for the hold's own, for which nobody waits.
//!
//! Left to others: where blobs come from ([`BlobSource`]), and how entries go elsewhere (`offer`).

use super::Cache;
use super::commit::{LastRounds, Ready};
use crate::blob::{Batch, Proof, Source, StampView, Target};
use crate::cancel::Cancel;
use crate::digest::{Digest, DigestMap};
use crate::disk::Timestamp;
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{BlobRef, DecodeError, Manifest, NodeKind, blob_mode};
use crate::options::VerifyLevel;
use crate::parallel;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Where blobs come from that a store lacks.
///
/// # Examples
/// ```
/// use larder::{BlobRef, BlobSource, Intake};
///
/// /// Blobs as files, named by their digests.
/// #[derive(Debug)]
/// struct Folder(std::path::PathBuf);
///
/// impl BlobSource for Folder {
///     fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> larder::Result<()> {
///         for blob in missing {
///             // What is not there is not given.
///             let Ok(mut file) = std::fs::File::open(self.0.join(blob.digest.to_string())) else {
///                 continue;
///             };
///             intake.take(blob, &mut file)?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait BlobSource: Sync {
    /// Gets these blobs, and gives each that can be had to [`Intake::take`]: in any order, from any
    /// threads of its own that end before this returns. What is not given is missing, and the entry is
    /// not stored. Called without any lock; may take as long as it needs, and should end soon when
    /// [`Intake::is_cancelled`].
    ///
    /// # Errors
    /// Any; [`Cache::receive`] ends with it.
    fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> Result<()>;

    /// Whether a blob that was given can be asked for once more: on a full disk, or if it was swept.
    /// True unless the source says otherwise.
    fn is_repeatable(&self) -> bool {
        true
    }
}

/// What a reception did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Received {
    /// Regular files among the outputs.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Blobs that the store did not have and the source gave.
    pub fetched_blobs: u64,
    /// Bytes in those.
    pub fetched_bytes: u64,
}

/// Takes the blobs that a [`BlobSource`] gives. Can be used by several threads at once.
#[derive(Debug)]
pub struct Intake<'a> {
    batch: &'a Batch<'a>,
    cancel: &'a Cancel,
    wanted: DigestMap<Digest, Missing>,
    fetched: &'a Fetched,
}

/// A blob that is asked for.
#[derive(Debug)]
struct Missing {
    size_bytes: u64,
    targets: Vec<Target>,
    is_here: AtomicBool,
}

#[derive(Debug, Default)]
struct Fetched {
    blobs: AtomicU64,
    bytes: AtomicU64,
}

/// A blob that an entry needs, in every mode in which it does.
#[derive(Debug)]
struct Wanted {
    blob: BlobRef,
    targets: Vec<Target>,
}

impl Intake<'_> {
    /// Reads a blob to its end, and publishes it if it is what it should be. Reads at most one byte more
    /// than the blob has. A blob that is there already, because it was given before, is not read. Blocking;
    /// memory does not grow with the blob.
    ///
    /// # Errors
    /// [`Error::WrongBytes`] if the bytes are not the blob's, or nobody asked for it: nothing was kept,
    /// and it may be given once more. [`Error::Full`], [`Error::Cancelled`]; [`Error::Io`] if the reader
    /// fails.
    pub fn take(&self, blob: &BlobRef, bytes: &mut dyn Read) -> Result<()> {
        self.cancel.check()?;
        let wanted = self.wanted.get(&blob.digest);
        let Some(wanted) = wanted.filter(|wanted| wanted.size_bytes == blob.size_bytes) else {
            let reason = "was not asked for";
            return Err(Error::WrongBytes { expected: blob.digest, reason });
        };
        if wanted.is_here.load(Ordering::Acquire) {
            return Ok(());
        }
        let keep_going = || !self.is_cancelled();
        let (size_bytes, targets) = (wanted.size_bytes, &wanted.targets);
        self.batch.add_stream(&blob.digest, size_bytes, targets, bytes, &keep_going)?;
        if !wanted.is_here.swap(true, Ordering::AcqRel) {
            self.fetched.blobs.fetch_add(1, Ordering::Relaxed);
            self.fetched.bytes.fetch_add(size_bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether this blob is still to be given.
    pub fn wants(&self, digest: &Digest) -> bool {
        let wanted = self.wanted.get(digest);
        wanted.is_some_and(|wanted| !wanted.is_here.load(Ordering::Acquire))
    }

    /// Whether nobody wants the entry any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

impl Cache {
    /// Takes over an entry that was made elsewhere, in place of what was stored for `task`. All or
    /// nothing, as [`Cache::store`]; each blob is verified while it arrives, and those that the store has
    /// are not asked for. Writer and signature stay as they are; where keys are trusted, one of them must
    /// have signed the entry, which is checked before anything is asked for. Durable when it returns if
    /// the cache was opened so. Blocking, for as long as the source takes; looks at `cancel` before each
    /// blob and each read.
    ///
    /// # Errors
    /// [`Error::Untrusted`]; [`Error::EntryRefused`] for a manifest that cannot be one;
    /// [`Error::WrongBytes`], [`Error::NoBlob`] for what the source gave or did not give, and whatever it
    /// ended with; [`Error::Full`]; [`Error::StoreRefused`]. Nothing is stored then.
    ///
    /// # Examples
    /// ```
    /// use larder::{Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, TaskDigest};
    /// # use larder::{BlobRef, BlobSource, Intake, Offer};
    /// # struct Other(Offer);
    /// # impl BlobSource for Other {
    /// #     fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> larder::Result<()> {
    /// #         missing.iter().try_for_each(|blob| intake.take(blob, &mut self.0.open(&blob.digest)?))
    /// #     }
    /// # }
    /// # let folder = tempfile::tempdir()?;
    /// let open = |name| Cache::open(&folder.path().join(name), CacheOptions::default());
    /// let (here, there, task) = (open("here")?, open("there")?, TaskDigest::derive("", "key")?);
    /// let mut entry = CacheEntry::new(0, 1000);
    /// entry.outputs.push(CacheOutput::bytes("out.txt", "made there"));
    /// there.store(&task, &entry, &Cancel::new())?;
    ///
    /// let offer = there.offer(&task)?.expect("it is there");
    /// let manifest = offer.manifest().clone();
    /// // `Other` is a `BlobSource` that reads from the offer.
    /// let received = here.receive(&task, &manifest, &Other(offer), &Cancel::new())?;
    /// assert_eq!(received.fetched_blobs, 1);
    /// assert!(here.lookup(&task)?.is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn receive(
        &self,
        task: &TaskDigest,
        manifest: &Manifest,
        source: &dyn BlobSource,
        cancel: &Cancel,
    ) -> Result<Received> {
        self.check_may_write()?;
        let manifest = self.accept(task, manifest)?;
        let wanted = wanted_of(&manifest)?;
        let attempt = || self.try_receive(task, &manifest, &wanted, source, cancel);
        if !source.is_repeatable() {
            return self.blame_store(attempt());
        }
        let needs = || {
            let inodes = wanted.iter().map(|wanted| 2 * wanted.targets.len() as u64).sum();
            let bytes = |wanted: &Wanted| {
                wanted.blob.size_bytes.saturating_mul(wanted.targets.len() as u64)
            };
            (wanted.iter().map(bytes).fold(0, u64::saturating_add), inodes)
        };
        self.with_room(needs, cancel, attempt)
    }

    /// What would be stored of a manifest, if it is one and counts here. Encoded and decoded again, so
    /// that every rule is checked, and the signature against the very bytes that will be stored.
    fn accept(&self, task: &TaskDigest, manifest: &Manifest) -> Result<Manifest> {
        let refuse = |reason| Err(Error::EntryRefused { reason });
        let mut manifest = match Manifest::decode(&manifest.encode_portable(task), task) {
            Ok(manifest) => manifest,
            Err(DecodeError::NotCanonical(reason)) => return refuse(reason),
            Err(_) => return refuse("its manifest cannot be encoded"),
        };
        if !self.counts(task, &manifest) {
            return Err(Error::Untrusted);
        }
        manifest.sha256 = Vec::new();
        Ok(manifest)
    }

    fn try_receive(
        &self,
        task: &TaskDigest,
        manifest: &Manifest,
        wanted: &[Wanted],
        source: &dyn BlobSource,
        cancel: &Cancel,
    ) -> Result<Received> {
        cancel.check()?;
        self.inner.blobs.refresh();
        let _hold = self.hold_early(manifest);
        let fetched = Fetched::default();
        let (ready, ()) =
            self.commit_prepared(task, wanted.len(), LastRounds::Never, cancel, |batch| {
                self.fetch(batch, wanted, source, &fetched, cancel)?;
                let mut manifest = manifest.clone();
                manifest.origin = self.origin_now();
                batch.finish()?;
                cancel.check()?;
                let staged = self.stage_manifest(task, &manifest.encode(task), None)?;
                Ok((Ready { manifest, staged }, ()))
            })?;
        self.follow_commit(task, &ready)?;
        Ok(Received {
            files: ready.manifest.file_count() as u64,
            bytes: ready.manifest.output_bytes(),
            fetched_blobs: fetched.blobs.into_inner(),
            fetched_bytes: fetched.bytes.into_inner(),
        })
    }

    /// Step 2, but for the hold.
    fn fetch(
        &self,
        batch: &Batch<'_>,
        wanted: &[Wanted],
        source: &dyn BlobSource,
        fetched: &Fetched,
        cancel: &Cancel,
    ) -> Result<()> {
        let missing = Mutex::new(DigestMap::default());
        let view = self.inner.blobs.view(0);
        parallel::for_each_with(wanted, wanted.len(), Vec::new, |buffer, wanted| {
            cancel.check()?;
            let targets = self.find(batch, &view, wanted, buffer, cancel)?;
            if !targets.is_empty() {
                let (size_bytes, is_here) = (wanted.blob.size_bytes, AtomicBool::new(false));
                let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
                missing.insert(wanted.blob.digest, Missing { size_bytes, targets, is_here });
            }
            Ok(())
        })?;
        let missing = missing.into_inner().unwrap_or_else(PoisonError::into_inner);
        if missing.is_empty() {
            return Ok(());
        }
        let in_order = wanted.iter().map(|wanted| wanted.blob);
        let asked: Vec<BlobRef> =
            in_order.filter(|blob| missing.contains_key(&blob.digest)).collect();
        let intake = Intake { batch, cancel, wanted: missing, fetched };
        source.fetch(&asked, &intake)?;
        cancel.check()?;
        match asked.iter().find(|blob| intake.wants(&blob.digest)) {
            Some(blob) => Err(Error::NoBlob { digest: blob.digest }),
            None => Ok(()),
        }
    }

    /// Finds a blob in the store, or makes it of one that only has another mode. Returns in which modes
    /// it is missing.
    fn find(
        &self,
        batch: &Batch<'_>,
        view: &StampView,
        wanted: &Wanted,
        buffer: &mut Vec<u8>,
        cancel: &Cancel,
    ) -> Result<Vec<Target>> {
        let (digest, keep_going) = (&wanted.blob.digest, || !cancel.is_cancelled());
        if wanted.blob.size_bytes == 0 {
            for (mode, modified) in &wanted.targets {
                batch.add(&Source::Bytes(&[]), *mode, *modified, buffer, &keep_going)?;
            }
            return Ok(Vec::new());
        }
        let mut missing = Vec::new();
        for (mode, modified) in &wanted.targets {
            match batch.find(digest, *mode, &keep_going)? {
                Some(size_bytes) if size_bytes != wanted.blob.size_bytes => {
                    return Err(Error::EntryRefused { reason: OTHER_SIZE });
                }
                Some(_) => {}
                None => missing.push((*mode, *modified)),
            }
        }
        for mode in LIKELY_MODES {
            let is_missing = missing.iter().any(|(missing, _)| *missing == mode);
            if missing.is_empty() || is_missing {
                continue;
            }
            let level = VerifyLevel::Stamp;
            let proof = self.inner.blobs.prove(view, digest, mode, level, &keep_going)?;
            if !matches!(proof, Proof::Intact(stat) if stat.size_bytes == wanted.blob.size_bytes) {
                continue;
            }
            let mut left = Vec::new();
            for target in missing {
                if !self.copy_from_mode(batch, digest, mode, target, buffer, cancel)? {
                    left.push(target);
                }
            }
            missing = left;
        }
        Ok(missing)
    }

    /// Makes a blob of one with the same bytes in another mode. False if that is gone or damaged.
    fn copy_from_mode(
        &self,
        batch: &Batch<'_>,
        digest: &Digest,
        found: u32,
        (mode, modified): Target,
        buffer: &mut Vec<u8>,
        cancel: &Cancel,
    ) -> Result<bool> {
        let Some(blob) = self.inner.blobs.open_or_judge(digest, found)? else { return Ok(false) };
        let path = self.inner.blobs.blob_path(digest, found);
        let source = Source::File {
            file: &blob.file,
            stat: &blob.stat,
            path: &path,
            is_likely_known: false,
        };
        match batch.add(&source, mode, modified, buffer, &|| !cancel.is_cancelled()) {
            // Somebody writes to it through a link.
            Err(Error::SourceChanged { .. }) => Ok(false),
            ingested => Ok(ingested?.digest == *digest),
        }
    }
}

/// Most blobs have one of these modes: a stat each, where the one that is wanted is missing.
const LIKELY_MODES: [u32; 4] = [0o444, 0o555, 0o400, 0o500];

const OTHER_SIZE: &str = "a blob has another size than it says";

/// The blobs of a manifest, each digest once, in the order in which they are first named.
fn wanted_of(manifest: &Manifest) -> Result<Vec<Wanted>> {
    let mut places: DigestMap<Digest, usize> = DigestMap::default();
    let mut all: Vec<Wanted> = Vec::new();
    let mut want = |blob: BlobRef, mode: u32, modified: Option<Timestamp>| {
        let is_empty = blob.digest == Digest::of(b"");
        let place = *places.entry(blob.digest).or_insert(all.len());
        if place == all.len() {
            all.push(Wanted { blob, targets: Vec::new() });
        }
        let wanted = &mut all[place];
        if (blob.size_bytes == 0) != is_empty || wanted.blob.size_bytes != blob.size_bytes {
            return Err(Error::EntryRefused { reason: OTHER_SIZE });
        }
        match wanted.targets.iter_mut().find(|(known, _)| *known == mode) {
            // Its inode gets the time of the first file that has one.
            Some((_, known)) => *known = known.or(modified),
            None => wanted.targets.push((mode, modified)),
        }
        Ok(())
    };
    for node in &manifest.nodes {
        if let NodeKind::File { digest, size_bytes, mode, modified } = node.kind {
            want(BlobRef { digest, size_bytes }, blob_mode(mode), modified)?;
        }
    }
    for (blob, mode) in manifest.private_blobs() {
        want(blob, mode, None)?;
    }
    Ok(all)
}
