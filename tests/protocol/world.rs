//! The world: what is on disk, who is at work, and what a scenario lets them do.
//!
//! A [`State`] is a small value. Locks are not in it: who holds one is told by the actors, and an
//! actor that is killed is gone with its locks, as the kernel has it.

use super::search::State;

/// A set of blobs or of tasks, a bit each.
pub(crate) type Set = u8;

pub(crate) const BLOBS: usize = 3;
pub(crate) const TASKS: usize = 2;
pub(crate) const ACTORS: usize = 4;

/// No reading of `sweeps`: a sweep is under way, or was killed.
const NOBODY_KNOWS: u8 = u8::MAX;

/// What a kill leaves as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Disk {
    pub(crate) blobs: Set,
    /// For each task the version of its manifest; 0 where there is none.
    pub(crate) manifests: [u8; TASKS],
    pub(crate) tally: Option<Tally>,
    /// Not on disk: how many tallies there were; each begins anywhere.
    pub(crate) tallies: u8,
    /// `marking`: what its first eight bytes say.
    pub(crate) is_marking: bool,
    /// `marking`: the tags behind them.
    pub(crate) notes: Set,
    /// `holds/`: one file.
    pub(crate) hold: HoldFile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tally {
    /// Odd while blobs are removed.
    pub(crate) sweeps: u8,
    pub(crate) commits: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum HoldFile {
    #[default]
    Absent,
    Of(Set),
}

/// A step of the protocol that can be left out, or be done elsewhere, to see what it is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    SweepsAreReadAfterTheLook,
    OddSweepsCountAsANumber,
    NoRecheck,
    RecheckBeforeTheSection,
    NothingIsNoted,
    NotesFollowTheManifest,
    ManifestFollowsTheSection,
    CommitsAreNotCounted,
    CommitsAreCountedLate,
    MarkingIsEndedWhileSomebodySweeps,
    EveryRoundIsOutside,
    AbandonOverlooksCommits,
    AbandonOverlooksSections,
    AbandonIsNoSweep,
    CommitsAreReadAfterPublishing,
    TwoSweepAtOnce,
    MarkingBeginsOutside,
    MarkingBeginsAfterTheCount,
    NotesAreReadOnce,
    NotesAreReadBeforeTheSection,
    HoldsAreOverlooked,
    BlobsAreRemovedOutside,
    SweepsChangeAfterTheRemovals,
    SweepsChangeBeforeTheRemovals,
    BlobsGoBeforeManifests,
    StampsAreOverlooked,
    ManifestsAreRemovedOutside,
    HoldsAreMadeOutside,
    TalliesAreMadeOutside,
    HoldsOverlookTheirEntry,
}

/// Something that must not happen, found by whoever does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wrong {
    /// A restore missed a blob of an entry that is still there.
    Damaged,
    /// A sweep removed another entry than the one it chose.
    AnotherEntry,
    /// A store gave up.
    VanishedAgainAndAgain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// `Cache::enter`: first `gate`, then `lock`; whoever waits for `lock` has `gate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wait {
    No,
    Gate(Mode),
    Lock(Mode),
}

