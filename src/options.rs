//! What a caller can choose, with units, defaults and reasons.

use crate::disk::Capabilities;
use crate::signature::{SigningKey, TrustedKey, WriterName};
use std::fmt;
use std::str::FromStr;

/// How a store is opened.
///
/// # Examples
/// ```
/// use larder::{CacheOptions, Durability};
/// let options = CacheOptions::default().with_durability(Durability::Durable);
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CacheOptions {
    /// What a power cut may cost. Default: [`Durability::Relaxed`].
    pub durability: Durability,
    /// Memory for pages of the index, in bytes. Default: 16 MiB, which holds the upper levels of
    /// an index of millions of tasks; the crate's own default would be 1 GiB. At 0 each lookup
    /// reads from the page cache of the system.
    pub index_cache_bytes: usize,
    /// How large the store may become. Default: [`Limits::default`].
    pub limits: Limits,
    /// Whom a store is for that is made now. One that is there says so by itself. Default:
    /// [`Sharing::Private`].
    pub sharing: Sharing,
    /// What becomes of a store on a network filesystem. Default: [`Network::Refuse`].
    pub network: Network,
    /// Signs what is stored. Default: none. What is stored is read, whatever a ledger says of it.
    pub signing: Option<SigningKey>,
    /// Whose entries count: with none, everybody's. With some, what none of them has signed is a miss
    /// and is left alone; every blob is hashed before use ([`VerifyLevel::Content`]), and files in
    /// workspaces are read again, because stamps and ledgers are only the store's word. From a store
    /// that is shared everything comes back as a copy. Default: none.
    pub trusted: Vec<TrustedKey>,
    /// Whom entries name as their writer. Default: nobody.
    pub writer: Option<WriterName>,
    /// Which system calls may be used. Default: all; missing ones are found by trying.
    pub capabilities: Capabilities,
}

impl Default for CacheOptions {
    fn default() -> CacheOptions {
        CacheOptions {
            durability: Durability::Relaxed,
            index_cache_bytes: 16 << 20,
            limits: Limits::default(),
            sharing: Sharing::Private,
            network: Network::Refuse,
            signing: None,
            trusted: Vec::new(),
            writer: None,
            capabilities: Capabilities::all(),
        }
    }
}

impl CacheOptions {
    /// Replaces the durability.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> CacheOptions {
        self.durability = durability;
        self
    }

    /// Replaces the size of the index's page cache.
    #[must_use]
    pub fn with_index_cache_bytes(mut self, index_cache_bytes: usize) -> CacheOptions {
        self.index_cache_bytes = index_cache_bytes;
        self
    }

    /// Replaces the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> CacheOptions {
        self.limits = limits;
        self
    }

    /// Replaces whom a new store is for.
    #[must_use]
    pub fn with_sharing(mut self, sharing: Sharing) -> CacheOptions {
        self.sharing = sharing;
        self
    }

    /// Replaces what becomes of a store on a network filesystem.
    #[must_use]
    pub fn with_network(mut self, network: Network) -> CacheOptions {
        self.network = network;
        self
    }

    /// Replaces the key that signs.
    #[must_use]
    pub fn with_signing(mut self, signing: SigningKey) -> CacheOptions {
        self.signing = Some(signing);
        self
    }

    /// Replaces the keys whose entries count.
    #[must_use]
    pub fn with_trusted(mut self, trusted: impl IntoIterator<Item = TrustedKey>) -> CacheOptions {
        self.trusted = trusted.into_iter().collect();
        self
    }

    /// Replaces whom entries name as their writer.
    #[must_use]
    pub fn with_writer(mut self, writer: WriterName) -> CacheOptions {
        self.writer = Some(writer);
        self
    }

    /// Replaces the capabilities: to test a fallback.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> CacheOptions {
        self.capabilities = capabilities;
        self
    }
}

