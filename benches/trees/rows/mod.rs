//! The rows of the table, one group a file, and the order in which they come.

mod lookup;
mod process;
mod restore;
mod store;

use super::bench::Bench;
use super::options::{Options, Scale};
use super::report::{Report, say};
use super::workload::Tree;
use std::path::Path;
use std::process::ExitCode;

const USAGE: u8 = 2;

pub(crate) fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(reason) => {
            say(&format!("error: {reason}; benches/trees.rs lists the options"));
            return ExitCode::from(USAGE);
        }
    };
    if options.places.is_empty() && options.scale != Scale::Smoke {
        say("trees: SKIPPED: no filesystems; see scripts/bench.sh");
        return ExitCode::SUCCESS;
    }
    let tree = Tree::new(options.scale);
    say(&format!("W1: {}; {} pairs", tree.setting, options.pairs));
    let mut report = Report::new(&options);
    for (index, (name, folder)) in options.places.iter().enumerate() {
        run_at(name, &options, &tree, folder, index == 0, &mut report);
    }
    if options.places.is_empty() {
        run_at("any", &options, &tree, &std::env::temp_dir(), true, &mut report);
    }
    if report.end() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What hardly depends on the filesystem is measured on the first one only.
fn run_at(
    name: &str,
    options: &Options,
    tree: &Tree,
    folder: &Path,
    is_first: bool,
    report: &mut Report<'_>,
) {
    let folder = tempfile::Builder::new().prefix("larder-trees-").tempdir_in(folder);
    let folder = folder.expect("the place takes a new folder");
    let bench = Bench::new(name, options, tree, folder);
    let rows: [(&str, Row); 15] = [
        ("01 restore W1 hardlink", restore::hardlink),
        ("02 restore W1 reflink", restore::reflink),
        ("03 restore W1 auto", restore::auto),
        ("04 restore W3 auto", restore::target_folder),
        ("05 restore W1 in place", restore::in_place),
        ("06 store W1", store::unknown),
        ("07 store W1 durable", store::durable),
        ("08 store W1 known", store::known),
        ("09 store W1 again", store::again),
        ("10 store W2 reflink", store::large_by_reflink),
        ("11 store W2 copy", store::large_by_copy),
        ("12 restore W2 auto", restore::large),
        ("15 check process", process::check),
        ("16 run hit", process::run_hit),
        // Last, because it ends with a mass deletion.
        ("13 14 lookup and check", lookup::lookup),
    ];
    let of_first = ["13 14 lookup and check", "15 check process"];
    for (row, measure) in rows {
        if options.selects(row) && (is_first || !of_first.contains(&row)) {
            measure(&bench, row, report);
        }
    }
}

type Row = fn(&Bench<'_>, &str, &mut Report<'_>);
