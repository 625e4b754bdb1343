//! `Lanes`: connections to one server, and watching whether they are alive.
//!
//! Invariants:
//! - Nothing is connected before the first call, and a connection that went silent is never used
//!   again: the next call gets a new one.
//! - A wait for the server ends when its connection has moved no byte, in either direction, for the
//!   idle timeout. A slow transfer moves bytes; a dead server does not. Since other calls on the
//!   same connection move bytes, too, each wait also has an end of its own, far off and scaled with
//!   the bytes that it waits for.
//!
//! HTTP/2 pings are not used to find dead peers: many servers take frequent pings for an attack and
//! close the connection (gRPC, "Keepalive User Guide": `too_many_pings`). TCP's own keep-alive,
//! which no server sees, keeps the state of routers between.

use super::endpoint::{Place, RemoteOptions};
use super::error::RemoteError;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice, Read};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tower::Service;

/// How many connections there are at most. Several share a lossy line better than one.
const LANES_MAX: usize = 4;
/// A further connection is made when each has this many calls.
const CALLS_PER_LANE: usize = 4;
/// What a server may send ahead on one stream: enough for 100 Mbit/s at 160 ms.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// More than all streams together, so that those that nobody reads at the moment do not hold up a
/// call beside them.
const CONNECTION_WINDOW_BYTES: u32 = 12 << 20;
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Slower than this, a call that shares its connection has been forgotten.
const BYTES_PER_SECOND_MIN: u64 = 16 << 10;
const PEM_BYTES_MAX: u64 = 16 << 20;
/// Longer than any process; what is added to a time must not pass the end of time.
const AGES: Duration = Duration::from_secs(86_400 * 365);

/// The connections to one server.
pub(super) struct Lanes {
    options: RemoteOptions,
    endpoint: OnceCell<Endpoint>,
    open: Mutex<Vec<Arc<Lane>>>,
}

/// One connection, made when it is first used, and made again when it was closed.
pub(super) struct Lane {
    channel: Channel,
    pulse: Arc<Pulse>,
    is_dead: AtomicBool,
}

/// How long a wait may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Without a byte on the connection.
    pub(super) idle: Duration,
    /// In all.
    pub(super) total: Duration,
}

impl Patience {
    /// For an answer to, or with, this many bytes.
    pub(super) fn new(idle: Duration, bytes: u64) -> Patience {
        let transfer = Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
        Patience { idle, total: idle.saturating_mul(4).saturating_add(transfer) }
    }
}

impl Lanes {
    pub(super) fn new(options: RemoteOptions) -> Lanes {
        Lanes { options, endpoint: OnceCell::new(), open: Mutex::new(Vec::new()) }
    }

    /// The connection with the fewest calls.
    ///
    /// # Errors
    /// If certificates or keys cannot be read or used.
    pub(super) async fn lane(&self) -> Result<Arc<Lane>, RemoteError> {
        let endpoint = self.endpoint.get_or_try_init(|| prepare(&self.options)).await?;
        let mut lanes = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|lane| !lane.is_dead.load(Ordering::Relaxed));
        // Each call holds one reference, and the list another.
        let calls = |lane: &Arc<Lane>| Arc::strong_count(lane) - 1;
        let idlest = lanes.iter().min_by_key(|lane| calls(lane)).cloned();
        // `idlest` is a reference of its own by now.
        if let Some(lane) =
            idlest.filter(|lane| calls(lane) <= CALLS_PER_LANE || lanes.len() >= LANES_MAX)
        {
            return Ok(lane);
        }
        let lane = Arc::new(Lane::new(endpoint, &self.options));
        lanes.push(Arc::clone(&lane));
        Ok(lane)
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("address", &self.options.address).finish_non_exhaustive()
    }
}

