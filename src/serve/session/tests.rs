//! A client that says each byte itself, and a disk that never has anything at hand: every request waits for it, and fails where it is
//! told to.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::*;
use crate::serve::codec::Errno;
use crate::serve::device::Extents;
use crate::serve::negotiation::Offer;

const SIZE: usize = 8 << 20;

/// A disk in memory whose bytes from `bad` on cannot be read.
struct Slow {
    bytes: Mutex<Vec<u8>>,
    bad: usize,
    /// How long the parts of long writes had waited for others before.
    parts: Mutex<Vec<u64>>,
    /// How many writes come together before one of them goes on, and how many are there.
    gathers: usize,
    there: (Mutex<usize>, Condvar),
}

impl Device for Slow {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read_now(&self, _: &mut [u8], _: u64) -> bool {
        false
    }

    fn write_now(&self, _: &[u8], _: u64) -> bool {
        false
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let from = offset as usize;
        if from + bytes.len() > self.bad {
            return Err(nix::errno::Errno::EIO.into());
        }
        bytes.copy_from_slice(&self.bytes.lock().expect("the bytes")[from..from + bytes.len()]);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (there, changed) = &self.there;
        let mut count = there.lock().expect("a count");
        *count += 1;
        changed.notify_all();
        let waited = changed.wait_timeout_while(count, Duration::from_secs(20), |count| *count < self.gathers);
        if waited.expect("a count").1.timed_out() {
            return Err(nix::errno::Errno::ETIMEDOUT.into());
        }
        let from = offset as usize;
        self.bytes.lock().expect("the bytes")[from..from + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Each waits for a second.
    fn write_part(&self, bytes: &[u8], offset: u64, waited: &mut Duration) -> io::Result<()> {
        self.parts.lock().expect("the parts").push(waited.as_secs());
        *waited += Duration::from_secs(1);
        self.write(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn trim(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: bool, fast: bool) -> io::Result<()> {
        if fast { Err(nix::errno::Errno::EOPNOTSUPP.into()) } else { Ok(()) }
    }

    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn extents(&self, _: u32, _: u64, length: u32, _: usize) -> io::Result<Extents> {
        Ok(vec![(length, 0)])
    }
}

struct One(Arc<Slow>);

impl Exports for One {
    fn all(&self) -> Vec<Offer> {
        let (flags, contexts) = (transmission::HAS_FLAGS, vec!["base:allocation".into()]);
        let (name, description) = (b"disk".to_vec(), String::new());
        vec![Offer { name, description, size: SIZE as u64, flags, block: 4096, contexts }]
    }

    fn find(&self, _: &[u8]) -> Option<Offer> {
        self.all().pop()
    }
}

impl Shelf for One {
    fn open(&self, _: &Offer) -> io::Result<Option<Arc<dyn Device>>> {
        Ok(Some(Arc::clone(&self.0) as Arc<dyn Device>))
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn request(flags: u16, command: u16, cookie: u64, offset: usize, length: usize) -> Vec<u8> {
    let head = [&0x2560_9513_u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &(offset as u64).to_be_bytes(), &(length as u32).to_be_bytes()].concat()
}

fn pattern() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 4096 + at % 251) as u8).collect()
}

/// What the server sends after the negotiation, to a client that sends all of this at once and then nothing more, and how it ended.
fn answers(structured: bool, bad: usize, requests: &[u8]) -> (Vec<u8>, io::Result<()>) {
    answers_of(disk(bad), structured, requests)
}

fn disk(bad: usize) -> Arc<Slow> {
    gathering(bad, 0)
}

fn gathering(bad: usize, gathers: usize) -> Arc<Slow> {
    Arc::new(Slow { bytes: Mutex::new(pattern()), bad, parts: Mutex::default(), gathers, there: Default::default() })
}

/// The same of this disk.
fn answers_of(disk: Arc<Slow>, structured: bool, requests: &[u8]) -> (Vec<u8>, io::Result<()>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let shelf = One(disk);
    let server = thread::spawn(move || {
        let buffers = Buffers::default();
        let ended = serve(&theirs, &shelf, &buffers);
        assert!(buffers.lend(16 << 20), "of what has waited nothing is counted any more");
        ended
    });
    let mut said = vec![0, 0, 0, 3];
    if structured {
        said.extend(option(8, b""));
    }
    said.extend([option(1, b"disk"), requests.to_vec()].concat());
    let mut reader = ours.try_clone().expect("the same socket");
    let read = thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).map(|_| all)
    });
    (&ours).write_all(&said).expect("sent");
    ours.shutdown(std::net::Shutdown::Write).expect("no more to say");
    let all = read.join().expect("the reader").expect("read");
    let negotiated = 18 + if structured { 20 } else { 0 } + 10;
    (all[negotiated..].to_vec(), server.join().expect("the server"))
}

