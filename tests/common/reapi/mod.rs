//! A server of the Remote Execution API in memory, on a thread of its own, that can misbehave.
//!
//! Left alone it is strict: it takes no blob whose bytes are not its digest, no digest function
//! that was not set, no write at an offset where it is not, no batch above its limit. What it does
//! wrong is set in [`Behaviour`], at any time.

#![allow(dead_code, reason = "each test binary uses its own part")]

mod bytes;
mod services;

use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use bazel_remote_apis::build::bazel::semver::SemVer;
use bazel_remote_apis::google::{protobuf, rpc};
use prost::Message;
use reapi::action_cache_server::ActionCacheServer;
use reapi::capabilities_server::CapabilitiesServer;
use reapi::content_addressable_storage_server::ContentAddressableStorageServer;
use sha2::Digest as _;
use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use tonic::transport::server::Router;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Code, Status};

/// A running server; dropped, it ends.
pub(crate) struct FakeServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the server has, does and has seen.
pub(crate) struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Blobs by the hash in their digest.
    pub blobs: HashMap<String, Vec<u8>>,
    /// Results by the hash of their action.
    pub actions: HashMap<String, reapi::ActionResult>,
    /// Uploads that are not finished, by resource name.
    pub partial: HashMap<String, Vec<u8>>,
    /// Chunks of blobs, by the hash of the blob.
    pub chunks: HashMap<String, Vec<reapi::Digest>>,
    /// Each call: its method, and what it named.
    pub calls: Vec<(Method, String)>,
    /// The headers of the last call.
    pub metadata: tonic::metadata::MetadataMap,
    pub behaviour: Behaviour,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Method {
    Capabilities,
    FindMissing,
    BatchUpdate,
    BatchRead,
    Read,
    Write,
    QueryWrite,
    GetAction,
    UpdateAction,
    Splice,
    Split,
}

/// What the server does wrong.
#[derive(Default)]
pub(crate) struct Behaviour {
    pub capabilities: reapi::ServerCapabilities,
    /// The next calls of a method fail so, one each.
    pub failures: HashMap<Method, VecDeque<Status>>,
    /// Every call of a method fails so.
    pub always: HashMap<Method, Status>,
    /// Each call waits so long first.
    pub delay: Duration,
    /// In batches, the next answers for a blob with this hash.
    pub blob_failures: HashMap<String, VecDeque<rpc::Status>>,
    /// Batches leave out the answer for every blob.
    pub answers_nothing: bool,
    /// Answers to batches and searches name a blob that nobody asked for.
    pub names_another: bool,
    pub read: ReadFault,
    pub write: WriteFault,
    /// Calls need this bearer token.
    pub token: Option<String>,
    /// Compressed forms are listed, but not known.
    pub lies_about_zstd: bool,
}

/// What is wrong with bytes that are read, as a stream or in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ReadFault {
    #[default]
    None,
    /// So many streams break off after so many bytes.
    Breaks { times: u32, after_bytes: usize },
    /// Streams end well after so many bytes.
    Truncates { after_bytes: usize },
    /// One bit is wrong.
    Corrupts,
    /// There is one byte more.
    TooLong,
    /// Bytes come for ever.
    Endless,
    /// Messages come for ever, without bytes.
    EndlessNothing,
    /// Nothing comes for ever.
    Hangs,
}

/// What is wrong with streams that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum WriteFault {
    #[default]
    None,
    /// So many streams break off after so many bytes; what came is kept.
    Breaks { times: u32, after_bytes: usize },
    /// As `Breaks`, and no stream may go on where it was.
    CannotGoOn { times: u32, after_bytes: usize },
    /// The blob is there already, the server says after the first message.
    Early,
    /// The server says that it took so many bytes.
    Commits(i64),
    /// `QueryWriteStatus` says that it took so many bytes.
    BreaksAndClaims(i64),
    /// Nothing is answered, ever.
    Hangs,
}

impl FakeServer {
    /// With SHA-256 only, updates, and nothing else.
    pub(crate) fn start() -> FakeServer {
        FakeServer::start_on("127.0.0.1:0", None)
    }

