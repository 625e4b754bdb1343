//! Mark: how many entries need each blob.
//!
//! Exact but for blobs whose digests agree in their first 44 bits, which count as one and so stay as
//! long as any of them is needed. Eight bytes a blob at a load of at most 7/8: 16 MiB for a million
//! blobs, 32 MiB while the table grows.

use crate::digest::Digest;

const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const SLOTS_MIN: usize = 1024;

/// What stands for a blob where many are counted.
pub(super) fn tag_of(digest: &Digest, mode: u32) -> u64 {
    // An odd constant spreads the few modes over all bits (Knuth, TAOCP 3, 6.4).
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let prefix = digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes");
    u64::from_le_bytes(prefix) ^ u64::from(mode).wrapping_mul(SPREAD)
}

/// Numbers of references by tag: open addressing, each slot a shortened tag and its count.
#[derive(Debug)]
pub(super) struct Counts {
    slots: Vec<u64>,
    taken: usize,
    /// Tags whose count is not zero.
    needed: u64,
}

impl Counts {
    pub(super) fn new() -> Counts {
        Counts { slots: vec![0; SLOTS_MIN], taken: 0, needed: 0 }
    }

    /// One more needs the blob.
    pub(super) fn add(&mut self, tag: u64) {
        let slot = self.slot_mut(tag);
        let count = *slot & COUNT_MASK;
        // A count that is full stays so: the blob stays.
        if count < COUNT_MASK {
            *slot += 1;
        }
        self.needed += u64::from(count == 0);
    }

    /// One less needs the blob.
    pub(super) fn remove(&mut self, tag: u64) {
        let slot = self.slot_mut(tag);
        let count = *slot & COUNT_MASK;
        if (1..COUNT_MASK).contains(&count) {
            *slot -= 1;
        }
        self.needed -= u64::from(count == 1);
    }

    /// Somebody needs the blob whose reference will not be removed by us.
    pub(super) fn keep(&mut self, tag: u64) {
        let slot = self.slot_mut(tag);
        let count = *slot & COUNT_MASK;
        *slot |= COUNT_MASK;
        self.needed += u64::from(count == 0);
    }

    /// How many blobs are needed.
    pub(super) fn needed(&self) -> u64 {
        self.needed
    }

    /// How many need the blob.
    pub(super) fn get(&self, tag: u64) -> u64 {
        self.slots[self.position(tag)] & COUNT_MASK
    }

    fn slot_mut(&mut self, tag: u64) -> &mut u64 {
        if (self.taken + 1) * 8 > self.slots.len() * 7 {
            self.grow();
        }
        let position = self.position(tag);
        if self.slots[position] == 0 {
            self.slots[position] = short(tag);
            self.taken += 1;
        }
        &mut self.slots[position]
    }

    /// Where the tag is, or would be.
    fn position(&self, tag: u64) -> usize {
        let short = short(tag);
        let mask = self.slots.len() - 1;
        let mut position = (short >> COUNT_BITS) as usize & mask;
        while self.slots[position] != 0 && self.slots[position] & !COUNT_MASK != short {
            position = (position + 1) & mask;
        }
        position
    }

    fn grow(&mut self) {
        let larger = vec![0; self.slots.len() * 2];
        for slot in std::mem::replace(&mut self.slots, larger).into_iter().filter(|slot| *slot != 0)
        {
            let position = self.position(slot);
            self.slots[position] = slot;
        }
    }
}

/// A tag without the bits that the count takes; never zero, which is a free slot.
fn short(tag: u64) -> u64 {
    (tag & !COUNT_MASK).max(1 << COUNT_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_up_and_down_and_full_ones_stay() {
        let mut counts = Counts::new();
        let tag = |number: u32| tag_of(&Digest::of(&number.to_le_bytes()), 0o444);
        for number in 0..10_000 {
            (0..=number % 3).for_each(|_| counts.add(tag(number)));
        }
        assert!((0..10_000).all(|number| counts.get(tag(number)) == u64::from(number % 3 + 1)));
        (0..10_000).for_each(|number| counts.remove(tag(number)));
        assert!((0..10_000).all(|number| counts.get(tag(number)) == u64::from(number % 3)));
        assert_eq!(counts.get(tag(10_000)), 0, "never seen");
        counts.remove(tag(10_001));
        assert_eq!(counts.get(tag(10_001)), 0);
        counts.keep(tag(0));
        (0..10).for_each(|_| counts.remove(tag(0)));
        assert!(counts.get(tag(0)) > 0);
        assert_ne!(tag(0), tag_of(&Digest::of(&0_u32.to_le_bytes()), 0o555), "another blob");
    }
}
