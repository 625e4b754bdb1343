//! `Client`: what the rest of Larder calls.
//!
//! Invariants:
//! - Making a client connects to nothing and waits for nothing.
//! - Nothing is written without [`RemoteAccess::ReadWrite`], nor to a server that does not take
//!   results, nor again to one that has refused because of who asks or for want of space: it is
//!   only read from then on.

use super::blobs::{Downloads, Session, Upload, Uploaded};
use super::call::{Purpose, Server};
use super::capabilities::RemoteCapabilities;
use super::digests::RemoteDigest;
use super::endpoint::{RemoteAccess, RemoteOptions};
use super::error::{Answer, RemoteError};
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use reapi::capabilities_client::CapabilitiesClient;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use tonic::Code;

const ACTION: &str = "ask for the capabilities";
/// How many calls a measured latency is the least of.
const LATENCY_CALLS: usize = 3;

/// A server, for as many tasks as like to use it at once.
#[derive(Debug)]
pub(crate) struct Client {
    server: Arc<Server>,
    options: RemoteOptions,
    session: OnceCell<Arc<Session>>,
    /// What the server said when it refused to take anything more.
    refusal: Mutex<Option<Answer>>,
}

/// What is known of a server, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own")]
pub struct RemoteStatus {
    /// Its address.
    pub address: String,
    /// Whether what is sent is encrypted.
    pub is_encrypted: bool,
    /// The newest version of the protocol that it knows.
    pub version: String,
    /// What names blobs there: `BLAKE3` or `SHA256`.
    pub digest_function: String,
    /// Whether results may be written, by the server's word and by the options.
    pub may_write: bool,
    /// The largest blob that it takes, in bytes; `None` if it names no limit.
    pub blob_bytes_max: Option<u64>,
    /// How many bytes of small blobs travel together.
    pub batch_bytes_max: u64,
    /// Whether blobs travel compressed.
    pub has_compression: bool,
    /// Whether large blobs travel in chunks.
    pub has_chunking: bool,
    /// How long a small question takes, connection and all included the first time.
    pub connect_time: Duration,
    /// How long it takes after that, at best.
    pub latency: Duration,
}

impl Client {
    /// A client of a server. Connects when it is first used.
    pub(crate) fn connect(options: RemoteOptions) -> Client {
        Client {
            server: Arc::new(Server::new(&options)),
            options,
            session: OnceCell::new(),
            refusal: Mutex::new(None),
        }
    }

    /// What the server can do; asked once.
    ///
    /// # Errors
    /// If it cannot be asked, or is not a cache that we can use.
    pub(crate) async fn capabilities(&self) -> Result<&RemoteCapabilities, RemoteError> {
        Ok(&self.session().await?.capabilities)
    }

    /// Those of `digests` that the server lacks, each once, in the given order. An answer keeps the
    /// others there for a while longer.
    ///
    /// # Errors
    /// If the server cannot be asked, or names a blob that was not asked for.
    pub(crate) async fn find_missing(
        &self,
        digests: &[RemoteDigest],
    ) -> Result<Vec<RemoteDigest>, RemoteError> {
        self.session().await?.find_missing(digests).await
    }

    /// Uploads blobs, each once; what [`Client::find_missing`] does not list need not be given.
    /// When this is dropped some may be there already, which does no harm.
    ///
    /// # Errors
    /// If the server may not be written to, or the first error of a blob; others may be there then.
    pub(crate) async fn upload(&self, uploads: Vec<Upload>) -> Result<Uploaded, RemoteError> {
        let session = self.writable("upload blobs").await?;
        let outcome = session.upload(uploads).await;
        self.learn(outcome)
    }

    /// Begins to download blobs; each arrives once, in any order, or with an error.
    ///
    /// # Errors
    /// If the server cannot be asked for its capabilities. What happens later arrives with the
    /// blobs.
    pub(crate) async fn download(
        &self,
        digests: &[RemoteDigest],
    ) -> Result<Downloads, RemoteError> {
        Ok(self.session().await?.download(digests))
    }

    /// Downloads blobs to memory: messages, not contents.
    ///
    /// # Errors
    /// If they have more than `bytes_max` bytes in all, or one of them cannot be had.
    pub(crate) async fn fetch(
        &self,
        digests: &[RemoteDigest],
        bytes_max: u64,
    ) -> Result<HashMap<RemoteDigest, Vec<u8>>, RemoteError> {
        let session = self.session().await?;
        let bytes = digests.iter().fold(0_u64, |sum, digest| sum.saturating_add(digest.size_bytes));
        if bytes > bytes_max {
            return Err(self.server.lied("download blobs", "names messages that are too large"));
        }
        let mut downloads = session.download(digests);
        let mut found = HashMap::new();
        while let Some(arrival) = downloads.next_async().await {
            found.insert(arrival.digest, arrival.content?.into_bytes().await?);
        }
        Ok(found)
    }

