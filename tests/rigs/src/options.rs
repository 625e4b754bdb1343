//! What a rig is told on its command line, and what all rigs share: dice, and the end of a rig that
//! cannot work here.

use crate::report::Report;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

pub(crate) type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// The variable that names steps of the protocol to leave out, read by a Larder that was built with
/// `--cfg larder_rigs`.
pub(crate) const LEAVE_OUT: &str = "LARDER_RIGS_LEAVE_OUT";

/// The variable that names the boot, read by the same: a store that is opened under another one than
/// the one before believes that there was a power cut.
pub(crate) const BOOT: &str = "LARDER_RIGS_BOOT";

/// Whether this process does without a step of its rig's own.
pub(crate) fn is_left_out(step: &str) -> bool {
    static LEFT_OUT: OnceLock<String> = OnceLock::new();
    LEFT_OUT.get_or_init(|| std::env::var(LEAVE_OUT).unwrap_or_default()) == step
}

/// The words after the name of the rig.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Which way a rig with dice goes; the same seed goes the same way.
    pub(crate) seed: u64,
    /// How much is to be done: images, faults, kills, states.
    pub(crate) count: Option<u64>,
    /// Where: a folder that may be filled with anything.
    pub(crate) directory: Option<PathBuf>,
    /// What kind of work, for `work`; of filesystem, for rigs that mount some.
    pub(crate) kind: String,
    /// The step that is left out, to see that the rig finds it.
    pub(crate) leave_out: Option<String>,
    /// The store, for `work` and `check`.
    pub(crate) store: PathBuf,
    /// What was told, for `check`.
    pub(crate) tale: PathBuf,
    pub(crate) is_durable: bool,
    /// Whether the store may only be read, for `check`.
    pub(crate) is_read_only: bool,
    /// Whether each end of an operation waits for a line on the standard input.
    pub(crate) waits: bool,
    /// Which system call goes wrong, for `scene`: `CALL:N:FAULT`.
    pub(crate) fault: Option<String>,
}

impl Options {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Options> {
        let mut options = Options { seed: 1, kind: "mixed".to_owned(), ..Options::default() };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--seed" => options.seed = value()?.parse()?,
                "--count" => options.count = Some(value()?.parse()?),
                "--directory" => options.directory = Some(value()?.into()),
                "--kind" => options.kind = value()?,
                "--leave-out" => options.leave_out = Some(value()?),
                "--store" => options.store = value()?.into(),
                "--tale" => options.tale = value()?.into(),
                "--durable" => options.is_durable = true,
                "--fault" => options.fault = Some(value()?),
                "--read-only" => options.is_read_only = true,
                "--waits" => options.waits = true,
                _ => return Err(format!("{word} is not known").into()),
            }
        }
        Ok(options)
    }

    /// Makes a process do without the step that is left out.
    pub(crate) fn leave_out_of(&self, command: &mut Command) {
        if let Some(step) = &self.leave_out {
            command.env(LEAVE_OUT, step);
        }
    }

    /// Whether a rig may end early: with a step left out, one violation is all that is asked for.
    pub(crate) fn is_satisfied(&self, report: &Report) -> bool {
        self.leave_out.is_some() && report.violations() > 0
    }
}

/// The same numbers for the same seed (Marsaglia, Xorshift RNGs, 2003).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        let mut dice = Dice(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        dice.below(2);
        dice
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    pub(crate) fn bytes(&mut self, length_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length_bytes + 8);
        while bytes.len() < length_bytes {
            bytes.extend_from_slice(&self.below(u64::MAX).to_le_bytes());
        }
        bytes.truncate(length_bytes);
        bytes
    }
}