/// A process, or a thread with files of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Actor {
    pub(crate) wait: Wait,
    pub(crate) section: Option<Mode>,
    pub(crate) has_evict_lock: bool,
    pub(crate) role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// Done, killed, or never there.
    Gone,
    Store(Store),
    Sweeper(Sweeper),
    Restore(Restore),
    Hold(Hold),
    Remover(Remover),
    Opener(Opener),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) at: StoreAt,
    pub(crate) version: u8,
    pub(crate) may_fail: bool,
    pub(crate) round: u8,
    pub(crate) sweeps: u8,
    pub(crate) commits: u8,
    /// Blobs that were found or published.
    pub(crate) seen: Set,
    /// Blobs that it published, until their slots are noted.
    pub(crate) published: Set,
    pub(crate) has_published: bool,
    /// The blob at hand, or those that are still to be looked at again.
    pub(crate) todo: Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StoreAt {
    Begin,
    ReadSweeps,
    ReadCommits,
    Look,
    Publish,
    Prove,
    LateSweeps,
    Compare,
    Recheck,
    Note,
    TryEvictLock,
    EndMarking,
    TruncateMarking,
    Append,
    Count,
    Rename,
    Leave,
    Abandon,
    AbandonBegins,
    AbandonRemoves,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sweeper {
    pub(crate) at: SweeperAt,
    /// Tasks whose entries it will remove.
    pub(crate) victims: Set,
    pub(crate) may_fail: bool,
    pub(crate) is_counted: bool,
    /// The versions that the listing met.
    pub(crate) listed: [u8; TASKS],
    /// Tasks, or blobs, that are still to be looked at in this step.
    pub(crate) todo: Set,
    pub(crate) counts: [u8; BLOBS],
    /// Blobs whose count is full.
    pub(crate) kept: Set,
    pub(crate) candidates: Set,
    pub(crate) batch: Set,
    pub(crate) chosen: [u8; TASKS],
    pub(crate) has_unlinked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SweeperAt {
    Lock,
    Truncate,
    Begin,
    List,
    Decode,
    Sweep,
    EarlyNotes,
    ReadNotes,
    ReadHolds,
    Odd,
    Remove,
    Choose,
    Judge,
    Unlink,
    EndMarking,
    TruncateAgain,
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Restore {
    pub(crate) at: RestoreAt,
    pub(crate) task: u8,
    pub(crate) version: u8,
    pub(crate) todo: Set,
    pub(crate) round: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RestoreAt {
    Read,
    Lease,
    Link,
    Judge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Hold {
    pub(crate) at: HoldAt,
    pub(crate) task: u8,
    pub(crate) version: u8,
    /// Blobs that it may read until it ends.
    pub(crate) promised: Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum HoldAt {
    Read,
    Look,
    Create,
    Write,
    Lock,
    Holding,
    Release,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Remover {
    pub(crate) task: u8,
    pub(crate) has_looked: bool,
}

/// Somebody who opens the store, or counts what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Opener {
    pub(crate) has_looked: bool,
}

/// What there is at first, who comes, and what they may do.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Task and blobs of each version of a manifest that there can be; the first has number 1.
    pub(crate) versions: &'static [(u8, Set)],
    /// Versions whose manifests are in place, with their blobs.
    pub(crate) committed: &'static [u8],
    /// Blobs that are in place besides.
    pub(crate) orphans: Set,
    pub(crate) actors: &'static [Role],
    /// So many blobs are removed in one section (`SECTION_BLOBS`).
    pub(crate) section_blobs: u32,
    /// So often a store begins anew outside of a section (`ROUNDS_MAX`).
    pub(crate) rounds_outside: u8,
    /// Whether the tally may fail to be written, by a sweep or by a commit.
    pub(crate) may_lose_tally: bool,
}

impl Scenario {
    pub(crate) fn begin(&self) -> State {
        let mut disk = Disk { blobs: self.orphans, ..Disk::default() };
        disk.tally_or_new();
        for version in self.committed {
            let (task, needs) = self.version(*version);
            disk.manifests[task] = *version;
            disk.blobs |= needs;
        }
        let mut actors = [Actor::new(Role::Gone); ACTORS];
        for (actor, role) in actors.iter_mut().zip(self.actors) {
            *actor = Actor::new(*role);
        }
        State { disk, wrong: None, actors }
    }

    /// Task and blobs of a version.
    pub(crate) fn version(&self, version: u8) -> (usize, Set) {
        let (task, needs) = self.versions[usize::from(version) - 1];
        (usize::from(task), needs)
    }

    pub(crate) fn needs(&self, version: u8) -> Set {
        if version == 0 { 0 } else { self.version(version).1 }
    }

    /// All blobs that there can be.
    pub(crate) fn names(&self) -> Set {
        self.versions.iter().fold(self.orphans, |names, (_, needs)| names | needs)
    }

    /// What the manifests that are in place need.
    pub(crate) fn all_needs(&self, disk: &Disk) -> Set {
        disk.manifests.iter().fold(0, |needs, version| needs | self.needs(*version))
    }
}

impl Disk {
    /// `Cache::sweeps`.
    pub(crate) fn read_sweeps(&self, fault: Option<Fault>) -> u8 {
        let believes_odd = fault == Some(Fault::OddSweepsCountAsANumber);
        let sweeps = self.tally.map(|tally| tally.sweeps);
        sweeps.filter(|sweeps| sweeps % 2 == 0 || believes_odd).unwrap_or(NOBODY_KNOWS)
    }

    /// `Cache::commits`.
    pub(crate) fn read_commits(&self) -> u8 {
        self.tally.map_or(NOBODY_KNOWS, |tally| tally.commits)
    }

    /// `Tally::begin`, and what `Tally::insist` begins with: a new one, if there is none.
    pub(crate) fn tally_or_new(&mut self) -> &mut Tally {
        /// Further apart than two numbers of one tally ever are.
        const APART: u8 = 32;
        self.tally.get_or_insert_with(|| {
            self.tallies += 1;
            Tally { sweeps: self.tallies * APART, commits: self.tallies * APART }
        })
    }

    /// `Tally::begin_sweep`.
    pub(crate) fn begin_sweep(&mut self) {
        self.tally_or_new().sweeps |= 1;
    }

    /// `Tally::end_sweep`.
    pub(crate) fn end_sweep(&mut self) {
        if let Some(tally) = &mut self.tally {
            tally.sweeps = (tally.sweeps | 1) + 1;
        }
    }

    pub(crate) fn remove_blob(&mut self, blob: Set) {
        self.blobs &= !blob;
    }
}

impl Actor {
    pub(crate) const fn new(role: Role) -> Actor {
        Actor { wait: Wait::No, section: None, has_evict_lock: false, role }
    }

    /// `Cache::enter`.
    pub(crate) fn enter(&mut self, mode: Mode) {
        self.wait = Wait::Gate(mode);
    }

    pub(crate) fn enter_unless_inside(&mut self) {
        if self.section.is_none() {
            self.enter(Mode::Shared);
        }
    }

    pub(crate) fn leave(&mut self) {
        self.section = None;
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.role == Role::Gone
    }

    pub(crate) fn end(&mut self) {
        *self = Actor::new(Role::Gone);
    }
}

impl Store {
    pub(crate) const fn new(version: u8, may_fail: bool) -> Store {
        Store {
            at: StoreAt::Begin,
            version,
            may_fail,
            round: 0,
            sweeps: 0,
            commits: 0,
            seen: 0,
            published: 0,
            has_published: false,
            todo: 0,
        }
    }

    /// Whether nobody can have committed since the reading of `commits`.
    pub(crate) fn is_alone(&self, now: u8) -> bool {
        self.commits != NOBODY_KNOWS && self.commits == now
    }

    /// Whether a reading of `sweeps` vouches for what was found.
    pub(crate) fn knows_of_no_sweep(&self, now: u8) -> bool {
        self.sweeps != NOBODY_KNOWS && self.sweeps == now
    }
}

/// A store of a version of an entry.
pub(crate) const fn store(version: u8, may_fail: bool) -> Role {
    Role::Store(Store::new(version, may_fail))
}

/// An eviction that will remove the entries of these tasks, and whatever nobody needs.
pub(crate) const fn sweeper(victims: Set) -> Role {
    Role::Sweeper(Sweeper {
        at: SweeperAt::Lock,
        victims,
        may_fail: true,
        is_counted: false,
        listed: [0; TASKS],
        todo: 0,
        counts: [0; BLOBS],
        kept: 0,
        candidates: 0,
        batch: 0,
        chosen: [0; TASKS],
        has_unlinked: false,
    })
}

pub(crate) const fn restore(task: u8) -> Role {
    Role::Restore(Restore { at: RestoreAt::Read, task, version: 0, todo: 0, round: 0 })
}

pub(crate) const fn hold(task: u8) -> Role {
    Role::Hold(Hold { at: HoldAt::Read, task, version: 0, promised: 0 })
}

pub(crate) const fn remover(task: u8) -> Role {
    Role::Remover(Remover { task, has_looked: false })
}

pub(crate) const fn opener() -> Role {
    Role::Opener(Opener { has_looked: false })
}

/// The bits of a set, lowest first.
pub(crate) fn members(set: Set) -> impl Iterator<Item = Set> {
    (0..8).map(|bit| 1 << bit).filter(move |member| set & member != 0)
}

/// The lowest bit of a set, or none.
pub(crate) fn first(set: Set) -> Set {
    set & set.wrapping_neg()
}
