//! Blobs to a server.

use super::*;
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use std::io;
use tonic::{Code, Status};

#[tokio::test]
async fn blobs_of_all_sizes_arrive_under_either_function() -> TestResult {
    for functions in [vec![1], vec![1, 9]] {
        let server = FakeServer::start();
        server.claim(|cache| {
            cache.digest_functions = functions;
            cache.max_batch_total_size_bytes = 50_000;
        });
        let client = client_of(&server);
        let function = client.capabilities().await?.digest_function;
        let blobs: Vec<Vec<u8>> =
            [0, 1, 20_000, 30_000, 49_999, 50_000, 50_001, 131_072, 131_073, 700_000]
                .iter()
                .enumerate()
                .map(|(seed, count)| noise(seed as u64, *count))
                .collect();
        let mut all: Vec<Upload> = blobs.iter().map(|bytes| upload_of(function, bytes)).collect();
        all.push(all[1].clone());
        let uploaded = client.upload(all).await?;
        assert_eq!(uploaded.blobs, 9, "each once, and not the empty one");
        assert_eq!(uploaded.sent_bytes, blobs.iter().map(|bytes| bytes.len() as u64).sum::<u64>());
        assert_eq!(server.count(Method::Write), 4, "those that fit no batch");
        let digests: Vec<RemoteDigest> = blobs.iter().map(|bytes| function.digest(bytes)).collect();
        assert!(client.find_missing(&digests).await?.is_empty());

        for (digest, bytes) in digests.iter().zip(&blobs) {
            assert!(take_one(&client, *digest).await? == *bytes, "{digest}");
        }
        let found = take(&client, &digests).await;
        assert_eq!(found.len(), blobs.len());
        for (digest, bytes) in digests.iter().zip(&blobs) {
            assert!(found[digest].as_ref().expect("it is there") == bytes, "{digest}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn only_blobs_that_failed_are_sent_again() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let blobs: Vec<Vec<u8>> = (0..5).map(|seed| noise(seed, 100)).collect();
    server.behave(|b| {
        for (digest, code) in
            digests(&blobs).iter().zip([Code::Unavailable, Code::ResourceExhausted])
        {
            b.blob_failures.insert(digest.hex(), [blob_status(code)].into());
        }
    });
    let uploaded = client.upload(uploads(&blobs)).await?;
    assert_eq!((uploaded.blobs, uploaded.sent_bytes), (5, 700));
    let calls: Vec<String> = server.state().calls.iter().map(|(_, what)| what.clone()).collect();
    assert_eq!(calls[1..], ["5", "2"], "the second batch has the two that failed");
    Ok(())
}

#[tokio::test]
async fn a_blob_that_the_server_finds_wrong_is_not_sent_again() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    for count in [100, 5 << 20] {
        let before = server.state().calls.len();
        let mut wrong = upload_of(DigestFunction::Sha256, &noise(1, count));
        wrong.source = Arc::new(noise(2, count));
        let error = client.upload(vec![wrong]).await.expect_err("not what the digest says");
        assert!(matches!(error, RemoteError::Refused { .. }), "{error:?}");
        // A batch that was refused is tried once as a stream, since the size could be the reason.
        assert!(server.state().calls.len() - before <= 3, "{count}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_without_batches_gets_streams() -> TestResult {
    for status in [
        Status::unimplemented(""),
        Status::invalid_argument("too large"),
        Status::resource_exhausted("grpc: received message larger than max"),
    ] {
        let server = FakeServer::start();
        server.behave(|b| {
            b.always.insert(Method::BatchUpdate, status.clone());
            b.always.insert(Method::BatchRead, status.clone());
        });
        let client = client_of(&server);
        let blobs = [noise(1, 100), noise(2, 200)];
        assert_eq!(client.upload(uploads(&blobs)).await?.blobs, 2);
        assert_eq!(server.count(Method::Write), 2);
        let found = take(&client, &digests(&blobs)).await;
        assert!(found.values().all(Result::is_ok), "{found:?}");
        assert_eq!(server.count(Method::Read), 2);
    }
    Ok(())
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let bytes = noise(1, 6 << 20);
    server.behave(|b| b.write = WriteFault::Breaks { times: 3, after_bytes: 1 << 20 });
    let uploaded = client.upload(uploads(std::slice::from_ref(&bytes))).await?;
    assert_eq!(server.count(Method::Write), 4);
    assert_eq!(server.count(Method::QueryWrite), 3);
    assert!(uploaded.blobs == 1 && uploaded.sent_bytes >= bytes.len() as u64);
    let names: std::collections::HashSet<String> = {
        let state = server.state();
        let writes = state.calls.iter().filter(|(method, _)| *method == Method::Write);
        writes.map(|(_, name)| name.clone()).collect()
    };
    assert_eq!(names.len(), 1, "one upload all the time");
    assert!(take_one(&client, DigestFunction::Sha256.digest(&bytes)).await? == bytes);
    Ok(())
}

#[tokio::test]
async fn an_upload_begins_again_where_nobody_knows_how_far_it_got() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    server.behave(|b| {
        b.write = WriteFault::Breaks { times: 2, after_bytes: 1 << 20 };
        b.always.insert(Method::QueryWrite, Status::unimplemented(""));
    });
    assert_eq!(client.upload(uploads(&[noise(1, 5 << 20)])).await?.blobs, 1);
    assert_eq!(server.count(Method::Write), 3);
    Ok(())
}

#[tokio::test]
async fn an_upload_begins_again_where_the_server_cannot_go_on() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    server.behave(|b| b.write = WriteFault::CannotGoOn { times: 1, after_bytes: 1 << 20 });
    assert_eq!(client.upload(uploads(&[noise(1, 5 << 20)])).await?.blobs, 1);
    assert_eq!((server.count(Method::Write), server.count(Method::QueryWrite)), (3, 1));
    Ok(())
}

#[tokio::test]
async fn an_early_answer_is_a_success() -> TestResult {
    let server = FakeServer::start();
    server.claim(|cache| cache.supported_compressors = vec![1]);
    server.behave(|b| b.write = WriteFault::Early);
    let client = client_of(&server);
    for bytes in [noise(1, 8 << 20), prose(8 << 20)] {
        let uploaded = client.upload(uploads(&[bytes])).await?;
        assert_eq!(uploaded.blobs, 1);
    }
    assert_eq!(server.count(Method::Write), 2);
    Ok(())
}

#[tokio::test]
async fn a_server_that_miscounts_an_upload_is_a_liar() -> TestResult {
    let bytes = noise(1, 5 << 20);
    for fault in [
        WriteFault::Commits(i64::MAX),
        WriteFault::Commits(-1),
        WriteFault::Commits(-2),
        WriteFault::BreaksAndClaims(i64::MAX),
        WriteFault::BreaksAndClaims(-1),
    ] {
        let server = FakeServer::start();
        let client = client_of(&server);
        server.behave(|b| b.write = fault);
        let error = client.upload(uploads(std::slice::from_ref(&bytes))).await;
        assert!(matches!(error, Err(RemoteError::Lied { .. })), "{fault:?}: {error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn blobs_are_compressed_where_it_is_worth_it() -> TestResult {
    let server = FakeServer::start();
    server.claim(|cache| {
        cache.supported_compressors = vec![1];
        cache.supported_batch_update_compressors = vec![1];
    });
    let client = client_of(&server);
    let blobs = [prose(5 << 20), prose(100_000), noise(1, 5 << 20), noise(2, 100_000), prose(1000)];
    let uploaded = client.upload(uploads(&blobs)).await?;
    let plain = (5 << 20) + 100_000 + 1000;
    assert!((plain..plain + 200_000).contains(&uploaded.sent_bytes), "{uploaded:?}");
    let state = |needle: &str| {
        server.state().calls.iter().filter(|(_, what)| what.contains(needle)).count()
    };
    assert_eq!(state("uploads/"), 2);
    assert_eq!(state("/compressed-blobs/zstd/"), 1);
    let found = take(&client, &digests(&blobs)).await;
    for (digest, bytes) in digests(&blobs).iter().zip(&blobs) {
        assert!(found[digest].as_ref().expect("it is there") == bytes, "{digest}");
    }
    assert_eq!(state("compressed-blobs/zstd/"), 3, "both streams come back compressed");
    Ok(())
}

#[tokio::test]
async fn a_compressed_upload_that_broke_off_begins_again() -> TestResult {
    let server = FakeServer::start();
    server.claim(|cache| cache.supported_compressors = vec![1]);
    server.behave(|b| b.write = WriteFault::Breaks { times: 1, after_bytes: 1 });
    let client = client_of(&server);
    assert_eq!(client.upload(uploads(&[prose(5 << 20)])).await?.blobs, 1);
    assert_eq!((server.count(Method::Write), server.count(Method::QueryWrite)), (2, 0));
    Ok(())
}

#[tokio::test]
async fn a_server_that_only_claims_compression_gets_plain_bytes() -> TestResult {
    let server = FakeServer::start();
    server.claim(|cache| cache.supported_compressors = vec![1]);
    server.behave(|b| b.lies_about_zstd = true);
    let client = client_of(&server);
    let bytes = prose(5 << 20);
    assert_eq!(client.upload(uploads(std::slice::from_ref(&bytes))).await?.blobs, 1);
    assert!(take_one(&client, DigestFunction::Sha256.digest(&bytes)).await? == bytes);
    Ok(())
}

#[tokio::test]
async fn a_full_server_is_not_written_to_again_and_still_read() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    server.put(b"there");
    server.behave(|b| {
        for method in [Method::BatchUpdate, Method::Write] {
            b.always.insert(method, Status::resource_exhausted("quota"));
        }
    });
    let blobs = [noise(1, 100)];
    let error = client.upload(uploads(&blobs)).await.expect_err("no room");
    assert!(matches!(error, RemoteError::Refused { .. }), "{error:?}");
    let calls = server.state().calls.len();
    let error = client.upload(uploads(&blobs)).await.expect_err("still no room");
    assert!(matches!(error, RemoteError::Refused { .. }), "{error:?}");
    assert_eq!(server.state().calls.len(), calls, "not asked again");
    assert!(client.is_available());
    assert_eq!(take_one(&client, DigestFunction::Sha256.digest(b"there")).await?, b"there");
    Ok(())
}

#[tokio::test]
async fn nothing_is_written_without_permission() -> TestResult {
    let server = FakeServer::start();
    let read_only = options(&server.url()).with_access(RemoteAccess::ReadOnly);
    let error = Client::connect(read_only).upload(uploads(&[noise(1, 10)])).await;
    assert!(matches!(error, Err(RemoteError::Refused { .. })), "{error:?}");
    assert!(server.state().calls.is_empty());

    server.claim(|cache| cache.action_cache_update_capabilities = None);
    let error = client_of(&server).upload(uploads(&[noise(1, 10)])).await;
    assert!(matches!(error, Err(RemoteError::Refused { .. })), "{error:?}");
    assert_eq!(server.count(Method::BatchUpdate), 0);
    Ok(())
}

#[tokio::test]
async fn a_blob_above_the_servers_limit_is_not_sent() -> TestResult {
    let server = FakeServer::start();
    server.claim(|cache| cache.max_cas_blob_size_bytes = 99);
    let client = client_of(&server);
    let error = client.upload(uploads(&[noise(1, 100)])).await;
    assert!(matches!(error, Err(RemoteError::Refused { .. })), "{error:?}");
    assert_eq!(client.upload(uploads(&[noise(1, 99)])).await?.blobs, 1, "which is about one blob");
    Ok(())
}

/// Gives fewer bytes than it should, or an error.
struct BadSource(Option<usize>);

impl UploadSource for BadSource {
    fn open(&self, _: u64) -> io::Result<Box<dyn Read + Send>> {
        match self.0 {
            Some(count) => Ok(Box::new(io::Cursor::new(vec![0; count]))),
            None => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

#[tokio::test]
async fn a_source_that_cannot_be_read_is_told_apart_from_the_server() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    for size_bytes in [1000, 5 << 20] {
        let digest = RemoteDigest::new([7; 32], size_bytes);
        for count in [None, Some(0), Some(999), Some(6 << 20)] {
            let upload = Upload { digest, source: Arc::new(BadSource(count)) };
            let outcome = client.upload(vec![upload]).await;
            assert!(matches!(outcome, Err(RemoteError::Source { .. })), "{count:?}: {outcome:?}");
        }
    }
    assert!(client.is_available());
    Ok(())
}

#[tokio::test]
async fn a_server_that_answers_for_other_blobs_is_a_liar() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    server.behave(|b| b.names_another = true);
    let outcome = client.upload(uploads(&[noise(1, 100)])).await;
    assert!(matches!(outcome, Err(RemoteError::Lied { .. })), "{outcome:?}");
    server.behave(|b| (b.names_another, b.answers_nothing) = (false, true));
    let outcome = client.upload(uploads(&[noise(1, 100)])).await;
    assert!(matches!(outcome, Err(RemoteError::Unavailable { .. })), "{outcome:?}");
    Ok(())
}

/// A server that puts chunks together, in the form of this version.
fn splicing_server(minor: i32) -> FakeServer {
    let server = FakeServer::start();
    server.claim(|cache| {
        cache.splice_blob_support = true;
        cache.fast_cdc_2020_params =
            Some(reapi::FastCdc2020Params { avg_chunk_size_bytes: 64 << 10, seed: 0 });
    });
    server.behave(|b| {
        let version = b.capabilities.high_api_version.as_mut().expect("has one");
        version.minor = minor;
    });
    server
}

#[tokio::test]
async fn of_a_large_blob_only_new_chunks_travel() -> TestResult {
    for minor in [12, 13] {
        let server = splicing_server(minor);
        let client = client_of(&server);
        assert!(client.status().await?.has_chunking);
        let first = noise(1, 8 << 20);
        let mut second = first.clone();
        second.splice(4_000_000..4_000_000, *b"a few bytes more");
        let sent = client.upload(uploads(std::slice::from_ref(&first))).await?;
        assert_eq!((sent.blobs, sent.sent_bytes), (1, first.len() as u64));
        let sent = client.upload(uploads(std::slice::from_ref(&second))).await?;
        assert!(sent.blobs == 1 && sent.sent_bytes < 1 << 20, "{sent:?}");
        assert_eq!(
            (server.count(Method::Splice), server.count(Method::Write)),
            (2, 0),
            "2.{minor}"
        );
        for bytes in [first, second] {
            assert!(take_one(&client, DigestFunction::Sha256.digest(&bytes)).await? == bytes);
        }
        let sent = client.upload(uploads(&[noise(3, 256 << 10)])).await?;
        assert_eq!(sent.blobs, 1);
        assert_eq!(server.count(Method::Splice), 2, "one of four averages travels whole");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_cannot_put_chunks_together_gets_the_whole() -> TestResult {
    for status in
        [Status::unimplemented(""), Status::not_found("evicted"), Status::invalid_argument("")]
    {
        let server = splicing_server(12);
        server.fail(Method::Splice, [status]);
        let client = client_of(&server);
        let bytes = noise(1, 5 << 20);
        assert_eq!(client.upload(uploads(std::slice::from_ref(&bytes))).await?.blobs, 1);
        assert_eq!(server.count(Method::Write), 1);
        assert!(take_one(&client, DigestFunction::Sha256.digest(&bytes)).await? == bytes);
    }
    let server = splicing_server(12);
    server.fail(Method::Splice, [Status::already_exists("")]);
    assert_eq!(client_of(&server).upload(uploads(&[noise(1, 5 << 20)])).await?.blobs, 1);
    assert_eq!(server.count(Method::Write), 0);
    Ok(())
}
