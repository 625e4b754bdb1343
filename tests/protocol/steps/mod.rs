//! The steps: each is one system call, or a few, that others see as one.
//!
//! A step takes the state before it and tells each state that may come after it. What only its own
//! actor can see is done along with the step before.

mod store;
mod sweeper;

use super::search::State;
use super::world::{
    Actor, Fault, Hold, HoldAt, HoldFile, Mode, Opener, Remover, Restore, RestoreAt, Role,
    Scenario, Wait, Wrong, first,
};

pub(crate) const KILLED: &str = "SIGKILL";

/// Takes the number of the actor, its name, what it does, and the state after that.
pub(crate) type Emit<'a> = &'a mut dyn FnMut(usize, &'static str, &'static str, State);

/// All states that may come next.
pub(crate) fn successors(scenario: &Scenario, fault: Option<Fault>, state: &State, emit: Emit<'_>) {
    for (number, actor) in state.actors.iter().enumerate() {
        let name = match actor.role {
            Role::Gone => continue,
            Role::Store(_) => "store",
            Role::Sweeper(_) => "sweeper",
            Role::Restore(_) => "restore",
            Role::Hold(_) => "hold",
            Role::Remover(_) => "remove",
            Role::Opener(_) => "open",
        };
        let mut step = Step { scenario, fault, state, number, name, emit: &mut *emit };
        match actor.wait {
            Wait::No => step.act(),
            Wait::Gate(mode) => step.pass_gate(mode),
            Wait::Lock(mode) => step.pass_lock(mode),
        }
        step.to(KILLED, |_, actor| actor.end());
    }
}

/// The next step of one actor.
struct Step<'a> {
    scenario: &'a Scenario,
    fault: Option<Fault>,
    state: &'a State,
    number: usize,
    name: &'static str,
    emit: Emit<'a>,
}

