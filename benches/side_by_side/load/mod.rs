//! Load generator, a process of its own: one thread, bare sockets, epoll.
//!
//! Closed loop: each connection sends its next request when the answer has come. Open loop:
//! requests fall due at a fixed rate, and latency counts from then, so that a stall is charged to
//! every request that it delays. Prints the figures as one line of JSON.

mod connection;
mod engine;

use clap::Args;
use serde::{Deserialize, Serialize};

use self::engine::Engine;
use super::{Outcome, statistics::quantile, workload::Workload};

/// Command line of the hidden subcommand.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Requests to send.
    pub(crate) workload: Workload,
    /// Port of the proxy on loopback.
    #[arg(long)]
    pub(crate) port: u16,
    /// Number of connections.
    #[arg(long)]
    pub(crate) connections: usize,
    /// Seconds in which requests are sent; those under way may end later.
    #[arg(long)]
    pub(crate) seconds: u32,
    /// Key of a client of wxgate.
    #[arg(long)]
    pub(crate) key: Option<String>,
}

/// Figures of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Requests answered with 2xx.
    pub(crate) requests: u64,
    /// Requests answered with another status.
    pub(crate) refused: u64,
    /// Requests without an answer in HTTP.
    pub(crate) broken: u64,
    /// Time from the first request to the last answer.
    pub(crate) seconds: f64,
    /// Median of the latency in microseconds.
    pub(crate) p50: u32,
    /// 99th percentile of the latency in microseconds.
    pub(crate) p99: u32,
    /// 99.9th percentile of the latency in microseconds.
    pub(crate) p999: u32,
}

/// Puts load on a proxy and prints the figures.
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
