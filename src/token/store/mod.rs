//! Where tokens survive: settings of the stores.

use std::path::PathBuf;

/// The table `[store]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settings {
    /// Nothing survives a restart.
    Memory,
    /// One small file per account below this folder.
    File {
        /// Made with mode 0700 when missing.
        path: PathBuf,
    },
}
