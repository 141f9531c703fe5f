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
mod first;
mod header_fields;
mod listeners;
mod malformed;
mod own_answers;
mod paths;
mod queries;
mod raw;
mod selection;
mod slow_clients;
mod support;
