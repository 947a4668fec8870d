//! A sector's stamp: who wrote it, where, in which write. The rest of the sector is derived from that, so that a sector made
//! of two writes, or of a write and something else, is none.

/// The bytes of a sector.
pub const SECTOR: usize = 512;

/// "refstamp", little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"refstamp");
const WORDS: usize = SECTOR / 8;
const HEADER: usize = 4;

/// What a sector says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// The number of the write in the log; 0 for what was there before the log began.
    pub generation: u64,
    /// Its place: offset in the image / 512.
    pub sector: u64,
    /// The thread that wrote it.
    pub writer: u32,
}

/// What a sector holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// A whole stamp.
    Stamped(Stamp),
    /// Nothing but zeros.
    Zeros,
    /// Neither: parts of two writes, or something that was never stamped.
    Torn,
}

impl Stamp {
    /// Makes `sector` one that bears this stamp.
    ///
    /// # Panics
    /// Where `sector` is not 512 bytes.
    pub fn put(self, sector: &mut [u8]) {
        assert_eq!(sector.len(), SECTOR);
        for (place, word) in sector.as_chunks_mut::<8>().0.iter_mut().zip(self.words()) {
            *place = word.to_le_bytes();
        }
    }

    fn words(self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[..HEADER].copy_from_slice(&[MAGIC, self.generation, self.sector, u64::from(self.writer)]);
        let mut seed = mixed(self.generation) ^ mixed(self.sector.rotate_left(32)) ^ mixed(!u64::from(self.writer));
        for word in &mut words[HEADER..] {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *word = mixed(seed);
        }
        words
    }
}

fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ (word >> 29)
}

/// Stamps all of `bytes`, which lie in the image at sector `first`.
///
/// # Panics
/// Where `bytes` are not whole sectors.
pub fn put_all(bytes: &mut [u8], first: u64, generation: u64, writer: u32) {
    assert!(bytes.len().is_multiple_of(SECTOR));
    for (sector, place) in (first..).zip(bytes.chunks_exact_mut(SECTOR)) {
        Stamp { generation, sector, writer }.put(place);
    }
}

/// Reads a sector.
///
/// # Panics
/// Where it is not 512 bytes.
pub fn read(sector: &[u8]) -> Content {
    assert_eq!(sector.len(), SECTOR);
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(sector.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    if words == [0; WORDS] {
        return Content::Zeros;
    }
    let Ok(writer) = u32::try_from(words[3]) else { return Content::Torn };
    let stamp = Stamp { generation: words[1], sector: words[2], writer };
    if stamp.words() == words { Content::Stamped(stamp) } else { Content::Torn }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(generation: u64, sector: u64, writer: u32) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        Stamp { generation, sector, writer }.put(&mut bytes);
        bytes
    }

    #[test]
    fn what_was_put_is_read() {
        for (generation, sector, writer) in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (7, u64::MAX, u32::MAX), (u64::MAX, 9, 2)]
        {
            let stamp = Stamp { generation, sector, writer };
            assert_eq!(read(&stamped(generation, sector, writer)), Content::Stamped(stamp));
        }
        assert_eq!(read(&[0; SECTOR]), Content::Zeros);
    }

    #[test]
    fn every_flipped_bit_is_a_tear() {
        let whole = stamped(5, 77, 3);
        for bit in 0..SECTOR * 8 {
            let mut bytes = whole;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&bytes), Content::Torn, "bit {bit}");
        }
    }

    #[test]
    fn parts_of_two_writes_are_a_tear() {
        let (old, new) = (stamped(5, 77, 3), stamped(6, 77, 3));
        for at in (8..SECTOR).step_by(8) {
            let mut bytes = old;
            bytes[..at].copy_from_slice(&new[..at]);
            let expect =
                if at == 8 { Content::Stamped(Stamp { generation: 5, sector: 77, writer: 3 }) } else { Content::Torn };
            assert_eq!(read(&bytes), expect, "cut at {at}");
            bytes[..at].fill(0);
            assert_eq!(read(&bytes), Content::Torn, "zeros before {at}");
        }
    }

    #[test]
    fn a_stretch_is_numbered_from_its_first_sector() {
        let mut bytes = [0; 3 * SECTOR];
        put_all(&mut bytes, 40, 2, 1);
        let last = read(&bytes[2 * SECTOR..]);
        assert_eq!(last, Content::Stamped(Stamp { generation: 2, sector: 42, writer: 1 }));
    }
}
