//! The program. Everything is in the library; here only the exit status is decided, and who hands out memory.

use std::process::ExitCode;

/// After a peak of connections the system's allocator keeps their memory for good, in holes between those that stay.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    wxgate::cli::main()
}
