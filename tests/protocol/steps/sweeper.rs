//! A sweeper: `Cache::sweeper`, `count`, `sweep`, `remove_entries`, and its end.

use super::super::world::{
    Actor, BLOBS, Disk, Fault, HoldAt, HoldFile, Mode, Role, Set, Sweeper, SweeperAt, TASKS, Wrong,
    first, members,
};
use super::Step;

impl Step<'_> {
    pub(super) fn sweeper(&mut self, sweeper: Sweeper) {
        match sweeper.at {
            SweeperAt::Lock | SweeperAt::Truncate | SweeperAt::Begin => self.begin(sweeper),
            SweeperAt::List | SweeperAt::Decode => self.count(sweeper),
            SweeperAt::Sweep
            | SweeperAt::EarlyNotes
            | SweeperAt::ReadNotes
            | SweeperAt::ReadHolds
            | SweeperAt::Odd
            | SweeperAt::Remove => self.sweep(sweeper),
            SweeperAt::Choose | SweeperAt::Judge | SweeperAt::Unlink => {
                self.remove_entries(sweeper);
            }
            SweeperAt::EndMarking => {
                self.change("ends the marking", sweeper, |next, _, sweeper| {
                    next.disk.is_marking = false;
                    sweeper.at = SweeperAt::TruncateAgain;
                });
            }
            SweeperAt::TruncateAgain => self.change("drops notes", sweeper, |next, _, sweeper| {
                next.disk.notes = 0;
                sweeper.at = SweeperAt::Leave;
            }),
            SweeperAt::Leave => self.to("lets go of `evict.lock`", |_, actor| actor.end()),
        }
        if sweeper.may_fail {
            self.end_early(sweeper);
        }
    }

    /// It is cancelled, or something cannot be read, written or removed.
    fn end_early(&mut self, sweeper: Sweeper) {
        use SweeperAt::{Choose, Decode, EndMarking, Judge, Odd, Remove, Sweep, Unlink};
        match sweeper.at {
            Decode | Sweep | Choose | Odd | Judge | Unlink => {
                self.change("fails", sweeper, |_, actor, sweeper| {
                    actor.leave();
                    sweeper.at = EndMarking;
                });
            }
            // The sweep that it has begun is ended.
            Remove if sweeper.batch != 0 => {
                self.change("fails to remove a blob", sweeper, |_, _, sweeper| {
                    (sweeper.batch, sweeper.candidates, sweeper.victims) = (0, 0, 0);
                });
            }
            _ => {}
        }
    }

    pub(super) fn is_evict_lock_free(&self) -> bool {
        !self.state.actors.iter().any(|actor| actor.has_evict_lock)
    }

    /// `Cache::sweeper`.
    fn begin(&mut self, sweeper: Sweeper) {
        let is_outside = self.is_off(Fault::MarkingBeginsOutside);
        let is_late = self.is_off(Fault::MarkingBeginsAfterTheCount);
        let names = self.scenario.names();
        match sweeper.at {
            SweeperAt::Lock => {
                if self.is_evict_lock_free() || self.is_off(Fault::TwoSweepAtOnce) {
                    self.change("gets `evict.lock`", sweeper, |_, actor, sweeper| {
                        actor.has_evict_lock = true;
                        if is_late {
                            sweeper.at = SweeperAt::List;
                            return;
                        }
                        sweeper.at = SweeperAt::Truncate;
                        if !is_outside {
                            actor.enter(Mode::Exclusive);
                        }
                    });
                }
            }
            SweeperAt::Truncate => self.change("drops old notes", sweeper, |next, _, sweeper| {
                next.disk.notes = 0;
                sweeper.at = SweeperAt::Begin;
            }),
            _ => self.change("begins to mark, leaves", sweeper, |next, actor, sweeper| {
                next.disk.is_marking = true;
                actor.leave();
                if sweeper.is_counted {
                    sweeper.sweep_what_is_left(names);
                } else {
                    sweeper.at = SweeperAt::List;
                }
            }),
        }
    }

    /// `Sweeper::count`.
    fn count(&mut self, sweeper: Sweeper) {
        let manifests = self.state.disk.manifests;
        if sweeper.at == SweeperAt::List {
            self.change("lists the manifests", sweeper, |_, _, sweeper| {
                sweeper.listed = manifests;
                sweeper.todo = (1 << TASKS) - 1;
                sweeper.at = SweeperAt::Decode;
            });
            return;
        }
        let is_late = self.is_off(Fault::MarkingBeginsAfterTheCount);
        let task = sweeper.todo.trailing_zeros() as usize;
        let (needs, names) = (self.scenario.needs(manifests[task]), self.scenario.names());
        let go_on = |actor: &mut Actor, sweeper: &mut Sweeper| {
            sweeper.todo &= sweeper.todo - 1;
            if sweeper.todo == 0 {
                sweeper.listed = [0; TASKS];
                sweeper.is_counted = true;
                if is_late {
                    sweeper.at = SweeperAt::Truncate;
                    actor.enter(Mode::Exclusive);
                } else {
                    sweeper.sweep_what_is_left(names);
                }
            }
        };
        self.change("decodes a manifest, if it is there", sweeper, |_, actor, sweeper| {
            for blob in members(needs) {
                sweeper.counts[blob.trailing_zeros() as usize] += 1;
            }
            go_on(actor, sweeper);
        });
        // A listing need not have what came while it was read, nor what was renamed over a name.
        if manifests[task] != 0 && manifests[task] != sweeper.listed[task] {
            self.change("does not meet a manifest that is new", sweeper, |_, actor, sweeper| {
                go_on(actor, sweeper);
            });
        }
    }

    /// `Sweeper::sweep` and `keep_what_was_noted`.
    fn sweep(&mut self, sweeper: Sweeper) {
        let section_blobs = self.scenario.section_blobs;
        match sweeper.at {
            SweeperAt::Sweep => self.begin_section(sweeper),
            SweeperAt::EarlyNotes => {
                self.change("reads notes", sweeper, |next, actor, sweeper| {
                    sweeper.kept |= next.disk.notes;
                    sweeper.at = SweeperAt::ReadHolds;
                    actor.enter(Mode::Exclusive);
                });
            }
            SweeperAt::ReadNotes => {
                let is_kept = !self.is_off(Fault::NotesAreReadOnce) || !sweeper.has_unlinked;
                self.change("reads notes", sweeper, |next, _, sweeper| {
                    if is_kept {
                        sweeper.kept |= next.disk.notes;
                    }
                    sweeper.at = SweeperAt::ReadHolds;
                });
            }
            SweeperAt::ReadHolds => {
                let is_read = !self.is_off(Fault::HoldsAreOverlooked);
                let is_outside = self.is_off(Fault::BlobsAreRemovedOutside);
                self.change("reads holds", sweeper, |next, actor, sweeper| {
                    if is_read {
                        sweeper.read_holds(next.disk.hold, &next.actors, &mut next.disk);
                    }
                    sweeper.batch = 0;
                    for _ in 0..section_blobs {
                        let blob = first(sweeper.candidates);
                        sweeper.candidates &= !blob;
                        sweeper.batch |= blob;
                    }
                    sweeper.batch &= sweeper.unneeded();
                    sweeper.at = SweeperAt::Odd;
                    if sweeper.batch == 0 {
                        sweeper.at = SweeperAt::Sweep;
                    }
                    if sweeper.batch == 0 || is_outside {
                        actor.leave();
                    }
                });
            }
            SweeperAt::Odd => {
                let fault = self.fault;
                self.change("makes `sweeps` odd", sweeper, |next, _, sweeper| {
                    match fault {
                        Some(Fault::SweepsChangeAfterTheRemovals) => {}
                        Some(Fault::SweepsChangeBeforeTheRemovals) => next.disk.end_sweep(),
                        _ => next.disk.begin_sweep(),
                    }
                    sweeper.at = SweeperAt::Remove;
                });
                self.lose_tally(sweeper, |sweeper| sweeper.at = SweeperAt::Remove);
            }
            _ if sweeper.batch == 0 => {
                let is_late = !self.is_off(Fault::SweepsChangeBeforeTheRemovals);
                self.change("makes `sweeps` even, leaves", sweeper, |next, actor, sweeper| {
                    if is_late {
                        next.disk.end_sweep();
                    }
                    sweeper.at = SweeperAt::Sweep;
                    actor.leave();
                });
                if self.scenario.may_lose_tally {
                    self.change("cannot end its sweep, leaves", sweeper, |_, actor, sweeper| {
                        sweeper.at = SweeperAt::Sweep;
                        actor.leave();
                    });
                }
            }
            _ => self.change("removes a blob", sweeper, |next, _, sweeper| {
                let blob = first(sweeper.batch);
                next.disk.remove_blob(blob);
                sweeper.batch &= !blob;
            }),
        }
    }

    /// Another section, or what comes after the last.
    fn begin_section(&mut self, sweeper: Sweeper) {
        let fault = self.fault;
        if sweeper.candidates != 0 {
            self.change("wants to remove blobs", sweeper, |_, actor, sweeper| {
                if fault == Some(Fault::NotesAreReadBeforeTheSection) {
                    sweeper.at = SweeperAt::EarlyNotes;
                } else {
                    sweeper.at = SweeperAt::ReadNotes;
                    actor.enter(Mode::Exclusive);
                }
            });
        } else if sweeper.victims != 0 {
            self.change("chooses entries", sweeper, |_, _, sweeper| {
                sweeper.todo = sweeper.victims;
                sweeper.at = SweeperAt::Choose;
            });
        } else if sweeper.chosen != [0; TASKS] {
            // Only where blobs go first.
            self.change("has removed blobs", sweeper, |_, actor, sweeper| {
                sweeper.at = SweeperAt::Judge;
                actor.enter(Mode::Exclusive);
            });
        } else {
            self.change("has removed everything", sweeper, |_, _, sweeper| {
                sweeper.at = SweeperAt::EndMarking;
            });
        }
    }

    /// `Sweeper::remove_entries`.
    fn remove_entries(&mut self, sweeper: Sweeper) {
        let manifests = self.state.disk.manifests;
        let (is_outside, is_blind, are_blobs_first) = (
            self.is_off(Fault::ManifestsAreRemovedOutside),
            self.is_off(Fault::StampsAreOverlooked),
            self.is_off(Fault::BlobsGoBeforeManifests),
        );
        let scenario = self.scenario;
        if sweeper.at == SweeperAt::Choose {
            self.change("decodes a victim", sweeper, |_, actor, sweeper| {
                let task = sweeper.todo.trailing_zeros() as usize;
                sweeper.chosen[task] = manifests[task];
                sweeper.todo &= sweeper.todo - 1;
                if sweeper.todo != 0 {
                    return;
                }
                sweeper.victims = 0;
                if sweeper.chosen == [0; TASKS] {
                    sweeper.at = SweeperAt::EndMarking;
                } else if are_blobs_first {
                    for version in sweeper.chosen {
                        sweeper.release(scenario.needs(version));
                    }
                    sweeper.at = SweeperAt::Sweep;
                } else {
                    sweeper.at = SweeperAt::Judge;
                    if !is_outside {
                        actor.enter(Mode::Exclusive);
                    }
                }
            });
            return;
        }
        let Some(task) = sweeper.chosen.iter().position(|version| *version != 0) else {
            self.change("leaves", sweeper, |_, actor, sweeper| {
                actor.leave();
                sweeper.at = SweeperAt::Sweep;
            });
            return;
        };
        let version = sweeper.chosen[task];
        if sweeper.at == SweeperAt::Judge {
            self.change("looks at a victim", sweeper, |_, _, sweeper| {
                if manifests[task] == version || is_blind {
                    sweeper.at = SweeperAt::Unlink;
                } else {
                    sweeper.chosen[task] = 0;
                }
            });
            return;
        }
        let needs = scenario.needs(version);
        self.change("removes a victim's manifest", sweeper, |next, _, sweeper| {
            sweeper.chosen[task] = 0;
            sweeper.has_unlinked = true;
            sweeper.at = SweeperAt::Judge;
            if manifests[task] == 0 {
                return;
            }
            if manifests[task] != version {
                next.wrong = Some(Wrong::AnotherEntry);
            }
            next.disk.manifests[task] = 0;
            if !are_blobs_first {
                sweeper.release(needs);
            }
        });
    }
}

