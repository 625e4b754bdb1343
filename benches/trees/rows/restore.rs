//! Restores, into workspaces without the outputs and into ones that have them.

use crate::trees::bench::{Bench, copy, describe, make, remove, restore};
use crate::trees::duties::Records;
use crate::trees::floor::{self, Small, Way};
use crate::trees::measure::{Contender, take_turns, timed};
use crate::trees::options::Scale;
use crate::trees::report::{Bound, Report};
use crate::trees::walk::{walk, walk_and_stat};
use crate::trees::workload::{ROOT, THREADS};
use larder::{Cache, LINK_BYTES_MIN, LinkMode, MtimeMode, RestoreOptions};
use rustix::fs::{AtFlags, CWD, statat};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

fn hardlinks() -> RestoreOptions {
    RestoreOptions::default().with_link_mode(LinkMode::Hardlink).with_mtime_mode(MtimeMode::Linked)
}

pub(super) fn hardlink(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let setup = Setup::new(bench);
    let done = setup.done(hardlinks());
    let records = Records::of(setup.cache.path());
    let [larder, floor, judging, copied] = take_turns(
        bench.options.pairs,
        [
            bench.in_folder(|workspace| restore(&setup.cache, workspace, hardlinks())),
            bench.in_folder(|workspace| setup.floor.run(workspace, Way::Link)),
            bench.in_folder(|workspace| {
                let manifest = records.decode();
                setup.floor.run_judging(workspace);
                manifest
            }),
            copy_links(bench),
        ],
    );
    let against = ("2 threads: linkat", bench.on_ext4(1.25));
    bench.line(report, row, against, (&larder, &floor), &done);
    let against = ("the same, judges links, decodes", Bound::Information);
    bench.line(report, row, against, (&larder, &judging), &done);
    let against = ("cp -al", bench.on_ext4(0.5));
    bench.line(report, row, against, (&larder, &copied), &done);
}

pub(super) fn reflink(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    if bench.way != Way::Clone {
        return;
    }
    let options = RestoreOptions::default().with_link_mode(LinkMode::Reflink);
    let setup = Setup::new(bench);
    let done = setup.done(options);
    let [larder, floor] = take_turns(
        bench.options.pairs,
        [
            bench.in_folder(|workspace| restore(&setup.cache, workspace, options)),
            bench.in_folder(|workspace| setup.floor.run(workspace, Way::Clone)),
        ],
    );
    let against = ("2 threads: open, create, FICLONE", Bound::Ratio(1.25));
    bench.line(report, row, against, (&larder, &floor), &done);
}

pub(super) fn auto(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let setup = Setup::new(bench);
    let done = setup.done(RestoreOptions::default());
    let way = bench.way;
    let plan = &setup.floor;
    let floor = |small| move |workspace: &Path| plan.run_auto(workspace, way, small);
    let [larder, from_memory, from_blobs, copied] = take_turns(
        bench.options.pairs,
        [
            bench
                .in_folder(|workspace| restore(&setup.cache, workspace, RestoreOptions::default())),
            bench.in_folder(floor(Small::FromMemory)),
            bench.in_folder(floor(Small::FromBlobs)),
            copy_links(bench),
        ],
    );
    let against = ("2 threads: write small, link large", bench.on_ext4(1.25));
    bench.line(report, row, against, (&larder, &from_memory), &done);
    let against = ("the same, reads, hashes blobs, sets times", Bound::Information);
    bench.line(report, row, against, (&larder, &from_blobs), &done);
    let against = ("cp -al", bench.on_ext4(0.95));
    bench.line(report, row, against, (&larder, &copied), &done);
}

pub(super) fn target_folder(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    const FILES_MIN: usize = 1_400;
    let scale = bench.options.scale;
    let given = match &bench.options.target_folder {
        _ if scale == Scale::Quick => return report.skip(bench.name, row, "not with --quick"),
        Some(folder) => folder.clone(),
        None if scale == Scale::Smoke => bench.source().join(ROOT),
        None => return report.skip(bench.name, row, "there is no --target-dir"),
    };
    if scale != Scale::Smoke && count_files(&given) < FILES_MIN {
        let reason = format!("{} has fewer than {FILES_MIN} files", given.display());
        return report.skip(bench.name, row, &reason);
    }
    let workspace = bench.fresh_folder("target");
    let source = workspace.join(ROOT);
    copy(&["-a"], &given, &source);
    thread::sleep(Duration::from_millis(100));
    let (store, cache) = bench.store_with(&workspace);
    let done = done(bench, &cache, RestoreOptions::default());
    // As mode `auto` chooses (section 7 of DESIGN.md).
    let plan = floor::Restore::prepare_from(&source, |path, size_bytes| {
        let is_private = || path.extension().is_some_and(|last| last == "rmeta" || last == "o");
        size_bytes < LINK_BYTES_MIN || (bench.way == Way::Link && is_private())
    });
    let [larder, copied, floor] = take_turns(
        bench.options.pairs,
        [
            bench.in_folder(|target| restore(&cache, target, RestoreOptions::default())),
            bench.in_folder(|target| copy(&["-a", "--reflink=auto"], &source, &target.join(ROOT))),
            bench.in_folder(|target| plan.run_auto(target, bench.way, Small::FromBlobs)),
        ],
    );
    let bound = if bench.way == Way::Clone { 1.0 } else { 0.25 };
    let against = ("cp -a --reflink=auto", Bound::Ratio(bound));
    bench.line(report, row, against, (&larder, &copied), &done);
    let against = ("2 threads: read, hash, write; link large", Bound::Information);
    bench.line(report, row, against, (&larder, &floor), &done);
    drop(cache);
    remove(&store);
    remove(&workspace);
}

