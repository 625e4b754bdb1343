//! Which blobs a server lacks.

use super::{ANSWER_BYTES_MAX, Session};
use crate::remote::call::Purpose;
use crate::remote::capabilities::DIGEST_BYTES;
use crate::remote::digests::RemoteDigest;
use crate::remote::error::RemoteError;
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::task::JoinSet;

const ACTION: &str = "find missing blobs";
/// A tenth of what a message holds: servers look each of them up before they answer.
const DIGESTS_MAX: usize = 4000;

impl Session {
    /// Those of `digests` that the server lacks, each once, in the given order. The server keeps
    /// the others for a while longer.
    ///
    /// # Errors
    /// If the server cannot be asked, or names a blob that was not asked for.
    pub(crate) async fn find_missing(
        self: &Arc<Session>,
        digests: &[RemoteDigest],
    ) -> Result<Vec<RemoteDigest>, RemoteError> {
        let mut seen = HashSet::new();
        let asked: Vec<RemoteDigest> = digests
            .iter()
            .copied()
            .filter(|digest| !digest.is_empty() && seen.insert(*digest))
            .collect();
        let mut calls = JoinSet::new();
        for part in asked.chunks(DIGESTS_MAX) {
            let (session, part) = (Arc::clone(self), part.to_vec());
            calls.spawn(async move { session.find_part(part).await });
        }
        let mut missing = HashSet::new();
        while let Some(part) = calls.join_next().await {
            missing.extend(part.unwrap_or_else(|_| {
                Err(RemoteError::invalid("finding missing blobs ended in a panic"))
            })?);
        }
        Ok(asked.into_iter().filter(|digest| missing.contains(digest)).collect())
    }

    async fn find_part(&self, part: Vec<RemoteDigest>) -> Result<Vec<RemoteDigest>, RemoteError> {
        let _permit = self.questions.acquire().await;
        let bytes = part.len() as u64 * DIGEST_BYTES;
        let message = reapi::FindMissingBlobsRequest {
            instance_name: self.server.instance().to_owned(),
            blob_digests: part.iter().map(|digest| digest.to_message()).collect(),
            digest_function: self.capabilities.digest_function.number(),
        };
        let answer = self
            .server
            .unary(ACTION, Purpose::Read, bytes, |line| {
                let mut client = ContentAddressableStorageClient::new(line.channel())
                    .max_decoding_message_size(ANSWER_BYTES_MAX);
                let request = line.request(message.clone());
                async move { client.find_missing_blobs(request).await }
            })
            .await?;
        let asked: HashSet<RemoteDigest> = part.into_iter().collect();
        let mut missing = Vec::new();
        for message in &answer.missing_blob_digests {
            match RemoteDigest::from_message(message) {
                Some(digest) if asked.contains(&digest) => missing.push(digest),
                _ => return Err(self.server.lied(ACTION, "named a blob that nobody asked for")),
            }
        }
        Ok(missing)
    }
}