impl Sweeper {
    /// Blobs whose count is zero.
    fn unneeded(&self) -> Set {
        let is_zero = |blob: &usize| self.counts[*blob] == 0;
        (0..BLOBS).filter(is_zero).fold(0, |set, blob| set | 1 << blob) & !self.kept
    }

    /// `Sweeper::orphans`, and more: also what comes later, and however young it is.
    fn sweep_what_is_left(&mut self, names: Set) {
        self.candidates = names & self.unneeded();
        self.at = SweeperAt::Sweep;
    }

    /// An entry that needed these blobs is gone.
    fn release(&mut self, needs: Set) {
        for blob in members(needs & !self.kept) {
            let count = &mut self.counts[blob.trailing_zeros() as usize];
            *count = count.saturating_sub(1);
        }
        self.candidates |= needs & self.unneeded();
    }

    /// `Cache::new_holds`.
    fn read_holds(&mut self, hold: HoldFile, actors: &[Actor], disk: &mut Disk) {
        let HoldFile::Of(tags) = hold else { return };
        let is_locked = actors.iter().any(|actor| {
            matches!(actor.role, Role::Hold(hold) if matches!(hold.at, HoldAt::Holding | HoldAt::Release))
        });
        if is_locked {
            self.kept |= tags;
        } else {
            disk.hold = HoldFile::Absent;
        }
    }
}

impl From<Sweeper> for Role {
    fn from(sweeper: Sweeper) -> Role {
        Role::Sweeper(sweeper)
    }
}
