//! A read of the index that is kept for a moment, for the questions that come next.
//!
//! To begin a read, where several processes may write, takes redb a read of its header and locks in
//! its file; a question within one that has begun takes no system call.
//!
//! Invariants:
//! - What is kept may be old: a row that it does not have, or has in another form, is asked for once
//!   more in a new read.
//! - It is given up [`KEPT`] after it began, whether anybody asks or not, because until then no process
//!   can use the pages again that it sees.

use super::tables;
use redb::{Database, ReadOnlyTable, ReadableDatabase};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

/// Long enough for ten thousands of questions, and shorter than what a commit of others waits for.
const KEPT: Duration = Duration::from_millis(50);

/// So many questions begin reads of their own before one is kept, and with it a thread.
const QUESTIONS_MAX: usize = 32;

type Table = ReadOnlyTable<&'static [u8; 32], &'static [u8]>;

#[derive(Default)]
pub(super) struct Recent {
    table: Arc<RwLock<Option<Table>>>,
    questions: AtomicUsize,
}

impl Recent {
    /// What `take` makes of the value of a key: in what is kept, or else in a new read. `None` only if
    /// it makes nothing of the newest value, or there is none.
    pub(super) fn get<T>(
        &self,
        database: &Database,
        key: &[u8; 32],
        take: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, redb::Error> {
        if let Some(table) = &*self.table.read().unwrap_or_else(PoisonError::into_inner)
            && let Some(value) = table.get(key)?
            && let Some(taken) = take(value.value())
        {
            return Ok(Some(taken));
        }
        let table = database.begin_read()?.open_table(tables::TASKS)?;
        let taken = table.get(key)?.and_then(|value| take(value.value()));
        if self.questions.fetch_add(1, Ordering::Relaxed) >= QUESTIONS_MAX {
            self.questions.store(0, Ordering::Relaxed);
            self.keep(table);
        }
        Ok(taken)
    }

    /// Gives up what is kept.
    pub(super) fn forget(&self) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Leaves what is kept as it is, with a database that is left so.
    pub(super) fn leak(&self) {
        std::mem::forget(self.table.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn keep(&self, table: Table) {
        let mut kept = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if kept.is_some() {
            // Whoever gives that up gives up this one, too, and in time.
            *kept = Some(table);
            return;
        }
        let slot = Arc::downgrade(&self.table);
        let ends = thread::Builder::new().name("larder index".to_owned()).spawn(move || {
            thread::sleep(KEPT);
            let Some(slot) = slot.upgrade() else { return };
            let give_up = || *slot.write().unwrap_or_else(PoisonError::into_inner) = None;
            // The end of a read writes to a file that may be damaged.
            let _ = catch_unwind(AssertUnwindSafe(give_up));
        });
        // Without a thread that ends it, it ends now.
        *kept = ends.is_ok().then_some(table);
    }
}

impl Drop for Recent {
    /// Here, and not wherever the thread may be that would end it later.
    fn drop(&mut self) {
        // A panic must not meet another one, in the close of the database.
        let _ = catch_unwind(AssertUnwindSafe(|| self.forget()));
    }
}

impl std::fmt::Debug for Recent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recent").field("questions", &self.questions).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn put(database: &Database, value: u8) -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(tables::TASKS)?.insert(&KEY, [value].as_slice())?;
        Ok(transaction.commit()?)
    }

    fn get(recent: &Recent, database: &Database, value: u8) -> Result<bool, redb::Error> {
        Ok(recent.get(database, &KEY, |found| (found == [value]).then_some(()))?.is_some())
    }

    #[test]
    fn a_kept_read_is_asked_first_and_the_newest_row_is_found_behind_it() -> Result<(), redb::Error>
    {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = Database::create(folder.path().join("index"))?;
        put(&database, 1)?;
        let recent = Recent::default();
        for _ in 0..=QUESTIONS_MAX {
            assert!(get(&recent, &database, 1)?);
        }
        put(&database, 2)?;
        assert!(get(&recent, &database, 2)?, "it came after the read that was kept");
        assert!(!get(&recent, &database, 3)?);
        Ok(())
    }

    #[test]
    fn a_kept_read_ends_though_nobody_asks() -> Result<(), redb::Error> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = Database::create(folder.path().join("index"))?;
        put(&database, 1)?;
        let recent = Recent::default();
        let is_kept = || recent.table.read().expect("nobody panicked").is_some();
        while !is_kept() {
            assert!(get(&recent, &database, 1)?);
        }
        while is_kept() {
            thread::yield_now();
        }
        Ok(())
    }
}
