//! A disk in memory that remembers what was written to it, in which order, and what was flushed.
//!
//! It has a base, and above it the pages that were written since. An image is the base with some pages
//! laid over it, and is gone with [`Disk::revert`].

use std::collections::HashMap;

const PAGE_BYTES: usize = 4096;

/// What happened to a disk.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Write(Patch),
    /// All that was written before is on the disk.
    Flush,
    /// A process said this, and what it had done then had been done before.
    Mark(String),
}

/// Bytes and their place.
#[derive(Debug, Clone)]
pub(crate) struct Patch {
    pub(crate) offset: usize,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Disk {
    /// Pages that were never written take no memory.
    base: Vec<u8>,
    above: HashMap<usize, Box<[u8; PAGE_BYTES]>>,
    /// Nothing while nobody wants to know.
    log: Option<Vec<Event>>,
}

impl Disk {
    pub(crate) fn new(size_bytes: u64) -> Disk {
        Disk { base: vec![0; size_bytes as usize], above: HashMap::new(), log: None }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.base.len()
    }

    pub(crate) fn read(&self, offset: usize, length_bytes: usize) -> Vec<u8> {
        let end = self.base.len().min(offset + length_bytes);
        let mut bytes = self.base[offset.min(end)..end].to_vec();
        for (page, within, part) in pages(offset, bytes.len()) {
            if let Some(above) = self.above.get(&page) {
                let length_bytes = part.len();
                bytes[part].copy_from_slice(&above[within..within + length_bytes]);
            }
        }
        bytes
    }

    /// A write by whoever uses the disk. False if it would be beyond the end.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if offset + bytes.len() > self.base.len() {
            return false;
        }
        if let Some(log) = &mut self.log {
            log.push(Event::Write(Patch { offset, bytes: bytes.to_vec() }));
        }
        self.lay(offset, bytes);
        true
    }

    pub(crate) fn flush(&mut self) {
        self.note(Event::Flush);
    }

    pub(crate) fn mark(&mut self, told: &str) {
        self.note(Event::Mark(told.to_owned()));
    }

    fn note(&mut self, event: Event) {
        if let Some(log) = &mut self.log {
            log.push(event);
        }
    }

    /// Remembers from now on what happens.
    pub(crate) fn record(&mut self) {
        self.log = Some(Vec::new());
    }

    /// What happened since [`Disk::record`].
    pub(crate) fn take_log(&mut self) -> Vec<Event> {
        self.log.take().unwrap_or_default()
    }

    /// Lays bytes over the base.
    pub(crate) fn lay(&mut self, offset: usize, bytes: &[u8]) {
        for (page, within, part) in pages(offset, bytes.len()) {
            let Disk { base, above, .. } = self;
            let above = above.entry(page).or_insert_with(|| {
                let mut fresh = Box::new([0; PAGE_BYTES]);
                fresh.copy_from_slice(&base[page * PAGE_BYTES..(page + 1) * PAGE_BYTES]);
                fresh
            });
            above[within..within + part.len()].copy_from_slice(&bytes[part]);
        }
    }

    /// Changes the base itself.
    pub(crate) fn advance(&mut self, patch: &Patch) {
        self.base[patch.offset..patch.offset + patch.bytes.len()].copy_from_slice(&patch.bytes);
    }

    /// Forgets what is above the base.
    pub(crate) fn revert(&mut self) {
        self.above.clear();
    }

    /// Makes what is above the base part of it.
    pub(crate) fn settle(&mut self) {
        for (page, bytes) in self.above.drain() {
            self.base[page * PAGE_BYTES..(page + 1) * PAGE_BYTES].copy_from_slice(&bytes[..]);
        }
    }
}

/// The pages of a range: number, where within the page, and which part of the range.
fn pages(
    offset: usize,
    length_bytes: usize,
) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length_bytes {
            return None;
        }
        let (page, within) = ((offset + done) / PAGE_BYTES, (offset + done) % PAGE_BYTES);
        let part = done..length_bytes.min(done + PAGE_BYTES - within);
        done = part.end;
        Some((page, within, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_across_pages_is_read_and_can_be_reverted() {
        let mut disk = Disk::new(3 * PAGE_BYTES as u64);
        disk.advance(&Patch { offset: 4000, bytes: vec![1; 200] });
        disk.record();
        assert!(disk.write(4090, &[2; 20]));
        let mut expected = vec![1; 200];
        expected[90..110].fill(2);
        assert_eq!(disk.read(4000, 200), expected);
        disk.revert();
        assert_eq!(disk.read(4000, 200), vec![1; 200]);
        assert!(!disk.write(3 * PAGE_BYTES, &[3]));
        assert_eq!(disk.take_log().len(), 1);
    }
}