/// Structured replies: type, whether the last, cookie and payload.
fn chunks(mut bytes: &[u8]) -> Vec<(u16, bool, u64, Vec<u8>)> {
    let mut chunks = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<20>() {
        let number =
            |range: std::ops::Range<usize>| head[range].iter().fold(0_u64, |all, it| all << 8 | u64::from(*it));
        assert_eq!(number(0..4), 0x668e_33ef, "a structured reply");
        let (payload, after) = rest.split_at(number(16..20) as usize);
        chunks.push((number(6..8) as u16, number(4..6) == 1, number(8..16), payload.to_vec()));
        bytes = after;
    }
    assert!(bytes.is_empty());
    chunks
}

const END: usize = 3;

fn bye() -> Vec<u8> {
    request(0, 2, 99, 0, 0)
}

#[test]
fn a_long_read_comes_in_pieces() {
    let (offset, length) = (4096, END * PIECE - 100);
    let (bytes, ended) = answers(true, SIZE, &[request(0, 0, 7, offset, length), bye()].concat());
    let chunks = chunks(&bytes);
    let data: Vec<u8> = chunks.iter().flat_map(|it| it.3[8..].to_vec()).collect();
    assert!(data == pattern()[offset..offset + length]);
    assert_eq!(
        chunks.iter().map(|it| (it.0, it.1, it.2)).collect::<Vec<_>>(),
        [(1, false, 7), (1, false, 7), (1, true, 7)]
    );
    ended.expect("in peace");
}

#[test]
fn a_long_write_is_one_whose_parts_have_waited_together() {
    let (disk, length) = (disk(SIZE), END * PIECE - 100);
    let long = |cookie| [request(0, 1, cookie, 4096, length), vec![3; length]].concat();
    let (_, ended) = answers_of(Arc::clone(&disk), false, &[long(7), long(8), bye()].concat());
    ended.expect("in peace");
    assert_eq!(*disk.parts.lock().expect("the parts"), [0, 1, 2, 0, 1, 2]);
    assert!(disk.bytes.lock().expect("the bytes")[4096..][..length].iter().all(|byte| *byte == 3));
}

#[test]
fn a_long_read_that_must_not_be_cut_comes_in_one() {
    let length = END * PIECE;
    let (bytes, _) = answers(true, SIZE, &[request(4, 0, 7, 0, length), bye()].concat());
    let chunks = chunks(&bytes);
    assert!(chunks[0].3[8..] == pattern()[..length]);
    assert_eq!(chunks.iter().map(|it| (it.0, it.1)).collect::<Vec<_>>(), [(1, false), (0, true)]);
}

#[test]
fn an_error_in_the_middle_is_told_and_the_next_request_heard() {
    for flags in [0, 4] {
        let (first, second) = (request(flags, 0, 7, 0, END * PIECE), request(0, 0, 8, 0, 512));
        let (bytes, ended) = answers(true, 2 * PIECE, &[first, second, bye()].concat());
        let chunks = chunks(&bytes);
        let error = chunks.iter().find(|it| it.0 == 1 << 15 | 1).expect("an error");
        assert_eq!((error.1, error.2, &error.3[..4]), (true, 7, &(Errno::Io as u32).to_be_bytes()[..]));
        let text = String::from_utf8_lossy(&error.3[6..]);
        assert!(error.3[4..6] == (text.len() as u16).to_be_bytes() && text.contains("nput/output error"), "{text}");
        let next = chunks.iter().find(|it| it.2 == 8).expect("the next one's answer");
        assert!(next.3[8..] == pattern()[..512]);
        ended.expect("in peace");
    }
}

