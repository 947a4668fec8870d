//! The NBD server with the clients that its users have: qemu-io, qemu-img, nbdinfo, nbdcopy, nbdsh; and with one that speaks
//! no NBD. nbdkit's file plugin is the oracle of a differential test.

use crate::support;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rclone_img::disk::real::RealFile;
use rclone_img::serve::buffers::Buffers;
use rclone_img::serve::device::Device;
use rclone_img::serve::direct::Direct;
use rclone_img::serve::disk::Disk;
use rclone_img::serve::exports::Catalogue;
use rclone_img::serve::finished::Finder;
use rclone_img::serve::fleece::all::{self, Fleeces};
use rclone_img::serve::points::Points;
use rclone_img::serve::server::Server;
use rclone_img::serve::session;

const SIZE: u64 = 8 << 20;

type Serve = Box<dyn Fn(&UnixStream) -> std::io::Result<()> + Send + Sync>;

/// A server in a thread, on an image in a directory of its own.
struct Served {
    folder: tempfile::TempDir,
    server: Arc<Server<Serve>>,
    runs: Option<JoinHandle<()>>,
}

impl Served {
    fn new(read_only: bool) -> Self {
        Self::with(read_only, 16)
    }

    fn with(read_only: bool, most: usize) -> Self {
        Self::on(read_only, most, |disk, _| Arc::new(disk))
    }

    fn on(read_only: bool, most: usize, device: impl FnOnce(Disk, &Path) -> Arc<dyn Device>) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let image = folder.path().join("vm.img");
        File::create(&image).and_then(|it| it.set_len(SIZE)).expect("an image");
        let file = File::options().read(true).write(!read_only).open(&image).expect("the image");
        let listener = UnixListener::bind(folder.path().join("vm.sock")).expect("a socket");
        let device = device(Disk::new(file).expect("a disk"), &image);
        let map = Arc::new(RealFile::open_image(&image).expect("the image"));
        let finder = Finder::new(&map, folder.path()).expect("a finder");
        let of = all::Image {
            device: Arc::clone(&device),
            map: Arc::clone(&map),
            gate: Arc::default(),
            finder: finder.clone(),
            path: image,
            tell: Arc::new(|_| ()),
        };
        let fleeces = Arc::new(Fleeces::adopt(of).expect("the image's directory").0);
        let open = Box::new(|file| Ok(Arc::new(Disk::new(file)?) as Arc<dyn Device>));
        let points = Points::new(Arc::clone(&device), map, finder, open, fleeces);
        let exports = Catalogue::new(device, read_only, 4096, Arc::new(points));
        let buffers = Buffers::default();
        let serve: Serve = Box::new(move |stream| session::serve(stream, &exports, &buffers));
        let server = Server::new(listener, serve, most, Box::new(|event| eprintln!("{event:?}")));
        let server = Arc::new(server.expect("a server"));
        let runs = Some(thread::spawn({
            let server = Arc::clone(&server);
            move || server.run()
        }));
        Self { folder, server, runs }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("vm.img")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.folder.path().join("vm.sock").display())
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("vm.sock")).expect("a connection")
    }

    fn io(&self, commands: &[&str]) -> String {
        let uri = self.uri();
        let mut args = vec!["-f", "raw", "-t", "writeback"];
        args.extend(commands.iter().flat_map(|it| ["-c", it]));
        args.push(&uri);
        output("qemu-io", &args)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.stop();
        let ended = self.runs.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the server panicked");
    }
}

/// Whether all of these can be run; says loudly where not.
fn have(tools: &[&str]) -> bool {
    tools.iter().all(|tool| support::there(tool))
}

/// What a program that must succeed says.
fn output(program: &str, args: &[&str]) -> String {
    let ran = Command::new(program).args(args).stdin(Stdio::null()).output().expect(program);
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{program} {args:?}: {said}");
    said
}

fn bytes(path: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    File::open(path).and_then(|it| it.read_exact_at(&mut bytes, offset)).expect("the image's bytes");
    bytes
}

#[test]
fn qemu_io_reads_what_it_has_written() {
    if !have(&["qemu-io"]) {
        return;
    }
    let served = Served::new(false);
    let said = served.io(&[
        "write -P 7 4k 64k",
        "write -f -P 8 6000 1000",
        "read -P 7 4k 1904",
        "read -P 8 6000 1000",
        "read -P 7 7000 60000",
        "aio_write -P 9 1M 2M",
        "aio_flush",
        "write -z 64k 4k",
        "write -z -u 1M 64k",
        "discard 2M 64k",
        "read -P 0 64k 4k",
        "read -P 0 1M 64k",
        "read -P 9 1088k 960k",
        "flush",
    ]);
    assert!(!said.contains("failed"), "{said}");
    assert_eq!(bytes(&served.image(), 5999, 1002), [&[7][..], &[8; 1000], &[7]].concat());
    assert_eq!(bytes(&served.image(), 3 << 20, 1), [0]);
    assert_eq!(bytes(&served.image(), (3 << 20) - 1, 1), [9]);
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    if !have(&["qemu-io"]) {
        return;
    }
    let served = Served::new(true);
    let args = ["-f", "raw", "-c", "write 0 4k", &served.uri()];
    let ran = Command::new("qemu-io").args(args).output().expect("qemu-io");
    assert!(!ran.status.success(), "{ran:?}");
    output("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 4k", &served.uri()]);
}

