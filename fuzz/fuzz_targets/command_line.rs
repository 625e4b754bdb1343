//! No line of words makes the parser of the command panic; what it takes, it takes once more.
//!
//! The words are divided by NUL. They are parsed only: nothing is run.

#![no_main]
#![expect(dead_code, reason = "the fields are read by the command")]

#[path = "../../src/cli/args.rs"]
mod args;
#[path = "../../src/cli/limits.rs"]
mod limits;

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

fuzz_target!(|data: &[u8]| {
    let words = || {
        std::iter::once(OsStr::new("larder"))
            .chain(data.split(|byte| *byte == 0).map(OsStr::from_bytes))
    };
    match args::Args::try_parse_from(words()) {
        Ok(parsed) => {
            let again = args::Args::try_parse_from(words());
            let again = again.expect("what was taken once is taken again");
            assert_eq!(format!("{parsed:?}"), format!("{again:?}"));
        }
        // What is said is made of the words, and is always a text.
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
