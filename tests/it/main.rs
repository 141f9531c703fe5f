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

mod config_files;
mod early_answers;
mod first;
mod refresh_limits;
mod replayed_bodies;
mod response_headers;
mod restarts;
mod stale_shapes;
mod storms;
mod support;
mod token_life;
mod token_tools;
