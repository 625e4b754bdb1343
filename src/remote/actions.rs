//! Results of actions on a server.
//!
//! From `remote_execution.proto`, `ActionCache`: `NOT_FOUND` is a miss; a result says nothing about
//! whether the blobs that it names are there; it is written after them.

use super::blobs::Session;
use super::call::Purpose;
use super::capabilities::MESSAGE_BYTES_MAX;
use super::digests::RemoteDigest;
use super::error::{Answer, RemoteError};
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use prost::Message;
use reapi::action_cache_client::ActionCacheClient;
use tonic::Code;

/// The largest result that is read: what gRPC takes unless it is told otherwise, so that no client could
/// have written a larger one.
const RESULT_BYTES_MAX: usize = 4 << 20;
/// What a usual one has. A larger one is waited for as long as it gets on.
const RESULT_BYTES: u64 = 64 << 10;

impl Session {
    /// The result of an action; `None` if the server has none. What it says is as the server sent
    /// it.
    pub(super) async fn get_action(
        &self,
        action: &RemoteDigest,
    ) -> Result<Option<reapi::ActionResult>, RemoteError> {
        let message = reapi::GetActionResultRequest {
            instance_name: self.server.instance().to_owned(),
            action_digest: Some(action.to_message()),
            digest_function: self.capabilities.digest_function.number(),
            ..reapi::GetActionResultRequest::default()
        };
        let answer = self
            .server
            .unary("look up a result", Purpose::Read, RESULT_BYTES, |line| {
                let mut client = ActionCacheClient::new(line.channel())
                    .max_decoding_message_size(RESULT_BYTES_MAX);
                let request = line.request(message.clone());
                async move { client.get_action_result(request).await }
            })
            .await;
        match answer {
            Ok(result) => Ok(Some(result)),
            Err(failure) if failure.is_absent() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Stores the result of an action, in place of one that may be there.
    pub(super) async fn update_action(
        &self,
        action: &RemoteDigest,
        result: reapi::ActionResult,
    ) -> Result<(), RemoteError> {
        const ACTION: &str = "store a result";
        let message = reapi::UpdateActionResultRequest {
            instance_name: self.server.instance().to_owned(),
            action_digest: Some(action.to_message()),
            action_result: Some(result),
            digest_function: self.capabilities.digest_function.number(),
            ..reapi::UpdateActionResultRequest::default()
        };
        let bytes = message.encoded_len() as u64;
        if bytes > MESSAGE_BYTES_MAX {
            let answer = Answer::new(Code::OutOfRange, "it is larger than a message");
            return Err(self.server.refused(ACTION, answer));
        }
        self.server
            .unary(ACTION, Purpose::Write, bytes, |line| {
                let mut client = ActionCacheClient::new(line.channel())
                    .max_decoding_message_size(RESULT_BYTES_MAX);
                let request = line.request(message.clone());
                async move { client.update_action_result(request).await }
            })
            .await?;
        Ok(())
    }
}
