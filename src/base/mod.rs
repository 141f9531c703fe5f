//! Small things everything else stands on: secrets, names, units, back-off, masking.
//!
//! Pure values without I/O, clocks or knowledge of WeChat. Nothing here imports another module of
//! the crate.

pub mod account_name;
pub mod backoff;
pub mod mask;
pub mod secret;
pub mod units;

pub use account_name::AccountName;
pub use secret::Secret;

/// Prefix of the phantom tokens that callers get in place of a real one. No token of WeChat's
/// begins like this, so a store or another wxgate that hands one out as real is recognised.
pub const PHANTOM_PREFIX: &str = "wxg1_";
