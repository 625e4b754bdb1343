//! A server behind a store: entries come from there, and go there.
//!
//! Joins `engine` and `remote`, which know nothing of each other: [`pull`](RemoteTier::pull) brings an
//! entry into the store, [`push`](RemoteTier::push) sends one, [`drain`](RemoteTier::drain) sends what
//! waits. Asynchronous; what blocks in the engine runs on tokio's blocking threads.
//!
//! Invariants:
//! - What comes from a server is an entry of the store before it is a hit, verified while it arrives,
//!   and is restored from there like any other.
//! - Nothing that a server does, or does not do, harms the store, or is a reason for a task to fail.
//! - An entry that is to be sent waits in the store (`engine/uploads.rs`) until the server has it.
//!
//! Left to others: when to ask (`backend`, `cli`), and what is said of a failure.

mod drain;
mod pull;
mod push;

pub use drain::Drained;
pub use push::Pushed;

use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::engine::{Cache, Goal};
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use crate::remote::{
    Client, DigestFunction, RemoteAccess, RemoteAddress, RemoteDigest, RemoteError, RemoteOptions,
    RemoteStatus,
};
use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A server as the second tier of a store. Cheap to clone; clones share the connection.
///
/// # Panics
/// Its asynchronous methods need a tokio runtime with its I/O and time drivers, as `tokio::main` and
/// `enable_all` make it, and panic in one without them.
///
/// # Examples
/// ```no_run
/// use larder::{Cache, CacheOptions, Cancel, RemoteOptions, RemoteTier, TaskDigest};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache = Cache::open("store".as_ref(), CacheOptions::default())?;
/// let tier = RemoteTier::new(cache, RemoteOptions::new("grpc://localhost:9092")?);
/// let task = TaskDigest::derive("", "key")?;
/// if tier.pull(&task, &Cancel::new()).await?.is_some() {
///     // The entry is in the store now.
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RemoteTier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cache: Cache,
    client: Client,
    address: RemoteAddress,
    /// What the queue calls the server.
    goal: Goal,
    access: RemoteAccess,
    upload_wait_max: Duration,
    arriving: Arriving,
}

impl RemoteTier {
    /// Puts a server behind a store. Connects to nothing yet.
    pub fn new(cache: Cache, options: RemoteOptions) -> RemoteTier {
        let (access, upload_wait_max) = (options.access, options.upload_wait_max);
        let address = options.address.clone();
        let client = Client::connect(options);
        let arriving = Arriving::default();
        let mut goal = Goal::default();
        let hash = blake3::derive_key(GOAL_CONTEXT, address.to_string().as_bytes());
        goal.copy_from_slice(&hash[..std::mem::size_of::<Goal>()]);
        let inner = Inner { cache, client, address, goal, access, upload_wait_max, arriving };
        RemoteTier { inner: Arc::new(inner) }
    }

    /// The store.
    pub fn cache(&self) -> &Cache {
        &self.inner.cache
    }

    /// Whether entries may be sent, as far as the options say.
    pub fn may_push(&self) -> bool {
        self.inner.access == RemoteAccess::ReadWrite
    }

    /// How long the end of a run waits for uploads ([`RemoteOptions::upload_wait_max`]).
    pub fn upload_wait_max(&self) -> Duration {
        self.inner.upload_wait_max
    }

    /// Notes that the entry of `task` is to be sent to this server; [`RemoteTier::drain`] sends it, now or in another
    /// process. As durable as the store. Blocking, briefly.
    ///
    /// # Errors
    /// If it cannot be noted; [`Error::StoreRefused`] in a store that may only be read.
    pub fn queue(&self, task: &TaskDigest) -> Result<()> {
        self.cache().queue_upload(&self.inner.goal, task)
    }

    /// How many entries wait to be sent to this server. Blocking, briefly.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn waiting(&self) -> Result<u64> {
        Ok(self.cache().waiting_uploads(&self.inner.goal)?.len() as u64)
    }

    /// Whether the server is asked at all, as far as is known: false for a while after an outage.
    pub fn is_available(&self) -> bool {
        self.inner.client.is_available()
    }

    /// Why the server is left alone, once for each outage: the one warning that a build gives.
    pub fn take_outage(&self) -> Option<RemoteError> {
        self.inner.client.take_outage()
    }

    /// Asks the server what it can do, and how fast it answers.
    ///
    /// # Errors
    /// If it cannot be asked, or is not a cache that we can use.
    pub async fn status(&self) -> Result<RemoteStatus, RemoteError> {
        self.inner.client.status().await
    }

    async fn function(&self) -> Result<DigestFunction> {
        Ok(self.inner.client.capabilities().await?.digest_function)
    }
}

const GOAL_CONTEXT: &str = "larder 2026-11-24 goal of uploads v1";

/// Waits for a future, or until nobody wants it any more.
async fn unless_cancelled<T>(
    cancel: &Cancel,
    mut work: Pin<Box<impl Future<Output = Result<T>>>>,
) -> Result<T> {
    const LOOK: Duration = Duration::from_millis(50);
    loop {
        match tokio::time::timeout(LOOK, &mut work).await {
            Ok(done) => return done,
            Err(_) => cancel.check_only()?,
        }
    }
}

/// Runs what blocks. If the future is dropped, it is cancelled.
async fn block<T: Send + 'static>(
    cancel: &Cancel,
    work: impl FnOnce(&Cancel) -> Result<T> + Send + 'static,
) -> Result<T> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
    // Others may still use the caller's flag when this is dropped.
    let guard = CancelOnDrop(cancel.part());
    let cancel = guard.0.clone();
    let done = runtime.spawn_blocking(move || work(&cancel)).await;
    done.map_err(|error| {
        let what = "an operation of the remote tier";
        if error.is_cancelled() { Error::Cancelled } else { Error::Internal { what } }
    })?
}

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Blobs that are arriving in this process, so that none is fetched twice at once.
#[derive(Debug, Default)]
struct Arriving {
    digests: Mutex<HashSet<Digest>>,
    changed: Condvar,
}

impl Arriving {
    fn lock(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of the blobs that nobody else fetches; they are the caller's until the claim is dropped.
    fn claim(&self, digests: impl Iterator<Item = Digest>) -> ArrivalClaim<'_> {
        let mut arriving = self.lock();
        let claimed = digests.filter(|digest| arriving.insert(*digest)).collect();
        ArrivalClaim { arriving: self, claimed }
    }

    /// Waits until nobody fetches a blob any more. False if that takes too long to see in one call.
    fn wait(&self, digest: &Digest) -> bool {
        const LOOK: Duration = Duration::from_millis(100);
        let arriving = self.lock();
        if !arriving.contains(digest) {
            return true;
        }
        let (arriving, _) =
            self.changed.wait_timeout(arriving, LOOK).unwrap_or_else(PoisonError::into_inner);
        !arriving.contains(digest)
    }
}

struct ArrivalClaim<'a> {
    arriving: &'a Arriving,
    claimed: HashSet<Digest>,
}

impl Drop for ArrivalClaim<'_> {
    fn drop(&mut self) {
        let mut arriving = self.arriving.lock();
        arriving.retain(|digest| !self.claimed.contains(digest));
        self.arriving.changed.notify_all();
    }
}

/// What a server that uses BLAKE3 calls a blob of ours.
fn same_name(digest: &Digest, size_bytes: u64) -> RemoteDigest {
    RemoteDigest::new(*digest.as_bytes(), size_bytes)
}