impl Step<'_> {
    fn is_off(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn actor(&self) -> &Actor {
        &self.state.actors[self.number]
    }

    /// Tells one state that may come next.
    fn to(&mut self, what: &'static str, change: impl FnOnce(&mut State, &mut Actor)) {
        let mut next = *self.state;
        let mut actor = *self.actor();
        change(&mut next, &mut actor);
        next.actors[self.number] = actor;
        (self.emit)(self.number, self.name, what, next);
    }

    /// As [`Step::to`], for an actor of the role `R`.
    fn change<R: Into<Role>>(
        &mut self,
        what: &'static str,
        mut role: R,
        change: impl FnOnce(&mut State, &mut Actor, &mut R),
    ) {
        self.to(what, |next, actor| {
            change(next, actor, &mut role);
            if !actor.is_gone() {
                actor.role = role.into();
            }
        });
    }

    /// `Cache::enter`: the gate.
    fn pass_gate(&mut self, mode: Mode) {
        if !self.state.actors.iter().any(|other| matches!(other.wait, Wait::Lock(_))) {
            self.to("passes the gate", |_, actor| actor.wait = Wait::Lock(mode));
        }
    }

    /// `Cache::enter`: the lock; then the gate is open again.
    fn pass_lock(&mut self, mode: Mode) {
        let is_free = |other: &Actor| match other.section {
            None => true,
            Some(held) => held == Mode::Shared && mode == Mode::Shared,
        };
        if self.state.actors.iter().all(is_free) {
            let what = match mode {
                Mode::Shared => "enters a shared section",
                Mode::Exclusive => "enters an exclusive section",
            };
            self.to(what, |_, actor| {
                actor.wait = Wait::No;
                actor.section = Some(mode);
            });
        }
    }

    fn act(&mut self) {
        match self.actor().role {
            Role::Gone => {}
            Role::Store(store) => self.store(store),
            Role::Sweeper(sweeper) => self.sweeper(sweeper),
            Role::Restore(restore) => self.restore(restore),
            Role::Hold(hold) => self.hold(hold),
            Role::Remover(remover) => self.remove(remover),
            Role::Opener(opener) => self.open(opener),
        }
    }

    /// `Tally::insist`, where the tally cannot be written.
    fn lose_tally<R: Into<Role>>(&mut self, role: R, go_on: impl FnOnce(&mut R)) {
        if self.scenario.may_lose_tally {
            self.change("removes the tally, since it cannot be written", role, |next, _, role| {
                next.disk.tally = None;
                go_on(role);
            });
        }
    }

    /// `Cache::restore` and `try_restore`. Where it ends without an error it is a hit of `version`,
    /// all of whose blobs it has linked, or a miss.
    fn restore(&mut self, restore: Restore) {
        /// `ROUNDS_MAX` of `Cache::restore`.
        const ROUNDS_MAX: u8 = 4;
        let task = usize::from(restore.task);
        let manifest = self.state.disk.manifests[task];
        let needs = self.scenario.needs(restore.version);
        match restore.at {
            RestoreAt::Read if manifest == 0 => self.to("is a miss", |_, actor| actor.end()),
            RestoreAt::Read => self.change("reads the manifest", restore, |_, _, restore| {
                restore.version = manifest;
                restore.at = RestoreAt::Lease;
            }),
            RestoreAt::Lease => {
                self.change("has the lease, looks at the manifest", restore, |_, _, restore| {
                    restore.todo = needs;
                    let is_same = manifest == restore.version;
                    restore.at = if is_same { RestoreAt::Link } else { RestoreAt::Read };
                });
            }
            RestoreAt::Link => {
                let blob = first(restore.todo);
                if self.state.disk.blobs & blob == 0 {
                    self.change("misses a blob", restore, |_, actor, restore| {
                        restore.at = RestoreAt::Judge;
                        actor.enter(Mode::Exclusive);
                    });
                } else if restore.todo == blob {
                    self.to("links the last blob, is a hit", |_, actor| actor.end());
                } else {
                    self.change("links a blob", restore, |_, _, restore| restore.todo &= !blob);
                }
            }
            RestoreAt::Judge => {
                self.change("looks at the manifest", restore, |next, actor, restore| {
                    actor.leave();
                    restore.round += 1;
                    restore.at = RestoreAt::Read;
                    if manifest == restore.version {
                        next.wrong = Some(Wrong::Damaged);
                    } else if restore.round == ROUNDS_MAX {
                        actor.end();
                    }
                });
            }
        }
    }

    /// `Cache::hold`, and the end of a `Hold`.
    fn hold(&mut self, hold: Hold) {
        let manifest = self.state.disk.manifests[usize::from(hold.task)];
        let needs = self.scenario.needs(hold.version);
        let is_outside = self.is_off(Fault::HoldsAreMadeOutside);
        let is_unchecked = self.is_off(Fault::HoldsOverlookTheirEntry);
        match hold.at {
            HoldAt::Read if manifest == 0 => self.to("is a miss", |_, actor| actor.end()),
            HoldAt::Read => self.change("reads the manifest", hold, |_, actor, hold| {
                hold.version = manifest;
                hold.at = HoldAt::Look;
                if !is_outside {
                    actor.enter(Mode::Shared);
                }
            }),
            HoldAt::Look if manifest != hold.version && !is_unchecked => {
                self.to("comes too late", |_, actor| actor.end());
            }
            HoldAt::Look => self.change("sees its manifest", hold, |_, _, hold| {
                hold.at = HoldAt::Create;
            }),
            HoldAt::Create => self.change("makes its file", hold, |next, _, hold| {
                next.disk.hold = HoldFile::Of(0);
                hold.at = HoldAt::Write;
            }),
            HoldAt::Write => self.change("writes its tags", hold, |next, _, hold| {
                if next.disk.hold != HoldFile::Absent {
                    next.disk.hold = HoldFile::Of(needs);
                }
                hold.at = HoldAt::Lock;
            }),
            HoldAt::Lock => self.change("locks its file, leaves", hold, |_, actor, hold| {
                hold.promised = needs;
                hold.at = HoldAt::Holding;
                actor.leave();
            }),
            HoldAt::Holding => self.change("removes its file", hold, |next, _, hold| {
                next.disk.hold = HoldFile::Absent;
                hold.promised = 0;
                hold.at = HoldAt::Release;
            }),
            HoldAt::Release => self.to("lets go of its lock", |_, actor| actor.end()),
        }
    }

    /// `Cache::make_tally`.
    fn open(&mut self, opener: Opener) {
        let is_outside = self.is_off(Fault::TalliesAreMadeOutside);
        if !opener.has_looked && self.state.disk.tally.is_some() {
            self.to("finds a tally", |_, actor| actor.end());
        } else if !opener.has_looked {
            self.change("finds no tally", opener, |_, actor, opener| {
                opener.has_looked = true;
                if !is_outside {
                    actor.enter(Mode::Shared);
                }
            });
        } else {
            self.to("makes a tally, if there still is none", |next, actor| {
                next.disk.tally_or_new();
                actor.end();
            });
        }
    }

    /// `Cache::remove`.
    fn remove(&mut self, remover: Remover) {
        let task = usize::from(remover.task);
        let manifest = self.state.disk.manifests[task];
        if manifest == 0 {
            self.to("finds no entry", |_, actor| actor.end());
        } else if remover.has_looked {
            self.to("removes the manifest", |next, actor| {
                next.disk.manifests[task] = 0;
                actor.end();
            });
        } else {
            self.change("finds an entry", remover, |_, _, remover| remover.has_looked = true);
        }
    }
}

impl From<Restore> for Role {
    fn from(restore: Restore) -> Role {
        Role::Restore(restore)
    }
}

impl From<Hold> for Role {
    fn from(hold: Hold) -> Role {
        Role::Hold(hold)
    }
}

impl From<Remover> for Role {
    fn from(remover: Remover) -> Role {
        Role::Remover(remover)
    }
}

impl From<Opener> for Role {
    fn from(opener: Opener) -> Role {
        Role::Opener(opener)
    }
}
