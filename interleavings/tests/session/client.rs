//! A client with a thread that asks and one that listens, and is owed exactly one whole answer to each question.

use std::collections::{BTreeMap, BTreeSet};

use reflink_img_interleavings::threads::{Condvar, Mutex};
use shuttle::rand::{Rng, thread_rng};

use super::disk::{BAD, Disk, SLOT, byte};
use super::wire::Wire;

/// As the protocol has them.
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const FUA: u16 = 1;
const DF: u16 = 4;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE: u32 = 0x6744_6698;
const STRUCTURED: u32 = 0x668e_33ef;
const EIO: u32 = 5;
/// The server's greeting, and what it says of an export that is asked for by its name, without zeroes.
const HELLO: usize = 18;
const EXPORT: usize = 10;
const OPTION_REPLY: usize = 20;

/// A question.
#[derive(Clone, Debug)]
struct Ask {
    command: u16,
    flags: u16,
    offset: u64,
    length: u32,
}

impl Ask {
    fn by_chance(cookie: u64) -> Self {
        let mut dice = thread_rng();
        let length = match dice.gen_range(0..24) {
            0 => (1 << 20) + 4096,
            1 => 2 << 20,
            2..=4 => 200 << 10,
            5..=8 => 64 << 10,
            _ => 4096,
        };
        let (offset, fua) = (cookie * SLOT, if dice.gen_ratio(1, 6) { FUA } else { 0 });
        match dice.gen_range(0..12) {
            0..=4 => Self { command: WRITE, flags: fua, offset, length },
            5..=8 => Self { command: READ, flags: if dice.gen_ratio(1, 4) { DF } else { 0 }, offset, length },
            9 => Self { command: READ, flags: 0, offset: BAD + offset, length: 4096 },
            10 => Self { command: FLUSH, flags: 0, offset: 0, length: 0 },
            _ => Self { command: if dice.gen_bool(0.5) { TRIM } else { CACHE }, flags: 0, offset, length: 4096 },
        }
    }

    fn bytes(&self, cookie: u64) -> Vec<u8> {
        let mut bytes = [&REQUEST_MAGIC.to_be_bytes()[..], &self.flags.to_be_bytes()].concat();
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        bytes.extend(self.length.to_be_bytes());
        if self.command == WRITE {
            bytes.extend((self.offset..self.offset + u64::from(self.length)).map(byte));
        }
        bytes
    }

    fn is_bad(&self) -> bool {
        self.offset >= BAD
    }
}

/// What both threads of a client know.
#[derive(Default)]
struct Known {
    asked: BTreeMap<u64, Asked>,
    /// Slots whose writes were answered.
    written: BTreeSet<u64>,
    answered: usize,
    /// No answer comes any more.
    over: bool,
}

struct Asked {
    ask: Ask,
    /// What the answer of a flush promises.
    before: BTreeSet<u64>,
    /// Bytes of data that have come.
    data: u64,
}

/// How a client ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It says so, while questions may be open, and listens to the end.
    Disconnect,
    /// It says nothing more, and listens to the end.
    Silence,
    /// It is gone without a word, after so many questions and answers.
    Gone { asked: u64, answered: usize },
}

/// A client.
pub struct Client<'a> {
    wire: &'a Wire,
    disk: &'a Disk,
    structured: bool,
    /// At most so many questions are open.
    window: usize,
    known: Mutex<Known>,
    changed: Condvar,
}

impl<'a> Client<'a> {
    pub fn new(wire: &'a Wire, disk: &'a Disk, structured: bool, window: usize) -> Self {
        Self { wire, disk, structured, window, known: Mutex::default(), changed: Condvar::new() }
    }

