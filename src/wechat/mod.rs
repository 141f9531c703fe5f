//! Facts about WeChat's server API, as pure functions and tables.
//!
//! No I/O, no clock, no HTTP client. Each fact names its source. The sandbox does not use this
//! module: it states the protocol a second time, so that a wrong constant here fails a test.

pub mod address;
pub mod api;
pub mod codes;
pub mod credential;
pub mod look_alike;
pub mod signing;
pub mod ticket;
pub mod verdict;
