//! The load generator, a process of its own: one thread, bare sockets, epoll.
//!
//! Closed loop: each connection sends its next request when the answer has come. Open loop:
//! requests fall due at a fixed rate, and latency counts from then, so that a stall is charged to
//! every request that it delays. What it did is one line of JSON on standard output.

mod connection;
mod engine;

use clap::Args;
use serde::{Deserialize, Serialize};

use self::engine::Engine;
use super::{Outcome, statistics::quantile, workload::Workload};

/// Command line of the hidden subcommand.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to ask.
    pub(crate) workload: Workload,
    /// Whom, on loopback.
    #[arg(long)]
    pub(crate) port: u16,
    /// Over how many connections.
    #[arg(long)]
    pub(crate) connections: usize,
    /// For how long; then what is under way may end.
    #[arg(long)]
    pub(crate) seconds: u32,
    /// What to show as a client of wxgate.
    #[arg(long)]
    pub(crate) key: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Answered with 2xx.
    pub(crate) requests: u64,
    /// Answered with something else.
    pub(crate) refused: u64,
    /// Not answered, or with something that is not HTTP.
    pub(crate) broken: u64,
    /// From the first request to the last answer.
    pub(crate) seconds: f64,
    /// Microseconds.
    pub(crate) p50: u32,
    /// Microseconds.
    pub(crate) p99: u32,
    /// Microseconds.
    pub(crate) p999: u32,
}

/// Puts load on a proxy and says what came of it.
pub(crate) fn run(options: &Options) -> Outcome {
    let engine = Engine::new(options).map_err(|error| format!("cannot connect: {error}"))?;
    let (mut tally, mut latencies) = engine.run().map_err(|error| error.to_string())?;
    latencies.sort_unstable();
    tally.p50 = quantile(&latencies, 0.5);
    tally.p99 = quantile(&latencies, 0.99);
    tally.p999 = quantile(&latencies, 0.999);
    println!(
        "{}",
        serde_json::to_string(&tally).map_err(|error| error.to_string())?
    );
    Ok(())
}
