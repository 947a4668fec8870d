//! Messages as the protocol's text has them, byte for byte, and everything that is none.

use proptest::prelude::{any, prop, prop_assert, proptest};

use super::*;

fn request(flags: u16, command: u16, offset: u64, length: u32) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&77_u64.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn counted(texts: &[&[u8]]) -> Vec<u8> {
    texts.iter().flat_map(|text| [&(text.len() as u32).to_be_bytes()[..], text].concat()).collect()
}

#[test]
fn the_server_says_what_it_is_first() {
    assert_eq!(hello(), *b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!((parse_hello([0, 0, 0, 3]), parse_hello([0, 0, 0, 1])), (Ok(false), Ok(true)));
    assert_eq!(parse_hello([0, 0, 0, 4]), Err(Broken::Flags(4)));
}

#[test]
fn an_option_without_an_end_is_none() {
    let header = |length: u32| {
        let mut bytes = *b"IHAVEOPT\0\0\0\x07....";
        bytes[12..].copy_from_slice(&length.to_be_bytes());
        OptionHeader::parse(&bytes)
    };
    assert_eq!(header(6), Ok(OptionHeader { option: 7, length: 6 }));
    assert_eq!(header(u32::MAX), Err(Broken::OptionTooLong(7, u32::MAX)));
    assert_eq!(OptionHeader::parse(b"IHAVEOPS........"), Err(Broken::Magic("an option", 0x4948_4156_454f_5053)));
}

#[test]
fn options_are_what_their_data_says() {
    let go = [counted(&[b"disk"]), vec![0, 2, 0, 3, 0, 1]].concat();
    let asked = Asked::Info { name: b"disk".to_vec(), sizes: true, texts: true, go: true };
    assert_eq!(Asked::parse(7, &go), Ok(asked));
    let set = [counted(&[b"disk"]), vec![0, 0, 0, 2], counted(&[b"base:allocation", b"x:"])].concat();
    let queries = vec![b"base:allocation".to_vec(), b"x:".to_vec()];
    assert_eq!(Asked::parse(10, &set), Ok(Asked::Contexts { name: b"disk".to_vec(), queries, set: true }));
    assert_eq!(Asked::parse(1, b""), Ok(Asked::ExportName(Vec::new())));
    assert_eq!(Asked::parse(2, b"whatever"), Ok(Asked::Abort));
}

#[test]
fn options_that_are_none_are_refused_with_what_they_are() {
    let refused = |option, data: &[u8]| Asked::parse(option, data).map_err(|why| why.0).err();
    assert_eq!(refused(5, b""), Some(Refusal::Policy));
    assert_eq!(refused(11, b""), Some(Refusal::Unsupported));
    assert_eq!(refused(3, b"x"), Some(Refusal::Invalid));
    assert_eq!(refused(1, &[b'x'; STRING_MAX + 1]), Some(Refusal::TooBig));
    assert_eq!(refused(10, &[counted(&[b""]), vec![0, 0, 1, 0]].concat()), Some(Refusal::TooBig));
    // A name that is longer than the option, a list that is shorter than it says, and one that is longer.
    for data in [&[0, 0, 0, 9, 0, 0][..], &[0, 0, 0, 0, 0, 2, 0, 3], &[0, 0, 0, 0, 0, 0, 0, 3], &[0, 0, 0, 0]] {
        assert_eq!(refused(6, data), Some(Refusal::Invalid), "{data:?}");
    }
}

#[test]
fn a_request_is_what_it_says() {
    let parsed = Request::parse(&request(1, 1, 4096, 512)).expect("a write");
    assert_eq!((parsed.cookie, parsed.payload, parsed.check(8192, false)), (77, 512, Ok(Command::Write)));
    assert!(parsed.flags.fua() && !parsed.flags.df());
    assert_eq!(parsed.check(8192, true), Err(Errno::Perm));
    assert_eq!(parsed.check(4600, false), Err(Errno::NoSpc));
    let read = |offset, length| Request::parse(&request(0, 0, offset, length)).expect("a read").check(1 << 40, true);
    assert_eq!(read(0, PAYLOAD_MAX), Ok(Command::Read));
    assert_eq!((read(0, PAYLOAD_MAX + 1), read(u64::MAX, 2)), (Err(Errno::Overflow), Err(Errno::Inval)));
}

#[test]
fn a_request_that_makes_no_sense_costs_itself_and_one_without_an_end_the_connection() {
    let checked = |flags, command| Request::parse(&request(flags, command, 0, 512)).map(|it| it.check(4096, false));
    // An unknown command, RESIZE among them, and flags that belong to another one.
    for (flags, command) in [(0, 8), (0, 99), (4, 1), (2, 0), (16, 4), (32, 0)] {
        assert_eq!(checked(flags, command), Ok(Err(Errno::Inval)), "{flags} {command}");
    }
    assert_eq!(Request::parse(&request(0, 1, 0, PAYLOAD_MAX + 1)), Err(Broken::WriteTooLong(PAYLOAD_MAX + 1)));
    // A write with flags that are none has its payload all the same.
    assert_eq!(Request::parse(&request(1 << 9, 1, 0, 512)).map(|it| it.payload), Ok(512));
    assert_eq!(Request::parse(&[0; REQUEST]), Err(Broken::Magic("a request", 0)));
}

#[test]
fn replies_are_those_of_the_text() {
    assert_eq!(simple_reply(77, None), *b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x4d");
    assert_eq!(simple_reply(77, Some(Errno::NoSpc))[4..8], [0, 0, 0, 28]);
    assert_eq!(option_ack(7), *b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0");
    assert_eq!(option_refused(7, Refusal::Unknown, "no")[12..], *b"\x80\0\0\x06\0\0\0\x02no");
    assert_eq!(server(3, b"disk", "a disk")[16..], *b"\0\0\0\x0e\0\0\0\x04diska disk");
    assert_eq!(export_info(7, 1 << 32, 0x0101)[16..], *b"\0\0\0\x0c\0\0\0\0\0\x01\0\0\0\0\x01\x01");
    let sizes = BlockSizes { minimum: 1, preferred: 4096, maximum: 32 << 20 };
    assert_eq!(sizes_info(7, sizes)[16..], *b"\0\0\0\x0e\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0");
    assert_eq!(context(10, 5, b"base:allocation")[16..], *b"\0\0\0\x13\0\0\0\x05base:allocation");
    assert_eq!(
        status_chunk(77, true, 5, &[(4096, 3)]),
        *b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x4d\0\0\0\x0c\0\0\0\x05\0\0\x10\0\0\0\0\x03"
    );
    assert_eq!(error_chunk(77, Errno::Io, "no")[4..], *b"\0\x01\x80\x01\0\0\0\0\0\0\0\x4d\0\0\0\x08\0\0\0\x05\0\x02no");
    assert_eq!(error_chunk(0, Errno::Io, &"x".repeat(70_000)).len(), 20 + 6 + 65_535);
}

proptest! {
    #[test]
    fn anything_is_parsed_or_refused(option in 0..12_u32, data in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Asked::parse(option, &data);
    }

    #[test]
    fn what_is_granted_lies_within_the_export(
        flags in 0..32_u16, command in 0..9_u16, offset in 0..10_000_u64, length in 0..10_000_u32, size in 0..10_000_u64,
    ) {
        let granted = Request::parse(&request(flags, command, offset, length)).map(|it| it.check(size, false));
        if let Ok(Ok(Command::Read | Command::Write | Command::Trim | Command::WriteZeroes | Command::BlockStatus | Command::Cache)) = granted {
            prop_assert!(offset + u64::from(length) <= size);
        }
    }
}
