//! The simulated directory.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;

use super::world::{NameOp, World};
use super::{SimDisk, SimFile};
use crate::disk::{Access, Disk, HostFacts, Space, Stat};

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// A descriptor of an inode that is there.
pub(super) fn attach(world: &Rc<RefCell<World>>, ino: u64, access: Access) -> io::Result<SimFile> {
    let mut w = world.borrow_mut();
    if w.inode(ino).lease.is_some() {
        // The kernel would make the opener wait until the lease is given back; nobody here could.
        return Err(errno(libc::EAGAIN));
    }
    let open = w.next_open;
    w.next_open += 1;
    w.inode_mut(ino).open.insert(open);
    Ok(SimFile::new(Rc::clone(world), ino, open, access))
}

fn assert_component(name: &OsStr) {
    let bytes = name.as_encoded_bytes();
    assert!(
        !bytes.is_empty() && !bytes.contains(&b'/') && bytes != b"." && bytes != b"..",
        "{name:?} is no single name"
    );
}

impl SimDisk {
    /// Gives a file another name.
    ///
    /// # Errors
    /// ENOENT, EEXIST, and ENOSPC by chance.
    pub fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut w = self.world.borrow_mut();
        w.alive()?;
        let ino = *w.names.get(from).ok_or_else(|| errno(libc::ENOENT))?;
        if w.names.contains_key(to) {
            return Err(errno(libc::EEXIST));
        }
        let odds = [(w.faults.name_enospc, libc::ENOSPC)];
        let (done, result) = w.enter_whole(format!("link {from:?} {to:?}"), &odds)?;
        if done {
            w.names.insert(to.to_owned(), ino);
            w.inode_mut(ino).nlink += 1;
            w.name_ops.push(NameOp::Create { name: to.to_owned(), ino });
            w.touch(ino, false);
        }
        result
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create_new(&self, name: &OsStr) -> io::Result<SimFile> {
        assert_component(name);
        let mut w = self.world.borrow_mut();
        w.alive()?;
        if w.names.contains_key(name) {
            return Err(errno(libc::EEXIST));
        }
        let odds = [(w.faults.name_enospc, libc::ENOSPC)];
        let (done, result) = w.enter_whole(format!("create {name:?}"), &odds)?;
        if done {
            w.add_name(name);
        }
        result?;
        let ino = w.names[name];
        drop(w);
        attach(&self.world, ino, Access::Write)
    }

    fn open(&self, name: &OsStr, access: Access) -> io::Result<SimFile> {
        assert_component(name);
        self.world.borrow().alive()?;
        attach(&self.world, self.ino(name)?, access)
    }

    fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        assert_component(name);
        let w = self.world.borrow();
        w.alive()?;
        Ok(w.names.get(name).map(|ino| w.stat(*ino)))
    }

    fn create_unnamed(&self) -> io::Result<SimFile> {
        let mut w = self.world.borrow_mut();
        w.alive()?;
        let ino = w.new_inode();
        w.inode_mut(ino).nlink = 0;
        drop(w);
        attach(&self.world, ino, Access::Write)
    }

    fn wait(&self, time: Duration) {
        self.world.borrow_mut().clock += time;
    }

    fn clock(&self) -> Duration {
        self.world.borrow().clock
    }

    /// Without chance: how often a job asks depends on the clock, and must not change what happens to it.
    fn take_turn(&self) -> bool {
        let mut w = self.world.borrow_mut();
        w.turn_questions += 1;
        !w.others_turn.unwrap_or(w.turn_questions % 3 == 1)
    }

    fn end_turn(&self) {}

    fn rename(&self, from: &OsStr, to: &OsStr, replace: bool) -> io::Result<()> {
        assert_component(from);
        assert_component(to);
        let mut w = self.world.borrow_mut();
        w.alive()?;
        let ino = *w.names.get(from).ok_or_else(|| errno(libc::ENOENT))?;
        if w.names.contains_key(to) && !replace {
            return Err(errno(libc::EEXIST));
        }
        let odds = [(w.faults.name_enospc, libc::ENOSPC)];
        let (done, result) = w.enter_whole(format!("rename {from:?} {to:?}"), &odds)?;
        if done && from != to {
            w.names.remove(from);
            if let Some(replaced) = w.names.insert(to.to_owned(), ino) {
                w.inode_mut(replaced).nlink -= 1;
            }
            w.name_ops.push(NameOp::Rename { from: from.to_owned(), to: to.to_owned(), ino, replace });
            w.touch(ino, false);
        }
        result
    }

    fn unlink(&self, name: &OsStr) -> io::Result<()> {
        assert_component(name);
        let mut w = self.world.borrow_mut();
        let odds = [(w.faults.name_eio, libc::EIO)];
        let (done, result) = w.enter_whole(format!("unlink {name:?}"), &odds)?;
        if done && let Some(ino) = w.names.remove(name) {
            w.inode_mut(ino).nlink -= 1;
            w.touch(ino, false);
            w.name_ops.push(NameOp::Unlink { name: name.to_owned(), ino });
        }
        result
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut w = self.world.borrow_mut();
        let odds = [(w.faults.name_eio, libc::EIO)];
        let (done, result) = w.enter_whole("sync names".to_owned(), &odds)?;
        if done {
            w.sync_names();
        }
        result
    }

    fn space(&self) -> io::Result<Space> {
        self.world.borrow().alive()?;
        Ok(Space { total: 1 << 40, free: 1 << 39, metadata: None })
    }

    fn fs_uuid(&self) -> io::Result<[u8; 16]> {
        let w = self.world.borrow();
        w.alive()?;
        Ok(w.uuid)
    }

    /// There is one directory.
    fn elsewhere(&self, _: &Path) -> io::Result<Self> {
        self.world.borrow().alive()?;
        Ok(self.clone())
    }

    fn host(&self) -> HostFacts {
        let w = self.world.borrow();
        HostFacts {
            boot_id: w.boot_id,
            now: Timestamp::from_nanosecond(w.now_ns).expect("a time in this era"),
            uid: 0,
            pid: w.pid,
            pid_start: u64::from(w.pid) * 100,
        }
    }

    fn fresh_id(&self) -> [u8; 16] {
        self.world.borrow_mut().rng.id()
    }
}

impl World {
    /// A new empty file under a name that is free.
    pub(super) fn add_name(&mut self, name: &OsStr) -> u64 {
        let ino = self.new_inode();
        let taken = self.names.insert(name.to_owned(), ino);
        assert!(taken.is_none(), "{name:?} is taken");
        self.name_ops.push(NameOp::Create { name: name.to_owned(), ino });
        ino
    }

    /// Makes the names durable.
    pub(super) fn sync_names(&mut self) {
        self.durable_names = self.names.clone();
        self.name_ops.clear();
        self.forget_dead();
    }
}
