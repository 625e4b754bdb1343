//! The client against a server that misbehaves and a network that does.

mod calls;
mod downloads;
mod network;
mod real;
mod security;
mod uploads;

use super::faults::{FaultProxy, Network, NetworkFault};
use super::reapi_server::{
    FakeServer, Method, ReadFault, WriteFault, blob_status, with_retry_info,
};
use super::*;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Short enough for a test of silence, long enough for a busy machine.
const SILENCE: Duration = Duration::from_millis(1500);

fn options(url: &str) -> RemoteOptions {
    RemoteOptions::new(url)
        .expect("a URL")
        .with_access(RemoteAccess::ReadWrite)
        .with_probe_after(Duration::from_millis(200))
}

fn client_of(server: &FakeServer) -> Client {
    Client::connect(options(&server.url()))
}

/// Bytes that no compression makes smaller, different for each seed.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Bytes that compress well.
fn prose(count: usize) -> Vec<u8> {
    (0..count).map(|index| b"abcdefgh"[index / 1000 % 8]).collect()
}

fn upload_of(function: DigestFunction, bytes: &[u8]) -> Upload {
    Upload { digest: function.digest(bytes), source: Arc::new(bytes.to_vec()) }
}

fn uploads(blobs: &[Vec<u8>]) -> Vec<Upload> {
    blobs.iter().map(|bytes| upload_of(DigestFunction::Sha256, bytes)).collect()
}

fn digests(blobs: &[Vec<u8>]) -> Vec<RemoteDigest> {
    blobs.iter().map(|bytes| DigestFunction::Sha256.digest(bytes)).collect()
}

/// Takes what arrives as the engine does: on a blocking thread.
async fn take(
    client: &Client,
    digests: &[RemoteDigest],
) -> HashMap<RemoteDigest, Result<Vec<u8>, RemoteError>> {
    let downloads = match client.download(digests).await {
        Ok(downloads) => downloads,
        Err(error) => return digests.iter().map(|digest| (*digest, Err(error.clone()))).collect(),
    };
    let taking = tokio::task::spawn_blocking(move || {
        let mut found = HashMap::new();
        while let Some(arrival) = downloads.next() {
            let bytes = arrival.content.and_then(|mut reader| {
                let mut bytes = Vec::new();
                match reader.read_to_end(&mut bytes) {
                    Ok(_) => Ok(bytes),
                    Err(error) => Err(RemoteError::of(error).expect("made of one of ours")),
                }
            });
            assert!(found.insert(arrival.digest, bytes).is_none(), "each arrives once");
        }
        found
    });
    taking.await.expect("no panic")
}

async fn take_one(client: &Client, digest: RemoteDigest) -> Result<Vec<u8>, RemoteError> {
    take(client, &[digest]).await.remove(&digest).expect("it arrives, or its error does")
}

fn assert_lied(outcome: &Result<Vec<u8>, RemoteError>, why: &str) {
    assert!(
        matches!(outcome, Err(RemoteError::Lied { .. })),
        "{why}: {:?}",
        outcome.as_ref().err()
    );
}
