//! One binary for all integration tests; a module per concern.

#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod bodies;
mod config_files;
mod egress;
mod fake;
mod first;
mod flat_memory;
mod pool;
mod program;
mod support;
mod upstream_faults;
mod upstream_tls;
mod wire;
