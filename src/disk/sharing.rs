//! Who may use what we make: its owner alone, or a group. The mode of a store's root says which.
//!
//! A root of mode 02770, set-group-id and closed to others, is shared. What is made below it belongs
//! to its group (mkdir(2), open(2)), and the group may do with it what its owner may. Below one of
//! mode 02750 it may read that. Modes are set and not asked for, so no umask takes the group's part
//! off ([`super::Dir`] does that). A sticky root is not shared: its files could not be replaced by
//! who does not own them.

use super::stat::FileStat;

const SET_GROUP: u32 = 0o2000;
const GROUP: u32 = 0o070;

/// The mode of a root that is shared with its group.
pub(crate) const SHARED_ROOT_MODE: u32 = 0o2770;
/// That of one which the group may only read.
const READABLE_ROOT_MODE: u32 = 0o2750;

/// What a group may do with what is made in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Of a mode the bits that the group may have; none in what is private.
    group: u32,
}

impl Access {
    /// What is made has the mode that was asked for, less the umask.
    pub(crate) const PRIVATE: Access = Access { group: 0 };

    /// As the root of a store says.
    pub(crate) fn of(root: &FileStat) -> Access {
        let is_shared = [SHARED_ROOT_MODE, READABLE_ROOT_MODE].contains(&root.mode);
        Access { group: if is_shared { root.mode & GROUP } else { 0 } }
    }

    pub(crate) fn is_shared(self) -> bool {
        self.group != 0
    }

    /// The mode of a file whose owner may do what `mode` says.
    pub(crate) fn file_mode(self, mode: u32) -> u32 {
        mode | (mode >> 3 & self.group)
    }

    /// The mode of a directory whose owner may do what `mode` says.
    pub(crate) fn folder_mode(self, mode: u32) -> u32 {
        self.file_mode(mode) | if self.is_shared() { SET_GROUP } else { 0 }
    }
}

/// Whether a directory is ours, or shared with a group that we are in.
pub(crate) fn admits_us(root: &FileStat) -> bool {
    let is_ours = || root.user == super::effective_user();
    let is_of_our_group = || {
        let groups = rustix::process::getgroups().unwrap_or_default();
        let own = rustix::process::getegid();
        groups.into_iter().chain([own]).any(|group| group.as_raw() == root.group)
    };
    is_ours() || (Access::of(root).is_shared() && is_of_our_group())
}

/// Whether everybody may write to a directory, and so rename and replace what is in it.
pub(crate) fn is_open_to_all(root: &FileStat) -> bool {
    root.mode & 0o002 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(root_mode: u32) -> Access {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = crate::disk::Dir::open(folder.path(), crate::Capabilities::all()).expect("opens");
        Access::of(&FileStat { mode: root_mode, ..dir.stat_self().expect("a stat") })
    }

    #[test]
    fn only_a_root_that_is_closed_to_others_is_shared() {
        for mode in [0o700, 0o770, 0o2700, 0o2710, 0o2777, 0o2775, 0o2755, 0o4770, 0o3770] {
            assert_eq!(access(mode), Access::PRIVATE, "{mode:o}");
        }
        for (asked, private, writable, readable) in [
            (0o600, 0o600, 0o660, 0o640),
            (0o400, 0o400, 0o440, 0o440),
            (0o444, 0o444, 0o444, 0o444),
            (0o555, 0o555, 0o555, 0o555),
            (0o500, 0o500, 0o550, 0o550),
        ] {
            assert_eq!(Access::PRIVATE.file_mode(asked), private);
            assert_eq!(access(0o2770).file_mode(asked), writable);
            assert_eq!(access(0o2750).file_mode(asked), readable);
        }
        assert_eq!(Access::PRIVATE.folder_mode(0o700), 0o700);
        assert_eq!(access(0o2770).folder_mode(0o700), 0o2770);
        assert_eq!(access(0o2750).folder_mode(0o700), 0o2750);
    }
}
