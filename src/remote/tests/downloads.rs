//! Blobs from a server.

use super::*;
use tonic::{Code, Status};

/// One that travels in a batch, and one that does not.
const SIZES: [usize; 2] = [1000, 5 << 20];

#[tokio::test]
async fn a_blob_that_is_not_there_is_absent() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let there = noise(1, 1000);
    server.put(&there);
    let mut asked = vec![DigestFunction::Sha256.digest(&there)];
    asked.extend(SIZES.map(|size| RemoteDigest::new([9; 32], size as u64)));
    asked.push(RemoteDigest::new([9; 32], 0));
    let found = take(&client, &asked).await;
    assert!(found[&asked[0]].as_ref().expect("it is there") == &there);
    for digest in &asked[1..] {
        assert!(matches!(found[digest], Err(RemoteError::Absent { .. })), "{:?}", found[digest]);
    }
    assert!(client.is_available());
    Ok(())
}

#[tokio::test]
async fn wrong_bytes_are_never_the_end_of_a_blob() -> TestResult {
    for fault in [
        ReadFault::Corrupts,
        ReadFault::TooLong,
        ReadFault::Truncates { after_bytes: 0 },
        ReadFault::Truncates { after_bytes: 999 },
    ] {
        for compressors in [vec![], vec![1]] {
            let server = FakeServer::start();
            server.claim(|cache| cache.supported_compressors = compressors.clone());
            server.behave(|b| b.read = fault);
            let client = client_of(&server);
            for size in SIZES {
                let bytes = prose(size);
                server.put(&bytes);
                let outcome = take_one(&client, DigestFunction::Sha256.digest(&bytes)).await;
                if fault == ReadFault::TooLong
                    && outcome.as_ref().is_ok_and(|found| *found == bytes)
                {
                    continue; // What comes after the last byte is not looked at.
                }
                assert_lied(&outcome, &format!("{fault:?} {size} {compressors:?}"));
            }
            assert!(client.is_available(), "a lie costs a miss, not the server");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_digest_with_another_size_is_a_lie() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let bytes = noise(1, 5000);
    server.put(&bytes);
    let right = DigestFunction::Sha256.digest(&bytes);
    for size_bytes in [4999, 5001] {
        let wrong = RemoteDigest::new(*right.hash(), size_bytes);
        assert_lied(&take_one(&client, wrong).await, "in a batch");
    }
    let large = noise(2, 5 << 20);
    server.put(&large);
    let right = DigestFunction::Sha256.digest(&large);
    let wrong = RemoteDigest::new(*right.hash(), right.size_bytes - 1);
    assert_lied(&take_one(&client, wrong).await, "as a stream");
    Ok(())
}

#[tokio::test]
async fn an_endless_stream_ends() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let bytes = noise(1, 5 << 20);
    server.put(&bytes);
    server.behave(|b| b.read = ReadFault::Endless);
    // What was asked for arrived, so what comes after it is nobody's concern.
    let digest = DigestFunction::Sha256.digest(&bytes);
    assert!(take_one(&client, digest).await? == bytes);
    let shorter = RemoteDigest::new(*digest.hash(), digest.size_bytes + 1);
    assert_lied(&take_one(&client, shorter).await, "the bytes are others");
    Ok(())
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() -> TestResult {
    for compressors in [vec![], vec![1]] {
        let server = FakeServer::start();
        server.claim(|cache| cache.supported_compressors = compressors);
        let client = client_of(&server);
        let bytes = noise(1, 6 << 20);
        server.put(&bytes);
        server.behave(|b| b.read = ReadFault::Breaks { times: 5, after_bytes: 1 << 20 });
        assert!(take_one(&client, DigestFunction::Sha256.digest(&bytes)).await? == bytes);
        assert_eq!(server.count(Method::Read), 6);
    }
    Ok(())
}

#[tokio::test]
async fn a_download_that_does_not_get_on_ends() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let bytes = noise(1, 5 << 20);
    server.put(&bytes);
    server.behave(|b| b.read = ReadFault::Breaks { times: u32::MAX, after_bytes: 0 });
    let outcome = take_one(&client, DigestFunction::Sha256.digest(&bytes)).await;
    assert!(matches!(outcome, Err(RemoteError::Unavailable { .. })), "{:?}", outcome.err());
    assert_eq!(server.count(Method::Read), 5);
    Ok(())
}

#[tokio::test]
async fn blobs_of_a_batch_that_failed_are_asked_for_again() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let blobs: Vec<Vec<u8>> = (0..4).map(|seed| noise(seed, 100)).collect();
    for bytes in &blobs {
        server.put(bytes);
    }
    let names = digests(&blobs);
    server.behave(|b| {
        b.blob_failures.insert(names[1].hex(), [blob_status(Code::Unavailable)].into());
        b.blob_failures.insert(names[2].hex(), [blob_status(Code::NotFound)].into());
    });
    let found = take(&client, &names).await;
    for (index, digest) in names.iter().enumerate() {
        if index == 2 {
            assert!(matches!(found[digest], Err(RemoteError::Absent { .. })));
        } else {
            assert!(found[digest].as_ref().expect("it came") == &blobs[index]);
        }
    }
    let batches: Vec<String> = {
        let state = server.state();
        let batches = state.calls.iter().filter(|(method, _)| *method == Method::BatchRead);
        batches.map(|(_, count)| count.clone()).collect()
    };
    assert_eq!(batches, ["4", "1"]);
    Ok(())
}

