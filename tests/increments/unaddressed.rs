//! What Btrfs keeps within its metadata, or compressed, has no address that says anything: it goes all the ways that blocks go.

use std::fs;
use std::os::unix::fs::FileExt;

use fiemap::FiemapExtentFlags;

use crate::diff::diff;
use crate::stream::{received, sent};
use crate::support::{BLOCK, Fs, Random, Sandbox, assert_same, has_extent, must, writer};

#[test]
fn an_image_without_a_block_is_told_sent_and_restored() {
    let Some(s) = Sandbox::new(Fs::Btrfs) else { return };
    let mut bytes = Random::new(1000).bytes(1000);
    fs::write(s.path("a.img"), &bytes).expect("a file");
    assert!(has_extent(&s.path("a.img"), FiemapExtentFlags::DATA_INLINE), "what the test is of");
    s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
    let all = [(0, 1000, false)];
    // The maps prove nothing, and the bytes do.
    assert_eq!((diff(&s, &[]).0, diff(&s, &["--content"]).0), (all.to_vec(), vec![]));
    let verified = s.exits(0, &["verify", "--json", "a.snap", "a.img"]).pop().expect("an answer");
    assert_eq!((&verified["equal"], &verified["read_bytes"]), (&true.into(), &1000.into()), "{verified}");
    bytes[500] ^= 1;
    writer(&s.path("a.img")).write_all_at(&bytes[500..501], 500).expect("written");
    assert_eq!((diff(&s, &[]).0, diff(&s, &["--content"]).0), (all.to_vec(), all.to_vec()));
    let verified = s.exits(7, &["verify", "--json", "a.snap", "a.img"]).pop().expect("an answer");
    assert_eq!((&verified["equal"], &verified["first"][0]["offset"]), (&false.into(), &0.into()), "{verified}");
    s.exits(0, &["snapshot", "-q", "a.img", "a.2"]);
    assert!(fs::read(s.path("a.2")).expect("the snapshot") == bytes);
    received(&s, &sent(&s, &["a.snap"]), &["-q", "-o", "r.1"]);
    assert_same(&s.path("a.snap"), &s.path("r.1"));
    for (more, name) in [(&[][..], "r.2"), (&["--content"][..], "r.3")] {
        let stream = sent(&s, &[&["a.2", "--from", "a.snap"], more].concat());
        received(&s, &stream, &["-q", "--base", "r.1", "-o", name]);
        assert_same(&s.path("a.2"), &s.path(name));
    }
    s.exits(0, &["restore", "-q", "a.snap", "a.img"]);
    assert_same(&s.path("a.snap"), &s.path("a.img"));
}

/// All of what is compressed together has one address: also where one part of it was cloned over another.
#[test]
fn parts_of_what_is_compressed_together_are_not_taken_for_one_another() {
    let Some(s) = Sandbox::sized(Fs::Btrfs, 512 << 20, "loop,compress-force=zstd") else { return };
    let blocks: Vec<u8> = (0..32).flat_map(|block| [block; BLOCK as usize]).collect();
    fs::write(s.path("a.img"), blocks).expect("a file");
    assert!(has_extent(&s.path("a.img"), FiemapExtentFlags::ENCODED), "what the test is of");
    s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
    let (from, length) = (8 * BLOCK, 8 * BLOCK);
    let clone = format!("reflink {} {from} 0 {length}", s.path("a.img").display());
    must("xfs_io", &[&"-c", &clone, &s.path("a.img")]);
    assert_eq!((diff(&s, &[]).0, diff(&s, &["--content"]).0), (vec![(0, 32 * BLOCK, false)], vec![(0, length, false)]));
    let verified = s.exits(7, &["verify", "--json", "a.snap", "a.img"]).pop().expect("an answer");
    assert_eq!(verified["differing_bytes"], length, "{verified}");
    s.exits(0, &["snapshot", "-q", "a.img", "a.2"]);
    received(&s, &sent(&s, &["a.2", "--from", "a.snap"]), &["-q", "--base", "a.snap", "-o", "r.2"]);
    assert_same(&s.path("a.img"), &s.path("r.2"));
    s.exits(0, &["restore", "-q", "a.snap", "a.img"]);
    assert_same(&s.path("a.snap"), &s.path("a.img"));
}
