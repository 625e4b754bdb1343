//! Stores: of a tree that the store does not know, of one that it knows, of one that did not
//! change, and of large files.

use crate::trees::bench::{Bench, TASK, copy, make, open, remove, run, store};
use crate::trees::duties::{self, Blobs, Records};
use crate::trees::floor::{self, Publish, Way};
use crate::trees::measure::{Contender, ProcessorTime, Samples, take_turns, timed};
use crate::trees::report::{Bound, Figure, Line, Report};
use crate::trees::walk::walk_and_stat;
use crate::trees::workload::{ROOT, THREADS};
use larder::{Durability, Stored};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

pub(super) fn unknown(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let source = bench.source();
    let root = source.join(ROOT);
    let publish = |publish| {
        let work = move |folder: &Path| {
            // The fan-out is there; opening it once is nothing.
            let blobs = floor::open(folder);
            floor::store(source, &blobs, publish);
        };
        bench.contender("blobs", |folder| drop(floor::make_fan_out(folder)), work)
    };
    let [larder, renamed, linked, copied] = take_turns(
        bench.options.pairs,
        [
            bench.in_store(Durability::Relaxed, |cache| store(cache, TASK, source)),
            publish(Publish::Rename),
            publish(Publish::Link),
            bench.contender("copy", make, |target| copy(&["-a"], &root, &target.join(ROOT))),
        ],
    );
    let done = &stored_once(bench, source);
    bench.line(report, row, ("cp -a", bench.on_ext4(0.4)), (&larder, &copied), done);
    let is_renamed = renamed.median() < linked.median();
    let (best, rest) = if is_renamed { (&renamed, &linked) } else { (&linked, &renamed) };
    let names =
        ["2 threads: read, hash, write, rename", "2 threads: read, hash, O_TMPFILE, linkat"];
    let [best_name, rest_name] = if is_renamed { names } else { [names[1], names[0]] };
    bench.line(report, row, (best_name, bench.on_ext4(1.35)), (&larder, best), done);
    bench.line(report, row, (rest_name, Bound::Information), (&larder, rest), done);
}

pub(super) fn durable(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let source = bench.source();
    let [larder, floor] = take_turns(
        bench.options.pairs,
        [
            bench.in_store(Durability::Durable, |cache| store(cache, TASK, source)),
            bench.in_store(Durability::Relaxed, |cache| {
                let stored = store(cache, TASK, source);
                floor::sync_store(cache.path());
                stored
            }),
        ],
    );
    let against = ("relaxed, syncfs, fsync of folders", bench.on_ext4(1.2));
    bench.line(report, row, against, (&larder, &floor), &stored_once(bench, source));
}

pub(super) fn known(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let (folder, cache) = bench.store_with(bench.source());
    let blobs = bench.fresh("blobs");
    let fan_out = floor::make_fan_out(&blobs);
    floor::store(bench.source(), &fan_out, Publish::Link);
    // Removed together at the end, so that no copy has inodes of an earlier one.
    let copies = RefCell::new(Vec::new());
    let next_copy = || {
        let copy = bench.write_tree();
        thread::sleep(Duration::from_millis(100));
        copies.borrow_mut().push(copy.clone());
        copy
    };
    let larder: Contender<'_> = Box::new(|| {
        let workspace = next_copy();
        let key = format!("copy {}", copies.borrow().len());
        let (duration, stored) = timed(|| store(&cache, &key, &workspace));
        assert_eq!(stored.new_blobs, 0, "the store knows the contents");
        duration
    });
    let latest = || {
        let copies = copies.borrow();
        copies.last().expect("Larder comes first and made it").clone()
    };
    let floor: Contender<'_> = Box::new(|| {
        let workspace = latest();
        timed(|| floor::store_known(&workspace, &fan_out)).0
    });
    let (known, records) = (Blobs::of(bench.tree, &blobs), Records::of(&folder));
    let proving: Contender<'_> = Box::new(|| {
        let workspace = latest();
        timed(|| duties::store_known(&workspace, &known, &records)).0
    });
    let [larder, floor, proving] = take_turns(bench.options.pairs, [larder, floor, proving]);
    let against = ("2 threads: read, hash, stat of blob", bench.on_ext4(1.3));
    bench.line(report, row, against, (&larder, &floor), &bench.tree.setting);
    let against = ("the same, checks files, blobs, writes", Bound::Information);
    bench.line(report, row, against, (&larder, &proving), &bench.tree.setting);
    drop(cache);
    copies.borrow().iter().chain([&folder, &blobs]).for_each(|folder| remove(folder));
}