#[tokio::test]
async fn a_batch_with_other_blobs_is_a_lie() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let blobs: Vec<Vec<u8>> = (0..2).map(|seed| noise(seed, 100)).collect();
    server.behave(|b| b.names_another = true);
    for bytes in &blobs {
        server.put(bytes);
    }
    let found = take(&client, &digests(&blobs)).await;
    assert_eq!(found.len(), 2, "what was right arrived: {found:?}");
    server.behave(|b| b.answers_nothing = true);
    let found = take(&client, &digests(&blobs)).await;
    for outcome in found.values() {
        assert_lied(outcome, "only the other one came");
    }
    Ok(())
}

#[tokio::test]
async fn every_blob_has_an_outcome_when_the_server_dies() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    client.capabilities().await?;
    let blobs: Vec<Vec<u8>> = (0..10).map(|seed| noise(seed, SIZES[seed as usize % 2])).collect();
    drop(server);
    let found = take(&client, &digests(&blobs)).await;
    assert_eq!(found.len(), 10);
    for outcome in found.values() {
        assert!(
            matches!(outcome, Err(RemoteError::Unavailable { .. })),
            "{:?}",
            outcome.as_ref().err()
        );
    }
    Ok(())
}

#[tokio::test]
async fn downloads_that_nobody_takes_do_not_fill_memory() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let bytes = noise(1, 32 << 20);
    let digest = DigestFunction::Sha256.digest(&bytes);
    server.put(&bytes);
    let proxy = FaultProxy::start(server.address(), Network::default());
    let narrow = Client::connect(options(&proxy.url()));
    let downloads = narrow.download(&[digest]).await?;
    // As much as the windows and channels hold has come, and no more comes.
    let mut before = u64::MAX;
    while proxy.bytes_to_client() != before {
        before = proxy.bytes_to_client();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 12 << 20, "{before} bytes came for nobody");
    drop(downloads);
    assert!(take_one(&client, digest).await? == bytes, "the server is well");
    Ok(())
}

#[tokio::test]
async fn messages_are_fetched_within_bounds() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let blobs = vec![noise(1, 100), noise(2, 5 << 20), Vec::new()];
    for bytes in &blobs {
        server.put(bytes);
    }
    let names = digests(&blobs);
    let found = client.fetch(&names, 6 << 20).await?;
    for (digest, bytes) in names.iter().zip(&blobs) {
        assert!(found[digest] == *bytes, "{digest}");
    }
    let error = client.fetch(&names, 1000).await.expect_err("they are larger");
    assert!(matches!(error, RemoteError::Lied { .. }), "{error:?}");
    let absent = RemoteDigest::new([1; 32], 10);
    let error = client.fetch(&[absent], 1000).await.expect_err("it is not there");
    assert!(matches!(error, RemoteError::Absent { .. }), "{error:?}");
    let huge = RemoteDigest::new([1; 32], u64::MAX);
    assert!(client.fetch(&[huge, huge, absent], u64::MAX - 1).await.is_err(), "no overflow");
    Ok(())
}

#[tokio::test]
async fn a_blob_that_the_server_lost_is_a_lie() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    server.behave(|b| {
        b.always.insert(Method::Read, Status::data_loss("disk"));
    });
    let outcome = take_one(&client, RemoteDigest::new([1; 32], 5 << 20)).await;
    assert_lied(&outcome, "it is damaged there");
    Ok(())
}
