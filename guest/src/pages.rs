//! Memory that O_DIRECT accepts.

/// The alignment of memory, offsets and lengths that O_DIRECT accepts on every file system here.
pub const PAGE: usize = 4096;

/// So many bytes, aligned to a page. They stay where they are for as long as this is not dropped.
#[derive(Debug)]
pub struct Pages {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Pages {
    /// All zeros.
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Self { memory, start, length }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}
