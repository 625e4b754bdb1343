//! A proxy between a client and a server that does to their bytes what networks do: delay,
//! narrowness, resets in the middle, silence. It knows nothing of what the bytes mean, and counts
//! them.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// A running proxy; dropped, it ends, and its connections with it.
pub(crate) struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What happens to the bytes. Connections that are there see a change with their next bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Network {
    /// How long each byte is under way, in each direction.
    pub delay: Duration,
    /// How many bytes pass in a second, all connections together, in each direction; 0 is no bound.
    pub bytes_per_second: u64,
    pub fault: NetworkFault,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum NetworkFault {
    #[default]
    None,
    /// So many connections are closed, once so many bytes have gone to the client.
    Resets { times: usize, after_bytes: u64 },
    /// The same, once so many bytes have gone to the server.
    ResetsUploads { times: usize, after_bytes: u64 },
    /// So many connections go silent towards the client, once so many bytes have gone to it. They
    /// stay open.
    Swallows { times: usize, after_bytes: u64 },
    /// The same towards the server.
    SwallowsUploads { times: usize, after_bytes: u64 },
    /// Connections are taken, and nothing ever passes.
    BlackHole,
    /// Connections are closed at once.
    Refuses,
}

struct Shared {
    network: Mutex<Network>,
    connections: AtomicUsize,
    faults: AtomicUsize,
    to_client: Direction,
    to_server: Direction,
}

/// One direction, all connections together.
#[derive(Default)]
struct Direction {
    bytes: AtomicU64,
    /// When the line is free again.
    free: Mutex<Option<Instant>>,
}

impl FaultProxy {
    /// In front of a server.
    pub(crate) fn start(server: SocketAddr, network: Network) -> FaultProxy {
        FaultProxy::start_on("127.0.0.1:0", server, network)
    }

    /// On an address of the caller's.
    pub(crate) fn start_on(address: &str, server: SocketAddr, network: Network) -> FaultProxy {
        let listener = std::net::TcpListener::bind(address).expect("the address is free");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            network: Mutex::new(network),
            connections: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
            to_client: Direction::default(),
            to_server: Direction::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let accepting = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a runtime");
                tokio::select! {
                    () = accept(listener, server, accepting) => {}
                    _ = stopped => {}
                }
            });
        });
        FaultProxy { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    pub(crate) fn set(&self, network: Network) {
        *self.shared.network.lock().expect("whole") = network;
        self.shared.faults.store(0, Ordering::Relaxed);
    }

    /// How many connections clients have made.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many connections were reset or silenced.
    pub(crate) fn faults(&self) -> usize {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// How many bytes have gone to clients, with all that is around contents.
    pub(crate) fn bytes_to_client(&self) -> u64 {
        self.shared.to_client.bytes.load(Ordering::Relaxed)
    }

    /// How many bytes have gone to the server.
    pub(crate) fn bytes_to_server(&self) -> u64 {
        self.shared.to_server.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn network(&self) -> Network {
        *self.network.lock().expect("whole")
    }

    /// Whether this connection is one of those that the fault is for.
    fn strikes(&self, times: usize) -> bool {
        let strike = |count: usize| (count < times).then_some(count + 1);
        self.faults.fetch_update(Ordering::Relaxed, Ordering::Relaxed, strike).is_ok()
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            match shared.network().fault {
                NetworkFault::Refuses => return,
                NetworkFault::BlackHole => {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                    return;
                }
                _ => {}
            }
            let Ok(upstream) = TcpStream::connect(server).await else { return };
            for stream in [&client, &upstream] {
                stream.set_nodelay(true).expect("a TCP socket");
            }
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = upstream.into_split();
            // The end of either is the end of both: a reset closes the whole connection.
            tokio::select! {
                () = carry(from_server, to_client, &shared, true) => {}
                () = carry(from_client, to_server, &shared, false) => {}
            }
        });
    }
}

/// Carries bytes one way until the connection ends or is reset.
async fn carry(
    mut source: OwnedReadHalf,
    mut target: OwnedWriteHalf,
    shared: &Shared,
    is_to_client: bool,
) {
    let direction = if is_to_client { &shared.to_client } else { &shared.to_server };
    let (sender, mut queue) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let receive = async move {
        let mut carried = 0;
        loop {
            let mut bytes = vec![0; 16 << 10];
            let count = source.read(&mut bytes).await.unwrap_or(0);
            if count == 0 {
                return;
            }
            bytes.truncate(count);
            carried += count as u64;
            let network = shared.network();
            match network.fault {
                NetworkFault::Resets { times, after_bytes }
                    if is_to_client && carried > after_bytes && shared.strikes(times) =>
                {
                    return;
                }
                NetworkFault::ResetsUploads { times, after_bytes }
                    if !is_to_client && carried > after_bytes && shared.strikes(times) =>
                {
                    return;
                }
                NetworkFault::Swallows { times, after_bytes }
                    if is_to_client && carried > after_bytes && shared.strikes(times) =>
                {
                    std::future::pending::<()>().await;
                }
                NetworkFault::SwallowsUploads { times, after_bytes }
                    if !is_to_client && carried > after_bytes && shared.strikes(times) =>
                {
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
            let sent = direction.send(count, network.bytes_per_second);
            tokio::time::sleep_until(sent).await;
            if sender.send((sent + network.delay, bytes)).await.is_err() {
                return;
            }
        }
    };
    let deliver = async {
        while let Some((due, bytes)) = queue.recv().await {
            tokio::time::sleep_until(due).await;
            if target.write_all(&bytes).await.is_err() {
                return;
            }
            direction.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    };
    // What was sent is delivered also if the sender has ended; a sender without a receiver ends.
    tokio::join!(receive, deliver);
}

impl Direction {
    /// When the last of these bytes has left.
    fn send(&self, count: usize, bytes_per_second: u64) -> Instant {
        let now = Instant::now();
        if bytes_per_second == 0 {
            return now;
        }
        let mut free = self.free.lock().expect("whole");
        let start = free.map_or(now, |free| free.max(now));
        let end = start + Duration::from_secs_f64(count as f64 / bytes_per_second as f64);
        *free = Some(end);
        end
    }
}
