//! Which failures of a call are worth another try, and when.
//!
//! From the "Status codes and their use in gRPC" and the Remote Execution API: the codes that may
//! pass by themselves are tried again after a wait that doubles and is never the same for two
//! clients; `RetryInfo` in an answer says how long the wait is at least (`error_details.proto`;
//! `remote_execution.proto`, `ContentAddressableStorage`). Everything else would give the same
//! answer again.

use bazel_remote_apis::google;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tonic::{Code, Status};

/// How often a call is made at most, if nothing of it gets through.
pub(super) const ATTEMPTS_MAX: u32 = 5;
/// How often, while the server has never answered: a dead one must not hold up a build.
pub(super) const FIRST_ATTEMPTS_MAX: u32 = 2;
/// What must have been transferred between two failures of a stream for the second to count as the
/// first. More than a byte, or a server could make a download endless.
pub(super) const PROGRESS_BYTES_MIN: u64 = 256 << 10;

const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Who asks for more than this is not waited for.
const RETRY_INFO_MAX: Duration = Duration::from_secs(10);

/// What a failed call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is no such blob or result.
    Absent,
    /// It may pass; not before this wait is over.
    Again(Duration),
    /// Not for whom we are.
    Denied,
    /// The server asks for more patience than we have.
    Never,
    /// The same call gives the same answer.
    Rejected,
    /// The token is not, or no longer, good.
    Unauthenticated,
}

/// Judges an answer.
pub(super) fn judge(status: &Status) -> Verdict {
    match status.code() {
        Code::NotFound => Verdict::Absent,
        Code::PermissionDenied => Verdict::Denied,
        Code::Unauthenticated => Verdict::Unauthenticated,
        // UNKNOWN and INTERNAL are also what becomes of a stream that was reset.
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Cancelled
        | Code::Internal
        | Code::ResourceExhausted
        | Code::Unknown => match retry_delay(status.details()) {
            Some(wait) if wait > RETRY_INFO_MAX => Verdict::Never,
            wait => Verdict::Again(wait.unwrap_or_default()),
        },
        _ => Verdict::Rejected,
    }
}

/// `RetryInfo.retry_delay`, if the details have one.
fn retry_delay(details: &[u8]) -> Option<Duration> {
    /// `google.rpc.RetryInfo` (`error_details.proto`), which the generated messages lack.
    #[derive(Clone, PartialEq, prost::Message)]
    struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        retry_delay: Option<google::protobuf::Duration>,
    }

    let status = <google::rpc::Status as prost::Message>::decode(details).ok()?;
    let info = status.details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = <RetryInfo as prost::Message>::decode(info.value.as_slice()).ok()?.retry_delay?;
    let seconds = u64::try_from(delay.seconds).ok()?;
    Some(Duration::new(seconds, u32::try_from(delay.nanos).ok()?.min(999_999_999)))
}

/// Counts the attempts of one call.
#[derive(Debug)]
pub(super) struct Attempts {
    failures: u32,
    max: u32,
}

impl Attempts {
    pub(super) const fn new(max: u32) -> Attempts {
        Attempts { failures: 0, max }
    }

    /// After a failure: how long to wait before the next attempt, `None` if there is none.
    pub(super) fn next(&mut self, wait_min: Duration) -> Option<Duration> {
        self.failures += 1;
        if self.failures >= self.max {
            return None;
        }
        let ceiling = WAIT_MIN.saturating_mul(1 << (self.failures - 1).min(16)).min(WAIT_MAX);
        // Between half and all of it, so that clients that failed together come back apart.
        let share = 0.5
            + f64::from(u32::from_le_bytes(first_four(random_bytes()))) / f64::from(u32::MAX) / 2.0;
        Some(wait_min + ceiling.mul_f64(share))
    }

    /// The stream got on: what comes next is a first failure.
    pub(super) fn forget(&mut self) {
        self.failures = 0;
    }
}

fn first_four(bytes: [u8; 16]) -> [u8; 4] {
    [bytes[0], bytes[1], bytes[2], bytes[3]]
}

/// Bytes that differ from call to call and from process to process. Not for secrets.
pub(super) fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    for half in bytes.chunks_exact_mut(8) {
        half.copy_from_slice(&RandomState::new().hash_one(()).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn with_delay(code: Code, seconds: i64, nanos: i32) -> Status {
        let delay = google::protobuf::Duration { seconds, nanos };
        // Field 1 of RetryInfo, a message.
        let mut value = vec![0x0a, u8::try_from(delay.encoded_len()).expect("short")];
        value.extend(delay.encode_to_vec());
        let status = google::rpc::Status {
            code: code as i32,
            message: String::new(),
            details: vec![google::protobuf::Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value,
            }],
        };
        Status::with_details(code, "", status.encode_to_vec().into())
    }

    #[test]
    fn codes_that_may_pass_are_tried_again() {
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::Cancelled,
            Code::Internal,
            Code::ResourceExhausted,
            Code::Unknown,
        ] {
            assert_eq!(judge(&Status::new(code, "")), Verdict::Again(Duration::ZERO), "{code:?}");
        }
    }

    #[test]
    fn codes_that_stay_are_not() {
        for (code, verdict) in [
            (Code::NotFound, Verdict::Absent),
            (Code::PermissionDenied, Verdict::Denied),
            (Code::Unauthenticated, Verdict::Unauthenticated),
            (Code::InvalidArgument, Verdict::Rejected),
            (Code::FailedPrecondition, Verdict::Rejected),
            (Code::OutOfRange, Verdict::Rejected),
            (Code::Unimplemented, Verdict::Rejected),
            (Code::AlreadyExists, Verdict::Rejected),
            (Code::DataLoss, Verdict::Rejected),
        ] {
            assert_eq!(judge(&Status::new(code, "")), verdict, "{code:?}");
        }
    }

    #[test]
    fn the_wait_that_a_server_asks_for_is_kept_if_it_is_short() {
        let status = with_delay(Code::ResourceExhausted, 2, 500_000_000);
        assert_eq!(judge(&status), Verdict::Again(Duration::from_millis(2500)));
        assert_eq!(judge(&with_delay(Code::Unavailable, 3600, 0)), Verdict::Never);
        assert_eq!(judge(&with_delay(Code::Unavailable, i64::MAX, i32::MAX)), Verdict::Never);
        // Nonsense is no wait.
        assert_eq!(judge(&with_delay(Code::Unavailable, -1, 0)), Verdict::Again(Duration::ZERO));
        let status = Status::with_details(Code::Unavailable, "", vec![0xff; 40].into());
        assert_eq!(judge(&status), Verdict::Again(Duration::ZERO));
    }

    #[test]
    fn waits_grow_and_end() {
        let mut attempts = Attempts::new(ATTEMPTS_MAX);
        let mut ceiling = WAIT_MIN;
        for _ in 1..ATTEMPTS_MAX {
            let wait = attempts.next(Duration::ZERO).expect("there is another attempt");
            assert!(wait >= ceiling / 2 && wait <= ceiling, "{wait:?} of {ceiling:?}");
            ceiling *= 2;
        }
        assert_eq!(attempts.next(Duration::ZERO), None, "the last attempt has failed");

        attempts.forget();
        let wait = attempts.next(Duration::from_secs(1)).expect("as at first");
        assert!(wait >= Duration::from_secs(1), "never before the server allows it: {wait:?}");
    }

    #[test]
    fn waits_are_bounded_however_many() {
        let mut attempts = Attempts::new(u32::MAX);
        for _ in 0..100 {
            assert!(attempts.next(Duration::ZERO).expect("another") <= WAIT_MAX);
        }
    }
}
