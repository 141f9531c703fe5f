//! Comparison of wxgate with nginx, nginx with Lua, HAProxy, Envoy and bare hyper proxies: time,
//! instructions and system calls.
//!
//! Installs nothing and measures on this machine only, over loopback. docs/performance.md explains
//! the figures. Only `gate` judges them: against the limits in `limits.toml`.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people who measure"
)]

mod bare;
mod child;
mod compare;
mod connector;
mod copied;
mod count;
mod driver;
mod gate;
mod growth;
mod listener;
mod load;
mod pool;
mod readings;
mod report;
mod statistics;
mod systems;
mod tls;
mod upstream;
mod workload;
mod world;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

/// Result with a sentence for the reader as its error.
pub(crate) type Outcome<T = ()> = Result<T, String>;
/// Error of a bare proxy.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Compares wxgate with other proxies. Without a command: lists the systems that can run here, and
/// those that are missing.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench side_by_side --")]
struct Cli {
    /// Flag that cargo adds.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(flatten)]
    product: Product,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Binary under measurement.
#[derive(Debug, Args)]
struct Product {
    /// Path of the wxgate to measure. Default: the release build of this tree, which is brought up
    /// to date first.
    #[arg(long, global = true, value_name = "PATH")]
    wxgate: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Throughput, CPU, latency and memory, in interleaved rounds; ratios to the first system.
    Compare(compare::Options),
    /// Instructions (valgrind) and system calls (strace) per request: figures that repeat on a busy
    /// machine.
    Count(count::Options),
    /// Instructions and system calls of wxgate against benches/side_by_side/limits.toml; exit
    /// status 1 if a figure is above its limit.
    Gate,
    /// Growth of wxgate with accounts, clients, connections and requests in flight; a token that
    /// dies, a token that is refreshed; several nodes.
    Growth(growth::Options),
    #[command(hide = true)]
    Upstream(upstream::Options),
    #[command(hide = true)]
    Bare(bare::Options),
    #[command(hide = true)]
    Load(load::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let product = cli.product.wxgate;
    let outcome = match cli.command {
        None => {
            systems::list();
            Ok(())
        }
        Some(Command::Compare(options)) => compare::run(&options, product),
        Some(Command::Count(options)) => count::run(&options, product),
        Some(Command::Gate) => gate::run(product),
        Some(Command::Growth(options)) => growth::run(&options, product),
        Some(Command::Upstream(options)) => served(upstream::serve(&options)),
        Some(Command::Bare(options)) => served(bare::serve(&options)),
        Some(Command::Load(options)) => load::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn served(outcome: io::Result<()>) -> Outcome {
    outcome.map_err(|error| error.to_string())
}
