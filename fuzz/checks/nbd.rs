//! What an NBD client may say, from its first byte on: it never panics, no answer to an option is long, and what is granted lies
//! within the export.

use rclone_img::serve::codec::{
    Command, OPTION_MAX, OptionHeader, PAYLOAD_MAX, REQUEST, Request, parse_hello, transmission,
};
use rclone_img::serve::negotiation::{Exports, Negotiation, Next, Offer};

/// Bytes of the export.
const SIZE: u64 = 1 << 20;

struct One;

impl Exports for One {
    fn all(&self) -> Vec<Offer> {
        let contexts = vec!["base:allocation".into(), "qemu:dirty-bitmap:a".into()];
        let (name, description) = (b"disk".to_vec(), "the live image".into());
        vec![Offer { name, description, size: SIZE, flags: transmission::HAS_FLAGS, block: 4096, contexts }]
    }

    fn find(&self, name: &[u8]) -> Option<Offer> {
        self.all().pop().filter(|offer| name.is_empty() || name == offer.name)
    }
}

/// Whatever these bytes are.
pub fn check(bytes: &[u8]) {
    let mut input = Input(bytes);
    let Some(Ok(zeroes)) = input.take().map(parse_hello) else { return };
    let mut negotiation = Negotiation::new(zeroes);
    loop {
        let Some(Ok(header)) = input.take().map(|bytes| OptionHeader::parse(&bytes)) else { return };
        assert!(header.length <= OPTION_MAX);
        let Some(data) = input.data(header.length as usize) else { return };
        let (answer, next) = negotiation.step(header.option, data, &One);
        assert!(answer.len() <= 1 << 20);
        match next {
            Next::Option => {}
            Next::End => return,
            Next::Transmission(agreed) => {
                assert!(agreed.contexts.iter().all(|id| (*id as usize) < agreed.offer.contexts.len()));
                break;
            }
        }
    }
    while let Some(Ok(request)) = input.take::<REQUEST>().map(|bytes| Request::parse(&bytes)) {
        assert!(request.payload <= PAYLOAD_MAX);
        for read_only in [false, true] {
            if let Ok(command) = request.check(SIZE, read_only) {
                assert!(!(read_only && command.writes()));
                let whole = matches!(command, Command::Disconnect | Command::Flush);
                assert!(whole || request.offset + u64::from(request.length) <= SIZE);
            }
        }
        if input.data(request.payload as usize).is_none() {
            return;
        }
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn data(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (data, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(data)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.data(N)?.try_into().ok()
    }
}
