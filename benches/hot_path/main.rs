//! Stages of a request, each measured by itself. Calls production code only.
//!
//! Absolute times depend on the machine: compare runs on the same machine (`cargo bench --bench
//! hot_path`).

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

mod access;
mod accounts;
mod credential;
mod pool;
mod request;
mod token;
mod verdict;

use criterion::{criterion_group, criterion_main};

/// Access token of the length that WeChat's tokens have.
const TOKEN: &str = "91_kOqZ3vX1m0yJ7pTq2bWcR5nUeH8sLdFgAaYxIiOoPpQqSsDdFfGgHhJjKkLlZzXxCcVvBbNnMm1234567890-_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL0123";

criterion_group!(
    benches,
    request::paths,
    request::injection,
    request::header_cleaning,
    credential::lookups,
    verdict::verdicts,
    accounts::selection,
    access::rights,
    access::phantoms,
    token::read,
    pool::turns,
);
criterion_main!(benches);
