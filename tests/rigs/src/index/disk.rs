//! A disk in memory that notes what is written to it, and what it may hold after a power cut.
//!
//! The model: a write, or a new length, is certain once a sync that began after it has returned. What
//! is not certain may be there or not, in any order, or in part: any of its sectors, or, for the
//! harshest, any of its bytes up to some place. Locks are those of a file: they belong to a handle,
//! and end with it.

use crate::options::{Dice, is_left_out};
use redb::{BackendError, StorageBackend};
use std::io;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

/// What a disk holds. A clone shares the pages until they are written.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    pages: Vec<Arc<[u8; PAGE_BYTES]>>,
    size_bytes: u64,
}

impl Image {
    fn set_len(&mut self, size_bytes: u64) {
        let pages = size_bytes.div_ceil(PAGE_BYTES as u64) as usize;
        if size_bytes < self.size_bytes && !size_bytes.is_multiple_of(PAGE_BYTES as u64) {
            let kept = (size_bytes % PAGE_BYTES as u64) as usize;
            Arc::make_mut(&mut self.pages[pages - 1])[kept..].fill(0);
        }
        self.pages.resize_with(pages, || Arc::new([0; PAGE_BYTES]));
        self.size_bytes = size_bytes;
    }

    /// Writes as far as the file goes: what lies behind its end is lost with the new length.
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let room = self.size_bytes.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let mut rest = &bytes[..room];
        let mut at = offset as usize;
        while !rest.is_empty() {
            let within = at % PAGE_BYTES;
            let part = rest.len().min(PAGE_BYTES - within);
            let page = Arc::make_mut(&mut self.pages[at / PAGE_BYTES]);
            page[within..within + part].copy_from_slice(&rest[..part]);
            (rest, at) = (&rest[part..], at + part);
        }
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        if offset + bytes.len() as u64 > self.size_bytes {
            return false;
        }
        let (mut done, mut at) = (0, offset as usize);
        while done < bytes.len() {
            let within = at % PAGE_BYTES;
            let part = (bytes.len() - done).min(PAGE_BYTES - within);
            let page = &self.pages[at / PAGE_BYTES];
            bytes[done..done + part].copy_from_slice(&page[within..within + part]);
            (done, at) = (done + part, at + part);
        }
        true
    }

    /// Flips one bit of a page that is in use.
    pub(super) fn flip(&mut self, dice: &mut Dice) {
        let used: Vec<usize> = (0..self.pages.len())
            .filter(|page| self.pages[*page].iter().any(|byte| *byte != 0))
            .collect();
        let page = used[dice.below(used.len() as u64) as usize];
        let at = dice.below(PAGE_BYTES as u64) as usize;
        Arc::make_mut(&mut self.pages[page])[at] ^= 1 << dice.below(8);
    }
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    Write(u64, Vec<u8>),
    SetLen(u64),
    /// With what the disk holds from then on.
    Sync(Image),
}

#[derive(Debug, Default)]
struct State {
    image: Image,
    events: Vec<Event>,
    /// Who has locked what, and whether for itself alone.
    locks: Vec<(u64, Range<u64>, bool)>,
    handles: u64,
}

/// A disk that several handles can use.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
}

