//! What the server sends: replies to options, and to requests.

use super::Errno;

const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;

/// Why an option is refused (`NBD_REP_ERR_...`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Refusal {
    /// Nobody knows it.
    Unsupported = 1 << 31 | 1,
    /// It is known and not allowed.
    Policy = 1 << 31 | 2,
    /// Its data is not what it has to be.
    Invalid = 1 << 31 | 3,
    /// There is no such export.
    Unknown = 1 << 31 | 6,
    /// Too much.
    TooBig = 1 << 31 | 9,
}

fn option_reply(option: u32, kind: u32, data: &[&[u8]]) -> Vec<u8> {
    let length: usize = data.iter().map(|it| it.len()).sum();
    let mut bytes = Vec::with_capacity(20 + length);
    bytes.extend_from_slice(&OPTION_REPLY.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&length32(length).to_be_bytes());
    data.iter().for_each(|it| bytes.extend_from_slice(it));
    bytes
}

/// Everything that this server sends behind a length is far below 4 GiB.
fn length32(length: usize) -> u32 {
    u32::try_from(length).expect("an answer is shorter than 4 GiB")
}

/// The option is done, and all was said.
pub fn option_ack(option: u32) -> Vec<u8> {
    option_reply(option, REP_ACK, &[])
}

/// The option is not done, and why, for a person.
pub fn option_refused(option: u32, why: Refusal, text: &str) -> Vec<u8> {
    option_reply(option, why as u32, &[text.as_bytes()])
}

/// One export of the list, with a description.
pub fn server(option: u32, name: &[u8], description: &str) -> Vec<u8> {
    option_reply(option, REP_SERVER, &[&length32(name.len()).to_be_bytes(), name, description.as_bytes()])
}

/// What an export is: its size in bytes, and what it can do ([`super::transmission`]).
pub fn export_info(option: u32, size: u64, flags: u16) -> Vec<u8> {
    option_reply(option, REP_INFO, &[&0_u16.to_be_bytes(), &size.to_be_bytes(), &flags.to_be_bytes()])
}

/// Name or description of an export.
pub fn text_info(option: u32, is_name: bool, text: &[u8]) -> Vec<u8> {
    option_reply(option, REP_INFO, &[&(if is_name { 1_u16 } else { 2 }).to_be_bytes(), text])
}

/// What requests should be aligned to, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSizes {
    /// What they must be.
    pub minimum: u32,
    /// What costs nothing more.
    pub preferred: u32,
    /// The longest payload.
    pub maximum: u32,
}

/// The block sizes.
pub fn sizes_info(option: u32, sizes: BlockSizes) -> Vec<u8> {
    let BlockSizes { minimum, preferred, maximum } = sizes;
    let numbers = [minimum, preferred, maximum].map(u32::to_be_bytes);
    option_reply(option, REP_INFO, &[&3_u16.to_be_bytes(), numbers.as_flattened()])
}

/// A metadata context, and the number that it has on this connection.
pub fn context(option: u32, id: u32, name: &[u8]) -> Vec<u8> {
    option_reply(option, REP_META_CONTEXT, &[&id.to_be_bytes(), name])
}

/// A simple reply's header; the data of a read follows, unless there is an error.
pub fn simple_reply(cookie: u64, error: Option<Errno>) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, |it| it as u32).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// A kind of piece of a structured reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Chunk {
    /// Nothing more.
    None = 0,
    /// Data, behind its offset.
    Data = 1,
    /// Extents of a context.
    Status = 5,
    /// The request failed.
    Error = 1 << 15 | 1,
}

/// The header of a piece of a structured reply, with `length` bytes behind it; `done` with the last.
pub fn chunk_header(cookie: u64, chunk: Chunk, done: bool, length: usize) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&STRUCTURED_REPLY.to_be_bytes());
    bytes[4..6].copy_from_slice(&u16::from(done).to_be_bytes());
    bytes[6..8].copy_from_slice(&(chunk as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&length32(length).to_be_bytes());
    bytes
}

/// The whole answer to a request that failed, with words for a person.
pub fn error_chunk(cookie: u64, error: Errno, text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
    let mut bytes = chunk_header(cookie, Chunk::Error, true, 6 + text.len()).to_vec();
    bytes.extend_from_slice(&(error as u32).to_be_bytes());
    bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
    bytes.extend_from_slice(text);
    bytes
}

/// What is where, in one context: lengths in bytes with the context's flags, one after another from the request's offset.
pub fn status_chunk(cookie: u64, done: bool, context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = chunk_header(cookie, Chunk::Status, done, 4 + 8 * extents.len()).to_vec();
    bytes.extend_from_slice(&context.to_be_bytes());
    for (length, flags) in extents {
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
    }
    bytes
}
