//! Capabilities, results, retries, and the breaker.

use super::*;
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use tonic::{Code, Status};

#[tokio::test]
async fn capabilities_are_asked_for_once() -> TestResult {
    let server = FakeServer::start();
    let client = Arc::new(client_of(&server));
    assert_eq!(server.count(Method::Capabilities), 0, "nothing happens before the first call");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = Arc::clone(&client);
        calls.spawn(
            async move { client.find_missing(&[DigestFunction::Sha256.digest(b"a")]).await },
        );
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call??.len(), 1);
    }
    assert_eq!(server.count(Method::Capabilities), 1);
    assert_eq!(client.capabilities().await?.version, "2.3");
    Ok(())
}

#[tokio::test]
async fn a_result_is_stored_and_found() -> TestResult {
    let server = FakeServer::start();
    server.claim(|cache| cache.digest_functions.push(9));
    let client = client_of(&server);
    let function = client.capabilities().await?.digest_function;
    assert_eq!(function, DigestFunction::Blake3);
    let action = function.digest(b"an action");
    assert_eq!(client.get_action(&action).await?, None, "absence is no error");

    let result = reapi::ActionResult { exit_code: 7, ..reapi::ActionResult::default() };
    let error = client.update_action(&action, result.clone()).await.expect_err("no action there");
    assert!(matches!(error, RemoteError::Refused { .. }), "{error:?}");
    client.upload(vec![upload_of(function, b"an action")]).await?;
    client.update_action(&action, result.clone()).await?;
    assert_eq!(client.get_action(&action).await?, Some(result));
    Ok(())
}

#[tokio::test]
async fn a_result_too_large_for_a_message_is_not_sent() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let result = reapi::ActionResult { stdout_raw: vec![0; 5 << 20], ..Default::default() };
    let action = DigestFunction::Sha256.digest(b"an action");
    let error = client.update_action(&action, result).await.expect_err("too large");
    assert!(matches!(error, RemoteError::Refused { .. }), "{error:?}");
    assert_eq!(server.count(Method::UpdateAction), 0);
    Ok(())
}

#[tokio::test]
async fn what_may_pass_is_tried_again() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    client.capabilities().await?;
    let action = DigestFunction::Sha256.digest(b"an action");
    for code in [Code::Unavailable, Code::Aborted, Code::Internal, Code::DeadlineExceeded] {
        server.fail(Method::GetAction, [Status::new(code, ""), Status::new(code, "")]);
        assert_eq!(client.get_action(&action).await?, None, "{code:?}");
    }
    let patient = with_retry_info(Code::ResourceExhausted, Duration::from_millis(50));
    server.fail(Method::GetAction, [patient]);
    assert_eq!(client.get_action(&action).await?, None);
    assert!(client.is_available() && client.take_outage().is_none());
    Ok(())
}

#[tokio::test]
async fn what_stays_is_not_tried_again() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let action = DigestFunction::Sha256.digest(b"an action");
    client.capabilities().await?;
    for (status, expected) in [
        (Status::permission_denied(""), "refused"),
        (Status::invalid_argument(""), "refused"),
        (with_retry_info(Code::Unavailable, Duration::from_secs(3600)), "unavailable"),
    ] {
        let before = server.count(Method::GetAction);
        server.fail(Method::GetAction, [status]);
        let found = match client.get_action(&action).await.expect_err("it fails") {
            RemoteError::Refused { .. } => "refused",
            RemoteError::Unavailable { .. } => "unavailable",
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected);
        assert_eq!(server.count(Method::GetAction), before + 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_fails_is_left_alone_and_tried_again_later() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let action = DigestFunction::Sha256.digest(b"an action");
    client.capabilities().await?;
    server.behave(|b| {
        b.always.insert(Method::GetAction, Status::unavailable("down"));
    });
    for _ in 0..3 {
        let error = client.get_action(&action).await.expect_err("it is down");
        assert!(matches!(error, RemoteError::Unavailable { .. }), "{error:?}");
    }
    assert!(!client.is_available());
    assert!(matches!(client.take_outage(), Some(RemoteError::Unavailable { .. })));
    assert!(client.take_outage().is_none(), "one warning for one outage");

    server.behave(|b| b.always.clear());
    // Until the time is over no call is made; then the first one that is made closes the breaker.
    let calls = server.count(Method::GetAction);
    while let Err(error) = client.get_action(&action).await {
        assert!(matches!(error, RemoteError::Unavailable { .. }), "{error:?}");
        assert_eq!(server.count(Method::GetAction), calls, "it is left alone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(client.is_available());
    Ok(())
}

#[tokio::test]
async fn a_server_without_a_common_language_is_not_used() {
    let server = FakeServer::start();
    server.claim(|cache| cache.digest_functions = vec![2, 3]);
    let client = client_of(&server);
    for _ in 0..2 {
        let error = client.find_missing(&[]).await.expect_err("MD5 and SHA-1 only");
        assert!(matches!(error, RemoteError::Invalid { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn missing_blobs_are_found_in_parts() -> TestResult {
    let server = FakeServer::start();
    let client = client_of(&server);
    let there = DigestFunction::Sha256.digest(b"there");
    server.put(b"there");
    let mut asked: Vec<RemoteDigest> =
        (0..9000_u32).map(|index| DigestFunction::Sha256.digest(&index.to_le_bytes())).collect();
    let absent = asked.clone();
    asked.extend([there, there, DigestFunction::Sha256.digest(b""), asked[0]]);
    assert_eq!(client.find_missing(&asked).await?, absent, "each once, in order");
    assert_eq!(server.count(Method::FindMissing), 3);
    assert!(client.find_missing(&[]).await?.is_empty());

    server.behave(|b| b.names_another = true);
    let error = client.find_missing(&[there]).await.expect_err("nobody asked for that one");
    assert!(matches!(error, RemoteError::Lied { .. }), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn the_status_says_what_the_server_can_do() -> TestResult {
    let server = FakeServer::start();
    server.claim(|cache| {
        cache.max_cas_blob_size_bytes = 1 << 30;
        cache.supported_compressors = vec![1];
    });
    let client = Client::connect(options(&format!("{}/main", server.url())));
    let status = client.status().await?;
    assert_eq!(status.digest_function, "SHA256");
    assert_eq!(status.blob_bytes_max, Some(1 << 30));
    assert!(status.may_write && status.has_compression && !status.has_chunking);
    assert!(!status.is_encrypted && status.address.ends_with("/main"));
    let calls = server.state().calls.clone();
    assert!(calls.iter().all(|(_, instance)| instance == "main"), "{calls:?}");
    Ok(())
}
