//! Logging without secrets and the metric registry.
//!
//! Knows no domain: metrics stand in the folder that they measure and are registered with a
//! registry that is passed in.

pub mod logging;
pub mod output;
pub mod queue;
pub mod registry;
pub mod workers;
