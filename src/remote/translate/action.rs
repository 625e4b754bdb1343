//! The action that stands for a task.

use super::Hash;
use crate::key::TaskDigest;
use crate::remote::digests::RemoteDigest;
use bazel_remote_apis::build::bazel::remote::execution::v2::{Action, Command, Directory};
use prost::Message;

/// What a task is called on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskAction {
    /// The digest of the action: the key of its result.
    pub(crate) digest: RemoteDigest,
    /// The action, its command, and its input root, which is empty. Some servers forget, or refuse, a
    /// result whose action they do not have.
    pub(crate) messages: Vec<(RemoteDigest, Vec<u8>)>,
}

/// The action of a task: the command `larder task <64 hex digits>` without inputs and outputs. Whoever
/// knows the task digest makes the same one, so it never has to be asked for.
pub(crate) fn action_of(task: &TaskDigest, hash: Hash<'_>) -> TaskAction {
    let arguments = ["larder", "task", &task.to_string()].map(str::to_owned).into();
    let command = Command { arguments, ..Command::default() }.encode_to_vec();
    let input_root = Directory::default().encode_to_vec();
    let action = Action {
        command_digest: Some(hash(&command).to_message()),
        input_root_digest: Some(hash(&input_root).to_message()),
        ..Action::default()
    }
    .encode_to_vec();
    let messages = [action, command, input_root].map(|message| (hash(&message), message));
    TaskAction { digest: messages[0].0, messages: messages.into() }
}
