//! The parts of a result, each checked for itself, as parts of an entry.

use super::error::{ResultError, invalid};
use crate::digest::Digest;
use crate::disk::Timestamp;
use crate::manifest::{NodeKind, OutputPath, PATH_BYTES_MAX, PathError};
use crate::remote::digests::RemoteDigest;
use bazel_remote_apis::build::bazel::remote::execution::v2::{
    ActionResult, ExecutedActionMetadata, NodeProperties, OutputSymlink,
};
use prost::Message;
use std::ffi::OsStr;
use std::path::Path;

/// The longest record of a file, a directory or a symlink in its parent. Their names have at most some KiB.
const RECORD_BYTES_MAX: usize = 64 << 10;

/// The modes of what comes without one.
pub(super) const DIRECTORY_MODE: u32 = 0o755;
const EXECUTABLE_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

pub(super) const DIRECTORY_MALFORMED: &str = "a directory cannot be read";

/// A record of a directory.
pub(super) fn decode<M: Message + Default>(
    place: impl AsRef<Path>,
    record: &[u8],
) -> Result<M, ResultError> {
    if record.len() > RECORD_BYTES_MAX {
        return Err(invalid(place, "a record is too long"));
    }
    M::decode(record).map_err(|_| invalid(place, DIRECTORY_MALFORMED))
}

/// The symlinks of a result, wherever they are listed; some twice.
#[expect(
    deprecated,
    reason = "clients and servers of before 2.1 fill the other two lists, and some all three"
)]
pub(super) fn symlinks_of(result: &ActionResult) -> impl Iterator<Item = &OutputSymlink> {
    let old = result.output_file_symlinks.iter().chain(&result.output_directory_symlinks);
    result.output_symlinks.iter().chain(old)
}

pub(super) fn path_of(text: &str) -> Result<OutputPath, ResultError> {
    OutputPath::parse(text).map_err(|PathError(reason)| invalid(text, reason))
}

pub(super) fn child_path(
    parent: Option<&OutputPath>,
    name: &str,
) -> Result<OutputPath, ResultError> {
    if name.contains('/') {
        return Err(invalid(name, "a name is a path"));
    }
    match parent {
        Some(parent) => {
            parent.join(OsStr::new(name)).map_err(|PathError(reason)| invalid(name, reason))
        }
        None => path_of(name),
    }
}

/// The digest in it is the server's.
pub(super) fn file_kind(
    path: &OutputPath,
    digest: RemoteDigest,
    is_executable: bool,
    properties: Option<&NodeProperties>,
) -> Result<NodeKind, ResultError> {
    let modified = properties.and_then(|properties| properties.mtime.as_ref()).map(|time| {
        let nanoseconds =
            u32::try_from(time.nanos).ok().filter(|nanoseconds| *nanoseconds < 1_000_000_000);
        let nanoseconds = nanoseconds.ok_or_else(|| invalid(path, "a time is none"))?;
        Ok(Timestamp { seconds: time.seconds, nanoseconds })
    });
    let default = if is_executable { EXECUTABLE_MODE } else { FILE_MODE };
    Ok(NodeKind::File {
        digest: Digest::from_bytes(*digest.hash()),
        size_bytes: digest.size_bytes,
        mode: mode_of(properties).unwrap_or(default),
        modified: modified.transpose()?,
    })
}

/// Permission bits; other bits say what kind of file it is, or are not for us.
pub(super) fn mode_of(properties: Option<&NodeProperties>) -> Option<u32> {
    Some(properties?.unix_mode.as_ref()?.value & 0o777)
}

pub(super) fn symlink_kind(path: &OutputPath, target: &str) -> Result<NodeKind, ResultError> {
    // No system makes longer ones. What else a target cannot be, the manifest checks.
    if target.len() > PATH_BYTES_MAX {
        return Err(invalid(path, "a symlink's target is too long"));
    }
    Ok(NodeKind::Symlink { target: target.as_bytes().into() })
}

/// How long the action ran: by the worker's own clock, or else from its start to its end.
pub(super) fn duration_ms(metadata: &ExecutedActionMetadata) -> u64 {
    let nanoseconds =
        |seconds: i64, nanos: i32| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let start = metadata.execution_start_timestamp.as_ref();
    let end = metadata.execution_completed_timestamp.as_ref();
    let ran = match (&metadata.virtual_execution_duration, start, end) {
        (Some(ran), _, _) => nanoseconds(ran.seconds, ran.nanos),
        (None, Some(start), Some(end)) => {
            nanoseconds(end.seconds, end.nanos) - nanoseconds(start.seconds, start.nanos)
        }
        _ => 0,
    };
    u64::try_from(ran / 1_000_000).unwrap_or(0)
}
