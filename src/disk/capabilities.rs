//! What the operating system and the filesystems below us may be asked for.

/// What may be asked for: system calls, for the most part. Everything is allowed by default, and what turns out to be
/// missing is found by trying; switching one off forces its fallback, which is how the tests run
/// over each of them on any machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own")]
#[non_exhaustive]
pub struct Capabilities {
    /// openat2(2) with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS` (Linux 5.6). Fallback: one
    /// openat(2) with `O_NOFOLLOW` for each component.
    pub openat2: bool,
    /// renameat2(2) with `RENAME_NOREPLACE` (Linux 3.15). Fallback: linkat(2) and unlinkat(2) for
    /// files, a look before a rename for directories.
    pub rename_noreplace: bool,
    /// `FICLONE` (Linux 4.5; btrfs, xfs, bcachefs). Fallback: link or copy.
    pub reflink: bool,
    /// linkat(2) from the store into a workspace. Fallback: copy.
    pub hardlink: bool,
    /// `copy_file_range(2)` (Linux 4.5). Fallback: read and write.
    pub copy_file_range: bool,
    /// `O_TMPFILE` of open(2) (Linux 3.11), and linkat(2) by way of `/proc`. Fallback: a staging file
    /// with a name, and a rename.
    pub unnamed_files: bool,
    /// Whether the store's filesystem may count as one that no other machine uses. Fallback: the store
    /// is refused, or does less ([`crate::Network`]).
    pub local_filesystem: bool,
}

impl Capabilities {
    /// Everything may be tried.
    pub const fn all() -> Capabilities {
        Capabilities {
            openat2: true,
            rename_noreplace: true,
            reflink: true,
            hardlink: true,
            copy_file_range: true,
            unnamed_files: true,
            local_filesystem: true,
        }
    }

    /// Only what any POSIX system has.
    pub const fn portable() -> Capabilities {
        Capabilities {
            openat2: false,
            rename_noreplace: false,
            reflink: false,
            hardlink: false,
            copy_file_range: false,
            unnamed_files: false,
            local_filesystem: true,
        }
    }
}

impl Default for Capabilities {
    fn default() -> Capabilities {
        Capabilities::all()
    }
}
