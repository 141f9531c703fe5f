//! Logging without secrets, and the metric registry.
//!
//! Defines no metrics of other modules: these stand in the folder that they measure, and are
//! registered in a registry that is passed in.

pub mod logging;
pub mod output;
pub mod queue;
pub mod registry;
pub mod workers;
