//! `map` over a file that is made of a list of extents.

use std::cell::Cell;
use std::io::{self, Write};
use std::path::Path;

use snapbox::IntoData;

use super::{BATCH, LEVELS, scale, show, strip, walk};
use crate::disk::{CallCost, DiskFile, FsFacts, FsKind, Stat};
use crate::extent::{Extent, ExtentFlags};
use crate::range::{ByteRange, CloneRange, PowerOfTwo};

const BLOCK: u64 = 4096;

/// A file of which there is only the map.
struct Mapped {
    size: u64,
    regular: bool,
    extents: Vec<Extent>,
    largest_batch: Cell<usize>,
}

impl Mapped {
    /// Extents as (first block, blocks, flags).
    fn new(blocks: u64, extents: &[(u64, u64, ExtentFlags)]) -> Self {
        let extents = extents.iter().map(|&(start, len, flags)| Extent {
            logical: ByteRange::at(start * BLOCK, len * BLOCK).expect("not empty"),
            physical: start * BLOCK,
            flags,
        });
        Self { size: blocks * BLOCK, regular: true, extents: extents.collect(), largest_batch: Cell::new(0) }
    }
}

fn none<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl DiskFile for Mapped {
    fn stat(&self) -> io::Result<Stat> {
        Ok(Stat { size: self.size, regular: self.regular, ..Stat::default() })
    }
    fn fs(&self) -> io::Result<FsFacts> {
        let block = PowerOfTwo::new(BLOCK).expect("a power of two");
        Ok(FsFacts { kind: FsKind::Xfs, uuid: [0; 16], block, mount_instance: 0, mount_id: 0 })
    }
    fn map(&self, range: ByteRange, max: usize, flush: bool, into: &mut Vec<Extent>) -> io::Result<()> {
        assert!(!flush && into.is_empty());
        into.extend(self.extents.iter().filter(|e| e.logical.intersect(range).is_some()).take(max));
        self.largest_batch.set(self.largest_batch.get().max(into.len()));
        Ok(())
    }
    fn addresses(&self, range: ByteRange, max: usize, into: &mut Vec<Extent>) -> io::Result<()> {
        self.map(range, max, false, into)
    }
    fn relocating(&self) -> io::Result<bool> {
        Ok(false)
    }
    fn write_back(&self, _: ByteRange) -> io::Result<()> {
        none()
    }
    fn count(&self, _: ByteRange) -> io::Result<u64> {
        none()
    }
    fn extent_count(&self) -> Option<u64> {
        None
    }
    fn clone_range(&self, _: &Self, _: CloneRange) -> io::Result<CallCost> {
        none()
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        none()
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        none()
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        none()
    }
    fn sync_data(&self) -> io::Result<()> {
        none()
    }
    fn sync_all(&self) -> io::Result<()> {
        none()
    }
    fn record(&self) -> io::Result<Option<Vec<u8>>> {
        none()
    }
    fn set_record(&self, _: Option<&[u8]>) -> io::Result<()> {
        none()
    }
    fn has_acl(&self) -> bool {
        false
    }
    fn set_mode(&self, _: u32) -> io::Result<()> {
        none()
    }
    fn set_owner(&self, _: u32, _: u32) -> io::Result<()> {
        none()
    }
    fn no_cow(&self) -> io::Result<bool> {
        none()
    }
    fn realtime(&self) -> io::Result<bool> {
        none()
    }
    fn set_no_cow(&self, _: bool) -> io::Result<()> {
        none()
    }
    fn try_lock(&self) -> io::Result<bool> {
        none()
    }
    fn is_locked(&self) -> io::Result<bool> {
        none()
    }
    fn try_own(&self) -> io::Result<bool> {
        none()
    }
    fn owns(&self) -> io::Result<bool> {
        none()
    }
    fn disown(&self) -> io::Result<()> {
        none()
    }
}

fn output(file: &Mapped, as_json: bool) -> String {
    let mut out = Vec::new();
    show(file, Path::new("my vm\n.img"), as_json, &mut out).expect("a map");
    String::from_utf8(out).expect("UTF-8")
}

