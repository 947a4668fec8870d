//! libaio's system calls: io_setup(2), io_submit(2), io_getevents(2), io_destroy(2).

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

use crate::pages::Pages;

/// `struct iocb` of `linux/aio_abi.h`, on a little-endian machine.
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_descriptor: u32,
}

/// `struct io_event` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<IoEvent>() == 32);
const _: () = assert!(cfg!(target_endian = "little") && cfg!(target_pointer_width = "64"));

const IOCB_CMD_PWRITE: u16 = 1;

/// Writes to one file, several at a time, each from a buffer of its own.
#[derive(Debug)]
pub struct Aio {
    context: libc::c_ulong,
    file: File,
    memory: Pages,
    size: usize,
    flying: Vec<bool>,
}

impl Aio {
    /// `slots` buffers of `size` bytes for writes to `file`.
    ///
    /// # Errors
    /// What io_setup(2) says: EAGAIN where the system has no contexts left.
    pub fn new(file: File, slots: usize, size: usize) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes one aio_context_t to the place it is given.
        let answer = unsafe { libc::syscall(libc::SYS_io_setup, slots as libc::c_long, &raw mut context) };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { context, file, memory: Pages::new(slots * size), size, flying: vec![false; slots] })
    }

    /// How many writes can be under way.
    pub fn slots(&self) -> usize {
        self.flying.len()
    }

    /// A slot's buffer.
    ///
    /// # Panics
    /// Where its write is under way.
    pub fn buffer(&mut self, slot: usize) -> &mut [u8] {
        assert!(!self.flying[slot], "a buffer that is being written from");
        let start = slot * self.size;
        &mut self.memory.bytes_mut()[start..start + self.size]
    }

    /// Submits a write of the first `length` bytes of a slot's buffer.
    ///
    /// # Errors
    /// What io_submit(2) says; the write is not under way then.
    ///
    /// # Panics
    /// Where the slot's write is under way, or `length` is more than the buffer.
    pub fn write(&mut self, slot: usize, offset: u64, length: usize) -> io::Result<()> {
        let buffer = self.buffer(slot)[..length].as_ptr();
        let mut iocb = Iocb {
            data: slot as u64,
            key: 0,
            rw_flags: 0,
            opcode: IOCB_CMD_PWRITE,
            priority: 0,
            descriptor: self.file.as_raw_fd().cast_unsigned(),
            buffer: buffer as u64,
            bytes: length as u64,
            offset: offset.cast_signed(),
            reserved: 0,
            flags: 0,
            result_descriptor: 0,
        };
        let mut list = [&raw mut iocb];
        // SAFETY: the kernel copies the iocb during the call. The buffer is ours until io_getevents has told of the write's
        // end: `buffer` gives it to nobody while `flying`, and drop ends all writes before the memory goes.
        let answer = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) };
        if answer != 1 {
            return Err(io::Error::last_os_error());
        }
        self.flying[slot] = true;
        Ok(())
    }

    /// Waits until at least one write has ended, and tells which, each with the bytes written. At once where none is under way.
    ///
    /// # Errors
    /// What io_getevents(2) says.
    pub fn wait(&mut self, mut ended: impl FnMut(usize, io::Result<usize>)) -> io::Result<()> {
        let flying = self.flying.iter().filter(|it| **it).count();
        if flying == 0 {
            return Ok(());
        }
        let mut events = vec![IoEvent { data: 0, object: 0, result: 0, result2: 0 }; flying];
        let place = events.as_mut_ptr();
        let forever = null_mut::<libc::timespec>();
        // SAFETY: the kernel writes at most as many events as the list has room for; no timeout is given.
        let count = unsafe { libc::syscall(libc::SYS_io_getevents, self.context, 1, events.len(), place, forever) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        for event in &events[..count as usize] {
            let slot = event.data as usize;
            self.flying[slot] = false;
            let result = match event.result {
                bytes @ 0.. => Ok(bytes as usize),
                error => Err(io::Error::from_raw_os_error(-error as i32)),
            };
            ended(slot, result);
        }
        Ok(())
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is ours. io_destroy returns when the last write has ended, so the memory may go after it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