#[test]
fn qemu_img_copies_compares_and_maps() {
    if !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let served = Served::new(false);
    served.io(&["write -P 7 1M 1M", "write -P 8 5M 4k"]);
    let copy = served.folder.path().join("copy.img");
    let copy = copy.to_str().expect("a name");
    output("qemu-img", &["convert", "-f", "raw", "-O", "raw", &served.uri(), copy]);
    assert_eq!(fs::read(copy).expect("the copy"), fs::read(served.image()).expect("the image"));
    output("qemu-img", &["compare", "-f", "raw", "-F", "raw", &served.uri(), copy]);
    let map: serde_json::Value =
        serde_json::from_str(&output("qemu-img", &["map", "--output=json", "-f", "raw", &served.uri()]))
            .expect("a map");
    let data = map.as_array().expect("a list").iter().filter(|it| it["data"] == true);
    let data: Vec<_> = data.map(|it| (it["start"].as_u64(), it["length"].as_u64())).collect();
    assert_eq!(data, [(Some(1 << 20), Some(1 << 20)), (Some(5 << 20), Some(4096))]);
}

#[test]
fn nbdinfo_and_nbdcopy_find_what_they_look_for() {
    if !have(&["qemu-io", "nbdinfo", "nbdcopy"]) {
        return;
    }
    let served = Served::new(false);
    served.io(&["write -P 7 1M 1M"]);
    let list = output("nbdinfo", &["--list", "--json", &served.uri()]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let export = &list["exports"][0];
    assert_eq!((&export["export-name"], &export["export-size"]), (&"disk".into(), &SIZE.into()), "{list}");
    assert_eq!((&export["can_multi_conn"], &export["is_read_only"]), (&true.into(), &false.into()), "{list}");
    let sizes = ["minimum", "preferred", "maximum"].map(|which| export[format!("block_size_{which}")].as_u64());
    assert_eq!(sizes, [1, 4096, 32 << 20].map(Some), "{list}");
    let copy = served.folder.path().join("copy.img");
    output("nbdcopy", &[&served.uri(), copy.to_str().expect("a name")]);
    assert_eq!(fs::read(copy).expect("the copy"), fs::read(served.image()).expect("the image"));
}

#[test]
fn who_speaks_no_nbd_costs_himself_alone() {
    if !have(&["qemu-io"]) {
        return;
    }
    let served = Served::with(false, 4);
    let mut greeting = [0; 18];
    for rubbish in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff"] {
        let mut client = served.connect();
        client.read_exact(&mut greeting).expect("the greeting");
        let _ = client.write_all(rubbish);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let _ = client.read_to_end(&mut Vec::new());
    }
    served.io(&["write -P 7 0 4k", "read -P 7 0 4k"]);
}

#[test]
fn one_more_than_there_may_be_is_sent_away_and_the_others_served() {
    let served = Served::with(false, 2);
    let mut one = served.connect();
    one.read_exact(&mut [0; 18]).expect("the greeting");
    let mut two = served.connect();
    two.read_exact(&mut [0; 18]).expect("the greeting");
    assert_eq!(served.connect().read(&mut [0; 18]).expect("the end"), 0);
    drop((one, two));
    // Those have gone as soon as the server has seen it.
    let mut tries = (0..100).map(|_| {
        thread::sleep(std::time::Duration::from_millis(20));
        served.connect().read(&mut [0; 18]).unwrap_or(0)
    });
    assert!(tries.any(|got| got == 18));
}

#[test]
fn it_does_what_nbdkit_does() {
    as_nbdkit_does(|| Served::new(false));
}

#[test]
fn it_does_what_nbdkit_does_past_the_page_cache() {
    as_nbdkit_does(|| {
        Served::on(false, 16, |disk, path| Arc::new(Direct::new(disk, path, true).expect("past the page cache")))
    });
}

