//! Pull: a result on the server becomes an entry of the store.
//!
//! The steps; each may find that there is no such entry, which is a miss:
//! 1. ask for the result of the task's action;
//! 2. rebuild our manifest from an entry that is here, if what differs rides along
//!    (`remote/translate/delta.rs`), else fetch it, if it does. Where it says what the server calls its blobs (by BLAKE3, or
//!    in its column of SHA-256), it is all that is needed: most of a large result is never transferred;
//! 3. else fetch the messages that the result names (Trees), and read it: paths and sizes are checked
//!    before anything large is asked for. Without a manifest one is made of it;
//! 4. ask for every blob that is still needed, and count on none that is missing (a server may forget a
//!    blob and keep the result);
//! 5. receive the entry (`engine/receive.rs`): the blobs that the store lacks are fetched and verified, and
//!    asked for meanwhile.
//!
//! A result without a manifest of ours, on a server that names blobs by SHA-256, does not say their
//! BLAKE3: its blobs are fetched to a scratch file first, and received from there.

use super::{Inner, RemoteTier, block, same_name, unless_cancelled};
use crate::cancel::Cancel;
use crate::digest::{Digest, DigestMap};
use crate::engine::{BlobSource, Hit, Intake};
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{BlobRef, LOG_INLINE_BYTES_MAX, Manifest};
use crate::remote::translate::{
    Delta, ENTRY_BYTES_MAX, ForeignEntry, Hash, Reading, action_of, riders_of,
};
use crate::remote::{BlobReader, DigestFunction, Downloads, RemoteDigest, RemoteError};
use bazel_remote_apis::build::bazel::remote::execution::v2::ActionResult;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

/// So many bytes are fetched without asking whether all are there: an answer takes as long.
const UNASKED_BYTES_MAX: u64 = 1 << 20;

/// How many blobs are taken at once.
const TAKERS: usize = 4;

/// So often an entry is received again because somebody else in this process fetched some of its blobs,
/// and did not bring them.
const ROUNDS_MAX: usize = 3;

impl RemoteTier {
    /// Brings the entry of `task` into the store; `None` if the server has none, or none that can be had
    /// whole, or, with trusted keys, none that one of them has signed. The store's own entry is replaced.
    /// If the future is dropped, the entry is stored whole or not at all.
    ///
    /// # Errors
    /// [`Error::Remote`] if the server cannot be asked, or sends what it should not. Otherwise as for
    /// [`crate::Cache::receive`].
    pub async fn pull(&self, task: &TaskDigest, cancel: &Cancel) -> Result<Option<Hit>> {
        match unless_cancelled(cancel, Box::pin(self.try_pull(task, cancel))).await {
            // Forgotten by the server, or not for us.
            Err(Error::NoBlob { .. } | Error::Untrusted | Error::Miss) => Ok(None),
            Err(Error::Remote { source })
                if matches!(source.downcast_ref(), Some(RemoteError::Absent { .. })) =>
            {
                Ok(None)
            }
            pulled => pulled,
        }
    }

    async fn try_pull(&self, task: &TaskDigest, cancel: &Cancel) -> Result<Option<Hit>> {
        let function = self.function().await?;
        let client = &self.inner.client;
        let hash = move |bytes: &[u8]| function.digest(bytes);
        let action = action_of(task, &hash);
        let Some(result) = client.get_action(&action.digest).await? else { return Ok(None) };
        let riders = riders_of(&result);
        if let Some(name) = riders.delta
            && let Some((manifest, names)) = self.rebuilt(task, name, cancel).await?
        {
            let supply =
                Supply { names, has_all: function == DigestFunction::Blake3, scratch: None };
            match self.receive(*task, manifest, supply, cancel).await {
                // The store lacks something that the base had, too.
                Err(Error::NoBlob { .. } | Error::Untrusted) => {}
                received => return received.map(Some),
            }
        }
        let manifest = match riders.manifest {
            Some(name) => self.rider(task, name).await?,
            None => None,
        };
        if manifest.is_none() && self.cache().asks_for_signatures() {
            return Ok(None);
        }
        if let Some(manifest) = &manifest
            && let Some(names) = names_in(manifest, function)
        {
            return self
                .receive(*task, manifest.clone(), Supply::named(names), cancel)
                .await
                .map(Some);
        }
        let entry = self.read(&result, &hash).await?;
        let mut needed = entry.blobs();
        needed.extend(riders.key_parts);
        let missing: HashSet<RemoteDigest> =
            client.find_missing(&needed).await?.into_iter().collect();
        let is_there = |digest: &RemoteDigest| !missing.contains(digest);
        if !entry.blobs().iter().all(is_there) {
            return Ok(None);
        }
        let (manifest, supply) = match (manifest, function) {
            (Some(manifest), _) => {
                let key_parts = riders.key_parts.filter(is_there);
                let names = entry.names_for(&manifest, key_parts).map_err(Error::remote)?;
                (manifest, Supply::named(names))
            }
            (None, DigestFunction::Blake3) => {
                let supply = Supply::named(DigestMap::default());
                (self.complete(&entry, &supply).await?, supply)
            }
            (None, DigestFunction::Sha256) => {
                let supply = self.fetch_to_scratch(&entry, cancel).await?;
                (self.complete(&entry, &supply).await?, supply)
            }
        };
        self.receive(*task, manifest, supply, cancel).await.map(Some)
    }

