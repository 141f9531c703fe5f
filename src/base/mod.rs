//! Values that all other modules use: secrets, names, units, back-off, masking.
//!
//! Pure, without I/O, clocks or knowledge of WeChat. Imports no other module of the crate.

pub(crate) mod account_name;
pub(crate) mod backoff;
pub(crate) mod byte_set;
pub(crate) mod mask;
pub(crate) mod secret;
pub(crate) mod secret_finder;
pub(crate) mod units;

pub use account_name::AccountName;
pub use secret::Secret;

/// Prefix of the phantom tokens that callers get in place of a real token. No token of WeChat has
/// this prefix, so that a phantom in a store, or from another wxgate, is never taken for a real
/// token.
pub(crate) const PHANTOM_PREFIX: &str = "wxg1_";