impl Lane {
    fn new(endpoint: &Endpoint, options: &RemoteOptions) -> Lane {
        let pulse = Arc::new(Pulse::new());
        let beat = Arc::clone(&pulse);
        let channel = match &options.address.place {
            Place::Tcp { .. } => {
                let mut connector = HttpConnector::new();
                connector.enforce_http(false);
                connector.set_nodelay(true);
                connector.set_keepalive(Some(TCP_KEEP_ALIVE));
                endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
                    let (connecting, beat) = (connector.call(uri), Arc::clone(&beat));
                    async move {
                        let stream: TcpStream = connecting.await?.into_inner();
                        Ok::<_, tower::BoxError>(TokioIo::new(Metered { stream, pulse: beat }))
                    }
                }))
            }
            Place::Unix(path) => {
                let path = path.clone();
                endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                    let (path, beat) = (path.clone(), Arc::clone(&beat));
                    async move {
                        let stream = UnixStream::connect(path).await?;
                        Ok::<_, io::Error>(TokioIo::new(Metered { stream, pulse: beat }))
                    }
                }))
            }
        };
        Lane { channel, pulse, is_dead: AtomicBool::new(false) }
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Waits for the server as long as `patience` lasts.
    ///
    /// # Errors
    /// The call's own, or `DEADLINE_EXCEEDED` when patience has ended.
    pub(super) async fn watch<T>(
        &self,
        patience: Patience,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let begun = Instant::now();
        let end = begun + patience.total.min(AGES);
        let silent_until = || self.pulse.last().max(begun) + patience.idle.min(AGES);
        let mut call = pin!(call);
        loop {
            tokio::select! {
                biased;
                outcome = &mut call => return outcome,
                () = tokio::time::sleep_until(end.min(silent_until())) => {}
            }
            if silent_until() <= Instant::now() {
                // What is written to a silent connection may wait for minutes before TCP gives up.
                self.is_dead.store(true, Ordering::Relaxed);
                return Err(Status::deadline_exceeded("the connection went silent"));
            }
            if end <= Instant::now() {
                return Err(Status::deadline_exceeded("the call took far too long"));
            }
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("is_dead", &self.is_dead).finish_non_exhaustive()
    }
}

/// Reads the files that the options name and prepares TLS, once.
async fn prepare(options: &RemoteOptions) -> Result<Endpoint, RemoteError> {
    let options = options.clone();
    // Files, the system's list of certificates among them.
    let prepared = tokio::task::spawn_blocking(move || prepare_blocking(&options)).await;
    prepared.unwrap_or_else(|_| Err(RemoteError::invalid("preparing TLS ended in a panic")))
}

