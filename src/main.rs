//! Binary: entry point and memory allocator. The rest is in the library.

use std::process::ExitCode;

/// Allocator of the process. glibc keeps the memory of a peak of connections for good, in holes
/// between those that stay.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's options, read by the allocator before `main` from the symbol of this name.
///
/// - Unused memory returns to the system after one second instead of ten. The feature
///   `background_threads` of the crate does that on a thread of its own, since an idle process
///   allocates nothing and would never do it.
/// - A thread cache keeps 256 to 512 free objects of each small size instead of twenty of the
///   larger sizes, and is collected after 256 KiB of allocations instead of 64: with hundreds of
///   requests in flight, memory kept moving to the arena and back. `side_by_side gate` counts the
///   instructions.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(
    unsafe_code,
    reason = "the exported name is the only way to configure jemalloc in any build"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8; 121] = b"dirty_decay_ms:1000,muzzy_decay_ms:0,\
tcache_nslots_small_min:256,tcache_nslots_small_max:512,tcache_gc_incr_bytes:262144\0";

fn main() -> ExitCode {
    wxgate::cli::main()
}