/// The same operations, at random, to this server and to nbdkit's file plugin; the answers and the files are equal.
fn as_nbdkit_does(served: impl FnOnce() -> Served) {
    const SCRIPT: &str = r#"
import nbd, random, sys
a, b = nbd.NBD(), nbd.NBD()
for h, uri in ((a, sys.argv[1]), (b, sys.argv[2])):
    h.add_meta_context("base:allocation")
    h.set_strict_mode(0)
    h.connect_uri(uri)
r = random.Random(int(sys.argv[3]))
size = a.get_size()
assert size == b.get_size()
def both(what, *args):
    said = []
    for h in (a, b):
        try:
            said.append(getattr(h, what)(*args))
        except nbd.Error as error:
            said.append(error.errno)
    return said
for n in range(2000):
    offset = r.randrange(size + 100)
    length = r.choice([0, 1, 512, 4096, 65536, r.randrange(1 << 21), r.randrange(1 << 16)])
    inside = offset + length <= size
    what = r.choice(["pread", "pread", "pwrite", "pwrite", "zero", "trim", "flush", "cache"])
    if not inside or length == 0:
        # What is refused is refused in each server's own words.
        length = max(1, min(length, size - offset)) if offset < size else 1
        if offset + length > size:
            one, other = both("pread", length, offset)
            assert isinstance(one, str) and isinstance(other, str), (one, other)
            continue
    if what == "pread":
        one, other = both("pread", length, offset)
        assert one == other, (n, what, offset, length)
    elif what == "pwrite":
        fua = r.choice([0, 0, 0, nbd.CMD_FLAG_FUA])
        assert both("pwrite", r.randbytes(length), offset, fua) == [None, None], (n, what, offset, length)
    elif what == "zero":
        flags = r.choice([0, nbd.CMD_FLAG_NO_HOLE])
        assert both("zero", length, offset, flags) == [None, None], (n, what, offset, length)
    elif what == "trim":
        # Whole blocks: what a server makes of parts is its own business.
        offset, length = offset & ~4095, length & ~4095
        if length and offset + length <= size:
            both("trim", length, offset)
    elif what == "flush":
        assert both("flush") == [None, None]
    elif what == "cache":
        a.cache(length, offset)
for at in range(0, size, 1 << 20):
    assert a.pread(1 << 20, at) == b.pread(1 << 20, at), at
a.shutdown(); b.shutdown()
"#;
    if !have(&["nbdkit", "nbdsh"]) {
        return;
    }
    let served = served();
    let theirs = served.folder.path().join("theirs.img");
    File::create(&theirs).and_then(|it| it.set_len(SIZE)).expect("an image");
    let socket = served.folder.path().join("theirs.sock");
    // The distribution's own interpreter has the distribution's module, whatever else is called python3.
    let seed = std::env::var("REFLINK_IMG_SEED").unwrap_or_else(|_| "1".to_owned());
    let run =
        format!("/usr/bin/python3 -c \"$SCRIPT\" '{}' 'nbd+unix:///?socket={}' {seed}", served.uri(), socket.display());
    let args = ["-U", socket.to_str().expect("a name"), "file", theirs.to_str().expect("a name"), "--run", &run];
    let ran = Command::new("nbdkit").args(args).env("SCRIPT", SCRIPT).output().expect("nbdkit");
    assert!(ran.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&ran.stderr));
    assert!(fs::read(theirs).expect("theirs") == fs::read(served.image()).expect("ours"), "seed {seed}");
}

/// QEMU's storage daemon has the export as a node of its own, and gives it on; and `qemu-img bench` asks for many things at a time.
#[test]
fn a_storage_daemon_gives_it_on() {
    if !have(&["qemu-storage-daemon", "qemu-io", "qemu-img"]) {
        return;
    }
    let served = Served::new(false);
    let (from, to) = (served.folder.path().join("vm.sock"), served.folder.path().join("on.sock"));
    let mut daemon = support::with_us("qemu-storage-daemon");
    let node = format!("driver=nbd,node-name=disk,server.type=unix,server.path={},export=disk", from.display());
    daemon.args(["--blockdev", &node, "--nbd-server", &format!("addr.type=unix,addr.path={}", to.display())]);
    daemon.args(["--export", "type=nbd,id=on,node-name=disk,name=on,writable=on"]);
    let mut daemon = daemon.stdin(Stdio::null()).spawn().expect("it starts");
    assert!(support::until(|| UnixStream::connect(&to).is_ok()));
    let uri = format!("nbd+unix:///on?socket={}", to.display());
    output("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 3M", "-c", "write -z 2M 64k", "-c", "flush", &uri]);
    output(
        "qemu-img",
        &["bench", "-f", "raw", "-w", "--pattern=9", "-c", "2000", "-d", "64", "-s", "512", "-o", "4M", &uri],
    );
    daemon.kill().and_then(|()| daemon.wait()).expect("its end");
    assert!(bytes(&served.image(), 1 << 20, 1 << 20).iter().all(|byte| *byte == 7));
    assert!(bytes(&served.image(), 2 << 20, 65536).iter().all(|byte| *byte == 0));
    assert!(bytes(&served.image(), 4 << 20, 2000 * 512).iter().all(|byte| *byte == 9));
}
