//! Configuration: what a file means, what is said of its mistakes, and what a reload changes.

mod config_clients;
mod config_files;
mod reload;
