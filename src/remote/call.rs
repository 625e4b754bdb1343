//! `Server`: one server, and what every call to it has in common: who asks, how often it is tried,
//! and whether it is worth trying.
//!
//! A [`Trial`] is one call with all its attempts:
//!
//! ```text
//! let mut trial = server.trial("find blobs", Purpose::Read)?;      the breaker lets it through
//! loop {
//!     let line = trial.line().await?;                              a connection, headers, a token
//!     match line.watch(patience, client.call(line.request(..))).await {
//!         Ok(answer) => return trial.answered(answer),
//!         Err(status) => trial.failed(&line, &status).await?,      waits, renews the token, or ends
//!     }
//! }
//! ```

use super::breaker::{Breaker, Pass};
use super::channel::{Lane, Lanes, Patience};
use super::digests::RemoteDigest;
use super::endpoint::RemoteOptions;
use super::error::{Answer, RemoteError};
use super::resource::UploadId;
use super::retry::{Attempts, Verdict, judge};
use super::token::{Credentials, Token};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    /// Its address, for messages.
    name: Arc<str>,
    instance: String,
    idle_timeout: Duration,
    lanes: Lanes,
    credentials: Credentials,
    breaker: Breaker,
    /// Why the breaker opened, until somebody has asked.
    outage: Mutex<Option<RemoteError>>,
}

/// What a call is for, which decides what a server without room means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
}

/// One call with all its attempts. Dropped, it says nothing about the server.
#[derive(Debug)]
pub(super) struct Trial<'a> {
    server: &'a Server,
    action: &'static str,
    purpose: Purpose,
    pass: Option<Pass<'a>>,
    attempts: Attempts,
    has_renewed: bool,
}

/// What one attempt is made on.
#[derive(Debug)]
pub(super) struct Line {
    lane: Arc<Lane>,
    metadata: MetadataMap,
    token: Option<Arc<Token>>,
}

/// Why a call failed for good.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the last answer meant; `None` if there was none.
    pub(super) verdict: Option<Verdict>,
    pub(super) code: Code,
    pub(super) error: RemoteError,
}

impl From<Failure> for RemoteError {
    fn from(failure: Failure) -> RemoteError {
        failure.error
    }
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Failure {
        Failure { verdict: None, code: Code::Unknown, error }
    }
}

impl Failure {
    /// Whether the server has no such blob or result.
    pub(super) fn is_absent(&self) -> bool {
        self.verdict == Some(Verdict::Absent)
    }

    /// Whether the same in another form may succeed: the server does not do what was asked, or not
    /// with messages of this size (a server's library says `RESOURCE_EXHAUSTED` to those).
    pub(super) fn may_be_the_form(&self) -> bool {
        self.verdict == Some(Verdict::Rejected)
            || (self.verdict.is_some() && self.code == Code::ResourceExhausted)
    }
}

impl Server {
    pub(super) fn new(options: &RemoteOptions) -> Server {
        Server {
            name: options.address.to_string().into(),
            instance: options.address.instance().to_owned(),
            idle_timeout: options.idle_timeout,
            lanes: Lanes::new(options.clone()),
            credentials: Credentials::new(options, UploadId::new().as_str()),
            breaker: Breaker::new(options.probe_after),
            outage: Mutex::new(None),
        }
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// How long a call bears with the server that sends or gets this many bytes.
    pub(super) fn patience(&self, bytes: u64) -> Patience {
        Patience::new(self.idle_timeout, bytes)
    }

    /// Begins a call.
    ///
    /// # Errors
    /// [`RemoteError::Unavailable`] without a call, for a while after an outage.
    pub(super) fn trial(
        &self,
        action: &'static str,
        purpose: Purpose,
    ) -> Result<Trial<'_>, RemoteError> {
        let Some(pass) = self.breaker.admit(Instant::now()) else {
            let source = Answer::new(Code::Unavailable, "left alone for a while after an outage");
            return Err(RemoteError::Unavailable {
                action,
                server: Arc::clone(&self.name),
                source,
            });
        };
        let attempts = Attempts::new(pass.attempts_max);
        Ok(Trial { server: self, action, purpose, pass: Some(pass), attempts, has_renewed: false })
    }

    /// Begins a call of one attempt, whatever has happened before.
    pub(super) fn single(&self, action: &'static str) -> Trial<'_> {
        Trial {
            server: self,
            action,
            purpose: Purpose::Read,
            pass: None,
            attempts: Attempts::new(1),
            has_renewed: false,
        }
    }

    /// Makes a call of one message each way.
    ///
    /// # Errors
    /// As [`Trial::failed`].
    pub(super) async fn unary<T, F, Fut>(
        &self,
        action: &'static str,
        purpose: Purpose,
        bytes: u64,
        mut call: F,
    ) -> Result<T, Failure>
    where
        F: FnMut(&Line) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut trial = self.trial(action, purpose)?;
        loop {
            let line = trial.line().await?;
            // Boxed: a message and all that waits for it are kilobytes.
            match line.watch(self.patience(bytes), Box::pin(call(&line))).await {
                Ok(answer) => return Ok(trial.answered(answer.into_inner())),
                Err(status) => trial.failed(&line, &status).await?,
            }
        }
    }

