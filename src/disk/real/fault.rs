//! Faults of the clone calls of a debug build, for tests: `REFLINK_IMG_FAULT=KIND:N` fails the Nth call and all after it, or has them hang,
//! or holds the Nth up until the test has seen that.

use std::fs;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// More than the default of `--guest-deadline`.
const HANGS: Duration = Duration::from_millis(1500);

/// In the working directory.
const HELD: &str = "held";

/// How often it is looked whether that is gone.
const LOOK: Duration = Duration::from_millis(1);

#[derive(Clone, Copy)]
enum Fault {
    Panic,
    /// For longer than any guest may wait.
    Hang,
    /// While the file [`HELD`] is there, which it makes itself.
    Held,
    Errno(i32),
}

/// Fails where the test that runs the program has asked for it.
///
/// # Errors
/// The errno that was asked for.
///
/// # Panics
/// If that was asked for.
pub fn now() -> io::Result<()> {
    static WANTED: OnceLock<Option<(Fault, u64)>> = OnceLock::new();
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let Some((fault, from)) = *WANTED.get_or_init(wanted) else { return Ok(()) };
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    if call < from {
        return Ok(());
    }
    match fault {
        Fault::Panic => panic!("a test has asked for this panic"),
        Fault::Hang => {
            std::thread::sleep(HANGS);
            Ok(())
        }
        Fault::Held if call > from => Ok(()),
        Fault::Held => {
            fs::write(HELD, [])?;
            while fs::exists(HELD)? {
                std::thread::sleep(LOOK);
            }
            Ok(())
        }
        Fault::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn wanted() -> Option<(Fault, u64)> {
    let text = std::env::var("REFLINK_IMG_FAULT").ok()?;
    let (kind, from) = text.split_once(':')?;
    let fault = match kind {
        "panic" => Fault::Panic,
        "hang" => Fault::Hang,
        "held" => Fault::Held,
        "ENOSPC" => Fault::Errno(libc::ENOSPC),
        "EIO" => Fault::Errno(libc::EIO),
        "ENOMEM" => Fault::Errno(libc::ENOMEM),
        _ => return None,
    };
    Some((fault, from.parse().ok()?))
}
