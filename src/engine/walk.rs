//! Walk: everything below a directory, listed level by level on several threads.
//!
//! Left to others: what one directory holds that counts (`capture`, `inputs`).

use super::shares::Slots;
use crate::disk::Listing;
use crate::error::Result;
use crate::parallel;

/// What somebody found in a directory.
#[derive(Debug)]
pub(super) enum Found<P, T> {
    Item(T),
    /// A directory that is to be listed as well, by its path.
    Folder(P),
}

#[derive(Debug)]
struct Folder<P, T> {
    found: Vec<Found<P, T>>,
    /// Position of the first of the directories found here; the others follow it.
    first_below: usize,
}

/// Calls `list` for a directory and for each that is found below it. Returns all items in the order in
/// which `list` returned them, what is below a directory in the place where that was found.
pub(super) fn walk<P: Clone + Send + Sync, T: Send + Sync>(
    start: P,
    list: impl Fn(&P, &mut Listing) -> Result<Vec<Found<P, T>>> + Sync,
) -> Result<Vec<T>> {
    let mut folders: Vec<Folder<P, T>> = Vec::new();
    let mut level = vec![start];
    while !level.is_empty() {
        let first_below = folders.len() + level.len();
        let positions: Vec<usize> = (0..level.len()).collect();
        let listed = Slots::new(level.len());
        // A directory is some ten pieces of work.
        parallel::for_each_with(
            &positions,
            level.len() * 10,
            Listing::default,
            |listing, position| {
                listed.put(*position, list(&level[*position], listing)?);
                Ok(())
            },
        )?;
        let mut below = Vec::new();
        for found in listed.into_made() {
            let first_below = first_below + below.len();
            below.extend(found.iter().filter_map(|found| match found {
                Found::Folder(path) => Some(path.clone()),
                Found::Item(_) => None,
            }));
            folders.push(Folder { found, first_below });
        }
        level = below;
    }
    let mut items = Vec::with_capacity(folders.iter().map(|folder| folder.found.len()).sum());
    flatten(&mut folders, 0, &mut items);
    Ok(items)
}

fn flatten<P, T>(folders: &mut [Folder<P, T>], position: usize, items: &mut Vec<T>) {
    let mut next = folders[position].first_below;
    for found in std::mem::take(&mut folders[position].found) {
        match found {
            Found::Item(item) => items.push(item),
            Found::Folder(_) => {
                flatten(folders, next, items);
                next += 1;
            }
        }
    }
}
