//! Configuration for a point of a curve: that of the comparison, with more accounts or clients, or
//! higher limits.

use std::fmt::Write as _;

use crate::{tls::HOST, world::World};

/// Key of the last client, where clients are known by a key.
pub(super) const KEY: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// Identification of callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Key,
    Network,
}

/// Configuration for a point of a curve.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Number of accounts, named `a0000`, `a0001`, …, so that all paths have the same length.
    pub(super) accounts: usize,
    /// Number of clients. The last is the caller, and may use every account.
    pub(super) clients: usize,
    pub(super) by: By,
    /// Set if callers from 127.0.0.2 are another client than those from 127.0.0.1.
    pub(super) neighbour: bool,
    /// Base URL, if not that of the upstream of the comparison.
    pub(super) api: Option<String>,
    /// `upstream.warm`.
    pub(super) warm: bool,
    /// Table `[store]`.
    pub(super) store: String,
}

impl Plan {
    pub(super) fn new() -> Self {
        Self {
            accounts: 1,
            clients: 1,
            by: By::Network,
            neighbour: false,
            api: None,
            warm: true,
            store: "kind = \"memory\"\n".to_owned(),
        }
    }

    /// Key that callers show.
    pub(super) fn key(&self) -> Option<&'static str> {
        (self.by == By::Key).then_some(KEY)
    }

    /// Returns the path of the small GET to an account.
    pub(super) fn target(account: usize, target: &str) -> String {
        format!("/@a{account:04}{target}")
    }

    /// Returns the text of the configuration file.
    pub(super) fn text(&self, world: &World, port: u16, admin: u16) -> String {
        let ca = world.path("ca.pem");
        let default = if self.neighbour {
            "default_account = \"a0000\"\n"
        } else {
            ""
        };
        let mut text = format!(
            "{default}[server]\nlisten = [\"127.0.0.1:{port}\"]\nworkers = 1\nmax_connections = 12000\n\
             [admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [upstream]\nca_file = \"{}\"\nresolve = {{ \"{HOST}\" = [\"127.0.0.1\"] }}\nmax_in_flight = 6000\n\
             warm = {}\nconnect_timeout = \"60s\"\nresponse_timeout = \"60s\"\n\
             [token]\nfetch_timeout = \"60s\"\nwait = \"60s\"\n[store]\n{}",
            ca.display(),
            self.warm,
            self.store
        );
        let api = self
            .api
            .clone()
            .unwrap_or_else(|| format!("https://{HOST}:{}", world.upstream_port));
        for account in 0..self.accounts {
            let _ = write!(
                text,
                "[[account]]\nname = \"a{account:04}\"\nappid = \"wx{account:016x}\"\n\
                 secret = {{ value = \"secret-{account}\" }}\napi = [\"{api}\"]\n"
            );
        }
        if self.neighbour {
            text.push_str(
                "[[client]]\nname = \"healthy\"\nfrom = [\"127.0.0.1\"]\n\
                 [[client]]\nname = \"sick\"\nfrom = [\"127.0.0.2\"]\n",
            );
            return text;
        }
        for client in 1..=self.clients {
            let _ = write!(
                text,
                "[[client]]\nname = \"c{client:04}\"\n{}\n\
                 allow = [\"/cgi-bin/user/**\", \"/cgi-bin/media/**\", \"/cgi-bin/bench/**\"]\n\
                 deny = [\"/cgi-bin/message/mass/**\"]\n",
                self.known(client)
            );
        }
        text
    }

    fn known(&self, client: usize) -> String {
        let last = client == self.clients;
        match self.by {
            By::Key if last => format!("key = {{ value = \"{KEY}\" }}"),
            By::Key => {
                format!("key = {{ value = \"key-{client:04}-0123456789abcdef0123456789\" }}")
            }
            By::Network if last => "from = [\"loopback\"]".to_owned(),
            By::Network => format!("from = [\"10.{}.{}.0/24\"]", client / 250, client % 250),
        }
    }
}
