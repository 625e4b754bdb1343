//! The tale of a run: what the processes that worked on a store said, in the order in which it was
//! heard, and what may be in the store after it was cut short.
//!
//! One line an event: `begin store KEY VERSION`, `done store KEY VERSION`, the same with `remove KEY 0`,
//! `evict 0 0` and `repair 0 0`; `failed WHAT KEY VERSION` for an operation that returned an error;
//! `relaxed` instead of `begin` if the process does not sync, whatever the others do; and `cut all 0 0`
//! where all processes ended at once.

use std::collections::BTreeMap;

/// Whether a line tells of an operation that failed although nothing was in its way. That a disk is full
/// and that a store is busy are honest answers.
pub(crate) fn is_failure(line: &str) -> bool {
    let mut words = line.split([' ', ':']);
    words.next() == Some("failed") && !matches!(words.nth(3), Some("Full" | "Busy"))
}

/// What may be found under a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// These versions.
    pub(crate) versions: Vec<u64>,
    /// Or nothing.
    pub(crate) absent: bool,
    /// Whether an eviction was under way at some time since the last store began: whatever that store
    /// says when it is done, the eviction may have taken the entry before.
    pub(crate) is_evictable: bool,
}

/// What may be found in a store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tale {
    keys: BTreeMap<u64, Accepted>,
    evictions_under_way: u64,
    is_durable: bool,
}

impl Tale {
    pub(crate) fn new(is_durable: bool) -> Tale {
        Tale { is_durable, ..Tale::default() }
    }

    /// Reads lines; one that was cut short is passed over.
    pub(crate) fn read(text: &str, is_durable: bool) -> Tale {
        let mut tale = Tale::new(is_durable);
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            tale.hear(line);
        }
        tale
    }

    pub(crate) fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (Some(state), Some(what), Some(key), Some(version)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return;
        };
        let (Ok(key), Ok(version)) = (key.parse::<u64>(), version.parse::<u64>()) else { return };
        let is_evicting = self.evictions_under_way > 0;
        match (state, what) {
            ("begin" | "relaxed", "evict") => {
                self.evictions_under_way += 1;
                for accepted in self.keys.values_mut() {
                    (accepted.absent, accepted.is_evictable) = (true, true);
                }
            }
            ("done" | "failed", "evict") => {
                self.evictions_under_way = self.evictions_under_way.saturating_sub(1);
            }
            ("cut", _) => self.evictions_under_way = 0,
            (_, "store" | "remove") => {
                let nothing = Accepted { absent: true, ..Accepted::default() };
                let accepted = self.keys.entry(key).or_insert(nothing);
                match (state, what) {
                    ("begin" | "relaxed", "store") => {
                        accepted.versions.push(version);
                        accepted.absent |= state == "relaxed";
                        accepted.is_evictable = is_evicting;
                    }
                    // Nobody else stores this key: each process has its own.
                    ("done", "store") if self.is_durable => {
                        (accepted.versions, accepted.absent) =
                            (vec![version], accepted.is_evictable);
                    }
                    ("done", "remove") if self.is_durable => accepted.versions.clear(),
                    // A store that failed may have removed the entry that it should have replaced (a
                    // folder could not be synced), or be there all the same.
                    ("begin" | "relaxed", "remove") | ("failed", "store") => accepted.absent = true,
                    _ => {}
                }
            }
            // A repair changes nothing that may be found.
            _ => {}
        }
    }

    /// For a rig that knows better what may be found under a key.
    pub(crate) fn require(&mut self, key: u64, accepted: Accepted) {
        self.keys.insert(key, accepted);
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = (u64, &Accepted)> {
        self.keys.iter().map(|(key, accepted)| (*key, accepted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(text: &str, is_durable: bool) -> Accepted {
        Tale::read(text, is_durable).keys().next().expect("a key").1.clone()
    }

    #[test]
    fn what_was_acknowledged_must_be_there_if_the_store_is_durable() {
        let text = "begin store 7 1\ndone store 7 1\nbegin store 7 2\n";
        for (is_durable, absent) in [(true, false), (false, true)] {
            let expected = Accepted { versions: vec![1, 2], absent, is_evictable: false };
            assert_eq!(accepted(text, is_durable), expected);
        }
    }

    #[test]
    fn a_line_that_was_cut_short_says_nothing() {
        let text = "begin store 7 1\ndone store 7 1";
        assert!(accepted(text, true).absent);
    }

    #[test]
    fn an_eviction_may_take_whatever_is_stored_while_it_goes_on() {
        let text = "begin evict 0 0\nbegin store 7 1\ndone store 7 1\ndone evict 0 0\n";
        assert!(accepted(text, true).absent);
        let text = "begin store 7 1\nbegin evict 0 0\ndone evict 0 0\ndone store 7 1\n";
        assert!(accepted(text, true).absent);
    }

    #[test]
    fn an_operation_fails_honestly_only_for_want_of_room_or_time() {
        assert!(is_failure("failed store 7 1 Io: cannot sync x: Full: of sorrow"));
        assert!(is_failure("failed evict 0 0"));
        assert!(!is_failure("failed store 7 1 Full: cannot write x: no space"));
        assert!(!is_failure("failed repair 0 0 Busy: somebody repairs: "));
        assert!(!is_failure("done store 7 1"));
    }

    #[test]
    fn an_eviction_ends_with_a_cut() {
        let text = "begin evict 0 0\ncut all 0 0\nbegin store 7 1\ndone store 7 1\n";
        assert!(!accepted(text, true).absent);
    }
}
