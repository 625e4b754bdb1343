//! A line between two machines.

use crate::common::random::{Random, contents};
use crate::common::{Tree, TreeCounts, place};
use crate::faults::{FaultProxy, Network};
use crate::report::Report;
use larder::Digest;
use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LINE_BITS_PER_SECOND: f64 = 100e6;
const BUCKET: &str = "root tbf rate 100mbit burst 64kb latency 200ms";
const DELAY: Duration = Duration::from_millis(50);
const COUNTS: TreeCounts = TreeCounts { files: 20_000, folders: 1_500 };
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// One file in so many is another in the second build.
const CHANGED_ONE_IN: usize = 100;

/// Whether namespaces and token buckets can be had.
pub(crate) fn is_possible() -> bool {
    let probe = format!("larder-probe-{}", std::process::id());
    let commands = [
        format!("ip netns add {probe}"),
        format!("ip -n {probe} link add one type veth peer name other"),
        format!("tc -n {probe} qdisc add dev one {BUCKET}"),
    ];
    let is_root = rustix::process::geteuid().is_root();
    let is_possible = is_root && commands.iter().all(|command| try_run(command));
    if is_root {
        try_run(&format!("ip netns del {probe}"));
    }
    is_possible
}

/// A machine: a namespace with a line to the server.
struct Machine {
    namespace: String,
    interface: String,
    proxy: FaultProxy,
    store: PathBuf,
}

impl Machine {
    fn new(number: u8, server: SocketAddr, folder: &Path) -> Machine {
        let id = std::process::id() % 10_000;
        let (namespace, interface) = (format!("larder-{id}-{number}"), format!("lr{id}{number}"));
        let (ours, theirs) = (format!("10.77.{number}.1"), format!("10.77.{number}.2"));
        for command in [
            format!("ip netns add {namespace}"),
            format!("ip link add {interface} type veth peer name line netns {namespace}"),
            format!("ip addr add {ours}/24 dev {interface}"),
            format!("ip link set {interface} up"),
            format!("ip -n {namespace} addr add {theirs}/24 dev line"),
            format!("ip -n {namespace} link set line up"),
            format!("ip -n {namespace} link set lo up"),
            format!("tc qdisc add dev {interface} {BUCKET}"),
            format!("tc -n {namespace} qdisc add dev line {BUCKET}"),
        ] {
            run(&command);
        }
        let network = Network { delay: DELAY, ..Network::default() };
        let proxy = FaultProxy::start_on(&format!("{ours}:0"), server, network);
        let store = folder.join(format!("store-{number}"));
        Machine { namespace, interface, proxy, store }
    }

    /// Runs the command in this machine's network; returns how long it took.
    fn larder(&self, at: &Path, arguments: &[&str], is_remote: bool) -> Duration {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, env!("CARGO_BIN_EXE_larder")]);
        command.args(arguments).current_dir(at).env("LARDER_DIR", &self.store);
        if is_remote {
            command.env("LARDER_REMOTE", self.proxy.url());
            command.env("LARDER_REMOTE_ACCESS", "read-write");
        }
        let begun = Instant::now();
        let output = command.stdin(Stdio::null()).output().expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{arguments:?}: {error}");
        begun.elapsed()
    }

    /// What has passed on the line, both directions, with all headers.
    fn bytes(&self) -> u64 {
        let count = |name: &str| -> u64 {
            let path = format!("/sys/class/net/{}/statistics/{name}", self.interface);
            fs::read_to_string(path).expect("it is there").trim().parse().expect("a number")
        };
        count("rx_bytes") + count("tx_bytes")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        try_run(&format!("ip link del {}", self.interface));
        try_run(&format!("ip netns del {}", self.namespace));
    }
}

