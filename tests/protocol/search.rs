//! The search: every state that can be reached, breadth first, each once.
//!
//! In each state the invariants are checked; where everybody is gone, an eviction comes once more,
//! and nothing may lie there that nobody needs. A violation comes with a shortest way to it.

use super::steps;
use super::world::{ACTORS, Actor, Disk, Fault, Hold, HoldFile, Role, Scenario, Wrong, sweeper};
use std::collections::HashSet;
use std::fmt::Write;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) disk: Disk,
    pub(crate) wrong: Option<Wrong>,
    pub(crate) actors: [Actor; ACTORS],
}

/// What a search came to.
#[derive(Debug)]
pub(crate) struct Searched {
    /// Who did what, ever.
    pub(crate) steps: HashSet<(&'static str, &'static str)>,
    pub(crate) violation: Option<Violation>,
}

#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) what: String,
    /// The steps that lead there, a line each.
    pub(crate) trace: String,
}

/// Goes through all states of a scenario, up to the first violation.
pub(crate) fn search(scenario: &Scenario, fault: Option<Fault>) -> Searched {
    let mut visited = Visited::new();
    visited.add(scenario.begin(), 0);
    let (mut settled, mut done, mut next) = (HashSet::new(), HashSet::new(), 0);
    while next < visited.states.len() {
        let state = visited.states[next];
        let mut violation = violation_of(scenario, &state);
        if violation.is_none() {
            let is_at_rest = state.actors.iter().all(Actor::is_gone);
            let mut can_go_on = is_at_rest;
            steps::successors(scenario, fault, &state, &mut |_, name, step, successor| {
                can_go_on |= step != steps::KILLED;
                done.insert((name, step));
                visited.add(successor, next as u32);
            });
            if !can_go_on {
                violation = Some("nobody can go on".into());
            } else if is_at_rest && settled.insert(state.disk) {
                violation = what_stays(scenario, &state);
            }
        }
        if let Some(what) = violation {
            let trace = visited.trace(scenario, fault, next);
            return Searched { steps: done, violation: Some(Violation { what, trace }) };
        }
        next += 1;
    }
    Searched { steps: done, violation: None }
}

/// What must hold in each state.
fn violation_of(scenario: &Scenario, state: &State) -> Option<String> {
    let disk = &state.disk;
    match state.wrong {
        Some(Wrong::Damaged) => return Some("a restore takes an eviction for damage".into()),
        Some(Wrong::AnotherEntry) => return Some("an entry goes that was not chosen".into()),
        Some(Wrong::VanishedAgainAndAgain) => return Some("a store gives up".into()),
        None => {}
    }
    let missing = scenario.all_needs(disk) & !disk.blobs;
    if missing != 0 {
        return Some(format!("an entry lacks the blobs {}", letters(missing)));
    }
    for actor in &state.actors {
        if let Role::Hold(Hold { promised, .. }) = actor.role
            && promised & !disk.blobs != 0
        {
            return Some(format!("held blobs are gone: {}", letters(promised & !disk.blobs)));
        }
    }
    None
}

/// Lets one more eviction do all its steps, where everybody is gone. What it must come to.
fn what_stays(scenario: &Scenario, state: &State) -> Option<String> {
    let mut state = *state;
    state.actors[0] = Actor::new(sweeper(0));
    while !state.actors[0].is_gone() {
        let mut first = None;
        steps::successors(scenario, None, &state, &mut |_, _, _, successor| {
            first.get_or_insert(successor);
        });
        match first {
            Some(successor) => state = successor,
            None => return Some("an eviction finds a lock of somebody who is gone".into()),
        }
    }
    let needs = scenario.all_needs(&state.disk);
    let left = state.disk.blobs & !needs;
    (left != 0).then(|| format!("nobody needs the blobs {}, and they stay", letters(left))).or_else(
        || (needs & !state.disk.blobs != 0).then(|| "an eviction removes what is needed".into()),
    )
}

/// States in the order in which they were found, and where each was come from.
struct Visited {
    states: Vec<State>,
    parents: Vec<u32>,
    /// Positions of states by their hashes, plus one; 0 is free.
    table: Vec<u32>,
}

impl Visited {
    fn new() -> Visited {
        Visited { states: Vec::new(), parents: Vec::new(), table: vec![0; 1 << 12] }
    }

    fn add(&mut self, state: State, parent: u32) {
        if self.states.len() * 2 >= self.table.len() {
            self.table = vec![0; self.table.len() * 2];
            for position in 0..self.states.len() {
                let slot = self.slot(&self.states[position]);
                self.table[slot] = position as u32 + 1;
            }
        }
        let slot = self.slot(&state);
        if self.table[slot] == 0 {
            self.states.push(state);
            self.parents.push(parent);
            self.table[slot] = self.states.len() as u32;
        }
    }

    /// Where the state is noted, or would be.
    fn slot(&self, state: &State) -> usize {
        let mask = self.table.len() - 1;
        let mut slot = BuildHasherDefault::<Mix>::default().hash_one(state) as usize & mask;
        while self.table[slot] != 0 && self.states[self.table[slot] as usize - 1] != *state {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn trace(&self, scenario: &Scenario, fault: Option<Fault>, end: usize) -> String {
        let mut way = vec![end];
        while let Some(position) = way.last().filter(|position| **position != 0) {
            way.push(self.parents[*position] as usize);
        }
        let mut trace = String::new();
        for pair in way.windows(2).rev() {
            let (from, to) = (&self.states[pair[1]], &self.states[pair[0]]);
            let mut line = None;
            steps::successors(scenario, fault, from, &mut |actor, name, step, successor| {
                if successor == *to {
                    line.get_or_insert(format!("{actor} {name}: {step}"));
                }
            });
            let Disk { blobs, manifests, tally, is_marking, notes, hold, .. } = to.disk;
            let _ = writeln!(
                trace,
                "{:54} blobs {:4} manifests {manifests:?} tally {} notes {:4} hold {}",
                line.unwrap_or_default(),
                letters(blobs),
                tally.map_or("-".into(), |tally| format!("{} {}", tally.sweeps, tally.commits)),
                if is_marking { letters(notes) } else { "-".into() },
                if let HoldFile::Of(tags) = hold { letters(tags) } else { "-".into() },
            );
        }
        trace
    }
}

/// A set of blobs, for people.
fn letters(set: u8) -> String {
    let names: String = "abcdefgh"
        .chars()
        .enumerate()
        .filter(|(bit, _)| set >> bit & 1 == 1)
        .map(|(_, c)| c)
        .collect();
    if names.is_empty() { "none".into() } else { names }
}

/// A quick hash for many small values: multiply and fold, as in wyhash.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}
