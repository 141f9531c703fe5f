//! Facts about WeChat's server API, as pure functions and tables.
//!
//! No I/O, no clock, no HTTP client. Each fact names its source. The sandbox does not use this
//! module: it states the protocol a second time, so that a wrong constant here fails a test.

pub(crate) mod address;
pub(crate) mod api;
pub(crate) mod codes;
pub(crate) mod credential;
pub(crate) mod look_alike;
pub(crate) mod signing;
pub(crate) mod ticket;
pub(crate) mod verdict;
