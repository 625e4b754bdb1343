//! The encoding of a row: a checksum of 16 bytes, then 40 bytes.

use crate::disk::{Stamp, Timestamp};
use crate::key::TaskDigest;
use crate::steps::{Step, is_left_out};

const CHECKSUM_BYTES: usize = 16;
const ROW_BYTES: usize = CHECKSUM_BYTES + 8 + 8 + 8 + 4 + 8 + 4;

/// What a lookup needs to know of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// The stamp of the manifest file that this row speaks of.
    pub(crate) manifest: Stamp,
    pub(crate) duration_ms: u64,
    pub(crate) exit_code: i32,
}

impl Row {
    pub(crate) fn encode(&self, task: &TaskDigest, key: &[u8; 32]) -> [u8; ROW_BYTES] {
        let mut bytes = [0; ROW_BYTES];
        bytes[16..24].copy_from_slice(&self.manifest.inode.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.manifest.size_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.manifest.modified.seconds.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.manifest.modified.nanoseconds.to_le_bytes());
        bytes[44..52].copy_from_slice(&self.duration_ms.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.exit_code.to_le_bytes());
        let checksum = checksum(&bytes[CHECKSUM_BYTES..], task, key);
        bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum);
        bytes
    }

    /// `None` for whatever was not written by [`Row::encode`] for this task in this store.
    pub(crate) fn decode(bytes: &[u8], task: &TaskDigest, key: &[u8; 32]) -> Option<Row> {
        let bytes: &[u8; ROW_BYTES] = bytes.try_into().ok()?;
        let is_right = checksum(&bytes[CHECKSUM_BYTES..], task, key) == bytes[..CHECKSUM_BYTES];
        if !is_right && !is_left_out(Step::CheckRows) {
            return None;
        }
        let number =
            |start: usize| Some(u64::from_le_bytes(bytes[start..start + 8].try_into().ok()?));
        let small =
            |start: usize| Some(u32::from_le_bytes(bytes[start..start + 4].try_into().ok()?));
        Some(Row {
            manifest: Stamp {
                inode: number(16)?,
                size_bytes: number(24)?,
                modified: Timestamp { seconds: number(32)? as i64, nanoseconds: small(40)? },
            },
            duration_ms: number(44)?,
            exit_code: small(52)? as i32,
        })
    }
}

fn checksum(contents: &[u8], task: &TaskDigest, key: &[u8; 32]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(task.as_bytes());
    hasher.update(contents);
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_BYTES]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_speaks_for_its_task_and_its_store_only() -> Result<(), crate::Error> {
        let modified = Timestamp { seconds: -7, nanoseconds: 5 };
        let row = Row {
            manifest: Stamp { inode: 1, size_bytes: 2, modified },
            duration_ms: 3,
            exit_code: -4,
        };
        let (task, other) = (TaskDigest::derive("", "a")?, TaskDigest::derive("", "b")?);
        let bytes = row.encode(&task, &[1; 32]);
        assert_eq!(Row::decode(&bytes, &task, &[1; 32]), Some(row));
        assert_eq!(Row::decode(&bytes, &other, &[1; 32]), None);
        assert_eq!(Row::decode(&bytes, &task, &[2; 32]), None);
        for position in 0..bytes.len() {
            let mut damaged = bytes;
            damaged[position] ^= 0x10;
            assert_eq!(Row::decode(&damaged, &task, &[1; 32]), None, "byte {position}");
            assert_eq!(Row::decode(&bytes[..position], &task, &[1; 32]), None);
        }
        Ok(())
    }
}
