//! A descriptor of a simulated file.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::inode::Op;
use super::world::{Fate, World};
use crate::disk::{Access, CallCost, DiskFile, FsFacts, FsKind, Stat};
use crate::extent::Extent;
use crate::range::{ByteRange, CloneRange, PowerOfTwo};

/// An open file of a [`super::SimDisk`]. Its lock and its lease go with it.
pub struct SimFile {
    world: Rc<RefCell<World>>,
    ino: u64,
    open: u64,
    access: Access,
}

impl SimFile {
    pub(super) fn new(world: Rc<RefCell<World>>, ino: u64, open: u64, access: Access) -> Self {
        Self { world, ino, open, access }
    }

    fn writable(&self) -> io::Result<()> {
        match self.access {
            Access::Write => Ok(()),
            Access::Read => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// An attribute changes, or does not.
    fn attribute(&self, what: &str, op: Op) -> io::Result<()> {
        let mut w = self.world.borrow_mut();
        let odds = [(w.faults.attribute_enospc, libc::ENOSPC)];
        let (done, result) = w.enter_whole(format!("{what} {}", self.ino), &odds)?;
        if done {
            w.make(self.ino, op);
            w.touch(self.ino, false);
        }
        result
    }

    fn sync(&self, what: &str, attributes: bool) -> io::Result<()> {
        let mut w = self.world.borrow_mut();
        let odds = [(w.faults.sync_eio, libc::EIO)];
        let fate = w.enter(format!("{what} {}", self.ino), &odds)?;
        if fate == Fate::Fail(libc::EIO) {
            w.lose_writes(self.ino);
        }
        if fate == Fate::Go || fate == Fate::Stop && w.rng.coin() {
            w.sync(self.ino, attributes);
        }
        fate.result()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut w = self.world.borrow_mut();
        let inode = w.inode_mut(self.ino);
        let was_open = inode.open.remove(&self.open);
        assert!(was_open, "a descriptor is closed once");
        inode.lock.take_if(|o| *o == self.open);
        inode.lease.take_if(|o| *o == self.open);
        w.forget_dead();
    }
}

impl DiskFile for SimFile {
    fn stat(&self) -> io::Result<Stat> {
        let w = self.world.borrow();
        w.alive()?;
        Ok(w.stat(self.ino))
    }

    fn fs(&self) -> io::Result<FsFacts> {
        let w = self.world.borrow();
        w.alive()?;
        let block = PowerOfTwo::new(w.block()).expect("the store's block is one");
        Ok(FsFacts { kind: w.kind, uuid: w.uuid, block, mount_instance: w.mount_instance, mount_id: 0 })
    }

    fn map(&self, range: ByteRange, max: usize, flush: bool, into: &mut Vec<Extent>) -> io::Result<()> {
        assert!(max > 0, "a map of no extents would say that there are none");
        let mut w = self.world.borrow_mut();
        w.alive()?;
        let odds = w.faults.map_eio;
        if w.rng.per_mille(odds) {
            w.note(format!("      map {} {range:?}: EIO", self.ino));
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if flush {
            w.inode_mut(self.ino).stale.clear();
        }
        let whole = w.extents(self.ino);
        let split = w.split_extents(whole);
        into.extend(split.into_iter().filter(|e| e.logical.intersect(range).is_some()).take(max));
        Ok(())
    }

    fn addresses(&self, range: ByteRange, max: usize, into: &mut Vec<Extent>) -> io::Result<()> {
        let from = into.len();
        self.map(range, max, false, into)?;
        into[from..].iter_mut().for_each(|e| e.flags = e.flags.of_place());
        Ok(())
    }

    fn relocating(&self) -> io::Result<bool> {
        let mut w = self.world.borrow_mut();
        w.alive()?;
        let odds = w.faults.relocating;
        Ok(w.rng.per_mille(odds))
    }

    /// Takes nothing away from what is dirty: writeback may do as little.
    fn write_back(&self, _: ByteRange) -> io::Result<()> {
        self.world.borrow().alive()
    }

    fn count(&self, range: ByteRange) -> io::Result<u64> {
        let mut extents = Vec::new();
        self.map(range, usize::MAX, false, &mut extents)?;
        Ok(extents.len() as u64)
    }

    fn extent_count(&self) -> Option<u64> {
        let w = self.world.borrow();
        (w.kind == FsKind::Xfs).then(|| w.extents(self.ino).len() as u64)
    }

    fn clone_range(&self, source: &Self, range: CloneRange) -> io::Result<CallCost> {
        self.writable()?;
        if !Rc::ptr_eq(&self.world, &source.world) {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        let mut w = self.world.borrow_mut();
        w.alive()?;
        w.clone_blocks(source.ino, self.ino, range)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut w = self.world.borrow_mut();
        w.alive()?;
        let odds = w.faults.read_eio;
        if w.rng.per_mille(odds) {
            w.note(format!("      read {} at {offset}: EIO", self.ino));
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(w.read(self.ino, offset, into))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.writable()?;
        let mut w = self.world.borrow_mut();
        let odds = [(w.faults.write_enospc, libc::ENOSPC), (w.faults.write_eio, libc::EIO)];
        let fate = w.enter(format!("write {} at {offset}, {} bytes", self.ino, bytes.len()), &odds)?;
        let done = w.share(fate, bytes.len() as u64) as usize;
        w.write(self.ino, offset, &bytes[..done]);
        fate.result()
    }

    fn set_len(&self, size: u64) -> io::Result<()> {
        self.writable()?;
        let mut w = self.world.borrow_mut();
        let odds = [(w.faults.resize_enospc, libc::ENOSPC)];
        let (done, result) = w.enter_whole(format!("resize {} to {size}", self.ino), &odds)?;
        if done {
            w.resize(self.ino, size);
        }
        result
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync("fdatasync", false)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync("fsync", true)
    }

    fn record(&self) -> io::Result<Option<Vec<u8>>> {
        let w = self.world.borrow();
        w.alive()?;
        Ok(w.inode(self.ino).now.record.clone())
    }

    fn set_record(&self, record: Option<&[u8]>) -> io::Result<()> {
        self.attribute("set record of", Op::Record(record.map(<[u8]>::to_vec)))
    }

    fn has_acl(&self) -> bool {
        false
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        assert!(mode <= 0o7777, "{mode:o} has more than permission bits");
        self.attribute(&format!("chmod {mode:o}"), Op::Mode(mode))
    }

    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        self.attribute(&format!("chown {uid}:{gid}"), Op::Owner(uid, gid))
    }

    fn no_cow(&self) -> io::Result<bool> {
        let w = self.world.borrow();
        w.alive()?;
        Ok(w.inode(self.ino).now.no_cow)
    }

    fn realtime(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn set_no_cow(&self, on: bool) -> io::Result<()> {
        {
            let w = self.world.borrow();
            w.alive()?;
            let refused = match w.kind {
                FsKind::Btrfs => (w.inode(self.ino).now.size > 0).then_some(libc::EINVAL),
                _ => on.then_some(libc::EOPNOTSUPP),
            };
            if let Some(errno) = refused {
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        self.attribute("chattr +C", Op::NoCow(on))
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut w = self.world.borrow_mut();
        w.alive()?;
        let lock = &mut w.inode_mut(self.ino).lock;
        Ok(*lock.get_or_insert(self.open) == self.open)
    }

    fn is_locked(&self) -> io::Result<bool> {
        let w = self.world.borrow();
        w.alive()?;
        Ok(w.inode(self.ino).lock.is_some_and(|o| o != self.open))
    }

    fn try_own(&self) -> io::Result<bool> {
        let mut w = self.world.borrow_mut();
        w.alive()?;
        let inode = w.inode_mut(self.ino);
        let alone = inode.open.len() == 1;
        if alone {
            inode.lease = Some(self.open);
        }
        Ok(alone)
    }

    fn owns(&self) -> io::Result<bool> {
        let mut w = self.world.borrow_mut();
        w.alive()?;
        Ok(w.inode_mut(self.ino).lease == Some(self.open))
    }

    fn disown(&self) -> io::Result<()> {
        let mut w = self.world.borrow_mut();
        w.alive()?;
        let given = w.inode_mut(self.ino).lease.take_if(|o| *o == self.open);
        given.map(drop).ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))
    }
}