    /// On an address of the caller's, and with TLS if that is given.
    pub(crate) fn start_on(address: &str, tls: Option<ServerTlsConfig>) -> FakeServer {
        let listener = TcpListener::bind(address).expect("the address is free");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        FakeServer::run(address, tls, move |router, stop| async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            drop(router.serve_with_incoming_shutdown(incoming, stop).await);
        })
    }

    /// On a socket in the filesystem.
    pub(crate) fn start_on_unix(path: &Path) -> FakeServer {
        let listener = std::os::unix::net::UnixListener::bind(path).expect("the path is free");
        listener.set_nonblocking(true).expect("a socket");
        FakeServer::run(([0; 4], 0).into(), None, move |router, stop| async move {
            let listener = tokio::net::UnixListener::from_std(listener).expect("a runtime");
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
            drop(router.serve_with_incoming_shutdown(incoming, stop).await);
        })
    }

    fn run<Fut: Future<Output = ()>>(
        address: SocketAddr,
        tls: Option<ServerTlsConfig>,
        serve: impl FnOnce(Router, Stop) -> Fut + Send + 'static,
    ) -> FakeServer {
        let behaviour = Behaviour { capabilities: plain(), ..Behaviour::default() };
        let state = Mutex::new(State { behaviour, ..State::default() });
        let shared = Arc::new(Shared { state });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let service = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let mut server = Server::builder();
                if let Some(tls) = tls {
                    server = server.tls_config(tls).expect("certificates");
                }
                let router = server
                    .add_service(CapabilitiesServer::from_arc(Arc::clone(&service)))
                    .add_service(ActionCacheServer::from_arc(Arc::clone(&service)))
                    .add_service(ContentAddressableStorageServer::from_arc(Arc::clone(&service)))
                    .add_service(bytes::service(service));
                let (end, ended) = tokio::sync::oneshot::channel::<()>();
                // Streams that hang would hold up an orderly end.
                tokio::select! {
                    () = serve(router, Stop(ended)) => {}
                    _ = stopped => {}
                }
                drop(end);
            });
        });
        FakeServer { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Looks at, or changes, what the server has and does.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no test panics with it")
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state().behaviour);
    }

    /// Changes what the server says it can do.
    pub(crate) fn claim(&self, change: impl FnOnce(&mut reapi::CacheCapabilities)) {
        let mut state = self.state();
        change(state.behaviour.capabilities.cache_capabilities.as_mut().expect("has a cache"));
    }

    /// The next calls of a method fail.
    pub(crate) fn fail(&self, method: Method, statuses: impl IntoIterator<Item = Status>) {
        self.behave(|b| b.failures.entry(method).or_default().extend(statuses));
    }

    /// How many calls of a method there were.
    pub(crate) fn count(&self, method: Method) -> usize {
        self.state().calls.iter().filter(|(called, _)| *called == method).count()
    }

    /// Puts a blob there, under the function that a client would choose.
    pub(crate) fn put(&self, bytes: &[u8]) -> reapi::Digest {
        let mut state = self.state();
        let digest = state.digest(bytes);
        state.blobs.insert(digest.hash.clone(), bytes.to_vec());
        digest
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Ends when the server ends.
pub(crate) struct Stop(tokio::sync::oneshot::Receiver<()>);

impl Future for Stop {
    type Output = ();

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<()> {
        std::pin::Pin::new(&mut self.0).poll(context).map(drop)
    }
}

impl State {
    fn has_blake3(&self) -> bool {
        let cache = self.behaviour.capabilities.cache_capabilities.as_ref();
        cache.is_some_and(|cache| cache.digest_functions.contains(&9))
    }

    /// Under BLAKE3, if the server has it, else SHA-256.
    fn digest(&self, bytes: &[u8]) -> reapi::Digest {
        let hash = if self.has_blake3() {
            blake3::hash(bytes).to_hex().to_string()
        } else {
            let hash = sha2::Sha256::digest(bytes);
            blake3::Hash::from_bytes(hash.into()).to_hex().to_string()
        };
        reapi::Digest { hash, size_bytes: i64::try_from(bytes.len()).expect("small") }
    }

    fn holds(&self, digest: &reapi::Digest) -> bool {
        digest.size_bytes == 0 || self.blobs.contains_key(&digest.hash)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// Notes a call, and lets it fail as it was told to.
    async fn enter<T>(
        &self,
        method: Method,
        what: impl Into<String>,
        request: &tonic::Request<T>,
    ) -> Result<(), Status> {
        let delay = {
            let mut state = self.state();
            state.calls.push((method, what.into()));
            state.metadata = request.metadata().clone();
            state.behaviour.delay
        };
        tokio::time::sleep(delay).await;
        let mut state = self.state();
        if let Some(token) = &state.behaviour.token {
            let expected = format!("Bearer {token}");
            let given = request.metadata().get("authorization");
            if given.is_none_or(|given| given.as_bytes() != expected.as_bytes()) {
                // As a careless server would.
                return Err(Status::unauthenticated(format!("bad credentials: {given:?}")));
            }
        }
        if let Some(status) = state.behaviour.always.get(&method) {
            return Err(status.clone());
        }
        match state.behaviour.failures.get_mut(&method).and_then(VecDeque::pop_front) {
            Some(status) => Err(status),
            None => Ok(()),
        }
    }

    /// Refuses a request that leaves its digest function to be guessed.
    fn check_function(&self, number: i32) -> Result<(), Status> {
        let expected = if self.state().has_blake3() { 9 } else { 1 };
        if number == expected {
            Ok(())
        } else {
            Err(Status::invalid_argument(format!("digest function {number}, not {expected}")))
        }
    }
}

/// SHA-256, updates, symbolic links with relative targets, version 2.3.
fn plain() -> reapi::ServerCapabilities {
    reapi::ServerCapabilities {
        cache_capabilities: Some(reapi::CacheCapabilities {
            digest_functions: vec![reapi::digest_function::Value::Sha256 as i32],
            action_cache_update_capabilities: Some(reapi::ActionCacheUpdateCapabilities {
                update_enabled: true,
            }),
            symlink_absolute_path_strategy: reapi::symlink_absolute_path_strategy::Value::Disallowed
                as i32,
            ..reapi::CacheCapabilities::default()
        }),
        high_api_version: Some(SemVer { major: 2, minor: 3, ..SemVer::default() }),
        ..reapi::ServerCapabilities::default()
    }
}

/// A status that says when to try again.
pub(crate) fn with_retry_info(code: Code, delay: Duration) -> Status {
    let delay = protobuf::Duration {
        seconds: i64::try_from(delay.as_secs()).expect("short"),
        nanos: i32::try_from(delay.subsec_nanos()).expect("below a second"),
    };
    // google.rpc.RetryInfo: field 1 is the delay.
    let mut value = vec![0x0a, u8::try_from(delay.encoded_len()).expect("short")];
    value.extend(delay.encode_to_vec());
    let details = rpc::Status {
        code: code as i32,
        message: "later".to_owned(),
        details: vec![protobuf::Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value,
        }],
    };
    Status::with_details(code, "later", details.encode_to_vec().into())
}

/// A status of one blob in a batch.
pub(crate) fn blob_status(code: Code) -> rpc::Status {
    rpc::Status { code: code as i32, message: "told to fail".to_owned(), details: Vec::new() }
}