    /// Our manifest beside a result; `None` if the server has forgotten it.
    async fn rider(&self, task: &TaskDigest, name: RemoteDigest) -> Result<Option<Manifest>> {
        let mut fetched = match self.inner.client.fetch(&[name], ENTRY_BYTES_MAX).await {
            Err(RemoteError::Absent { .. }) => return Ok(None),
            fetched => fetched?,
        };
        let bytes = fetched.remove(&name).unwrap_or_default();
        Manifest::decode(&bytes, task).map(Some).map_err(Error::remote)
    }

    /// The manifest that a delta makes of an entry that is in the store, and the server's names of what is
    /// new in it; `None` if that cannot be.
    async fn rebuilt(
        &self,
        task: &TaskDigest,
        name: RemoteDigest,
        cancel: &Cancel,
    ) -> Result<Option<(Manifest, DigestMap<Digest, RemoteDigest>)>> {
        let mut fetched = match self.inner.client.fetch(&[name], ENTRY_BYTES_MAX).await {
            Err(RemoteError::Absent { .. }) => return Ok(None),
            fetched => fetched?,
        };
        let (cache, task) = (self.cache().clone(), *task);
        let bytes = fetched.remove(&name).unwrap_or_default();
        block(cancel, move |_| {
            let Some(delta) = Delta::read(&bytes) else { return Ok(None) };
            let base = cache.manifest(&delta.base_task)?;
            Ok(base.and_then(|base| delta.apply(&task, &base)))
        })
        .await
    }

    /// What a result says, with the messages that it names.
    async fn read(&self, result: &ActionResult, hash: Hash<'_>) -> Result<ForeignEntry> {
        let mut reading = Reading::begin(result, hash).map_err(Error::remote)?;
        loop {
            let wanted = reading.wanted();
            if wanted.is_empty() {
                return reading.finish().map_err(Error::remote);
            }
            for (digest, message) in self.inner.client.fetch(&wanted, ENTRY_BYTES_MAX).await? {
                reading.give(&digest, &message).map_err(Error::remote)?;
            }
        }
    }

    /// The manifest of an entry that has none of ours.
    async fn complete(&self, entry: &ForeignEntry, supply: &Supply) -> Result<Manifest> {
        let is_short = |digest: &RemoteDigest| {
            digest.size_bytes <= LOG_INLINE_BYTES_MAX as u64 && entry.contents(digest).is_none()
        };
        let logs: Vec<RemoteDigest> = entry.logs().filter(is_short).collect();
        let logs = self.inner.client.fetch(&logs, 2 * LOG_INLINE_BYTES_MAX as u64).await?;
        let digest_of = |name: &RemoteDigest| match &supply.scratch {
            Some(scratch) => scratch.places.get(name).map(|place| place.digest),
            None => Some(Digest::from_bytes(*name.hash())),
        };
        entry.complete(&digest_of, &|name| logs.get(name).cloned()).map_err(Error::remote)
    }

    async fn receive(
        &self,
        task: TaskDigest,
        manifest: Manifest,
        supply: Supply,
        cancel: &Cancel,
    ) -> Result<Hit> {
        let (inner, runtime) = (Arc::clone(&self.inner), Handle::current());
        let hit = Hit { duration_ms: manifest.duration_ms, exit_code: manifest.exit_code };
        block(cancel, move |cancel| {
            let source = Source { inner: &inner, runtime, supply, was_left: Mutex::new(false) };
            for round in 0.. {
                match inner.cache.receive(&task, &manifest, &source, cancel) {
                    // Somebody else has fetched it meanwhile, most likely.
                    Err(Error::NoBlob { .. }) if source.take_left() && round < ROUNDS_MAX => {}
                    received => return received.map(drop),
                }
            }
            unreachable!("the last round returns")
        })
        .await?;
        Ok(hit)
    }

