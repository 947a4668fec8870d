//! The program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(rclone_img::cli::run(std::env::args_os()))
}