pub(super) fn in_place(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let (store, cache) = bench.store_with(bench.source());
    for (mode, options) in [("auto", RestoreOptions::default()), ("hardlink", hardlinks())] {
        let workspace = bench.fresh_folder("workspace");
        restore(&cache, &workspace, options);
        thread::sleep(Duration::from_millis(50));
        let done = describe(&restore(&cache, &workspace, options));
        thread::sleep(Duration::from_millis(50));
        let before = times(&workspace);
        let larder: Contender<'_> = Box::new(|| timed(|| restore(&cache, &workspace, options)).0);
        let root = workspace.join(ROOT);
        let floor: Contender<'_> = Box::new(|| timed(|| walk_and_stat(&root, THREADS)).0);
        let records = Records::of(&store);
        let reading: Contender<'_> = Box::new(|| {
            timed(|| {
                let manifest = records.decode();
                walk_and_stat(&root, THREADS);
                manifest
            })
            .0
        });
        let [larder, floor, reading] = take_turns(bench.options.pairs, [larder, floor, reading]);
        let after = times(&workspace);
        let measure = format!("{mode}; 2 threads: readdir, stat");
        let against = (&*measure, bench.on_ext4(1.3));
        bench.line(report, row, against, (&larder, &floor), &done);
        let measure = format!("{mode}; the same, decodes, reads ledger");
        let against = (&*measure, Bound::Information);
        bench.line(report, row, against, (&larder, &reading), &done);
        let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count()
            + before.len().abs_diff(after.len());
        report.must_be_zero(bench.name, row, &format!("{mode}; names that changed"), changed);
        remove(&workspace);
    }
    drop(cache);
    remove(&store);
}

pub(super) fn large(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let (store, cache) = bench.store_with(bench.large());
    let done = done(bench, &cache, RestoreOptions::default());
    let files = bench.large_files();
    let [larder, floor] = take_turns(
        bench.options.pairs,
        [
            bench.in_folder(|target| restore(&cache, target, RestoreOptions::default())),
            bench.in_folder(|target| floor::restore_large(&files, target, bench.way)),
        ],
    );
    let name = if bench.way == Way::Clone { "FICLONE, difference" } else { "linkat, difference" };
    let against = (name, Bound::MoreMilliseconds(5.0));
    bench.line(report, row, against, (&larder, &floor), &done);
    drop(cache);
    remove(&store);
}

/// A store with W1, and the floor's blobs.
struct Setup<'a> {
    bench: &'a Bench<'a>,
    cache: Cache,
    floor: floor::Restore,
    folders: [std::path::PathBuf; 2],
}

impl<'a> Setup<'a> {
    fn new(bench: &'a Bench<'a>) -> Setup<'a> {
        let blobs = bench.fresh("blobs");
        let floor = floor::Restore::prepare(bench.tree, &blobs);
        let (store, cache) = bench.store_with(bench.source());
        Setup { bench, cache, floor, folders: [blobs, store] }
    }

    fn done(&self, options: RestoreOptions) -> String {
        done(self.bench, &self.cache, options)
    }
}

impl Drop for Setup<'_> {
    fn drop(&mut self) {
        // An open store does not mind: nothing uses it any more.
        self.folders.iter().for_each(|folder| remove(folder));
    }
}

/// What a restore into an empty workspace does.
fn done(bench: &Bench<'_>, cache: &Cache, options: RestoreOptions) -> String {
    let workspace = bench.fresh_folder("workspace");
    let done = describe(&restore(cache, &workspace, options));
    remove(&workspace);
    done
}

fn copy_links<'a>(bench: &'a Bench<'_>) -> Contender<'a> {
    let source = bench.twin().join(ROOT);
    bench.contender("workspace", make, move |workspace| {
        copy(&["-al"], &source, &workspace.join(ROOT));
    })
}

fn count_files(folder: &Path) -> usize {
    let count = Mutex::new(0);
    let lock = || count.lock().unwrap_or_else(PoisonError::into_inner);
    if fs::metadata(folder).is_ok_and(|stat| stat.is_dir()) {
        walk(folder, 1, || (), |(), _, _, kind| *lock() += usize::from(kind.is_file()));
    }
    *lock()
}

/// Inode, modification and change time of everything in a workspace, and of itself.
fn times(workspace: &Path) -> Vec<(Vec<u8>, u64, [i64; 4])> {
    let found = Mutex::new(Vec::new());
    let note = |name: &[u8], stat: &rustix::fs::Stat| {
        let times =
            [stat.st_mtime, stat.st_mtime_nsec as i64, stat.st_ctime, stat.st_ctime_nsec as i64];
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.push((name.to_vec(), stat.st_ino, times));
    };
    let itself = statat(CWD, workspace, AtFlags::SYMLINK_NOFOLLOW);
    note(b"", &itself.expect("the workspace is there"));
    walk(
        workspace,
        1,
        || (),
        |(), folder, name, _| {
            let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
            note(name.to_bytes(), &stat.expect("an entry that was just listed"));
        },
    );
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort();
    found
}