fn sample() -> Mapped {
    let plain = ExtentFlags::default();
    Mapped::new(64, &[(0, 1, ExtentFlags::SHARED), (1, 1, plain), (2, 16, plain), (40, 8, ExtentFlags::UNWRITTEN)])
}

#[test]
fn text_for_people() {
    snapbox::assert_data_eq!(
        output(&sample(), false),
        snapbox::str![[r#"
my vm\n.img
  size       256.0 KiB (262144 bytes)
  extents    4
  shared     4.0 KiB in 1 extent
  data       72.0 KiB
  unwritten  32.0 KiB
  holes      2
  one clone  about 44 us (XFS, 11 us an extent)

  extents of at least      how many       bytes
              4.0 KiB             2     8.0 KiB  ████████████████████████████████
             32.0 KiB             1    32.0 KiB  ████████████████
             64.0 KiB             1    64.0 KiB  ████████████████

  where extents begin, from the file's start to its end (blank: none)
  |███                                     █                       |

"#]]
        .raw()
    );
}

#[test]
fn json_for_programs() {
    let object: serde_json::Value = serde_json::from_str(&output(&sample(), true)).expect("JSON");
    let strip = object["strip"].as_array().expect("an array");
    assert_eq!((strip.len(), strip.iter().filter_map(serde_json::Value::as_u64).sum::<u64>()), (64, 4));
    let text = output(&sample(), true);
    let (head, tail) = (text.split("\"strip\"").next(), text.split("],").last());
    assert_eq!(
        head,
        Some(
            r#"{"v":1,"event":"map","file":"my vm\n.img","size":262144,"extents":4,"shared_extents":1,"shared_bytes":4096,"data_bytes":73728,"unwritten_bytes":32768,"holes":2,"histogram":[{"from":4096,"extents":2,"bytes":8192},{"from":32768,"extents":1,"bytes":32768},{"from":65536,"extents":1,"bytes":65536}],"#
        )
    );
    assert_eq!(tail, Some("\"estimated_clone_ms\":0.044}\n"));
}

#[test]
fn an_empty_file_and_a_hole_have_no_extents() {
    assert!(output(&Mapped::new(0, &[]), false).contains("extents    0\n"));
    assert!(output(&Mapped::new(9, &[]), false).contains("holes      1\n"));
}

#[test]
fn a_walk_asks_for_a_bounded_batch_and_counts_every_extent_once() {
    let extents: Vec<_> = (0..3 * BATCH as u64 + 7).map(|i| (2 * i, 1, ExtentFlags::default())).collect();
    let file = Mapped::new(2 * extents.len() as u64, &extents);
    let shape = walk(&file, file.size).expect("a map");
    assert_eq!((shape.extents, shape.holes), (extents.len() as u64, extents.len() as u64));
    assert_eq!(file.largest_batch.get(), BATCH);
}

#[test]
fn what_is_no_file_is_refused() {
    let directory = Mapped { regular: false, ..Mapped::new(1, &[]) };
    let error = show(&directory, Path::new("/vm"), false, &mut Vec::new()).expect_err("a directory");
    assert_eq!((error.kind.exit_code(), error.to_string().as_str()), (3, "/vm is not a regular file"));
}

#[test]
fn a_reader_that_went_away_is_no_error_and_a_full_disk_is() {
    struct Fails(io::ErrorKind);
    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let check =
        |kind, as_json| show(&sample(), Path::new("a"), as_json, &mut Fails(kind)).map_err(|e| e.kind.exit_code());
    for as_json in [false, true] {
        assert_eq!(check(io::ErrorKind::BrokenPipe, as_json), Ok(()));
        assert_eq!(check(io::ErrorKind::StorageFull, as_json), Err(1));
    }
}

#[test]
fn only_nothing_is_blank() {
    assert_eq!((scale(0, 10, 8), scale(1, 1_000_000, 8), scale(10, 10, 8), scale(0, 0, 8)), (0, 1, 8, 0));
    assert_eq!(scale(u64::MAX, u64::MAX, 32), 32);
    assert_eq!(strip(&[0, 1, 4, 8]), String::from_iter([LEVELS[0], LEVELS[1], LEVELS[4], LEVELS[8]]));
}
