//! Guests that ask without end.

use std::cell::Cell;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use rclone_img::cbw::Clusters;
use rclone_img::disk::sim::{Faults, Setup, SimDisk, SimFile};
use rclone_img::disk::{Disk, DiskFile, FsKind};
use rclone_img::engine::claims::Inline;
use rclone_img::engine::flusher;
use rclone_img::engine::job::{self, Job, MinFree, Options};
use rclone_img::engine::names::Names;
use rclone_img::engine::recover::Wish;
use rclone_img::engine::report::Nobody;
use rclone_img::error::{Error, Kind, Result};
use rclone_img::hold::{Demand, Hold, HoldKind, T0};
use rclone_img::range::{ByteRange, PowerOfTwo};

/// More often than this nobody is asked for an image of 64 blocks.
const OFTEN: u32 = 1000;

/// There is always somebody who waits for the first block.
struct Greedy {
    disk: SimDisk,
    image: Arc<SimFile>,
    asked: Cell<u32>,
}

impl Hold for Greedy {
    fn kind(&self) -> HoldKind {
        HoldKind::Guard
    }

    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn begin(&mut self, _: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        let image = self.image.stat().map_err(|e| Error::io(Kind::Failed, "no stat", "", e))?;
        Ok(vec![T0 { at: self.disk.host().now, image }])
    }

    fn demand(&mut self) -> Demand {
        self.asked.set(self.asked.get() + 1);
        assert!(self.asked.get() < OFTEN, "the background has no turn");
        Demand::Promote(0, ByteRange::at(0, 1).expect("not empty"))
    }

    fn promoted(&mut self, _: usize, _: ByteRange) {}

    fn end(&mut self) -> Result<()> {
        Ok(())
    }

    fn release(&mut self) {}
}

#[test]
fn the_background_has_its_turn_where_guests_ask_without_end() {
    let disk = SimDisk::new(Setup { seed: 1, block: 512, kind: FsKind::Xfs, faults: Faults::default() });
    disk.add_image(64 * 512);
    #[allow(clippy::arc_with_non_send_sync)]
    let image = Arc::new(disk.image().expect("the image"));
    let options = Options {
        chunk: 1024,
        latency: None,
        cluster: PowerOfTwo::new(512).expect("a power of two"),
        wish: Wish::default(),
        writable: false,
        min_free: MinFree::Bytes(0),
    };
    let names = Names::new(OsStr::new("snap")).expect("short");
    let mut hold = Greedy { disk: disk.clone(), image: Arc::clone(&image), asked: Cell::default() };
    let job = Job {
        disk: &disk,
        dir: Path::new("/"),
        names: &names,
        image,
        image_path: b"/image",
        options: &options,
        why: "the test's",
        observer: &Nobody,
        stop: &|| false,
        make_claims: &|recorder| Box::new(Inline::new(recorder, 1)),
        make_flusher: &|image, partial| Box::new(flusher::Inline::new(image, partial)),
    };
    let finished = job::run(&[job], &mut hold).expect("a snapshot");
    assert_eq!(finished.len(), 1);
    assert!(hold.asked.get() > 0);
}