/// How large a store may become. Enforced by whoever has stored something, when nobody waits for it
/// ([`crate::Cache::maintain`]): entries go, those worth least first, until the store is below 90 %
/// of the limit that was exceeded.
///
/// # Examples
/// ```
/// use larder::{CacheOptions, Limit, Limits};
/// let limits = Limits::default().with_size_bytes_max(Limit::At(1 << 30));
/// let options = CacheOptions::default().with_limits(limits);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Limits {
    /// Blocks on disk of everything in the store, in bytes. Default: a tenth of the filesystem, at
    /// most 50 GiB.
    pub size_bytes_max: Limit,
    /// What is to be left free on the filesystem, in bytes. Default: a hundredth of it, at most
    /// 1 GiB.
    pub free_bytes_min: Limit,
    /// Blobs and entries. Default: any number.
    pub inodes_max: Option<u64>,
    /// Since an entry was last used, in seconds. Default: any time. Looked at once an hour.
    pub age_seconds_max: Option<u64>,
}

impl Limits {
    /// Replaces the largest size.
    #[must_use]
    pub fn with_size_bytes_max(mut self, size_bytes_max: Limit) -> Limits {
        self.size_bytes_max = size_bytes_max;
        self
    }

    /// No limits at all.
    pub fn none() -> Limits {
        Limits { size_bytes_max: Limit::None, free_bytes_min: Limit::None, ..Limits::default() }
    }
}

/// A limit that has a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Limit {
    /// What the filesystem suggests.
    #[default]
    Default,
    /// None.
    None,
    /// This.
    At(u64),
}

/// What a power cut may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Only the index is synced. Entries of the last minutes may be lost in a power cut; what may
    /// have been hit is rehashed at its first use, so wrong bytes are never restored.
    #[default]
    Relaxed,
    /// When a store returns, its entry and all its blobs survive a power cut: one syncfs, noted
    /// durably, for many blobs; for a few, one fsync for each and for each touched folder.
    Durable,
}

/// Whom a store is for. Noted in the mode of its directory when it is made, so that later opens
/// need no option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Sharing {
    /// Whoever makes it; but in an empty directory that is set-group-id, open to its group and closed
    /// to others (mode 02770), that group.
    #[default]
    Private,
    /// The group of its directory. Its members read, store and evict, and can poison each other's
    /// entries. An existing store that is private is refused.
    Group,
}

/// What becomes of a store on a filesystem that other machines may use, where locks and times may not
/// hold between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Network {
    /// It is refused.
    #[default]
    Refuse,
    /// It does less: everything comes back as a copy whose bytes were hashed, there is no index, and
    /// limits are not kept. Only [`crate::Cache::evict`], [`crate::Cache::scrub`] with repair and
    /// [`crate::destroy`] remove something; no other machine may use the store meanwhile.
    Reduced,
}

/// How a restore goes about it.
///
/// # Examples
/// ```
/// use larder::{LinkMode, RestoreOptions};
/// let options = RestoreOptions::default().with_link_mode(LinkMode::Copy);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct RestoreOptions {
    /// How files are materialized. Default: [`LinkMode::Auto`].
    pub link_mode: LinkMode,
    /// Which modification times files get. Default: [`MtimeMode::Recorded`].
    pub mtime_mode: MtimeMode,
    /// What is believed of a blob. Default: [`VerifyLevel::Stamp`].
    pub verify_level: VerifyLevel,
}

impl RestoreOptions {
    /// Replaces the link mode.
    #[must_use]
    pub fn with_link_mode(mut self, link_mode: LinkMode) -> RestoreOptions {
        self.link_mode = link_mode;
        self
    }

    /// Replaces the choice of modification times.
    #[must_use]
    pub fn with_mtime_mode(mut self, mtime_mode: MtimeMode) -> RestoreOptions {
        self.mtime_mode = mtime_mode;
        self
    }

    /// Replaces the verification level.
    #[must_use]
    pub fn with_verify_level(mut self, verify_level: VerifyLevel) -> RestoreOptions {
        self.verify_level = verify_level;
        self
    }
}

