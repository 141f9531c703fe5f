//! One binary for all integration tests; a folder per concern.

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

mod callers;
mod changes;
mod config;
mod console;
mod credentials;
mod doctor;
mod grid;
mod node;
mod requests;
mod sdk;
mod source;
#[cfg(feature = "sql")]
mod sql;
mod store_contract;
mod stores;
mod support;
mod tokens;
mod upstream;
mod wechat;
