//! What differs between two files that nobody writes to: by their block maps, and where wanted by their bytes.
//!
//! - [`still`]: a file that does not change while it is read, or the reader is told.
//! - [`maps`]: two block maps side by side, from the beginning to the end, in bounded memory.
//! - [`content`]: what the maps do not prove, read and compared.
//! - [`verify`]: the same by several threads, for the answer alone.
//!
//! What is said to be equal, is. What is said to differ may be equal where bytes were not compared: blocks of their own, addresses that mean
//! nothing (compressed, inline), two file systems.

pub mod content;
pub mod maps;
pub mod still;
pub mod verify;

use crate::extent::delta::{Relation, Run};

/// A range of both files.
pub type Span = Run<Relation>;
