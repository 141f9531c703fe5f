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
mod monitoring;
pub mod process;
mod refusals;
mod stalled_log;
mod stops_under_load;
mod watchdog;