#[test]
fn a_simple_reply_that_cannot_be_finished_ends_the_connection() {
    let (bytes, _) = answers(false, 2 * PIECE, &[request(0, 0, 7, 0, END * PIECE), bye()].concat());
    assert!(bytes[16..] == pattern()[..2 * PIECE], "what was read, and nothing in place of the rest");
    let (bytes, ended) = answers(false, SIZE, &[request(0, 0, 7, 0, END * PIECE), bye()].concat());
    assert!(bytes[16..] == pattern()[..END * PIECE]);
    ended.expect("in peace");
}

#[test]
fn everything_asked_for_is_answered_once_also_where_all_wait() {
    let writes = (0..200).flat_map(|n: usize| [request(0, 1, n as u64, n * 4096, 4096), vec![n as u8; 4096]].concat());
    let requests: Vec<u8> = writes.chain(request(0, 3, 1000, 0, 0)).chain(bye()).collect();
    let (bytes, ended) = answers(false, SIZE, &requests);
    let mut cookies: Vec<u64> = bytes
        .as_chunks::<16>()
        .0
        .iter()
        .map(|reply| {
            assert_eq!(reply[..8], *b"\x67\x44\x66\x98\0\0\0\0");
            reply[8..].iter().fold(0, |all, it| all << 8 | u64::from(*it))
        })
        .collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..200).chain([1000]).collect::<Vec<_>>());
    ended.expect("in peace");
}

/// The deadline of each begins when it comes, and not when those before it have gone on.
#[test]
fn writes_that_wait_wait_beside_one_another() {
    let count = pool::THREADS;
    let write = |n: usize| [request(0, 1, n as u64, n % END * PIECE, PIECE), vec![n as u8; PIECE]].concat();
    let requests: Vec<u8> = (0..count).flat_map(write).chain(bye()).collect();
    let (bytes, ended) = answers_of(gathering(SIZE, count), false, &requests);
    assert!(bytes.as_chunks::<16>().0.iter().all(|reply| reply[4..8] == [0; 4]), "{bytes:?}");
    assert_eq!(bytes.len(), count * 16);
    ended.expect("in peace");
}

#[test]
fn what_is_refused_costs_its_payload_and_nothing_else() {
    let beyond = [request(0, 1, 7, SIZE - 1, 4096), vec![1; 4096]].concat();
    let (bytes, ended) =
        answers(true, SIZE, &[beyond, request(16, 6, 8, 0, 4096), request(0, 7, 9, 0, 1), bye()].concat());
    let mut chunks = chunks(&bytes);
    chunks.sort_by_key(|it| it.2);
    let errors: Vec<_> = chunks.iter().map(|it| (it.0, it.2, it.3[3])).collect();
    let error = 1 << 15 | 1;
    let expected = [Errno::NoSpc, Errno::NotSup, Errno::Inval].map(|it| it as u32 as u8);
    assert_eq!(errors, [(error, 7, expected[0]), (error, 8, expected[1]), (error, 9, expected[2])]);
    ended.expect("in peace");
}

#[test]
fn a_client_that_goes_in_the_middle_of_a_request_is_told_of() {
    let cut_off = [request(0, 1, 7, 0, 4096)[..20].to_vec(), [request(0, 1, 7, 0, PIECE), vec![1; 4096]].concat()];
    for request in cut_off {
        let (_, ended) = answers(false, SIZE, &request);
        assert!(ended.is_err());
    }
}

#[test]
fn a_read_of_nothing_is_answered() {
    let asks = [request(0, 0, 7, 4096, 0), request(4, 0, 8, 0, 0), bye()].concat();
    let (bytes, ended) = answers(false, SIZE, &asks);
    assert_eq!(bytes.len(), 32);
    ended.expect("in peace");
    let (bytes, _) = answers(true, SIZE, &asks);
    assert!(chunks(&bytes).iter().all(|it| it.0 == 0 && it.1 && it.3.is_empty()));
    assert_eq!(chunks(&bytes).len(), 2);
}
