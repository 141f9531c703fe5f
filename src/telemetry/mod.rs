//! Logging without secrets, the metric registry, and recent events for the console.
//!
//! Defines no metrics of other modules: these stand in the folder that they measure, and are
//! registered in a registry that is passed in.

pub(crate) mod events;
pub(crate) mod format;
mod logfmt;
pub(crate) mod logging;
pub(crate) mod output;
mod process;
pub(crate) mod queue;
pub(crate) mod registry;
pub(crate) mod reloads;
pub(crate) mod workers;