    /// The result of an action; `None` if the server has none. It is as the server sent it: nothing
    /// in it is checked, and the blobs that it names need not be there.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub(crate) async fn get_action(
        &self,
        action: &RemoteDigest,
    ) -> Result<Option<reapi::ActionResult>, RemoteError> {
        self.session().await?.get_action(action).await
    }

    /// Stores the result of an action. Its blobs, and those of the action itself, must be there.
    ///
    /// # Errors
    /// If the server may not be written to, or does not take it.
    pub(crate) async fn update_action(
        &self,
        action: &RemoteDigest,
        result: reapi::ActionResult,
    ) -> Result<(), RemoteError> {
        let session = self.writable("store a result").await?;
        let outcome = session.update_action(action, result).await;
        self.learn(outcome)
    }

    /// Why the server is left alone, once for each outage: the one warning that a build gives.
    pub(crate) fn take_outage(&self) -> Option<RemoteError> {
        self.server.take_outage()
    }

    /// Whether calls are made, as far as is known: false for a while after an outage.
    pub(crate) fn is_available(&self) -> bool {
        self.server.is_available()
    }

    /// Asks the server, also after an outage, and measures how long it takes.
    ///
    /// # Errors
    /// If it cannot be asked, or is not a cache that we can use.
    pub(crate) async fn status(&self) -> Result<RemoteStatus, RemoteError> {
        let begun = Instant::now();
        let capabilities = self.ask_once().await?;
        let connect_time = begun.elapsed();
        let mut latency = Duration::MAX;
        for _ in 0..LATENCY_CALLS {
            let begun = Instant::now();
            self.ask_once().await?;
            latency = latency.min(begun.elapsed());
        }
        let address = &self.options.address;
        Ok(RemoteStatus {
            address: address.to_string(),
            is_encrypted: address.is_encrypted(),
            version: capabilities.version.clone(),
            digest_function: capabilities.digest_function.to_string(),
            may_write: capabilities.may_update_actions
                && self.options.access == RemoteAccess::ReadWrite,
            blob_bytes_max: capabilities.blob_bytes_max,
            batch_bytes_max: capabilities.batch_bytes_max,
            has_compression: capabilities.has_zstd,
            has_chunking: capabilities.chunking.is_some_and(|chunking| chunking.can_splice),
            connect_time,
            latency,
        })
    }

    /// The session; those that wait for it together ask once.
    async fn session(&self) -> Result<&Arc<Session>, RemoteError> {
        self.session
            .get_or_try_init(|| async {
                let message = self.question();
                let answer = self
                    .server
                    .unary(ACTION, Purpose::Read, 0, |line| {
                        let mut client = CapabilitiesClient::new(line.channel());
                        let request = line.request(message.clone());
                        async move { client.get_capabilities(request).await }
                    })
                    .await?;
                let capabilities = RemoteCapabilities::new(&answer)?;
                Ok(Arc::new(Session::new(Arc::clone(&self.server), capabilities)))
            })
            .await
    }

    async fn ask_once(&self) -> Result<RemoteCapabilities, RemoteError> {
        let mut trial = self.server.single(ACTION);
        loop {
            let line = trial.line().await?;
            let mut client = CapabilitiesClient::new(line.channel());
            let call = client.get_capabilities(line.request(self.question()));
            match line.watch(self.server.patience(0), call).await {
                Ok(answer) => return RemoteCapabilities::new(answer.get_ref()),
                // Returns if the token was renewed.
                Err(status) => trial.failed(&line, &status).await?,
            }
        }
    }

    fn question(&self) -> reapi::GetCapabilitiesRequest {
        reapi::GetCapabilitiesRequest { instance_name: self.server.instance().to_owned() }
    }

    async fn writable(&self, action: &'static str) -> Result<&Arc<Session>, RemoteError> {
        let refuse =
            |text| Err(self.server.refused(action, Answer::new(Code::FailedPrecondition, text)));
        if self.options.access != RemoteAccess::ReadWrite {
            return refuse("the options say that it is only read from");
        }
        if let Some(answer) = &*self.refusal.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(self.server.refused(action, answer.clone()));
        }
        let session = self.session().await?;
        if !session.capabilities.may_update_actions {
            return refuse("the server says that it takes no results");
        }
        Ok(session)
    }

    /// Remembers a refusal that will not pass.
    fn learn<T>(&self, outcome: Result<T, RemoteError>) -> Result<T, RemoteError> {
        if let Err(RemoteError::Refused { source, .. }) = &outcome
            && source.is_lasting()
        {
            let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
            *refusal = Some(source.clone());
        }
        outcome
    }
}
