//! The index on any storage, for the rigs. Only built with `--cfg larder_rigs`.
//!
//! What is asked of redb, how a row is encoded and what an error means are the product's own code
//! (`index/rows.rs`); the file, its seal and its lock are left out.

use crate::disk::{Stamp, Timestamp};
use crate::index::{Change, Failure, Row, Rows};
use crate::key::TaskDigest;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

const KEY: [u8; 32] = [9; 32];

/// Why the index did not do what it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexFailure {
    /// It would be set aside and made anew.
    Damaged,
    /// It would be closed, and opened again later.
    Refused,
}

impl From<Failure> for IndexFailure {
    fn from(failure: Failure) -> IndexFailure {
        match failure {
            Failure::Damaged => IndexFailure::Damaged,
            Failure::Refused => IndexFailure::Refused,
        }
    }
}

/// An open index whose rows are numbers.
#[derive(Debug)]
pub struct RiggedIndex {
    /// `None` only while it is dropped.
    rows: Option<Rows>,
    is_damaged: Cell<bool>,
}

/// What an index holds: tasks with their numbers, and how many rows do not check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsFound {
    /// Task and number; no number where a row checks but says what no number does.
    pub rows: Vec<([u8; 32], Option<u64>)>,
    /// Rows that do not check.
    pub bad: usize,
}

impl RiggedIndex {
    /// Makes an empty index, as the product makes its file.
    ///
    /// # Errors
    /// If redb fails.
    pub fn make(storage: impl redb::StorageBackend) -> Result<(), IndexFailure> {
        let create = |builder: &redb::Builder| builder.create_with_backend(storage);
        Rows::make(1 << 20, create).map_err(IndexFailure::from)
    }

    /// Opens an index; one that is not believed is read whole first.
    ///
    /// # Errors
    /// If the product would not use it.
    pub fn open(
        storage: impl redb::StorageBackend,
        cache_bytes: usize,
        is_believed: bool,
    ) -> Result<RiggedIndex, IndexFailure> {
        let open = |builder: &redb::Builder| builder.create_with_backend(storage);
        let rows = Rows::open(cache_bytes, is_believed, open)?;
        Ok(RiggedIndex { rows: Some(rows), is_damaged: Cell::new(false) })
    }

    /// Commits numbers of tasks; `None` removes a row.
    ///
    /// # Errors
    /// If redb fails.
    pub fn commit(&self, changes: &[([u8; 32], Option<u64>)]) -> Result<(), IndexFailure> {
        let change = |(task, number): &([u8; 32], Option<u64>)| {
            let task = TaskDigest::from_bytes(*task);
            number.map_or(Change::Remove(task), |number| Change::Put(task, row(number)))
        };
        let changes: Vec<Change> = changes.iter().map(change).collect();
        self.note(self.rows().write(&changes, &KEY))
    }

    /// All rows, in the order of their tasks.
    ///
    /// # Errors
    /// If redb fails.
    pub fn all(&self) -> Result<RowsFound, IndexFailure> {
        let (rows, bad) = self.note(self.rows().all(&KEY))?;
        let rows = rows.into_iter().map(|(task, row)| (*task.as_bytes(), number(&row))).collect();
        Ok(RowsFound { rows, bad })
    }

    /// Whether there is a row that checks and says that a task has this number.
    ///
    /// # Errors
    /// If redb fails.
    pub fn says(&self, task: [u8; 32], number: u64) -> Result<bool, IndexFailure> {
        let (task, row) = (TaskDigest::from_bytes(task), row(number));
        let found = self.note(self.rows().get(&task, &KEY, row.manifest))?;
        Ok(found == Some(row))
    }

    fn note<T>(&self, done: Result<T, Failure>) -> Result<T, IndexFailure> {
        if matches!(done, Err(Failure::Damaged)) {
            self.is_damaged.set(true);
        }
        done.map_err(IndexFailure::from)
    }

    fn rows(&self) -> &Rows {
        self.rows.as_ref().expect("it is there until the drop")
    }
}

impl Drop for RiggedIndex {
    fn drop(&mut self) {
        let Some(rows) = self.rows.take() else { return };
        // As the product does.
        if self.is_damaged.get() {
            rows.leak();
        } else {
            let _ = catch_unwind(AssertUnwindSafe(|| drop(rows)));
        }
    }
}

/// The row that stands for a number: all its fields follow from it.
fn row(number: u64) -> Row {
    let modified = Timestamp { seconds: (number ^ 0x55) as i64, nanoseconds: number as u32 };
    Row {
        manifest: Stamp { inode: number, size_bytes: number.rotate_left(17), modified },
        duration_ms: !number,
        exit_code: number as i32,
    }
}

fn number(found: &Row) -> Option<u64> {
    (*found == row(found.manifest.inode)).then_some(found.manifest.inode)
}
