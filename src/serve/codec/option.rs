//! What a client sends before the transmission: its flags, and options.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::reply::Refusal;
use super::{Broken, OPTION_MAX, QUERIES_MAX, STRING_MAX};

const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
const I_HAVE_OPT: u64 = 0x4948_4156_454f_5054;

/// Both sides' handshake flags: fixed newstyle, and no 124 zeroes behind the answer to EXPORT_NAME.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 1 << 1;

/// The options' numbers (`NBD_OPT_...`).
pub const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
/// Of the metadata contexts that are to be used.
pub const SET_META_CONTEXT: u32 = 10;

/// What the server says first.
pub fn hello() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&INIT_PASSWD.to_be_bytes());
    bytes[8..16].copy_from_slice(&I_HAVE_OPT.to_be_bytes());
    bytes[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

/// What the client answers: whether it wants the 124 zeroes.
///
/// # Errors
/// Flags that the server did not offer.
pub fn parse_hello(bytes: [u8; 4]) -> Result<bool, Broken> {
    let flags = u32::from_be_bytes(bytes);
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(Broken::Flags(flags));
    }
    Ok(flags & u32::from(NO_ZEROES) == 0)
}

/// What stands before each option's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// The option's number.
    pub option: u32,
    /// Bytes of data that follow, at most [`OPTION_MAX`].
    pub length: u32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOption {
    magic: U64,
    option: U32,
    length: U32,
}

impl OptionHeader {
    /// Bytes of it.
    pub const BYTES: usize = size_of::<RawOption>();

    /// From the wire.
    ///
    /// # Errors
    /// Where it is none, or its data is longer than any option's.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Result<Self, Broken> {
        let raw: &RawOption = zerocopy::transmute_ref!(bytes);
        if raw.magic != I_HAVE_OPT {
            return Err(Broken::Magic("an option", raw.magic.get()));
        }
        let (option, length) = (raw.option.get(), raw.length.get());
        if length > OPTION_MAX {
            return Err(Broken::OptionTooLong(option, length));
        }
        Ok(Self { option, length })
    }
}

/// What one option asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Transmission on this export, without another word.
    ExportName(Vec<u8>),
    /// The end.
    Abort,
    /// All exports.
    List,
    /// What an export is like, and with `go` transmission on it.
    Info {
        /// The export.
        name: Vec<u8>,
        /// Whether the client will keep to the block sizes that it is told.
        sizes: bool,
        /// Whether it wants to be told name and description.
        texts: bool,
        /// Whether this is GO.
        go: bool,
    },
    /// Structured replies.
    StructuredReply,
    /// Metadata contexts of an export, for the asking, or with `set` to be used.
    Contexts {
        /// The export.
        name: Vec<u8>,
        /// Which.
        queries: Vec<Query>,
        /// Whether this is SET_META_CONTEXT.
        set: bool,
    },
}

/// A query for metadata contexts, as sent.
pub type Query = Vec<u8>;

/// Why an option is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unasked(pub Refusal, pub &'static str);

impl Asked {
    /// An option's data.
    ///
    /// # Errors
    /// What the client is to be told: an unknown option, or data that is not what the option has.
    pub fn parse(option: u32, data: &[u8]) -> Result<Self, Unasked> {
        let asked = match option {
            EXPORT_NAME => Self::ExportName(string(data)?.to_vec()),
            // Data is ignored, the protocol says.
            ABORT => Self::Abort,
            LIST if data.is_empty() => Self::List,
            INFO | GO => info(data, option == GO)?,
            STRUCTURED_REPLY if data.is_empty() => Self::StructuredReply,
            LIST_META_CONTEXT | SET_META_CONTEXT => contexts(data, option == SET_META_CONTEXT)?,
            LIST | STRUCTURED_REPLY => return Err(invalid("this option has no data")),
            STARTTLS => return Err(Unasked(Refusal::Policy, "this server has no TLS")),
            _ => return Err(Unasked(Refusal::Unsupported, "this server does not know the option")),
        };
        Ok(asked)
    }
}

fn info(data: &[u8], go: bool) -> Result<Asked, Unasked> {
    const NAME: u16 = 1;
    const DESCRIPTION: u16 = 2;
    const BLOCK_SIZE: u16 = 3;
    let (name, rest) = counted(data)?;
    let (count, rest) = U16::read_from_prefix(rest).map_err(|_| short())?;
    let wants = <[U16]>::ref_from_bytes(rest).map_err(|_| short())?;
    if wants.len() != usize::from(count.get()) {
        return Err(short());
    }
    let wants = |what: u16| wants.iter().any(|it| it.get() == what);
    Ok(Asked::Info { name: name.to_vec(), sizes: wants(BLOCK_SIZE), texts: wants(NAME) || wants(DESCRIPTION), go })
}

fn contexts(data: &[u8], set: bool) -> Result<Asked, Unasked> {
    let (name, rest) = counted(data)?;
    let (count, mut rest) = U32::read_from_prefix(rest).map_err(|_| short())?;
    if count.get() > QUERIES_MAX {
        return Err(Unasked(Refusal::TooBig, "too many queries"));
    }
    let mut queries = Vec::new();
    for _ in 0..count.get() {
        let (query, after) = counted(rest)?;
        queries.push(query.to_vec());
        rest = after;
    }
    if !rest.is_empty() {
        return Err(invalid("data behind the last query"));
    }
    Ok(Asked::Contexts { name: name.to_vec(), queries, set })
}

/// A string behind its length.
fn counted(data: &[u8]) -> Result<(&[u8], &[u8]), Unasked> {
    let (length, rest) = U32::read_from_prefix(data).map_err(|_| short())?;
    let (text, rest) = rest.split_at_checked(length.get() as usize).ok_or_else(short)?;
    Ok((string(text)?, rest))
}

fn string(text: &[u8]) -> Result<&[u8], Unasked> {
    if text.len() > STRING_MAX {
        return Err(Unasked(Refusal::TooBig, "a name of more than 4096 bytes"));
    }
    Ok(text)
}

fn short() -> Unasked {
    invalid("lengths that do not fit the option's data")
}

fn invalid(why: &'static str) -> Unasked {
    Unasked(Refusal::Invalid, why)
}
