//! Stores: what outlives a process, and what nodes share.

mod nodes;
pub mod redis_store;
pub mod restarts;
mod sealing;
mod store_files;
