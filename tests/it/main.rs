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
mod early_answers;
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
mod refresh_limits;
mod replayed_bodies;
mod response_headers;
mod restarts;
mod selection;
mod stale_shapes;
mod storms;
mod support;
mod token_life;
mod token_tools;
mod upstream_faults;
mod upstream_tls;
mod wire;
