//! A node in operation: listeners, start and stop, the command line, the admin listener, logs, metrics.

mod access_log;
mod admin;
mod cli;
mod descriptors;
mod documented;
mod drain;
pub mod listeners;
mod log_lines;
mod metrics;
pub mod process;
mod stalled_log;
mod refusals;
mod stops_under_load;
mod watchdog;