    /// A lie of this server's.
    pub(super) fn lied(&self, action: &'static str, what: &'static str) -> RemoteError {
        RemoteError::Lied { action, server: Arc::clone(&self.name), what }
    }

    /// A blob that is not there.
    pub(super) fn absent(&self, digest: &RemoteDigest) -> RemoteError {
        RemoteError::Absent { server: Arc::clone(&self.name), digest: digest.to_string() }
    }

    /// A refusal, of ours or of the server's.
    pub(super) fn refused(&self, action: &'static str, source: Answer) -> RemoteError {
        RemoteError::Refused { action, server: Arc::clone(&self.name), source }
    }

    /// Whether calls are made, as far as is known.
    pub(super) fn is_available(&self) -> bool {
        self.breaker.is_closed()
    }

    /// Why the server is left alone; each outage is told once.
    pub(super) fn take_outage(&self) -> Option<RemoteError> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Trial<'_> {
    /// What the next attempt is made on.
    ///
    /// # Errors
    /// If certificates or the token cannot be read. That counts as an outage: what gives the token may take
    /// its time, and would be asked for each call.
    pub(super) async fn line(&mut self) -> Result<Line, RemoteError> {
        let made = self.try_line().await;
        if let Err(error) = &made
            && let Some(pass) = self.pass.take()
            && pass.failed(Instant::now())
        {
            let mut outage = self.server.outage.lock().unwrap_or_else(PoisonError::into_inner);
            *outage = Some(error.clone());
        }
        made
    }

    async fn try_line(&self) -> Result<Line, RemoteError> {
        let mut metadata = MetadataMap::new();
        let token = self.server.credentials.apply(&mut metadata).await?;
        let lane = self.server.lanes.lane().await?;
        Ok(Line { lane, metadata, token })
    }

    /// The call has succeeded.
    pub(super) fn answered<T>(mut self, answer: T) -> T {
        if let Some(pass) = self.pass.take() {
            pass.answered();
        }
        answer
    }

    /// A part of the call has succeeded that need not be done again.
    pub(super) fn got_on(&mut self) {
        self.attempts.forget();
    }

    /// The server answered, and the answer is of no use. Waits, and returns whether there is
    /// another attempt.
    pub(super) async fn wait(&mut self) -> bool {
        let wait = self.attempts.next(Duration::ZERO);
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
        }
        wait.is_some()
    }

    /// An attempt has failed. Returns when the next one may be made.
    ///
    /// # Errors
    /// If there is no use in another one.
    pub(super) async fn failed(&mut self, line: &Line, status: &Status) -> Result<(), Failure> {
        let verdict = judge(status);
        match verdict {
            Verdict::Again(wait_min) => {
                if let Some(wait) = self.attempts.next(wait_min) {
                    tokio::time::sleep(wait).await;
                    return Ok(());
                }
            }
            Verdict::Unauthenticated if !self.has_renewed => {
                self.has_renewed = true;
                if self.server.credentials.renew(line.token.as_ref()).await? {
                    return Ok(());
                }
            }
            _ => {}
        }
        Err(self.end(line, status, verdict))
    }

    fn end(&mut self, line: &Line, status: &Status, verdict: Verdict) -> Failure {
        let (action, server) = (self.action, Arc::clone(&self.server.name));
        let secrets = self.server.credentials.secrets(line.token.as_ref());
        let source = Answer::of(status, &secrets);
        let code = status.code();
        let is_full = code == Code::ResourceExhausted && self.purpose == Purpose::Write;
        let error = match verdict {
            Verdict::Again(_) | Verdict::Never if !is_full => {
                RemoteError::Unavailable { action, server, source }
            }
            _ => RemoteError::Refused { action, server, source },
        };
        if let Some(pass) = self.pass.take() {
            if !matches!(error, RemoteError::Unavailable { .. }) {
                pass.answered();
            } else if pass.failed(Instant::now()) {
                let mut outage = self.server.outage.lock().unwrap_or_else(PoisonError::into_inner);
                *outage = Some(error.clone());
            }
        }
        Failure { verdict: Some(verdict), code, error }
    }
}

impl Line {
    /// A message with the headers of each call.
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().clone_from(&self.metadata);
        request
    }

    pub(super) fn channel(&self) -> Channel {
        self.lane.channel()
    }

    /// Waits for the server; see [`Lane::watch`].
    ///
    /// # Errors
    /// The call's own, or `DEADLINE_EXCEEDED`.
    pub(super) async fn watch<T>(
        &self,
        patience: Patience,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        self.lane.watch(patience, call).await
    }
}
