//! The command `larder` with a server behind its store: three commands to a shared hit, outages, secrets,
//! deaths in the middle of an upload.

#![cfg(feature = "cli")]

#[path = "common/faults.rs"]
mod faults;
#[path = "common/reapi/mod.rs"]
mod reapi_server;

use faults::{FaultProxy, Network, NetworkFault};
use reapi_server::{FakeServer, Method, WriteFault};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The command, or the copy of it that an ordinary user can reach.
fn larder() -> String {
    let place = std::env::var("LARDER_TEST_COMMAND");
    place.unwrap_or_else(|_| env!("CARGO_BIN_EXE_larder").to_owned())
}

/// A machine: a checkout, a store, and nothing else.
struct Machine {
    folder: TempDir,
}

/// What a command did.
#[derive(Debug)]
struct Did {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

const BUILD: [&str; 8] = ["-i", "src", "-o", "out", "--", "sh", "-c", SCRIPT];
const SCRIPT: &str = "echo ran >> ../count; mkdir -p out; tr a-z A-Z < src/a.txt > out/a.txt; \
     head -c 6000000 /dev/zero | tr '\\0' x > out/large; echo built; echo careful >&2";

impl Machine {
    fn new() -> Machine {
        let machine = Machine { folder: tempfile::tempdir().expect("a temporary folder") };
        fs::create_dir_all(machine.path("checkout/src")).expect("made");
        fs::write(machine.path("checkout/src/a.txt"), "alpha\n").expect("written");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(larder());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LARDER_") {
                command.env_remove(name);
            }
        }
        command.current_dir(self.path("checkout")).env("LARDER_DIR", self.path("store"));
        command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
        command
    }

    fn call(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Did {
        let output = self.command(arguments, variables).output().expect("it starts");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Did { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// `larder run` of the same build.
    fn build(&self, variables: &[(&str, &str)]) -> Did {
        let did = self.call(&[&["run"], &BUILD[..]].concat(), variables);
        assert_eq!((did.code, &*did.stdout), (Some(0), "built\n"), "{did:?}");
        let built = fs::read_to_string(self.path("checkout/out/a.txt"));
        assert_eq!(built.expect("the output is there"), "ALPHA\n");
        did
    }

    /// How often the build ran here.
    fn count(&self) -> usize {
        fs::read_to_string(self.path("count")).map_or(0, |text| text.lines().count())
    }

    fn waiting(&self) -> usize {
        fs::read_dir(self.path("store/uploads")).map_or(0, Iterator::count)
    }
}

fn writing(url: &str) -> [(&str, &str); 2] {
    [("LARDER_REMOTE", url), ("LARDER_REMOTE_ACCESS", "read-write")]
}

#[test]
fn what_one_machine_built_another_gets() {
    let server = FakeServer::start();
    let (here, there) = (Machine::new(), Machine::new());
    here.build(&writing(&server.url()));
    assert_eq!((here.count(), here.waiting(), server.state().actions.len()), (1, 0, 1));
    let did = there.build(&[("LARDER_REMOTE", &server.url())]);
    assert_eq!(there.count(), 0, "a hit runs nothing: {did:?}");
    assert!(did.stderr.contains("careful") && did.stderr.contains("hit"), "{did:?}");
    let calls = server.state().calls.len();
    fs::remove_dir_all(there.path("checkout/out")).expect("removed");
    there.build(&[("LARDER_REMOTE", &server.url())]);
    assert_eq!((there.count(), server.state().calls.len()), (0, calls), "it is in the store now");
}

#[test]
fn the_checkout_alone_can_name_the_server() {
    let server = FakeServer::start();
    let settings = format!("[remote]\nurl = \"{}\"\naccess = \"read-write\"\n", server.url());
    let machines = [Machine::new(), Machine::new()];
    for machine in &machines {
        fs::write(machine.path("checkout/larder.toml"), &settings).expect("written");
        machine.build(&[]);
    }
    assert_eq!(machines.each_ref().map(Machine::count), [1, 0]);
    // And anybody can do without.
    fs::remove_dir_all(machines[1].path("store")).expect("removed");
    machines[1].build(&[("LARDER_REMOTE", "none")]);
    assert_eq!(machines[1].count(), 1);
}

#[test]
fn the_server_is_only_read_unless_writing_was_asked_for() {
    let server = FakeServer::start();
    let machine = Machine::new();
    machine.build(&[("LARDER_REMOTE", &server.url())]);
    assert!(server.state().actions.is_empty() && server.state().blobs.is_empty());
    assert_eq!(machine.waiting(), 0);
    let did = machine.call(&["push"], &[("LARDER_REMOTE", &server.url())]);
    assert!(did.code == Some(2) && did.stderr.contains("--remote-access"), "{did:?}");
}

#[test]
fn a_server_that_is_not_there_is_one_warning() {
    let server = FakeServer::start();
    let proxy = FaultProxy::start(
        server.address(),
        Network { fault: NetworkFault::Refuses, ..Network::default() },
    );
    let machine = Machine::new();
    let did = machine.build(&writing(&proxy.url()));
    let warnings = did.stderr.matches("without the remote server").count();
    assert_eq!(warnings, 1, "{did:?}");
    assert_eq!((machine.count(), machine.waiting()), (1, 1), "stored here, and it waits");
    // A hit here asks nobody.
    assert!(!machine.build(&writing(&proxy.url())).stderr.contains("remote"));
    let did = machine.call(&["remote", "status"], &writing(&proxy.url()));
    assert!(did.code != Some(0) && did.stdout.is_empty() && !did.stderr.is_empty(), "{did:?}");

    proxy.set(Network::default());
    let did = machine.call(&["push"], &writing(&proxy.url()));
    assert_eq!((did.code, machine.waiting()), (Some(0), 0), "{did:?}");
    assert!(did.stdout.contains("sent 1 result"), "{did:?}");
    let there = Machine::new();
    there.build(&writing(&proxy.url()));
    assert_eq!(there.count(), 0);
}

#[test]
fn the_end_of_a_run_waits_for_uploads_only_so_long() {
    let server = FakeServer::start();
    server.behave(|behaviour| behaviour.write = WriteFault::Hangs);
    let machine = Machine::new();
    let url = server.url();
    let variables = [&writing(&url)[..], &[("LARDER_REMOTE_UPLOAD_WAIT", "300ms")]].concat();
    let begun = Instant::now();
    machine.build(&variables);
    assert!(begun.elapsed() < Duration::from_secs(20), "the idle timeout is 30 s");
    assert_eq!(machine.waiting(), 1);
}

#[test]
fn who_is_killed_while_sending_has_lost_nothing() {
    let server = FakeServer::start();
    server.behave(|behaviour| behaviour.write = WriteFault::Hangs);
    let url = server.url();
    let machine = Machine::new();
    let arguments = [&["run"], &BUILD[..]].concat();
    let mut running = machine
        .command(&arguments, &writing(&url))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let ends = Instant::now() + Duration::from_secs(60);
    while server.count(Method::Write) == 0 {
        assert!(Instant::now() < ends, "it never sends");
        std::thread::sleep(Duration::from_millis(10));
    }
    running.kill().expect("it is ours");
    running.wait().expect("it was started");
    assert_eq!(machine.waiting(), 1);
    let did = machine.call(&["verify", "--json"], &[]);
    assert_eq!(did.code, Some(0), "the store is whole: {did:?}");
    // The entry is here, and the next one sends it.
    machine.build(&[]);
    assert_eq!(machine.count(), 1);
    server.behave(|behaviour| behaviour.write = WriteFault::None);
    let did = machine.call(&["push"], &writing(&url));
    assert_eq!((did.code, machine.waiting()), (Some(0), 0), "{did:?}");
    let there = Machine::new();
    there.build(&writing(&url));
    assert_eq!(there.count(), 0);
}

#[test]
fn status_says_what_the_server_can_do() {
    let server = FakeServer::start();
    server.claim(|cache| cache.digest_functions.push(9));
    let machine = Machine::new();
    let did = machine.call(&["remote", "status"], &writing(&server.url()));
    assert_eq!(did.code, Some(0), "{did:?}");
    for part in [&*server.url(), "BLAKE3", "takes results yes", "waiting"] {
        assert!(did.stdout.contains(part), "{part}: {did:?}");
    }
    let did = machine.call(&["--json", "remote", "status"], &[("LARDER_REMOTE", &server.url())]);
    let status: Value = serde_json::from_str(&did.stdout).expect("JSON");
    assert_eq!(
        (&status["digest_function"], &status["may_write"]),
        (&"BLAKE3".into(), &false.into())
    );
    assert!(status["latency_us"].as_u64().is_some_and(|time| time > 0), "{status}");
    let did = machine.call(&["remote", "status"], &[]);
    assert!(did.code == Some(2) && did.stderr.contains("LARDER_REMOTE"), "{did:?}");
}

#[test]
fn a_token_is_sent_and_never_shown() {
    let server = FakeServer::start();
    server.behave(|behaviour| behaviour.token = Some("hunter2".to_owned()));
    let machine = Machine::new();
    let file = machine.path("token");
    fs::write(&file, "hunter2\n").expect("written");
    let file = file.to_str().expect("text");
    let url = server.url();
    let with = |more: &[(&'static str, &'static str)]| [&writing(&url)[..], more].concat();
    let mut shown = String::new();
    for (variables, is_known) in [
        ([&writing(&url)[..], &[("LARDER_REMOTE_TOKEN_FILE", file)]].concat(), true),
        (with(&[("LARDER_REMOTE_TOKEN_COMMAND", "echo hunter2")]), true),
        (with(&[("LARDER_REMOTE_HEADERS", "authorization: Bearer hunter2")]), true),
        (with(&[("LARDER_REMOTE_TOKEN_COMMAND", "echo hunter3; echo hunter4 >&2")]), false),
        (with(&[("LARDER_REMOTE_HEADERS", "authorization: Bearer hunter5")]), false),
        (with(&[]), false),
    ] {
        server.state().actions.clear();
        let machine = Machine::new();
        let did = machine.call(&[&["-v", "run"], &BUILD[..]].concat(), &variables);
        assert_eq!(did.code, Some(0), "{did:?}");
        assert_eq!(server.state().actions.len(), usize::from(is_known), "{variables:?} {did:?}");
        let status = machine.call(&["remote", "status"], &variables);
        assert_eq!(status.code == Some(0), is_known, "{status:?}");
        shown += &[did.stdout, did.stderr, status.stdout, status.stderr].concat();
    }
    assert!(!shown.contains("hunter"), "{shown}");
}

#[test]
fn what_is_checked_out_cannot_ask_for_credentials() {
    let server = FakeServer::start();
    let machine = Machine::new();
    let settings = format!("[remote]\nurl = \"{}\"\naccess = \"read-write\"\n", server.url());
    fs::write(machine.path("checkout/larder.toml"), settings).expect("written");
    let secret = [("LARDER_REMOTE_TOKEN_COMMAND", "echo hunter2")];
    let did = machine.build(&secret);
    assert!(did.stderr.contains("LARDER_REMOTE names"), "{did:?}");
    assert!(server.state().calls.is_empty(), "nobody was asked");
    let did = machine.call(&["push"], &secret);
    assert_eq!(did.code, Some(2), "{did:?}");
    // By name it is meant.
    machine.call(&["remote", "status"], &[&secret[..], &writing(&server.url())].concat());
    assert!(!server.state().calls.is_empty());

    fs::write(machine.path("checkout/larder.toml"), "[remote]\ntoken = \"x\"\n").expect("written");
    let did = machine.call(&["remote", "status"], &[]);
    assert!(did.code == Some(2) && did.stderr.contains("token"), "there is no such key: {did:?}");
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    for (variables, word) in [
        (vec![("LARDER_REMOTE", "http://localhost")], "grpc://"),
        (vec![("LARDER_REMOTE", "grpc://user:pass@localhost")], "user"),
        (vec![("LARDER_REMOTE", "grpc://x"), ("LARDER_REMOTE_ACCESS", "all")], "read-only"),
        (vec![("LARDER_REMOTE", "grpc://x"), ("LARDER_REMOTE_IDLE_TIMEOUT", "soon")], "TIMEOUT"),
        (vec![("LARDER_REMOTE", "grpc://x"), ("LARDER_REMOTE_KEY_FILE", "k")], "together"),
        (vec![("LARDER_REMOTE", "grpc://x"), ("LARDER_REMOTE_HEADERS", "secret")], "no colon"),
    ] {
        let machine = Machine::new();
        let did = machine.call(&[&["run"], &BUILD[..]].concat(), &variables);
        assert_eq!((did.code, machine.count()), (Some(2), 0), "{variables:?}: {did:?}");
        assert!(did.stderr.contains(word), "{variables:?}: {did:?}");
        assert!(!did.stderr.contains("pass@") && !did.stderr.contains("secret"), "{did:?}");
    }
}

#[test]
fn the_other_commands_ask_the_server_too() {
    let server = FakeServer::start();
    let (here, there) = (Machine::new(), Machine::new());
    fs::create_dir(here.path("checkout/out")).expect("made");
    fs::write(here.path("checkout/out/a.txt"), "by hand\n").expect("written");
    let (url, reading) = (server.url(), [("LARDER_REMOTE", &*server.url())]);
    let did = here.call(&["store", "a key", "-o", "out"], &writing(&url));
    assert_eq!((did.code, server.state().actions.len()), (Some(0), 1), "{did:?}");
    let did = there.call(&["check", "another key"], &reading);
    assert_eq!((did.code, &*did.stdout), (Some(1), "miss\n"), "{did:?}");
    let did = there.call(&["check", "a key"], &reading);
    assert_eq!(did.code, Some(0), "{did:?}");
    let did = there.call(&["restore", "a key"], &reading);
    assert_eq!(did.code, Some(0), "{did:?}");
    let built = fs::read_to_string(there.path("checkout/out/a.txt")).expect("restored");
    assert_eq!(built, "by hand\n");
    // By its key, whether it waits or not.
    server.state().actions.clear();
    let did = there.call(&["push", "a key"], &writing(&url));
    assert_eq!((did.code, server.state().actions.len()), (Some(0), 1), "{did:?}");
    assert!(there.call(&["push", "another key"], &writing(&url)).code != Some(0));
}