    /// Asks so many questions.
    pub fn ask(&self, count: u64, end: End) {
        let option = |number: u32, data: &[u8]| {
            [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
        };
        let mut greeting = 3_u32.to_be_bytes().to_vec();
        if self.structured {
            greeting.extend(option(8, b""));
        }
        greeting.extend(option(1, b"disk"));
        if self.wire.to_server.send(&greeting).is_err() {
            return;
        }
        for cookie in 1..=count {
            if matches!(end, End::Gone { asked, .. } if asked == cookie) {
                return super::wire::vanish(self.wire);
            }
            let ask = Ask::by_chance(cookie);
            let mut known = self.known.lock().expect("what is known");
            while known.asked.len() >= self.window && !known.over {
                known = self.changed.wait(known).expect("what is known");
            }
            if known.over {
                return;
            }
            let before = known.written.clone();
            known.asked.insert(cookie, Asked { ask: ask.clone(), before, data: 0 });
            drop(known);
            if self.wire.to_server.send(&ask.bytes(cookie)).is_err() {
                return;
            }
        }
        match end {
            End::Disconnect => {
                let goodbye = Ask { command: DISCONNECT, flags: 0, offset: 0, length: 0 };
                // The server may have heard all that it wants.
                let _ = self.wire.to_server.send(&goodbye.bytes(0));
            }
            End::Silence => self.wire.to_server.end(),
            End::Gone { .. } => super::wire::vanish(self.wire),
        }
    }

    /// Hears answers until none comes any more; how many.
    pub fn listen(&self, end: End) -> usize {
        let mut buffer = vec![0; HELLO + EXPORT + if self.structured { OPTION_REPLY } else { 0 }];
        if self.fill(&mut buffer) {
            while self.answer() {
                let answered = self.known.lock().expect("what is known").answered;
                if matches!(end, End::Gone { answered: enough, .. } if answered >= enough) {
                    super::wire::vanish(self.wire);
                }
            }
        }
        let mut known = self.known.lock().expect("what is known");
        known.over = true;
        self.changed.notify_all();
        known.answered
    }

    fn fill(&self, into: &mut [u8]) -> bool {
        let mut have = 0;
        while have < into.len() {
            match self.wire.to_client.receive(&mut into[have..]) {
                Ok(0) | Err(_) => return false,
                Ok(some) => have += some,
            }
        }
        true
    }

    fn number<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes).then_some(bytes)
    }

    /// Hears an answer, or a piece of one; false at the end.
    fn answer(&self) -> bool {
        self.heard().is_some()
    }

    fn heard(&self) -> Option<()> {
        match u32::from_be_bytes(self.number()?) {
            SIMPLE => {
                let error = u32::from_be_bytes(self.number()?);
                let cookie = u64::from_be_bytes(self.number()?);
                let ask = self.open(cookie);
                if ask.command == READ && error == 0 {
                    assert!(!self.structured, "data without a structured reply");
                    self.data(cookie, ask.offset, u64::from(ask.length))?;
                }
                self.done(cookie, error);
            }
            STRUCTURED => {
                assert!(self.structured, "nobody has asked for structured replies");
                let [done, kind] = [u16::from_be_bytes(self.number()?), u16::from_be_bytes(self.number()?)];
                let cookie = u64::from_be_bytes(self.number()?);
                let length = u64::from(u32::from_be_bytes(self.number()?));
                self.open(cookie);
                let mut error = 0;
                match kind {
                    0 => {}
                    1 => {
                        let offset = u64::from_be_bytes(self.number()?);
                        self.data(cookie, offset, length - 8)?;
                    }
                    _ => {
                        error = u32::from_be_bytes(self.number()?);
                        let mut text = vec![0; length as usize - 4];
                        self.fill(&mut text).then_some(())?;
                    }
                }
                if done & 1 == 1 {
                    self.done(cookie, error);
                }
            }
            other => panic!("no reply begins with {other:#x}"),
        }
        Some(())
    }

    fn open(&self, cookie: u64) -> Ask {
        let known = self.known.lock().expect("what is known");
        known.asked.get(&cookie).expect("an answer to what was asked, and not answered before").ask.clone()
    }

    fn data(&self, cookie: u64, offset: u64, length: u64) -> Option<()> {
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes).then_some(())?;
        assert!(bytes.iter().zip(offset..).all(|(it, at)| *it == byte(at)), "other bytes than the disk's at {offset}");
        let mut known = self.known.lock().expect("what is known");
        known.asked.get_mut(&cookie).expect("it is open").data += length;
        Some(())
    }

    fn done(&self, cookie: u64, error: u32) {
        let mut known = self.known.lock().expect("what is known");
        let Asked { ask, before, data } = known.asked.remove(&cookie).expect("it is open");
        assert_eq!(error, if ask.is_bad() { EIO } else { 0 }, "{ask:?}");
        let read = ask.command == READ && error == 0;
        assert_eq!(data, if read { u64::from(ask.length) } else { 0 }, "{ask:?}");
        let kept = self.disk.kept.lock().expect("what is kept");
        match ask.command {
            WRITE => {
                assert!(kept.written.contains(&cookie), "answered and not written");
                assert!(ask.flags & FUA == 0 || kept.lasts.contains(&cookie), "answered and not made to last");
                known.written.insert(cookie);
            }
            FLUSH => assert!(kept.lasts.is_superset(&before), "what was answered before the flush does not last"),
            _ => {}
        }
        known.answered += 1;
        self.changed.notify_all();
    }
}
