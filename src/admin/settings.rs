//! Settings of the admin listener.

use crate::{base::Secret, net::address::ListenAddr};

/// Table `[admin]` of the configuration, checked. The default is that of an empty table.
#[derive(Debug, Clone)]
pub struct AdminSettings {
    /// Address of page, API, probes and metrics.
    pub listen: ListenAddr,
    /// Key that callers of page and API must show. Always set if other machines can reach `listen`.
    pub key: Option<Secret>,
    /// Host names, in lower case, under which page and API may be called, besides IP literals and
    /// `localhost`.
    pub hosts: Vec<String>,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self {
            listen: ListenAddr::Tcp("127.0.0.1:8081".to_owned()),
            key: None,
            hosts: Vec::new(),
        }
    }
}
