//! Settings of `signing` in an `[[account]]`.

use std::sync::Arc;

use super::PathPattern;
use crate::wechat::signing::SigningKeys;

/// API signing of an account, validated.
#[derive(Debug, Clone)]
pub struct SigningSettings {
    /// Keys and certificates.
    pub keys: Arc<SigningKeys>,
    /// Serial number of the private key, for log lines.
    pub serial: Option<String>,
    /// Serial number of the symmetric key, for log lines; `keys` has it too.
    pub aes_serial: String,
    /// Paths whose calls are signed, at least one.
    pub paths: Vec<PathPattern>,
}

impl SigningSettings {
    /// Returns true if calls of this path are signed.
    pub fn covers(&self, path: &str) -> bool {
        self.paths.iter().any(|pattern| pattern.allows(path))
    }
}
