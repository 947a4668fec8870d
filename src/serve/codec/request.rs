//! What a client sends during the transmission: a header of 28 bytes, and the data of a write.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Broken, Errno, PAYLOAD_MAX, REQUEST};

const MAGIC: u32 = 0x2560_9513;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

/// What to do, to `offset..offset + length`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Send the data.
    Read,
    /// Store the payload.
    Write,
    /// End the connection.
    Disconnect,
    /// Make what was written last.
    Flush,
    /// Give the space back.
    Trim,
    /// Read ahead.
    Cache,
    /// Write zeroes that are not sent.
    WriteZeroes,
    /// Tell what is where.
    BlockStatus,
}

impl Command {
    const ALL: [Self; 8] = [
        Self::Read,
        Self::Write,
        Self::Disconnect,
        Self::Flush,
        Self::Trim,
        Self::Cache,
        Self::WriteZeroes,
        Self::BlockStatus,
    ];

    /// Whether it changes the export.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }
}

/// A request's flags (`NBD_CMD_FLAG_...`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CommandFlags(u16);

impl CommandFlags {
    const FUA: u16 = 1;
    const NO_HOLE: u16 = 1 << 1;
    const DF: u16 = 1 << 2;
    const REQ_ONE: u16 = 1 << 3;
    const FAST_ZERO: u16 = 1 << 4;

    /// The answer comes when the data lasts.
    pub fn fua(self) -> bool {
        self.0 & Self::FUA != 0
    }

    /// The zeroes are to have blocks.
    pub fn no_hole(self) -> bool {
        self.0 & Self::NO_HOLE != 0
    }

    /// The data comes in one piece.
    pub fn df(self) -> bool {
        self.0 & Self::DF != 0
    }

    /// One extent is enough.
    pub fn req_one(self) -> bool {
        self.0 & Self::REQ_ONE != 0
    }

    /// Only if that is faster than writing them.
    pub fn fast_zero(self) -> bool {
        self.0 & Self::FAST_ZERO != 0
    }

    /// Those that a command may have. FUA may be on any: clients are known to do that.
    fn of(command: Command) -> u16 {
        Self::FUA
            | match command {
                Command::Read => Self::DF,
                Command::WriteZeroes => Self::NO_HOLE | Self::FAST_ZERO,
                Command::BlockStatus => Self::REQ_ONE,
                _ => 0,
            }
    }
}

/// A request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What the answer must carry.
    pub cookie: u64,
    /// What to do; none that this server knows is an error for the client.
    pub command: Result<Command, Errno>,
    /// How.
    pub flags: CommandFlags,
    /// From where, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
    /// Bytes of data that follow on the wire, whether the request is answered with an error or not.
    pub payload: u32,
}

impl Request {
    /// From the wire.
    ///
    /// # Errors
    /// Where it is none, or its payload is longer than any may be: nobody knows where the next request begins.
    pub fn parse(bytes: &[u8; REQUEST]) -> Result<Self, Broken> {
        let raw: &Raw = zerocopy::transmute_ref!(bytes);
        if raw.magic != MAGIC {
            return Err(Broken::Magic("a request", raw.magic.get().into()));
        }
        let known = Command::ALL.get(usize::from(raw.command.get())).copied();
        let length = raw.length.get();
        let payload = if known == Some(Command::Write) { length } else { 0 };
        if payload > PAYLOAD_MAX {
            return Err(Broken::WriteTooLong(payload));
        }
        let flags = raw.flags.get();
        let command = known.filter(|it| flags & !CommandFlags::of(*it) == 0).ok_or(Errno::Inval);
        let (cookie, offset) = (raw.cookie.get(), raw.offset.get());
        Ok(Self { cookie, command, flags: CommandFlags(flags), offset, length, payload })
    }

    /// What it asks for, of an export of `size` bytes.
    ///
    /// # Errors
    /// What the client is told: EPERM for a write where there is none to be, ENOSPC for one beyond the end, EINVAL for
    /// anything else that makes no sense, EOVERFLOW for more than goes into one answer.
    pub fn check(&self, size: u64, read_only: bool) -> Result<Command, Errno> {
        let command = self.command?;
        if matches!(command, Command::Disconnect | Command::Flush) {
            // Offset and length are reserved there; what old clients leave in them is nobody's business.
            return Ok(command);
        }
        if command.writes() && read_only {
            return Err(Errno::Perm);
        }
        let end = self.offset.checked_add(self.length.into()).filter(|end| *end <= size);
        match (end, command) {
            (None, Command::Write | Command::WriteZeroes) => Err(Errno::NoSpc),
            (None, _) => Err(Errno::Inval),
            (_, Command::Read) if self.length > PAYLOAD_MAX => Err(Errno::Overflow),
            (_, Command::BlockStatus) if self.length == 0 => Err(Errno::Inval),
            _ => Ok(command),
        }
    }
}
