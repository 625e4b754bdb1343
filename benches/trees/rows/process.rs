//! The command, as a process of its own.

use crate::trees::bench::{Bench, open, remove, run, task};
use crate::trees::duties::{self, Records};
use crate::trees::measure::{Contender, take_turns, timed};
use crate::trees::report::{Bound, Report};
use crate::trees::walk::walk_and_stat;
use crate::trees::workload::{ROOT, THREADS};
use larder::{CacheEntry, Cancel, Durability};
use std::path::Path;
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");

pub(super) fn check(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    const KEY: &str = "key";
    const PAIRS: usize = 41;
    let store = bench.fresh("store");
    let cache = open(&store, Durability::Relaxed);
    let entry = CacheEntry::new(0, 41_200).with_stdout("done\n");
    cache.store(&task(KEY), &entry, &Cancel::new()).expect("stored");
    drop(cache);
    let larder: Contender<'_> = Box::new(|| {
        let mut command = larder();
        command.arg("check").arg("--store").arg(&store).arg(KEY);
        timed(|| run(&mut command)).0
    });
    let floor: Contender<'_> = Box::new(|| timed(|| run(&mut Command::new("/bin/true"))).0);
    let [larder, floor] = take_turns(bench.rounds(PAIRS), [larder, floor]);
    let against = ("/bin/true, difference", Bound::MoreMilliseconds(3.0));
    bench.line(report, row, against, (&larder, &floor), "hit");
    remove(&store);
}

pub(super) fn run_hit(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let workspace = bench.write_tree();
    let store = bench.fresh("store");
    // The first is a miss, and what the later ones learn about the inputs serves the rest.
    for _ in 0..2 {
        run(run_command(&workspace, &store).stderr(Stdio::null()));
    }
    let last = run_command(&workspace, &store).output().expect("the program can be started");
    let told = String::from_utf8_lossy(&last.stderr);
    assert!(told.contains("\"hit\""), "the third run is a hit: {told}");
    let larder: Contender<'_> =
        Box::new(|| timed(|| run(run_command(&workspace, &store).stderr(Stdio::null()))).0);
    let root = workspace.join(ROOT);
    let walk = |threads| -> Contender<'_> {
        let root = &root;
        Box::new(move || timed(|| walk_and_stat(root, threads)).0)
    };
    let (records, key_bytes) = (Records::of(&store), duties::key_bytes(bench.tree));
    let keyed: Contender<'_> = Box::new(|| {
        timed(|| {
            run(&mut Command::new("/bin/true"));
            records.read_ledger();
            walk_and_stat(&root, THREADS);
            std::hint::black_box(blake3::hash(&key_bytes));
        })
        .0
    });
    let [larder, alone, together, keyed] =
        take_turns(bench.options.pairs, [larder, walk(1), walk(THREADS), keyed]);
    let done = format!("{} of input, unchanged; 1 output in place", bench.tree.setting);
    let against = ("1 thread: readdir, stat of inputs", bench.on_ext4(2.0));
    bench.line(report, row, against, (&larder, &alone), &done);
    let against = ("2 threads: readdir, stat of inputs", Bound::Information);
    bench.line(report, row, against, (&larder, &together), &done);
    // A process has to start; the ledger and the key are hashed (sections 2, 4.7 of DESIGN.md).
    let against = ("the same, ledger, key, and /bin/true", Bound::Information);
    bench.line(report, row, against, (&larder, &keyed), &done);
    remove(&workspace);
    remove(&store);
}

fn run_command(workspace: &Path, store: &Path) -> Command {
    let mut command = larder();
    command.args(["run", "--json", "--input", ROOT, "--output", "built"]);
    command.arg("--store").arg(store).current_dir(workspace);
    command.args(["--", "sh", "-c", "echo built > built"]);
    command
}

/// The program, with no settings of the person who runs the benchmark.
fn larder() -> Command {
    let mut command = Command::new(PROGRAM);
    for variable in ["DIR", "DURABILITY", "LINK_MODE", "MTIME", "VERIFY", "POLICY"] {
        command.env_remove(format!("LARDER_{variable}"));
    }
    command
}
