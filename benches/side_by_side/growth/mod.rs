//! Growth of wxgate with accounts, clients, connections, requests in flight, uploads, a dying
//! token, a refresh, faulty neighbours, silence, nodes.
//!
//! Measures wxgate alone. Counts instructions instead of times where these answer the question, so
//! that the curves can be made on a busy machine. Has no limits, except for the storm, which fails
//! with a single failed request.

mod accounts;
mod clients;
mod connections;
mod flight;
mod isolation;
mod nodes;
mod plan;
mod refresh;
mod silence;
mod storm;
mod subject;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

pub(crate) use flight::instructions as with_in_flight;

use super::{Outcome, readings, world::World};

/// Command line of `growth`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Curves. Default: all.
    #[arg(value_enum)]
    curves: Vec<Curve>,
}

/// Curve to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Curve {
    /// 1 to 1,000 accounts.
    Accounts,
    /// 1 to 1,000 clients, known by key or by network.
    Clients,
    /// 1 to 10,000 client connections.
    Connections,
    /// 1 to 200 requests in flight to one account, and 1 to 16 uploads.
    Flight,
    /// 5,000 requests in flight when the token dies.
    Storm,
    /// Latency while a token is refreshed that is still valid.
    Refresh,
    /// Latency of a healthy account beside a faulty neighbour.
    Isolation,
    /// First call after 20 s without one, to a distant upstream.
    Silence,
    /// 10 to 1,000 accounts on three nodes that share a Redis.
    Nodes,
}

/// Measures and prints a table per curve.
pub(crate) fn run(options: &Options, product: Option<PathBuf>) -> Outcome {
    let world = World::new(product)?;
    println!("machine: {}\n{}", readings::machine(), world.seating());
    let curves = if options.curves.is_empty() {
        Curve::value_variants()
    } else {
        &options.curves
    };
    let mut failures = Vec::new();
    for curve in curves {
        let outcome = match curve {
            Curve::Accounts => accounts::run(&world),
            Curve::Clients => clients::run(&world),
            Curve::Connections => connections::run(&world),
            Curve::Flight => flight::run(&world),
            Curve::Storm => storm::run(&world),
            Curve::Refresh => refresh::run(&world),
            Curve::Isolation => isolation::run(&world),
            Curve::Silence => silence::run(&world),
            Curve::Nodes => nodes::run(&world),
        };
        if let Err(reason) = outcome {
            println!("NOT MEASURED: {reason}");
            failures.push(format!("{curve:?}: {reason}"));
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures.join("\n"))
    }
}
