//! The client on a network that fails.

use super::*;

fn proxy_of(server: &FakeServer, fault: NetworkFault) -> FaultProxy {
    FaultProxy::start(server.address(), Network { fault, ..Network::default() })
}

fn impatient(proxy: &FaultProxy) -> Client {
    Client::connect(options(&proxy.url()).with_idle_timeout(SILENCE))
}

#[tokio::test]
async fn a_server_that_is_dead_from_the_start_is_left_alone() -> TestResult {
    let server = FakeServer::start();
    let proxy = proxy_of(&server, NetworkFault::Refuses);
    let patient = options(&proxy.url()).with_probe_after(Duration::from_secs(3600));
    let client = Client::connect(patient);
    let action = DigestFunction::Sha256.digest(b"an action");
    let error = client.get_action(&action).await.expect_err("it is dead");
    assert!(matches!(error, RemoteError::Unavailable { .. }), "{error:?}");
    let connections = proxy.connections();
    assert!((1..=2).contains(&connections), "{connections}");
    assert!(client.take_outage().is_some() && client.take_outage().is_none());

    proxy.set(Network::default());
    for _ in 0..10 {
        assert!(client.find_missing(&[action]).await.is_err());
    }
    assert_eq!(proxy.connections(), connections, "nothing is tried before the time is over");
    // Who asks for the status wants to know.
    assert!(client.status().await.is_ok());
    Ok(())
}

#[tokio::test]
async fn nothing_listens() {
    // A port that was free a moment ago.
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("it is bound")
    };
    let client = Client::connect(options(&format!("grpc://{address}")));
    let error = client.get_action(&RemoteDigest::new([0; 32], 1)).await.expect_err("nothing there");
    let RemoteError::Unavailable { source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("refused"), "the reason is told: {source}");
}

#[tokio::test]
async fn a_black_hole_costs_the_idle_timeout_and_no_more() {
    let server = FakeServer::start();
    let proxy = proxy_of(&server, NetworkFault::BlackHole);
    let client = impatient(&proxy);
    let error = client.capabilities().await.expect_err("nothing comes back");
    assert!(matches!(error, RemoteError::Unavailable { .. }), "{error:?}");
    assert!(!client.is_available());
}

#[tokio::test]
async fn a_server_that_comes_back_is_used_again() -> TestResult {
    let server = FakeServer::start();
    let proxy = proxy_of(&server, NetworkFault::Refuses);
    let client = impatient(&proxy);
    let bytes = noise(1, 1000);
    let digest = DigestFunction::Sha256.digest(&bytes);
    server.put(&bytes);
    assert!(take_one(&client, digest).await.is_err());
    proxy.set(Network::default());
    while take_one(&client, digest).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(client.is_available());
    Ok(())
}

#[tokio::test]
async fn resets_in_the_middle_do_not_stop_a_download() -> TestResult {
    let server = FakeServer::start();
    let proxy = proxy_of(&server, NetworkFault::Resets { times: 3, after_bytes: 2 << 20 });
    let client = impatient(&proxy);
    let bytes = noise(1, 8 << 20);
    server.put(&bytes);
    let digest = DigestFunction::Sha256.digest(&bytes);
    assert!(take_one(&client, digest).await? == bytes);
    assert_eq!(proxy.faults(), 3);
    assert!(proxy.bytes_to_client() < 2 * bytes.len() as u64, "it goes on where it was");
    Ok(())
}

#[tokio::test]
async fn resets_in_the_middle_do_not_stop_an_upload() -> TestResult {
    let server = FakeServer::start();
    let proxy = proxy_of(&server, NetworkFault::ResetsUploads { times: 2, after_bytes: 1 << 20 });
    let client = impatient(&proxy);
    let blobs = [noise(1, 6 << 20), noise(2, 1000)];
    assert_eq!(client.upload(uploads(&blobs)).await?.blobs, 2);
    assert_eq!(proxy.faults(), 2);
    assert!(client.find_missing(&digests(&blobs)).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_connection_that_goes_silent_is_replaced() -> TestResult {
    let server = FakeServer::start();
    let proxy = proxy_of(&server, NetworkFault::Swallows { times: 1, after_bytes: 2 << 20 });
    let client = impatient(&proxy);
    let bytes = noise(1, 6 << 20);
    server.put(&bytes);
    let digest = DigestFunction::Sha256.digest(&bytes);
    assert!(take_one(&client, digest).await? == bytes);
    assert!(proxy.faults() == 1 && proxy.connections() >= 2, "{}", proxy.connections());

    proxy.set(Network {
        fault: NetworkFault::SwallowsUploads { times: 1, after_bytes: 1 << 20 },
        ..Network::default()
    });
    assert_eq!(client.upload(uploads(&[noise(2, 6 << 20)])).await?.blobs, 1);
    assert_eq!(proxy.faults(), 1);
    Ok(())
}

#[tokio::test]
async fn a_transfer_may_last_longer_than_the_idle_timeout() -> TestResult {
    // Far longer than a busy machine keeps a thread waiting, and half as long as each transfer.
    let idle = Duration::from_secs(5);
    let server = FakeServer::start();
    server.claim(|cache| cache.max_batch_total_size_bytes = 1000);
    let bytes = noise(1, 1 << 20);
    let network = Network {
        delay: Duration::from_millis(50),
        bytes_per_second: bytes.len() as u64 / (2 * idle.as_secs()),
        fault: NetworkFault::None,
    };
    let proxy = FaultProxy::start(server.address(), network);
    let client = Client::connect(options(&proxy.url()).with_idle_timeout(idle));
    assert_eq!(client.upload(uploads(std::slice::from_ref(&bytes))).await?.blobs, 1);
    assert_eq!(server.count(Method::Write), 1, "in one go");
    assert!(take_one(&client, DigestFunction::Sha256.digest(&bytes)).await? == bytes);
    assert_eq!(server.count(Method::Read), 1, "in one go");
    assert_eq!(proxy.connections(), 1);
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_is_unavailable() -> TestResult {
    let server = FakeServer::start();
    let proxy = proxy_of(&server, NetworkFault::None);
    let client = impatient(&proxy);
    let bytes = noise(1, 5 << 20);
    server.put(&bytes);
    server.behave(|b| (b.read, b.write) = (ReadFault::Hangs, WriteFault::Hangs));
    let (read, written) = tokio::join!(
        take_one(&client, DigestFunction::Sha256.digest(&bytes)),
        client.upload(uploads(&[noise(2, 5 << 20)])),
    );
    assert!(matches!(read, Err(RemoteError::Unavailable { .. })), "{:?}", read.err());
    assert!(matches!(written, Err(RemoteError::Unavailable { .. })), "{written:?}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_is_unavailable() -> TestResult {
    let server = FakeServer::start();
    let network = Network { bytes_per_second: 2 << 20, ..Network::default() };
    let proxy = FaultProxy::start(server.address(), network);
    let client = impatient(&proxy);
    client.capabilities().await?;
    let blobs = [noise(1, 8 << 20)];
    let upload = client.upload(uploads(&blobs));
    let death = async {
        while proxy.bytes_to_server() < 1 << 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::task::spawn_blocking(move || drop(server)).await
    };
    let (uploaded, death) = tokio::join!(upload, death);
    death?;
    assert!(matches!(uploaded, Err(RemoteError::Unavailable { .. })), "{uploaded:?}");
    Ok(())
}
