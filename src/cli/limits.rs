//! Limits in words: `64MiB`, `30d`, `none`.

use bytesize::ByteSize;
use larder::{Limit, Limits, Timestamp};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// A number of bytes, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(Limit);

/// A time, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Age(Option<u64>);

/// A number, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(Option<u64>);

/// A point in time, which may be told by how long ago it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Since(pub(super) Timestamp);

const NONE: &str = "none";

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        if text == NONE {
            return Ok(Size(Limit::None));
        }
        let size: ByteSize = text
            .parse()
            .map_err(|_| format!("{text:?} is neither a size such as 500MB or 20GiB, nor none"))?;
        Ok(Size(Limit::At(size.as_u64())))
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Age, String> {
        if text == NONE {
            return Ok(Age(None));
        }
        let age = humantime::parse_duration(text)
            .map_err(|_| format!("{text:?} is neither a time such as 12h or 30d, nor none"))?;
        Ok(Age(Some(age.as_secs())))
    }
}

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Number, String> {
        if text == NONE {
            return Ok(Number(None));
        }
        let number = text.parse().map_err(|_| format!("{text:?} is neither a number, nor none"))?;
        Ok(Number(Some(number)))
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Since, String> {
        let ago = || SystemTime::now().checked_sub(humantime::parse_duration(text).ok()?);
        let found = humantime::parse_rfc3339_weak(text).ok().or_else(ago);
        let since =
            found.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).ok_or_else(|| {
                format!(
                    "{text:?} is neither a time such as 2026-11-23T10:00:00Z, nor one such as 2h"
                )
            })?;
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Ok(Since(Timestamp { seconds, nanoseconds: since.subsec_nanos() }))
    }
}

/// What was said about each limit; what was not has its default.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Choice {
    pub(super) size: Option<Size>,
    pub(super) free: Option<Size>,
    pub(super) inodes: Option<Number>,
    pub(super) age: Option<Age>,
}

impl From<Choice> for Limits {
    fn from(choice: Choice) -> Limits {
        let mut limits = Limits::default();
        if let Some(Size(limit)) = choice.size {
            limits.size_bytes_max = limit;
        }
        if let Some(Size(limit)) = choice.free {
            limits.free_bytes_min = limit;
        }
        if let Some(Number(limit)) = choice.inodes {
            limits.inodes_max = limit;
        }
        if let Some(Age(limit)) = choice.age {
            limits.age_seconds_max = limit;
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read() {
        let size = |text: &str| text.parse::<Size>().map(|Size(limit)| limit);
        assert_eq!(size("64MiB"), Ok(Limit::At(64 << 20)));
        assert_eq!(size("1 GB"), Ok(Limit::At(1_000_000_000)));
        assert_eq!(size("4096"), Ok(Limit::At(4096)));
        assert_eq!(size("none"), Ok(Limit::None));
        assert!(["", "-1", "many", "1XB"].into_iter().all(|text| size(text).is_err()));
        assert_eq!("30d".parse(), Ok(Age(Some(30 * 86_400))));
        assert_eq!("none".parse(), Ok(Age(None)));
        assert!("30".parse::<Age>().is_err());
        assert_eq!("10".parse(), Ok(Number(Some(10))));
    }
}
