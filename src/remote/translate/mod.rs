//! What entries look like on a server of the Remote Execution API, and back.
//!
//! Pure: messages in, messages out; whoever calls fetches and uploads. The protocol knows results of
//! actions, an action being what would be executed. A task of ours is an action that nobody executes
//! ([`action_of`]); its entry is the action's result, in terms that every client understands
//! ([`describe`]), with our manifest as a blob beside it. A result without one, of another client or of a
//! server that has lost it, is an entry all the same ([`Reading`]).
//!
//! Invariants:
//! - The same task, and the same entry, make the same bytes: nothing here depends on the machine, the
//!   time, or the order of anything, but the delta ([`Delta`]) on what was sent before.
//! - A result is as untrusted as bytes from disk. Before anything large is fetched, every path has been
//!   checked, and nothing that a result claims takes more memory than [`read::ENTRY_BYTES_MAX`].
//! - A message is taken only if it has the digest under which it was asked for.

mod action;
mod delta;
mod describe;
mod entry;
mod error;
#[cfg(any(fuzzing, larder_rigs))]
mod fuzzing;
mod parts;
mod read;
mod riders;
mod tree;
mod wire;

pub(crate) use action::action_of;
pub(crate) use delta::Delta;
pub(crate) use describe::{DescribeError, Naming, describe};
pub(crate) use entry::ForeignEntry;
#[cfg(any(fuzzing, larder_rigs))]
pub(crate) use fuzzing::{check_described, read_pieces};
pub(crate) use read::{ENTRY_BYTES_MAX, Reading};
pub(crate) use riders::{add_delta, riders_of};

use super::digests::RemoteDigest;

/// The fields of a `Tree`.
const TREE_ROOT: u8 = 1;
const TREE_CHILD: u8 = 2;

/// Hashes a message as the server does.
pub(crate) type Hash<'a> = &'a (dyn Fn(&[u8]) -> RemoteDigest + Sync);

#[cfg(test)]
mod tests;