    /// Fetches what an entry needs, to learn what we call it.
    async fn fetch_to_scratch(&self, entry: &ForeignEntry, cancel: &Cancel) -> Result<Supply> {
        let wanted: Vec<RemoteDigest> = entry.blobs();
        let (along, wanted): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|digest| entry.contents(digest).is_some());
        let along: Vec<(RemoteDigest, Vec<u8>)> = along
            .into_iter()
            .filter_map(|digest| Some((digest, entry.contents(&digest)?.to_vec())))
            .collect();
        let downloads = self.inner.client.download(&wanted).await?;
        let cache = self.cache().clone();
        let scratch = block(cancel, move |cancel| {
            let mut scratch = Scratch {
                file: cache.scratch_file()?,
                places: HashMap::new(),
                ours: DigestMap::default(),
                end: 0,
            };
            for (digest, bytes) in along {
                scratch.add(digest, &mut bytes.as_slice(), cancel)?;
            }
            while let Some(arrival) = downloads.next() {
                scratch.add(arrival.digest, &mut arrival.content?, cancel)?;
            }
            Ok(scratch)
        });
        Ok(Supply { scratch: Some(scratch.await?), ..Supply::default() })
    }
}

/// What the server calls the blobs of a manifest, where that says so. A name that is wrong is found out
/// like a blob that is: by its bytes.
fn names_in(
    manifest: &Manifest,
    function: DigestFunction,
) -> Option<DigestMap<Digest, RemoteDigest>> {
    let blobs = manifest.distinct_blobs();
    match function {
        DigestFunction::Blake3 => Some(DigestMap::default()),
        DigestFunction::Sha256 if manifest.sha256.len() == blobs.len() => {
            let name = |(blob, sha256): (BlobRef, &[u8; 32])| {
                (blob.digest, RemoteDigest::new(*sha256, blob.size_bytes))
            };
            Some(blobs.into_iter().zip(&manifest.sha256).map(name).collect())
        }
        DigestFunction::Sha256 => None,
    }
}

/// Where the blobs of an entry are.
#[derive(Debug, Default)]
struct Supply {
    /// What the server calls them.
    names: DigestMap<Digest, RemoteDigest>,
    /// Whether it calls those that are not here as we do; else they cannot be had.
    has_all: bool,
    /// Those that are here already.
    scratch: Option<Scratch>,
}

impl Supply {
    fn named(names: DigestMap<Digest, RemoteDigest>) -> Supply {
        Supply { names, has_all: true, scratch: None }
    }
}

/// Blobs that were fetched before it was known what we call them, one behind the other in one file that
/// has no name.
#[derive(Debug)]
struct Scratch {
    file: File,
    places: HashMap<RemoteDigest, Place>,
    /// The same by our digest.
    ours: DigestMap<Digest, Place>,
    end: u64,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    digest: Digest,
    start: u64,
    size_bytes: u64,
}

impl Scratch {
    fn add(&mut self, name: RemoteDigest, bytes: &mut dyn Read, cancel: &Cancel) -> Result<()> {
        const PIECE_BYTES: usize = 128 << 10;
        let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; PIECE_BYTES]);
        let start = self.end;
        loop {
            cancel.check()?;
            let read = match bytes.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(of_reader)?,
            };
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            let written = self.file.write_all(&piece[..read]);
            written.map_err(|error| Error::io("write", "staging".into(), error))?;
            self.end += read as u64;
        }
        let digest = Digest::from(hasher.finalize());
        let place = Place { digest, start, size_bytes: self.end - start };
        self.places.insert(name, place);
        self.ours.insert(digest, place);
        Ok(())
    }

    fn find(&self, blob: &BlobRef) -> Option<Place> {
        self.ours.get(&blob.digest).filter(|place| place.size_bytes == blob.size_bytes).copied()
    }
}

/// A part of a file.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Gives the store what it lacks.
struct Source<'a> {
    inner: &'a Arc<Inner>,
    runtime: Handle,
    supply: Supply,
    /// Whether a blob was left to somebody else who fetches it, too.
    was_left: Mutex<bool>,
}

