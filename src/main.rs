//! The program. Everything is in the library; here only the exit status is decided.

use std::process::ExitCode;

fn main() -> ExitCode {
    wxgate::cli::main()
}