pub(super) fn again(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let (folder, cache) = bench.store_with(bench.source());
    store(&cache, TASK, bench.source());
    let larder: Contender<'_> = Box::new(|| timed(|| store(&cache, TASK, bench.source())).0);
    let root = bench.source().join(ROOT);
    let walk = |threads| -> Contender<'_> {
        let root = &root;
        Box::new(move || timed(|| walk_and_stat(root, threads)).0)
    };
    let blobs = bench.fresh("blobs");
    floor::store(bench.source(), &floor::make_fan_out(&blobs), Publish::Link);
    let (known, records) = (Blobs::of(bench.tree, &blobs), Records::of(&folder));
    let proving: Contender<'_> =
        Box::new(|| timed(|| duties::store_again(bench.source(), &known, &records)).0);
    let [larder, alone, together, proving] =
        take_turns(bench.options.pairs, [larder, walk(1), walk(THREADS), proving]);
    let done = &bench.tree.setting;
    let against = ("1 thread: readdir, stat", bench.on_ext4(2.0));
    bench.line(report, row, against, (&larder, &alone), done);
    let against = ("2 threads: readdir, stat", Bound::Information);
    bench.line(report, row, against, (&larder, &together), done);
    let against = ("the same, proves blobs, reads, writes", Bound::Information);
    bench.line(report, row, against, (&larder, &proving), done);
    drop(cache);
    remove(&folder);
    remove(&blobs);
}

pub(super) fn large_by_reflink(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    if bench.way != Way::Clone {
        return;
    }
    let files = bench.large_files();
    let has_program = Command::new("b3sum")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let floor: Contender<'_> = if has_program {
        let files = &files;
        let threads = THREADS.to_string();
        Box::new(move || {
            let mut command = Command::new("b3sum");
            command.args(["--num-threads", &threads]).args(files);
            timed(|| run(&mut command)).0
        })
    } else {
        Box::new(|| timed(|| floor::hash_large(&files)).0)
    };
    let larder = bench.in_store(Durability::Relaxed, |cache| store(cache, TASK, bench.large()));
    let cloning = bench.in_folder(|folder| duties::clone_and_hash(&files, folder));
    let [larder, floor, cloning] = take_turns(bench.options.pairs, [larder, floor, cloning]);
    let name = if has_program {
        "b3sum --num-threads 2"
    } else {
        "no b3sum: read and hash, in this process"
    };
    let done = &stored_once(bench, bench.large());
    bench.line(report, row, (name, Bound::Ratio(1.3)), (&larder, &floor), done);
    let against = ("2 threads: FICLONE, read, hash", Bound::Information);
    bench.line(report, row, against, (&larder, &cloning), done);
}

/// Writing hundreds of megabytes takes one of two times, so the shortest are compared, and what the
/// processor did.
pub(super) fn large_by_copy(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    const ROUNDS: usize = 9;
    if bench.way != Way::Link {
        return;
    }
    let files = bench.large_files();
    let own = RefCell::new(Vec::new());
    let children = RefCell::new(Vec::new());
    let larder = bench.in_store(Durability::Relaxed, |cache| {
        let before = ProcessorTime::now().own;
        let stored = store(cache, TASK, bench.large());
        own.borrow_mut().push(ProcessorTime::now().own.saturating_sub(before));
        stored
    });
    let copied = bench.in_folder(|folder| {
        let before = ProcessorTime::now().children;
        run(Command::new("cp").args(&files).arg(folder));
        children.borrow_mut().push(ProcessorTime::now().children.saturating_sub(before));
    });
    let [larder, copied] = take_turns(bench.rounds(ROUNDS), [larder, copied]);
    let done = &stored_once(bench, bench.large());
    let mut line = |measure, bound, figure, larder, floor| {
        let bound = Bound::Ratio(bound);
        report.add(&Line { place: bench.name, row, measure, bound, figure, larder, floor, done });
    };
    line("cp, minima", 1.2, Figure::Minimum, &larder, &copied);
    let (own, children) = (Samples::new(own.take()), Samples::new(children.take()));
    line("cp, processor time", 1.6, Figure::Median, &own, &children);
}

/// What a store of this workspace does, in words.
fn stored_once(bench: &Bench<'_>, workspace: &Path) -> String {
    let folder: PathBuf = bench.fresh("store");
    let cache = open(&folder, Durability::Relaxed);
    let Stored { files, bytes, new_blobs, new_bytes, .. } = store(&cache, TASK, workspace);
    drop(cache);
    remove(&folder);
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    format!(
        "{files} files, {:.1} MB; {new_blobs} new blobs, {:.1} MB",
        megabytes(bytes),
        megabytes(new_bytes)
    )
}