fn prepare_blocking(options: &RemoteOptions) -> Result<Endpoint, RemoteError> {
    let uri = match &options.address.place {
        Place::Tcp { authority, is_encrypted: true } => format!("https://{authority}"),
        Place::Tcp { authority, is_encrypted: false } => format!("http://{authority}"),
        // The name that gRPC gives to the other end of a socket.
        Place::Unix(_) => "http://localhost".to_owned(),
    };
    let refuse = |_| RemoteError::invalid("its URL cannot be used");
    let endpoint = Endpoint::from_shared(uri)
        .map_err(refuse)?
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .map_err(refuse)?
        .connect_timeout(options.connect_timeout)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    if !options.address.is_encrypted() {
        if options.ca_file.is_some() || options.client_certificate.is_some() {
            return Err(RemoteError::invalid("certificates are for grpcs:// only"));
        }
        return Ok(endpoint);
    }
    let tls = match &options.ca_file {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    let tls = match &options.client_certificate {
        Some(own) => {
            tls.identity(Identity::from_pem(pem(&own.certificate_file)?, pem(&own.key_file)?))
        }
        None => tls,
    };
    endpoint.tls_config(tls).map_err(|error| {
        RemoteError::invalid_file("failed to prepare TLS", io::Error::other(error))
    })
}

/// A file of certificates or of a key.
fn pem(path: &Path) -> Result<Vec<u8>, RemoteError> {
    let refuse =
        |error| RemoteError::invalid_file(format!("failed to read {}", path.display()), error);
    let bytes = read_bounded(path).map_err(refuse)?;
    // rustls would take a file without any for an empty list.
    if !bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        return Err(refuse(io::Error::new(io::ErrorKind::InvalidData, "it is not PEM")));
    }
    Ok(bytes)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(PEM_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// When a connection last moved a byte.
struct Pulse {
    origin: Instant,
    /// Milliseconds after `origin`.
    last: AtomicU64,
}

impl Pulse {
    fn new() -> Pulse {
        Pulse { origin: Instant::now(), last: AtomicU64::new(0) }
    }

    fn beat(&self) {
        let since = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.origin + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// A stream that tells a [`Pulse`] of each byte.
struct Metered<S> {
    stream: S,
    pulse: Arc<Pulse>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.pulse.beat();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.pulse.beat();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.pulse.beat();
        Poll::Ready(Ok(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    const SILENCE: Duration = Duration::from_secs(30);

    fn lane() -> Lane {
        let options = RemoteOptions::new("grpc://localhost:1").expect("a URL");
        Lane::new(&Endpoint::from_static("http://localhost:1"), &options)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_given_up() {
        let lane = lane();
        let patience = Patience::new(SILENCE, 0);
        let error = lane.watch(patience, pending::<Result<(), _>>()).await.expect_err("silence");
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        assert!(lane.is_dead.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn endless_patience_does_not_overflow() {
        let patience = Patience::new(Duration::MAX, u64::MAX);
        assert_eq!(lane().watch(patience, async { Ok(7) }).await.expect("an answer"), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_move_are_waited_for_longer_than_silence() {
        let lane = lane();
        let call = async {
            for _ in 0..10 {
                tokio::time::sleep(SILENCE / 2).await;
                lane.pulse.beat();
            }
            Ok(7)
        };
        // Five times the idle timeout, and enough bytes to be worth it.
        let outcome = lane.watch(Patience::new(SILENCE, 10 << 20), call).await;
        assert_eq!(outcome.expect("it got on all the time"), 7);
        assert!(!lane.is_dead.load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_only_others_keep_alive_ends_all_the_same() {
        let lane = lane();
        let others = async {
            loop {
                tokio::time::sleep(SILENCE / 2).await;
                lane.pulse.beat();
            }
        };
        let call = lane.watch(Patience::new(SILENCE, 0), pending::<Result<(), _>>());
        let error = tokio::select! {
            outcome = call => outcome.expect_err("nothing comes"),
            () = others => unreachable!("the others go on for ever"),
        };
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        assert!(!lane.is_dead.load(Ordering::Relaxed), "the connection itself is alive");
    }

    #[tokio::test]
    async fn calls_are_spread_and_dead_connections_replaced() {
        let lanes = Lanes::new(RemoteOptions::new("grpc://localhost:1").expect("a URL"));
        let first = lanes.lane().await.expect("a lane");
        let held: Vec<_> = {
            let mut held = Vec::new();
            for _ in 0..64 {
                held.push(lanes.lane().await.expect("a lane"));
            }
            held
        };
        assert_eq!(lanes.open.lock().expect("whole").len(), LANES_MAX);
        drop(held);
        let again = lanes.lane().await.expect("a lane");
        assert!(!again.is_dead.load(Ordering::Relaxed));
        first.is_dead.store(true, Ordering::Relaxed);
        for _ in 0..8 {
            let lane = lanes.lane().await.expect("a lane");
            assert!(!Arc::ptr_eq(&lane, &first), "nobody gets a dead one");
        }
    }

    #[tokio::test]
    async fn files_that_are_no_certificates_are_errors() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "nonsense")?;
        for (url, ca_file) in [
            ("grpcs://localhost", path.clone()),
            ("grpcs://localhost", folder.path().join("missing")),
            ("grpc://localhost", path),
        ] {
            let lanes = Lanes::new(RemoteOptions::new(url)?.with_ca_file(ca_file));
            let error = lanes.lane().await.expect_err("cannot be used");
            assert!(matches!(error, RemoteError::Invalid { .. }), "{error:?}");
        }
        Ok(())
    }
}
