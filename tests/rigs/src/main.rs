//! Rigs that try to break Larder's guarantees, and the processes that they start.
//!
//! `larder-rigs RIG [--seed N] [--count N] [--directory DIR] [--leave-out STEP]` runs one rig until it
//! has done so much, and ends with one line of figures ([`report`]). The exit status is 1 if a
//! guarantee was broken; else 3 if the rig, or a part of it, cannot work here (1 with `REQUIRE_RIGS=1`).
//!
//! More words are for the rigs themselves: `work` is a process that uses a store and tells what it
//! does, `check` one that reads a store back and compares it with what was told; `scene` and `verdict`
//! are the same for a single operation with a fault in it.

mod calls;
mod check;
mod crew;
mod devices;
mod hostile;
mod index;
mod inject;
mod judge;
mod live;
mod mutations;
mod options;
mod power;
mod report;
mod rot;
mod shortage;
mod small;
mod sources;
mod swap;
mod tale;
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let rig = words.next().unwrap_or_default();
    let ended = options::Options::parse(words).and_then(|options| match rig.as_str() {
        "work" => work::work(&options),
        "check" => check::check(&options),
        "index" => index::run(&options),
        "index-states" => index::run_states(&options),
        "rot" => rot::run(&options),
        "rot-states" => rot::run_states(&options),
        "calls" => calls::run(&options),
        "small" => small::run(&options),
        "scene" => calls::scenes::scene(&options),
        "verdict" => calls::verdict::verdict(&options),
        "live" => live::run(&options),
        "mutations" => mutations::run(&options),
        "power" => power::run(&options),
        "sources" => sources::run(&options),
        "swap" => swap::run(&options),
        _ => Err(format!("there is no rig {rig:?}").into()),
    });
    match ended {
        Ok(report) => report.finish(&rig),
        Err(error) => {
            eprintln!("{rig}: {error}");
            ExitCode::from(2)
        }
    }
}
