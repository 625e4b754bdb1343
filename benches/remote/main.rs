//! What the tier behind a store costs on a line between two machines, and what it bears.
//!
//! Two network namespaces, each with a store of its own, and one server. Each is joined to the server by a
//! pair of interfaces that let 100 Mbit/s through in each direction (`tc`, token bucket), and by a proxy that
//! holds each byte for 50 ms in each direction, so that a question and its answer take 100 ms. What is moved
//! is what the interfaces count, with all headers.
//!
//! Needs root, `ip` and `tc`, and a server: `LARDER_TEST_SERVERS` names it (`scripts/remote.sh` starts one).

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "it is a program that prints")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/common/faults.rs"]
mod faults;
#[path = "../growth/heap.rs"]
mod heap;
mod line;
mod memory;
mod report;
mod storms;

use report::Report;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;

/// What is asked of the program.
#[derive(Debug)]
struct Options {
    /// Where to write the page.
    page: Option<std::path::PathBuf>,
    /// How far beyond a bound a figure may be.
    slack: f64,
}

fn main() -> ExitCode {
    let mut options = Options { page: None, slack: 1.0 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            // There is nothing that runs in a moment.
            "--test" => return ExitCode::SUCCESS,
            "--write" => options.page = arguments.next().map(Into::into),
            "--slack" => {
                options.slack = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1.0);
            }
            other => {
                eprintln!("remote: {other:?} is no option");
                return ExitCode::from(2);
            }
        }
    }
    let Some((name, server)) = server() else {
        eprintln!("SKIPPED: LARDER_TEST_SERVERS names no server (scripts/remote.sh starts one)");
        return ExitCode::SUCCESS;
    };
    let mut report = Report::new(&name, options.slack);
    if line::is_possible() {
        line::measure(server, &mut report);
    } else {
        report.skip("the line between two machines: it needs root, ip and tc");
    }
    storms::weather(server, &mut report);
    memory::measure(server, &mut report);
    if let Some(page) = &options.page {
        std::fs::write(page, report.page()).expect("the page can be written");
    }
    if report.is_over() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The first server that is named.
fn server() -> Option<(String, SocketAddr)> {
    let servers = std::env::var("LARDER_TEST_SERVERS").ok()?;
    let (name, url) = servers.split(',').next()?.split_once('=')?;
    let host = url.strip_prefix("grpc://")?;
    let address = host.to_socket_addrs().ok()?.find(SocketAddr::is_ipv4)?;
    Some((name.to_owned(), address))
}
