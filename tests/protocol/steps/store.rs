//! A store: `Cache::try_store`, `commit`, `abandon`, `note_marked`, and a `Batch`.

use super::super::world::{Fault, Mode, Role, Store, StoreAt, Wrong, first, members};
use super::Step;

impl Step<'_> {
    pub(super) fn store(&mut self, store: Store) {
        use StoreAt::{
            Abandon, AbandonBegins, AbandonRemoves, Append, Begin, Compare, Count, EndMarking,
            LateSweeps, Leave, Look, Note, Prove, Publish, ReadCommits, ReadSweeps, Recheck,
            Rename, TruncateMarking, TryEvictLock,
        };
        self.fail(store);
        match store.at {
            Begin => self.begin_round(store),
            ReadSweeps | ReadCommits | LateSweeps => self.read_tally(store),
            Look | Publish | Prove => self.ingest(store),
            Compare => self.compare(store),
            Recheck => self.recheck(store),
            Note | TryEvictLock | EndMarking | TruncateMarking | Append => self.note_marked(store),
            Count | Rename | Leave => self.commit(store),
            Abandon | AbandonBegins | AbandonRemoves => self.abandon(store),
        }
    }

    fn begin_round(&mut self, store: Store) {
        let is_early =
            store.round >= self.scenario.rounds_outside && !self.is_off(Fault::EveryRoundIsOutside);
        self.change("begins", store, |_, actor, store| {
            store.at = StoreAt::ReadSweeps;
            if is_early {
                actor.enter(Mode::Shared);
            }
        });
    }

    fn read_tally(&mut self, store: Store) {
        let sweeps = self.state.disk.read_sweeps(self.fault);
        let commits = self.state.disk.read_commits();
        match store.at {
            StoreAt::ReadSweeps => self.change("reads `sweeps`", store, |_, _, store| {
                store.sweeps = sweeps;
                store.at = StoreAt::ReadCommits;
            }),
            StoreAt::ReadCommits => self.change("reads `commits`", store, |_, _, store| {
                store.commits = commits;
                store.at = StoreAt::Look;
            }),
            _ => self.change("reads `sweeps` late", store, |_, actor, store| {
                store.sweeps = sweeps;
                store.at = StoreAt::Compare;
                actor.enter_unless_inside();
            }),
        }
    }

    /// `Batch::add`.
    fn ingest(&mut self, store: Store) {
        let (_, needs) = self.scenario.version(store.version);
        let blobs = self.state.disk.blobs;
        match store.at {
            StoreAt::Look => {
                for blob in members(needs & !store.seen) {
                    self.change("looks for a blob", store, |_, _, store| {
                        if blobs & blob == 0 {
                            store.todo = blob;
                            store.at = StoreAt::Publish;
                        } else {
                            store.seen |= blob;
                        }
                    });
                }
                if needs & !store.seen == 0 {
                    self.finish(store);
                }
            }
            StoreAt::Publish if blobs & store.todo != 0 => {
                self.change("finds the name taken", store, |_, _, store| {
                    store.at = StoreAt::Prove;
                });
            }
            StoreAt::Publish => self.change("publishes a blob", store, |next, _, store| {
                next.disk.blobs |= store.todo;
                store.published |= store.todo;
                store.has_published = true;
                store.seen |= store.todo;
                store.todo = 0;
                store.at = StoreAt::Look;
            }),
            _ => self.change("looks what has the name", store, |_, _, store| {
                if blobs & store.todo == 0 {
                    store.at = StoreAt::Publish;
                } else {
                    store.seen |= store.todo;
                    store.todo = 0;
                    store.at = StoreAt::Look;
                }
            }),
        }
    }

    /// `Batch::finish`, and the staging of the manifest.
    fn finish(&mut self, store: Store) {
        let is_late = self.is_off(Fault::SweepsAreReadAfterTheLook);
        let is_outside = self.is_off(Fault::RecheckBeforeTheSection);
        self.change("has all its blobs, stages its manifest", store, |_, actor, store| {
            store.published = 0;
            store.at = if is_late { StoreAt::LateSweeps } else { StoreAt::Compare };
            if !is_late && !is_outside {
                actor.enter_unless_inside();
            }
        });
    }

    fn compare(&mut self, store: Store) {
        let (_, needs) = self.scenario.version(store.version);
        let is_same = store.knows_of_no_sweep(self.state.disk.read_sweeps(self.fault))
            || self.is_off(Fault::NoRecheck);
        let [next_at, ..] = self.order_of_commit();
        self.change("reads `sweeps` again", store, |_, actor, store| {
            if is_same {
                store.at = next_at;
                actor.enter_unless_inside();
            } else {
                store.todo = needs;
                store.at = StoreAt::Recheck;
            }
        });
    }

    /// The steps of `Cache::commit`.
    fn order_of_commit(&self) -> [StoreAt; 4] {
        use StoreAt::{Count, Leave, Note, Rename};
        match self.fault {
            Some(Fault::NotesFollowTheManifest) => [Count, Rename, Note, Leave],
            Some(Fault::CommitsAreCountedLate) => [Note, Rename, Count, Leave],
            _ => [Note, Count, Rename, Leave],
        }
    }

    fn following(&self, at: StoreAt) -> StoreAt {
        let [first, second, third, last] = self.order_of_commit();
        match at {
            _ if at == first => second,
            _ if at == second => third,
            _ => last,
        }
    }

    /// `Batch::recheck`.
    fn recheck(&mut self, store: Store) {
        /// `try_store` tries so many rounds more, in a section.
        const ROUNDS_INSIDE: u8 = 2;
        let rounds = self.scenario.rounds_outside + ROUNDS_INSIDE;
        let blob = first(store.todo);
        if self.state.disk.blobs & blob == 0 {
            self.change("misses a blob, leaves, begins anew", store, |next, actor, store| {
                *store =
                    Store { round: store.round + 1, ..Store::new(store.version, store.may_fail) };
                if store.round == rounds {
                    next.wrong = Some(Wrong::VanishedAgainAndAgain);
                }
                actor.leave();
            });
            return;
        }
        let [next_at, ..] = self.order_of_commit();
        self.change("finds a blob again", store, |_, actor, store| {
            store.todo &= !blob;
            if store.todo == 0 {
                store.at = next_at;
                actor.enter_unless_inside();
            }
        });
    }

    /// `Cache::note_marked`.
    fn note_marked(&mut self, store: Store) {
        let (_, needs) = self.scenario.version(store.version);
        let next_at = self.following(StoreAt::Note);
        match store.at {
            StoreAt::Note => {
                let is_off = self.is_off(Fault::NothingIsNoted);
                if is_off || !self.state.disk.is_marking {
                    self.change("sees that nobody marks", store, |_, _, store| {
                        store.at = next_at;
                    });
                } else {
                    self.change("sees that somebody marks", store, |_, _, store| {
                        store.at = StoreAt::TryEvictLock;
                    });
                }
            }
            StoreAt::TryEvictLock => {
                let is_off = self.is_off(Fault::MarkingIsEndedWhileSomebodySweeps);
                if is_off || self.is_evict_lock_free() {
                    self.change("gets `evict.lock`", store, |_, actor, store| {
                        actor.has_evict_lock = true;
                        store.at = StoreAt::EndMarking;
                    });
                } else {
                    self.change("does not get `evict.lock`", store, |_, _, store| {
                        store.at = StoreAt::Append;
                    });
                }
            }
            StoreAt::EndMarking => self.change("ends the marking", store, |next, _, store| {
                next.disk.is_marking = false;
                store.at = StoreAt::TruncateMarking;
            }),
            StoreAt::TruncateMarking => {
                self.change("drops notes, lets go of `evict.lock`", store, |next, actor, store| {
                    next.disk.notes = 0;
                    actor.has_evict_lock = false;
                    store.at = next_at;
                });
            }
            _ => self.change("notes its blobs", store, |next, _, store| {
                next.disk.notes |= needs;
                store.at = next_at;
            }),
        }
    }

    /// `Tally::count_commit`, `Cache::publish_manifest`, and the end.
    fn commit(&mut self, store: Store) {
        let (task, _) = self.scenario.version(store.version);
        let next_at = self.following(store.at);
        match store.at {
            StoreAt::Count => {
                let is_counted = !self.is_off(Fault::CommitsAreNotCounted);
                let is_outside = self.is_off(Fault::ManifestFollowsTheSection);
                self.change("counts its commit", store, |next, actor, store| {
                    if is_counted {
                        next.disk.tally_or_new().commits += 1;
                    }
                    store.at = next_at;
                    if is_outside {
                        actor.leave();
                    }
                });
                self.lose_tally(store, |store| store.at = next_at);
            }
            StoreAt::Rename => {
                self.change("renames its manifest into place", store, |next, _, store| {
                    next.disk.manifests[task] = store.version;
                    store.at = next_at;
                });
            }
            _ => self.to("leaves", |_, actor| actor.end()),
        }
    }

    /// An error: a source that changed, a full disk, a cancelled caller.
    fn fail(&mut self, store: Store) {
        let is_possible = matches!(
            store.at,
            StoreAt::Look | StoreAt::Publish | StoreAt::Prove | StoreAt::Recheck | StoreAt::Append
        );
        if !store.may_fail || !is_possible {
            return;
        }
        let is_outside = self.is_off(Fault::AbandonOverlooksSections);
        let is_late = self.is_off(Fault::CommitsAreReadAfterPublishing);
        self.change("fails", store, |next, actor, store| {
            actor.leave();
            if is_late {
                store.commits = next.disk.read_commits();
            }
            if !store.has_published {
                actor.end();
                return;
            }
            store.at = StoreAt::Abandon;
            if !is_outside {
                actor.enter(Mode::Exclusive);
            }
        });
    }

    /// `Cache::abandon`.
    fn abandon(&mut self, store: Store) {
        let is_alone = store.is_alone(self.state.disk.read_commits())
            || self.is_off(Fault::AbandonOverlooksCommits);
        let is_sweep = !self.is_off(Fault::AbandonIsNoSweep);
        match store.at {
            StoreAt::Abandon if is_alone => {
                self.change("sees that nobody has committed", store, |_, _, store| {
                    store.at = StoreAt::AbandonBegins;
                });
            }
            StoreAt::Abandon => {
                self.to("sees that somebody has committed, leaves", |_, actor| actor.end());
            }
            StoreAt::AbandonBegins => {
                self.change("makes `sweeps` odd", store, |next, _, store| {
                    if is_sweep {
                        next.disk.begin_sweep();
                    }
                    store.at = StoreAt::AbandonRemoves;
                });
                self.lose_tally(store, |store| store.at = StoreAt::AbandonRemoves);
            }
            _ if store.published == 0 => self.to("makes `sweeps` even, leaves", |next, actor| {
                if is_sweep {
                    next.disk.end_sweep();
                }
                actor.end();
            }),
            _ => self.change("takes a blob back", store, |next, _, store| {
                let blob = first(store.published);
                next.disk.remove_blob(blob);
                store.published &= !blob;
            }),
        }
    }
}

impl From<Store> for Role {
    fn from(store: Store) -> Role {
        Role::Store(store)
    }
}
