//! A life of an index: it is opened, committed to by one or two processes, closed, and cut off
//! anywhere.
//!
//! What must be found after a cut is exactly what some commit left: the last one that was acknowledged,
//! or the one that was under way.

use super::disk::{self, Disk, Event, Image, LOSSES};
use crate::options::Dice;
use crate::report::Report;
use larder::rigging::{IndexFailure, RiggedIndex};
use std::collections::BTreeMap;

const TASKS: u64 = 80;

/// Tasks and the numbers in their rows.
pub(super) type Rows = BTreeMap<[u8; 32], u64>;

/// A life that was lived to its end, and can be cut off.
pub(super) struct Life {
    base: Image,
    events: Vec<Event>,
    /// What each commit left, the first that which was there before.
    states: Vec<Rows>,
    /// For each commit, the events before it began, and before it was acknowledged.
    commits: Vec<(usize, usize)>,
}

fn task(number: u64) -> [u8; 32] {
    let mut task = [0; 32];
    // All over the tree.
    task[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    task[31] = number as u8;
    task
}

impl Life {
    /// The life of an index on `base` that holds `rows`. Each new row has a number of its own, the place
    /// of its task among all that were `written`.
    pub(super) fn live(
        base: Image,
        rows: Rows,
        written: &mut Vec<[u8; 32]>,
        dice: &mut Dice,
    ) -> Result<Life, IndexFailure> {
        let disk = Disk::new(base.clone());
        let mut life = Life { base, events: Vec::new(), states: vec![rows], commits: Vec::new() };
        let cache_bytes = [0, 1 << 16, 1 << 20][dice.below(3) as usize];
        let open =
            |dice: &mut Dice| RiggedIndex::open(disk.handle(), cache_bytes, dice.below(4) != 0);
        let mut first = Some(open(dice)?);
        let mut second = None;
        for _ in 0..1 + dice.below(8) {
            match dice.below(8) {
                // One of the two is closed.
                0 => second = None,
                1 => {
                    drop(first.take());
                    first = Some(open(dice)?);
                }
                2 | 3 if second.is_none() => second = Some(open(dice)?),
                _ => {}
            }
            let writer = match (&second, &first) {
                (Some(second), _) if dice.below(2) == 0 => second,
                (_, Some(first)) => first,
                (_, None) => unreachable!("it was opened above"),
            };
            let mut rows = life.states.last().cloned().unwrap_or_default();
            let count = [1, 3, 20, 200][dice.below(4) as usize];
            let mut changes = Vec::new();
            for _ in 0..count {
                let task = task(dice.below(if count == 200 { 40 * TASKS } else { TASKS }));
                if dice.below(4) == 0 {
                    changes.push((task, None));
                    rows.remove(&task);
                } else {
                    let number = written.len() as u64;
                    written.push(task);
                    changes.push((task, Some(number)));
                    rows.insert(task, number);
                }
            }
            let began = disk.events();
            writer.commit(&changes)?;
            life.commits.push((began, disk.events()));
            life.states.push(rows);
        }
        drop((first, second));
        life.events = disk.take_events();
        Ok(life)
    }

    pub(super) fn events(&self) -> usize {
        self.events.len()
    }

    /// Cuts the life off after so many events, and looks at what is left. Returns it with its rows, if
    /// all is well.
    pub(super) fn cut_off(
        &self,
        after: usize,
        report: &mut Report,
        dice: &mut Dice,
    ) -> Option<(Image, Rows)> {
        let loss = LOSSES[dice.below(LOSSES.len() as u64) as usize];
        let image = disk::cut(&self.base, &self.events[..after], loss, 0, dice);
        report.add("states", 1);
        let acknowledged = self.commits.iter().filter(|(_, done)| *done <= after).count();
        let begun = self.commits.iter().filter(|(began, _)| *began < after).count();
        let is_believed = dice.below(2) == 0;
        let told = format!(
            "after event {after} of {}, {loss:?} lost, believed {is_believed}",
            self.events.len()
        );
        match read(&image, is_believed) {
            Ok((rows, 0, _)) => {
                let left = (acknowledged..=begun).find(|commit| self.states[*commit] == rows);
                let Some(commit) = left else {
                    let whichever = self.states.iter().position(|state| *state == rows);
                    report.violation(&format!(
                        "{told}: what is left is that of commit {whichever:?}, not of {acknowledged} to {begun}"
                    ));
                    return None;
                };
                report.add(
                    if commit > acknowledged { "states_ahead" } else { "states_acknowledged" },
                    1,
                );
                Some((image, rows))
            }
            Ok((_, bad, why)) => {
                report.violation(&format!("{told}: {bad} rows do not check or disagree: {why}"));
                None
            }
            Err(failure) => {
                report.violation(&format!("{told}: the index is {failure:?}"));
                None
            }
        }
    }

    /// Cuts the life off on a disk that lies about its last syncs, or rots. No row may say what was
    /// never said of its task; that the index is set aside is as it should be.
    pub(super) fn cut_off_badly(
        &self,
        after: usize,
        written: &[[u8; 32]],
        report: &mut Report,
        dice: &mut Dice,
    ) {
        let loss = LOSSES[dice.below(LOSSES.len() as u64) as usize];
        let lies = dice.below(4) as usize;
        let mut image = disk::cut(&self.base, &self.events[..after], loss, lies, dice);
        let flips = if lies == 0 { 1 + dice.below(3) } else { dice.below(2) };
        (0..flips).for_each(|_| image.flip(dice));
        report.add("states", 1);
        let is_believed = dice.below(2) == 0;
        match read(&image, is_believed) {
            Ok((rows, bad, _)) => {
                report.add("rows_refused", bad as u64);
                let is_known =
                    |(task, number): (&[u8; 32], &u64)| written.get(*number as usize) == Some(task);
                let wrong = rows.iter().filter(|row| !is_known((row.0, row.1))).count();
                if wrong > 0 {
                    report.violation(&format!(
                        "after event {after} of {}, {loss:?} lost, {lies} lies, {flips} flips, believed \
                         {is_believed}: {wrong} rows were never written for their task",
                        self.events.len()
                    ));
                }
            }
            Err(_) => report.add("set_aside", 1),
        }
    }
}

/// All rows of an index, how many do not check, or are found alone as something else than among all,
/// and which that is.
fn read(image: &Image, is_believed: bool) -> Result<(Rows, usize, &'static str), IndexFailure> {
    let disk = Disk::new(image.clone());
    let index = RiggedIndex::open(disk.handle(), 1 << 20, is_believed)?;
    let found = index.all()?;
    let mut rows = Rows::new();
    for (task, number) in found.rows {
        // A row that checks and says what none says: u64::MAX is no number of ours.
        rows.insert(task, number.unwrap_or(u64::MAX));
    }
    if found.bad > 0 {
        return Ok((rows, found.bad, "a checksum"));
    }
    for (task, number) in rows.iter().step_by(7) {
        if !index.says(*task, *number)? {
            return Ok((rows, 1, "a row by its task is another than among all"));
        }
    }
    Ok((rows, 0, ""))
}
