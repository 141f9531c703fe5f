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

mod access_log;
mod admin;
mod cli;
mod config_files;
mod drain;
mod first;
mod metrics;
mod process;
mod program;
mod sdk;
mod secrets;
mod support;
