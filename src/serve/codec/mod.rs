//! NBD's bytes: what a client sends becomes a value or an error, and values become what a server sends. Pure.
//!
//! The protocol is <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, fixed newstyle alone. All numbers are
//! big-endian. Whatever has a length on the wire has a bound here, and nothing is allocated before it was compared with it.

mod option;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use option::{Asked, EXPORT_NAME, OptionHeader, Query, SET_META_CONTEXT, Unasked, hello, parse_hello};
pub use reply::{
    BlockSizes, Chunk, Refusal, chunk_header, context, error_chunk, export_info, option_ack, option_refused, server,
    simple_reply, sizes_info, status_chunk, text_info,
};
pub use request::{Command, CommandFlags, Request};

/// The longest name of an export and of a metadata context, in bytes (the protocol's own bound of a string).
pub const STRING_MAX: usize = 4096;

/// The most bytes that one option may carry: a few names. A client that sends more is cut off.
pub const OPTION_MAX: u32 = 64 << 10;

/// The most queries of one option for metadata contexts.
pub const QUERIES_MAX: u32 = 64;

/// The most bytes that one request reads or writes: what the protocol says that a client may rely on, and QEMU does.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Bytes of a request's header.
pub const REQUEST: usize = 28;

/// What an export can do, as the client is told (`NBD_FLAG_...`).
pub mod transmission {
    /// There are flags.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF is understood; never without structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection is one of what was written on any.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// FAST_ZERO is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// What a failed request is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    /// The device failed.
    Io = 5,
    /// The request makes no sense.
    Inval = 22,
    /// No space, or beyond the end.
    NoSpc = 28,
    /// Too long to come in one piece.
    Overflow = 75,
    /// It cannot be done faster than writing zeroes.
    NotSup = 95,
}

/// Why a connection is over: what came is no NBD.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Broken {
    /// Not the magic number that must be there.
    #[error("{0} begins with {1:#x}, which is no NBD")]
    Magic(&'static str, u64),
    /// Flags that nobody offered.
    #[error("the client wants handshake flags {0:#x}, which nobody offered")]
    Flags(u32),
    /// An option without end.
    #[error("option {0} has {1} bytes, of at most {OPTION_MAX}")]
    OptionTooLong(u32, u32),
    /// A payload that cannot be skipped any more.
    #[error("a write of {0} bytes, of at most {PAYLOAD_MAX}")]
    WriteTooLong(u32),
}
