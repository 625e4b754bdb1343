//! Shares: the paths of a tree, shared out to threads by the directory that holds them, so that each
//! directory is opened once and its names are short.

use crate::manifest::{Node, NodeKind};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

/// More names of one directory than this are several shares, so that no thread is left alone with a
/// large one, nor with many large files at the end.
pub(super) const MEMBERS_MAX: usize = 32;

/// Some names of one directory.
#[derive(Debug)]
pub(super) struct Share<'p> {
    pub(super) folder: &'p Path,
    /// Positions in whatever list the paths came from, in its order.
    pub(super) members: Vec<usize>,
}

/// Shares out paths with their positions. Directories come in the order in which they are first met.
pub(super) fn by_folder<'p>(paths: impl Iterator<Item = (usize, &'p Path)>) -> Vec<Share<'p>> {
    let mut shares: Vec<Share<'p>> = Vec::new();
    let mut open: HashMap<&[u8], usize> = HashMap::new();
    // The share of the path before: neighbours mostly lie in one directory.
    let mut last: Option<(&[u8], usize)> = None;
    for (position, path) in paths {
        let bytes = path.as_os_str().as_bytes();
        let end = bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let folder = &bytes[..end];
        let known = last.filter(|(last, _)| *last == folder).map(|(_, index)| index);
        let index = known.or_else(|| open.get(folder).copied());
        let index = index.filter(|index| shares[*index].members.len() < MEMBERS_MAX);
        let index = index.unwrap_or_else(|| {
            let folder_path = Path::new(OsStr::from_bytes(folder));
            shares.push(Share { folder: folder_path, members: Vec::new() });
            open.insert(folder, shares.len() - 1);
            shares.len() - 1
        });
        shares[index].members.push(position);
        last = Some((folder, index));
    }
    shares
}

/// One directory of a tree.
#[derive(Debug)]
pub(super) struct Directory<'n> {
    pub(super) node: &'n Node,
    /// The position of the directory that holds this one; the root has none.
    pub(super) parent: Option<usize>,
    /// The nodes that lie directly in it, in their order.
    pub(super) members: Vec<&'n Node>,
}

/// The directories of a tree, whose root is the first of these sorted nodes, each before what is
/// below it.
pub(super) fn by_directory(nodes: &[Node]) -> Vec<Directory<'_>> {
    let mut directories: Vec<Directory<'_>> = Vec::new();
    // From the root down to the directory that holds the node at hand.
    let mut above: Vec<usize> = Vec::new();
    for node in nodes {
        while above.last().is_some_and(|top| !directories[*top].node.path.contains(&node.path)) {
            above.pop();
        }
        let parent = above.last().copied();
        if let Some(parent) = parent {
            directories[parent].members.push(node);
        }
        if matches!(node.kind, NodeKind::Directory { .. }) {
            above.push(directories.len());
            directories.push(Directory { node, parent, members: Vec::new() });
        }
    }
    directories
}

/// Room for what several threads make, each thing at its position.
pub(super) struct Slots<T>(Vec<OnceLock<T>>);

impl<T> Slots<T> {
    pub(super) fn new(count: usize) -> Slots<T> {
        Slots((0..count).map(|_| OnceLock::new()).collect())
    }

    /// Puts a thing at its position. What is there already stays.
    pub(super) fn put(&self, position: usize, thing: T) {
        let _ = self.0[position].set(thing);
    }

    /// What was made, in the order of the positions.
    pub(super) fn into_made(self) -> Vec<T> {
        self.0.into_iter().filter_map(OnceLock::into_inner).collect()
    }

    /// As [`Slots::into_made`], with the positions for which nothing was made.
    pub(super) fn into_all(self) -> Vec<Option<T>> {
        self.0.into_iter().map(OnceLock::into_inner).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::{path, sample};

    #[test]
    fn each_node_is_in_the_directory_that_holds_it() {
        let manifest = sample();
        let nodes = manifest.nodes_below(&path("target"));
        let directories = by_directory(nodes);
        let names: Vec<(String, Vec<String>)> = directories
            .iter()
            .map(|directory| {
                let members = directory.members.iter().map(|member| member.path.to_string());
                (directory.node.path.to_string(), members.collect())
            })
            .collect();
        let text = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = [
            ("target".to_owned(), text(&["target/debug", "target/empty", "target/link"])),
            ("target/debug".to_owned(), text(&["target/debug/app"])),
            ("target/empty".to_owned(), Vec::new()),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn each_path_is_in_one_share_of_its_folder() {
        let paths: Vec<String> =
            (0..1000).map(|number| format!("d{}/{number}", number % 3)).collect();
        let shares = by_folder(paths.iter().map(Path::new).enumerate());
        assert_eq!(shares.len(), 33, "eleven for each of three folders of 333");
        let mut seen = vec![0; paths.len()];
        for share in &shares {
            assert!(share.members.len() <= MEMBERS_MAX);
            for &member in &share.members {
                assert_eq!(Path::new(&paths[member]).parent(), Some(share.folder));
                seen[member] += 1;
            }
        }
        assert!(seen.iter().all(|count| *count == 1));
    }
}
