//! Values that all other modules use: secrets, names, units, back-off, masking.
//!
//! Pure, without I/O, clocks or knowledge of WeChat. Imports no other module of the crate.

pub mod account_name;
pub mod backoff;
pub mod mask;
pub mod secret;
pub mod units;

pub use account_name::AccountName;
pub use secret::Secret;

/// Prefix of the phantom tokens that callers get in place of a real token. No token of WeChat has
/// this prefix, so that a phantom in a store, or from another wxgate, is never taken for a real
/// token.
pub const PHANTOM_PREFIX: &str = "wxg1_";