impl Disk {
    pub(super) fn new(image: Image) -> Disk {
        let state = State { image, ..State::default() };
        Disk { state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn handle(&self) -> Handle {
        let mut state = self.lock();
        state.handles += 1;
        Handle { disk: self.clone(), number: state.handles }
    }

    pub(super) fn image(&self) -> Image {
        self.lock().image.clone()
    }

    /// How many writes, new lengths and syncs there were.
    pub(super) fn events(&self) -> usize {
        self.lock().events.len()
    }

    /// All of them.
    pub(super) fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().events)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Handle {
    disk: Disk,
    number: u64,
}

impl Handle {
    fn try_lock(&self, start: Bound<u64>, end: Bound<u64>, is_alone: bool) -> bool {
        let mut state = self.disk.lock();
        if self.conflicts(&state, &range(start, end), is_alone) {
            return false;
        }
        state.locks.push((self.number, range(start, end), is_alone));
        true
    }

    fn conflicts(&self, state: &State, wanted: &Range<u64>, is_alone: bool) -> bool {
        state.locks.iter().any(|(owner, held, is_held_alone)| {
            *owner != self.number
                && held.start < wanted.end
                && wanted.start < held.end
                && (is_alone || *is_held_alone)
        })
    }
}

fn range(start: Bound<u64>, end: Bound<u64>) -> Range<u64> {
    let first = match start {
        Bound::Included(first) => first,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match end {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => end,
        Bound::Unbounded => u64::MAX,
    };
    first..end
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().image.size_bytes)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        if self.disk.lock().image.read(offset, bytes) {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn set_len(&self, size_bytes: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.image.set_len(size_bytes);
        state.events.push(Event::SetLen(size_bytes));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if !is_left_out("SyncIndex") {
            let mut state = self.disk.lock();
            let image = state.image.clone();
            state.events.push(Event::Sync(image));
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let end = offset + bytes.len() as u64;
        if end > state.image.size_bytes {
            // As a file does.
            state.image.set_len(end);
            state.events.push(Event::SetLen(end));
        }
        state.image.write(offset, bytes);
        state.events.push(Event::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.disk.lock().locks.retain(|(owner, ..)| *owner != self.number);
        Ok(())
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(self.try_lock(start, end, true))
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        Ok(self.try_lock(start, end, false))
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        // One thread uses all handles, so whoever waits here waits for ever.
        assert!(self.try_lock(start, end, true), "a lock that nobody gives back");
        Ok(())
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        assert!(self.try_lock(start, end, false), "a lock that nobody gives back");
        Ok(())
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        let mut state = self.disk.lock();
        let given_back = (self.number, range(start, end));
        let held =
            |(owner, held, _): &(u64, Range<u64>, bool)| (*owner, held.clone()) == given_back;
        if let Some(position) = state.locks.iter().position(held) {
            state.locks.remove(position);
        }
        Ok(())
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        let state = self.disk.lock();
        Ok(self.conflicts(&state, &range(start, end), true))
    }
}

/// What is lost of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Nothing.
    Nothing,
    /// Everything.
    Everything,
    /// One of them.
    One,
    /// All but one.
    AllButOne,
    /// Any of them.
    Any,
    /// Any of them, and the others in any order.
    Order,
    /// The end of the last one, at any byte.
    End,
    /// Any sectors of any of them.
    Sectors,
}

pub(super) const LOSSES: [Loss; 8] = [
    Loss::Nothing,
    Loss::Everything,
    Loss::One,
    Loss::AllButOne,
    Loss::Any,
    Loss::Order,
    Loss::End,
    Loss::Sectors,
];

/// What the disk may hold if the power goes after the first `events` events; `base` is what it held
/// before all of them. A disk that lies has not done its last `lies` syncs.
pub(super) fn cut(
    base: &Image,
    events: &[Event],
    loss: Loss,
    lies: usize,
    dice: &mut Dice,
) -> Image {
    let mut syncs = events.iter().enumerate().rev().filter_map(|(position, event)| match event {
        Event::Sync(image) => Some((position, image)),
        _ => None,
    });
    let (first, mut image) = match syncs.nth(lies) {
        Some((position, image)) => (position + 1, image.clone()),
        None => (0, base.clone()),
    };
    let mut pending: Vec<&Event> =
        events[first..].iter().filter(|event| !matches!(event, Event::Sync(_))).collect();
    let count = pending.len();
    let chosen = dice.below(count.max(1) as u64) as usize;
    if loss == Loss::Order {
        for position in (1..count).rev() {
            pending.swap(position, dice.below(position as u64 + 1) as usize);
        }
    }
    for (position, event) in pending.into_iter().enumerate() {
        let is_there = match loss {
            Loss::Nothing | Loss::Sectors | Loss::End => true,
            Loss::Everything => false,
            Loss::One => position != chosen,
            Loss::AllButOne => position == chosen,
            Loss::Any | Loss::Order => dice.below(2) == 0,
        };
        match event {
            _ if !is_there => {}
            Event::Write(offset, bytes) if loss == Loss::End && position + 1 == count => {
                image.write(*offset, &bytes[..dice.below(bytes.len() as u64) as usize]);
            }
            Event::Write(offset, bytes) if loss == Loss::Sectors => {
                for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                    if dice.below(2) == 0 {
                        image.write(offset + (number * SECTOR_BYTES) as u64, sector);
                    }
                }
            }
            Event::Write(offset, bytes) => image.write(*offset, bytes),
            Event::SetLen(_) if loss == Loss::Sectors && dice.below(4) == 0 => {}
            Event::SetLen(size_bytes) => image.set_len(*size_bytes),
            Event::Sync(_) => {}
        }
    }
    image
}