/// How a blob becomes a file in a workspace. The next way is tried where the system says "not
/// supported here", and only then; the report says what was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum LinkMode {
    /// Files below [`LINK_BYTES_MIN`] are private copies; larger ones are reflinks, else hardlinks,
    /// else copies, but for [`PRIVATE_SUFFIXES`].
    #[default]
    Auto,
    /// Every file is a private copy.
    Copy,
    /// Every file but empty ones is a hardlink to its blob: read-only, and shared. Else a reflink,
    /// else a copy.
    Hardlink,
    /// Every file is a reflink: private, and sharing blocks. Else a copy: whoever asks for private
    /// files gets no shared ones.
    Reflink,
}

/// Below this size, in bytes, mode `auto` copies.
///
/// A build that rewrites small files in place (cargo does, below `.fingerprint`) fails for an
/// ordinary user if they are links, which are read-only, and would write into the store as root. A
/// copy of so few bytes costs about as much as a clone (on xfs less). Measured: DESIGN.md,
/// section 7.
pub const LINK_BYTES_MIN: u64 = 32 * 1024;

/// Names that end so are private files in mode `auto`, whatever their size: reflinks, else copies.
///
/// rustc refuses to write over a `.rmeta` or `.o` without write bits ("output file is not
/// writeable", also as root), and cargo does not remove them first, as it does with libraries and
/// programs; so with hardlinks there, a plain `cargo build` after an edit would fail. Other
/// compilers write their `.o` in place as well. npm rewrites `node_modules/.package-lock.json` in
/// place, and as root would write through the link into the store.
pub const PRIVATE_SUFFIXES: [&str; 3] = [".rmeta", ".o", "/.package-lock.json"];

/// Which modification times restored files get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum MtimeMode {
    /// Those recorded when the entry was stored. A hardlink shares its blob's time, so a file is
    /// hardlinked only if the two are equal, and cloned or copied else.
    #[default]
    Recorded,
    /// Whatever the blob's inode has, for links; recorded for the rest.
    Linked,
    /// The time of the restore; hardlinks keep their inode's.
    Now,
}

/// What is believed of a blob before it is linked or cloned. Copies are always hashed as made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum VerifyLevel {
    /// Its stamp: inode number, size and modification time as published. Does not see bit rot below
    /// the filesystem, a write followed by setting the old time again, nor a write through a
    /// mapping of a page that was dirty already.
    #[default]
    Stamp,
    /// Its bytes, rehashed before every use. Does not see what is written after the hash.
    Content,
}

/// A text names no value of an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not one of {expected}")]
pub struct ParseOptionError {
    text: String,
    expected: &'static str,
}

/// Gives an option's values their names on command lines and in configuration files.
macro_rules! named_values {
    ($type:ident, $expected:literal, $($name:literal => $value:ident),+) => {
        impl FromStr for $type {
            type Err = ParseOptionError;
            fn from_str(text: &str) -> Result<$type, ParseOptionError> {
                match text {
                    $($name => Ok($type::$value),)+
                    _ => Err(ParseOptionError { text: text.to_owned(), expected: $expected }),
                }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($type::$value => $name,)+ })
            }
        }
    };
}

named_values!(Durability, "relaxed, durable", "relaxed" => Relaxed, "durable" => Durable);
named_values!(Sharing, "private, group", "private" => Private, "group" => Group);
named_values!(Network, "refuse, reduced", "refuse" => Refuse, "reduced" => Reduced);
named_values!(LinkMode, "auto, reflink, hardlink, copy",
    "auto" => Auto, "reflink" => Reflink, "hardlink" => Hardlink, "copy" => Copy);
named_values!(MtimeMode, "recorded, linked, now", "recorded" => Recorded, "linked" => Linked, "now" => Now);
named_values!(VerifyLevel, "stamp, content", "stamp" => Stamp, "content" => Content);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for mode in [LinkMode::Auto, LinkMode::Copy, LinkMode::Hardlink, LinkMode::Reflink] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("hard".parse::<LinkMode>().is_err());
    }
}
