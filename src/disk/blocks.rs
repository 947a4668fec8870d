//! Whether what two files' maps call an address is the same block.

use std::io;

use super::{DiskFile, FsKind};

/// Whether addresses of two files mean the same blocks. On XFS by the device number, and not by the UUID, which a copy of a file system has
/// as well; on Btrfs by the UUID, since each subvolume has a device number and a copy is not mounted under the UUID of the original.
///
/// Of no other file system is that known. One that lies upon others, as overlayfs does, gives its files one device number, and for each tells
/// the addresses of the file system below, of which there may be several.
///
/// # Errors
/// What fstat(2), fstatfs(2) and the ioctls say.
pub fn same_addresses<F: DiskFile>(a: &F, b: &F) -> io::Result<bool> {
    let (here, there) = (a.fs()?, b.fs()?);
    let same_fs = match (here.kind, there.kind) {
        (FsKind::Xfs, FsKind::Xfs) => a.stat()?.dev == b.stat()?.dev,
        (FsKind::Btrfs, FsKind::Btrfs) => here.uuid == there.uuid && here.mount_instance == there.mount_instance,
        _ => false,
    };
    // An XFS has a second device with addresses of its own.
    Ok(same_fs && a.realtime()? == b.realtime()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::{IMAGE, Setup, SimDisk};

    #[test]
    fn addresses_are_known_of_two_file_systems_only() {
        for (kind, known) in [(FsKind::Xfs, true), (FsKind::Btrfs, true), (FsKind::Other, false)] {
            let disk = SimDisk::new(Setup { kind, ..Setup::new(1) });
            disk.add_file(IMAGE, &[1; 4096]);
            let image = disk.image().expect("there");
            assert_eq!(same_addresses(&image, &image).expect("told"), known, "{kind:?}");
        }
    }
}
