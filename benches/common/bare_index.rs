//! The least that a lookup must do: a get in redb, opened as Larder opens its index, and a stat of the
//! manifest file.

use larder::{CacheOptions, TaskDigest};
use redb::{ConcurrencyMode, Database, ReadableDatabase, TableDefinition};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};
use std::hint::black_box;
use std::path::Path;

/// As wide as the rows of Larder's own index.
const ROW_BYTES: usize = 56;
const TABLE: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("floor");

pub(crate) struct BareIndex {
    database: Database,
    manifests: OwnedFd,
}

impl BareIndex {
    /// Makes a database with a row for each task, beside the manifests of a store.
    pub(crate) fn make(path: &Path, manifests: &Path, tasks: &[TaskDigest]) -> BareIndex {
        let mut builder = Database::builder();
        builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
        builder.set_cache_size(CacheOptions::default().index_cache_bytes);
        let database = builder.create(path).expect("a new database can be made");
        let transaction = database.begin_write().expect("nobody else writes");
        {
            let mut table = transaction.open_table(TABLE).expect("the table is new");
            for task in tasks {
                table.insert(task.as_bytes(), [7; ROW_BYTES].as_slice()).expect("there is room");
            }
        }
        transaction.commit().expect("there is room");
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let manifests = openat(CWD, manifests, flags, Mode::empty()).expect("the store has them");
        BareIndex { database, manifests }
    }

    /// A stat of the file that the store has for the task.
    pub(crate) fn has_manifest(&self, task: &TaskDigest) -> bool {
        let hex = task.to_string();
        let name = format!("{}/{}", &hex[..2], &hex[2..]);
        statat(&self.manifests, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// A get in a transaction of its own.
    pub(crate) fn contains(&self, task: &TaskDigest) -> bool {
        let transaction = self.database.begin_read().expect("the database is sound");
        let table = transaction.open_table(TABLE).expect("made when it was loaded");
        let value = table.get(task.as_bytes()).expect("the database is sound");
        value.is_some_and(|value| black_box(value.value()).len() == ROW_BYTES)
    }
}
