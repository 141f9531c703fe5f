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
mod first;
mod flat_memory;
mod header_fields;
mod layering;
mod listeners;
mod malformed;
mod own_answers;
mod paths;
mod pool;
mod program;
mod queries;
mod raw;
mod selection;
mod support;
mod upstream_faults;
mod upstream_tls;
mod wire;
