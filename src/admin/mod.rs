//! What operators see: health, metrics, accounts, reload, events and the console.
//!
//! Never shows a token or a secret.

pub mod settings;
