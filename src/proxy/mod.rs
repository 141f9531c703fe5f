//! The way of a request, from the caller to WeChat and back.
//!
//! Knows nothing of how tokens are fetched or where they are kept.

pub mod settings;
