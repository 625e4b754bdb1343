//! The 256 fan-out folders below `blobs` or `manifests`, opened once and kept: 256 descriptors at
//! most, against an open for each file of each restore.

use super::dir::Dir;
use super::layout::Shard;
use std::io;
use std::sync::OnceLock;

#[derive(Debug)]
pub(crate) struct Shards {
    parent: Dir,
    folders: Box<[OnceLock<Dir>; 256]>,
}

impl Shards {
    pub(crate) fn new(parent: Dir) -> Shards {
        Shards { parent, folders: Box::new([const { OnceLock::new() }; 256]) }
    }

    /// The directory that holds the folders.
    pub(crate) fn parent(&self) -> &Dir {
        &self.parent
    }

    /// The folder of a shard; an error of kind `NotFound` if there is none yet.
    pub(crate) fn folder(&self, shard: &Shard) -> io::Result<&Dir> {
        let slot = &self.folders[shard.first_byte() as usize];
        if let Some(folder) = slot.get() {
            return Ok(folder);
        }
        let opened = self.parent.open_child(&shard.folder)?;
        Ok(slot.get_or_init(|| opened))
    }

    /// The folder of a shard, made if need be.
    pub(crate) fn make_folder(&self, shard: &Shard) -> io::Result<&Dir> {
        match self.folder(shard) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.parent.make_child(&shard.folder, 0o700)?;
                self.folder(shard)
            }
            found => found,
        }
    }
}