impl Source<'_> {
    fn take_left(&self) -> bool {
        std::mem::take(&mut *self.was_left.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks, while blobs arrive, whether all are there: of an entry that cannot be had whole, little is
    /// fetched then. Sets the flag if one is not.
    fn search(&self, names: &[RemoteDigest], is_over: &Arc<AtomicBool>) -> Option<AbortHandle> {
        let bytes = names.iter().fold(0_u64, |sum, name| sum.saturating_add(name.size_bytes));
        if bytes <= UNASKED_BYTES_MAX {
            return None;
        }
        let (inner, is_over) = (Arc::clone(self.inner), Arc::clone(is_over));
        let names = names.to_vec();
        let search = self.runtime.spawn(async move {
            if inner.client.find_missing(&names).await.is_ok_and(|missing| !missing.is_empty()) {
                is_over.store(true, Ordering::Relaxed);
            }
        });
        Some(search.abort_handle())
    }

    fn name_of(&self, blob: &BlobRef) -> Result<RemoteDigest> {
        match self.supply.names.get(&blob.digest) {
            Some(name) => Ok(*name),
            None if self.supply.has_all => Ok(same_name(&blob.digest, blob.size_bytes)),
            None => Err(Error::NoBlob { digest: blob.digest }),
        }
    }
}

/// Takes what arrives, on several threads.
fn take(
    downloads: &Downloads,
    blobs: &HashMap<RemoteDigest, BlobRef>,
    is_over: &AtomicBool,
    intake: &Intake<'_>,
) -> Result<()> {
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    // What fails because another has is not the reason.
    let fail = |error: Error| {
        if !is_over.swap(true, Ordering::Relaxed) {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    };
    let take_one = |digest: RemoteDigest, content: Result<BlobReader, RemoteError>| {
        let Some(blob) = blobs.get(&digest) else { return Ok(()) };
        intake.take(blob, &mut Stoppable { content: content?, is_over }).map_err(
            |error| match error {
                // Of the reader, or of our own disk.
                Error::Io { action, path, source } => match source.downcast::<RemoteError>() {
                    Ok(error) => error.into(),
                    Err(source) => Error::Io { action, path, source },
                },
                error => error,
            },
        )
    };
    std::thread::scope(|scope| {
        for _ in 0..TAKERS.min(blobs.len()) {
            scope.spawn(|| {
                while let Some(arrival) = downloads.next() {
                    if is_over.load(Ordering::Relaxed) || intake.is_cancelled() {
                        return;
                    }
                    if let Err(error) = take_one(arrival.digest, arrival.content) {
                        fail(error);
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl BlobSource for Source<'_> {
    fn fetch(&self, missing: &[BlobRef], intake: &Intake<'_>) -> Result<()> {
        if let Some(scratch) = &self.supply.scratch {
            for blob in missing {
                let Some(place) = scratch.find(blob) else { continue };
                let end = place.start + place.size_bytes;
                intake.take(blob, &mut Part { file: &scratch.file, at: place.start, end })?;
            }
            return Ok(());
        }
        let names: Vec<RemoteDigest> =
            missing.iter().map(|blob| self.name_of(blob)).collect::<Result<_>>()?;
        let claim = self.inner.arriving.claim(missing.iter().map(|blob| blob.digest));
        let (ours, others): (Vec<_>, Vec<_>) = names
            .into_iter()
            .zip(missing)
            .partition(|(_, blob)| claim.claimed.contains(&blob.digest));
        // In the order of the paths.
        let names: Vec<RemoteDigest> = ours.iter().map(|(name, _)| *name).collect();
        let blobs: HashMap<RemoteDigest, BlobRef> =
            ours.into_iter().map(|(name, blob)| (name, *blob)).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        let search = self.search(&names, &is_over);
        let taken = self
            .runtime
            .block_on(self.inner.client.download(&names))
            .map_err(Error::from)
            .and_then(|downloads| take(&downloads, &blobs, &is_over, intake));
        if let Some(search) = search {
            // What it has not found by now, the download has.
            search.abort();
        }
        taken?;
        drop(claim);
        for (_, blob) in others {
            while !self.inner.arriving.wait(&blob.digest) {
                if intake.is_cancelled() {
                    return Err(Error::Cancelled);
                }
            }
            *self.was_left.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
        Ok(())
    }
}

/// A download that ends when the others are in vain.
struct Stoppable<'a> {
    content: BlobReader,
    is_over: &'a AtomicBool,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_over.load(Ordering::Relaxed) {
            return Err(io::Error::other("another blob of the entry cannot be had"));
        }
        self.content.read(buffer)
    }
}

/// What a reader of a download failed with.
fn of_reader(error: io::Error) -> Error {
    // The original is what tells an absent blob from a lie.
    RemoteError::of(error).map_or_else(|| Error::remote("a download broke off"), Error::from)
}