pub(crate) fn measure(server: SocketAddr, report: &mut Report) {
    let folder = place();
    let tree = Tree::of(place(), COUNTS, SEED);
    let contents_bytes = distinct_bytes(&tree.root());
    let line_seconds = contents_bytes as f64 * 8.0 / LINE_BITS_PER_SECOND;
    let (a, b) = (Machine::new(1, server, folder.path()), Machine::new(2, server, folder.path()));
    let there = folder.path().join("there");
    fs::create_dir(&there).expect("made");
    let key = |word: &str| format!("{word} {}", std::process::id());
    let (first, second) = (key("first"), key("second"));

    a.larder(tree.workspace(), &["store", &first, "-o", "tree"], false);
    let before = a.bytes();
    let pushed = a.larder(tree.workspace(), &["push", &first], true);
    report.tell("contents of the tree, each once", megabytes(contents_bytes), "MB");
    report.tell("the line's own time for them", line_seconds, "s");
    report.tell("push of the tree, time", pushed.as_secs_f64(), "s");
    report.tell(
        "push of the tree, against the line's own time",
        pushed.as_secs_f64() / line_seconds,
        "×",
    );
    report.tell("push of the tree, bytes on the line", megabytes(a.bytes() - before), "MB");

    let before = b.bytes();
    let pulled = b.larder(&there, &["restore", &first], true);
    assert_same(&tree.root(), &there.join("tree"));
    let ratio = pulled.as_secs_f64() / line_seconds;
    report.tell("restore through the tier, time", pulled.as_secs_f64(), "s");
    report.hold("restore through the tier, against the line's own time", ratio, "×", 1.3);
    report.tell("restore through the tier, bytes on the line", megabytes(b.bytes() - before), "MB");

    let before = b.bytes();
    let again = folder.path().join("again");
    fs::create_dir(&again).expect("made");
    let hit = b.larder(&again, &["restore", &first], true);
    report.tell("restore elsewhere on that machine, time", hit.as_secs_f64(), "s");
    report.hold("restore elsewhere, bytes on the line", (b.bytes() - before) as f64, "B", 0.0);

    let changed = change(&tree.root());
    report.tell("files that the next build changes", changed as f64, "");
    a.larder(tree.workspace(), &["store", &second, "-o", "tree"], false);
    let before = a.bytes();
    let pushed = a.larder(tree.workspace(), &["push", &second], true);
    let share = |bytes: u64| bytes as f64 / contents_bytes as f64 * 100.0;
    report.tell("push of that, time", pushed.as_secs_f64(), "s");
    report.tell("push of that, bytes on the line, of the tree's", share(a.bytes() - before), "%");
    let before = b.bytes();
    let pulled = b.larder(&there, &["restore", &second], true);
    assert_same(&tree.root(), &there.join("tree"));
    report.tell("restore of that, time", pulled.as_secs_f64(), "s");
    report.hold(
        "restore of that, bytes on the line, of the tree's",
        share(b.bytes() - before),
        "%",
        2.0,
    );
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Gives some files other contents of the same size.
fn change(root: &Path) -> usize {
    let mut random = Random(SEED ^ 1);
    let mut files: Vec<PathBuf> = files(root).into_keys().collect();
    files.sort();
    let mut count = 0;
    for path in files.into_iter().step_by(CHANGED_ONE_IN) {
        let size_bytes = fs::metadata(&path).expect("there").len() as usize;
        fs::write(&path, contents(random.bits(), size_bytes)).expect("ours");
        count += 1;
    }
    count
}

fn distinct_bytes(root: &Path) -> u64 {
    let distinct: HashMap<Digest, u64> = files(root).into_values().collect();
    distinct.into_values().sum()
}

fn assert_same(one: &Path, other: &Path) {
    let relative = |root: &Path| -> HashMap<PathBuf, (Digest, u64)> {
        let strip = |path: PathBuf| path.strip_prefix(root).expect("below").to_path_buf();
        files(root).into_iter().map(|(path, digest)| (strip(path), digest)).collect()
    };
    assert!(relative(one) == relative(other), "what came is what was sent");
}

/// The files below a directory, their digests and sizes.
fn files(root: &Path) -> HashMap<PathBuf, (Digest, u64)> {
    let mut found = HashMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a directory") {
            let path = entry.expect("listed").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).expect("a file");
                found.insert(path, (Digest::of(&bytes), bytes.len() as u64));
            }
        }
    }
    found
}

fn run(command: &str) {
    assert!(try_run(command), "{command}");
}

fn try_run(command: &str) -> bool {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    let done = command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}
