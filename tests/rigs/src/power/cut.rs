//! A power cut: which writes of a log are on the disk after it.
//!
//! All that was written before the last flush is. Of the rest a disk with a cache may have any part, in
//! any order; in a sector (512 bytes) is the old or the new.

use super::disk::{Event, Patch};
use crate::options::Dice;

const SECTOR_BYTES: usize = 512;

/// What becomes of writes that were not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// All are there.
    Prefix,
    /// None is.
    Dropped,
    /// Some are, so that later ones can be there without earlier ones.
    Reordered,
    /// Of each some sectors are.
    Torn,
}

impl Variant {
    pub(crate) const ALL: [Variant; 4] =
        [Variant::Prefix, Variant::Dropped, Variant::Reordered, Variant::Torn];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Variant::Prefix => "prefix",
            Variant::Dropped => "dropped",
            Variant::Reordered => "reordered",
            Variant::Torn => "torn",
        }
    }
}

/// The number of events up to the last flush of `events`, and that one.
pub(crate) fn flushed(events: &[Event]) -> usize {
    events.iter().rposition(|event| matches!(event, Event::Flush)).map_or(0, |last| last + 1)
}

/// What reaches the disk of `events`, none of which is a flush.
pub(crate) fn survivors(events: &[Event], variant: Variant, dice: &mut Dice) -> Vec<Patch> {
    // Once nearly all, once nearly none.
    let kept_of_eight = 1 + dice.below(7);
    let mut is_kept = || dice.below(8) < kept_of_eight;
    let writes = events.iter().filter_map(|event| match event {
        Event::Write(patch) => Some(patch),
        Event::Flush | Event::Mark(_) => None,
    });
    match variant {
        Variant::Prefix => writes.cloned().collect(),
        Variant::Dropped => Vec::new(),
        Variant::Reordered => writes.filter(|_| is_kept()).cloned().collect(),
        Variant::Torn => {
            let sectors = |patch: &Patch| {
                let offset = patch.offset;
                let sector = |(number, bytes): (usize, &[u8])| Patch {
                    offset: offset + number * SECTOR_BYTES,
                    bytes: bytes.to_vec(),
                };
                patch.bytes.chunks(SECTOR_BYTES).enumerate().map(sector).collect::<Vec<_>>()
            };
            writes.flat_map(sectors).filter(|_| is_kept()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let write = |offset| Event::Write(Patch { offset, bytes: vec![7; 2 * SECTOR_BYTES] });
        vec![write(0), Event::Flush, write(4096), Event::Mark("begin".to_owned()), write(8192)]
    }

    #[test]
    fn a_cut_takes_only_what_was_not_flushed() {
        let events = events();
        assert_eq!(flushed(&events), 2);
        let tail = &events[2..];
        let offsets = |variant| {
            let patches = survivors(tail, variant, &mut Dice::new(5));
            patches.iter().map(|patch| patch.offset).collect::<Vec<_>>()
        };
        assert_eq!(offsets(Variant::Prefix), [4096, 8192]);
        assert!(offsets(Variant::Dropped).is_empty());
        assert!(offsets(Variant::Torn).iter().all(|offset| offset % SECTOR_BYTES == 0));
    }

    #[test]
    fn a_later_write_can_be_there_without_an_earlier_one() {
        let events = events();
        let is_reordered = |seed| {
            let patches = survivors(&events[2..], Variant::Reordered, &mut Dice::new(seed));
            patches.iter().map(|patch| patch.offset).eq([8192])
        };
        assert!((0..100).any(is_reordered));
    }
}
