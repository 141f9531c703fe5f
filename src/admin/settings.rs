//! What the admin listener can be told: the table `[admin]`, proven right.

use crate::{base::Secret, net::address::ListenAddr};

/// The table `[admin]`. The default is that of an empty file.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where console, API, probes and metrics stand.
    pub listen: ListenAddr,
    /// What a caller of the API must show. Always there when `listen` can be reached from other
    /// machines.
    pub key: Option<Secret>,
    /// Host names, in lower case, besides IP literals and `localhost` under which console and API
    /// may be reached.
    pub hosts: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: ListenAddr::Tcp("127.0.0.1:8081".to_owned()),
            key: None,
            hosts: Vec::new(),
        }
    }
}
