//! What is asked of redb: one open database, and the rows in it.
//!
//! Every call is contained: a panic of redb, and most of its errors, say that the file is damaged.
//!
//! Left to others: which file it is, whether it may be believed unread, and what becomes of a damaged
//! one (`super`).

use super::recent::Recent;
use super::record::Row;
use super::{Change, tables};
use crate::disk::Stamp;
use crate::key::TaskDigest;
use redb::{Builder, ConcurrencyMode, Database, ReadableDatabase, ReadableTable};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why redb did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The file is not to be trusted any more.
    Damaged,
    /// The system refused; the file may be well.
    Refused,
}

/// An open database. To drop it writes to its file, and may panic if that is damaged.
#[derive(Debug)]
pub(crate) struct Rows {
    // Ends before the database is closed.
    recent: Recent,
    database: Database,
}

impl Rows {
    /// Opens what `open` opens, reading it whole first unless it is believed.
    pub(crate) fn open(
        cache_bytes: usize,
        is_believed: bool,
        open: impl FnOnce(&Builder) -> Result<Database, redb::DatabaseError>,
    ) -> Result<Rows, Failure> {
        contain(|| {
            let database = open(builder(cache_bytes).set_check_integrity_on_open(!is_believed))?;
            // Left as it is unless it is found good, also if redb panics.
            let rows = ManuallyDrop::new(Rows { recent: Recent::default(), database });
            // A file of another make opens, but has no such table.
            rows.database.begin_read()?.open_table(tables::TASKS)?;
            Ok(ManuallyDrop::into_inner(rows))
        })
    }

    /// Leaves a damaged database as it is. To close it is to write to it: redb then meets the damage
    /// again, and its panic in the middle of that can end the process. Costs a descriptor and a page
    /// cache, until the process ends.
    pub(crate) fn leak(self) {
        self.recent.leak();
        std::mem::forget(self);
    }

    /// Fills what `create` creates with an empty table, and closes it. redb's own creation, killed at
    /// the wrong moment, leaves a file that it refuses for ever.
    pub(crate) fn make(
        cache_bytes: usize,
        create: impl FnOnce(&Builder) -> Result<Database, redb::DatabaseError>,
    ) -> Result<(), Failure> {
        contain(|| {
            let database = create(&builder(cache_bytes))?;
            let transaction = database.begin_write()?;
            transaction.open_table(tables::TASKS)?;
            transaction.commit()?;
            Ok(database.close()?)
        })
    }

    /// The row of a task, if there is one that checks and speaks of a manifest with this stamp.
    pub(crate) fn get(
        &self,
        task: &TaskDigest,
        key: &[u8; 32],
        manifest: Stamp,
    ) -> Result<Option<Row>, Failure> {
        let take =
            |value: &[u8]| Row::decode(value, task, key).filter(|row| row.manifest == manifest);
        contain(|| self.recent.get(&self.database, task.as_bytes(), take))
    }

    /// All rows that check, and the number of those that do not.
    pub(crate) fn all(&self, key: &[u8; 32]) -> Result<(Vec<(TaskDigest, Row)>, usize), Failure> {
        contain(|| {
            let table = self.database.begin_read()?.open_table(tables::TASKS)?;
            let (mut rows, mut bad) = (Vec::new(), 0);
            for item in table.iter()? {
                let (task, value) = item?;
                let task = TaskDigest::from_bytes(*task.value());
                match Row::decode(value.value(), &task, key) {
                    Some(row) => rows.push((task, row)),
                    None => bad += 1,
                }
            }
            Ok((rows, bad))
        })
    }

    /// Commits changes, synced.
    pub(crate) fn write(&self, changes: &[Change], key: &[u8; 32]) -> Result<(), Failure> {
        contain(|| {
            // So that its pages can be used again.
            self.recent.forget();
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(tables::TASKS)?;
                for change in changes {
                    match change {
                        Change::Put(task, row) => {
                            table.insert(task.as_bytes(), row.encode(task, key).as_slice())?;
                        }
                        Change::Remove(task) => {
                            table.remove(task.as_bytes())?;
                        }
                    }
                }
            }
            Ok(transaction.commit()?)
        })
    }
}

fn builder(cache_bytes: usize) -> Builder {
    let mut builder = Database::builder();
    builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
    builder.set_cache_size(cache_bytes);
    builder
}

/// Runs redb calls. A panic in them means a damaged file, as do most of its errors.
fn contain<T>(calls: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(calls)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(redb::Error::Io(error))) if error.kind() != std::io::ErrorKind::InvalidData => {
            Err(Failure::Refused)
        }
        Ok(Err(
            redb::Error::PreviousIo
            | redb::Error::DatabaseAlreadyOpen
            | redb::Error::LockPoisoned(_),
        )) => Err(Failure::Refused),
        Ok(Err(_)) | Err(_) => Err(Failure::Damaged),
    }
}
