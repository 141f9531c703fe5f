//! Client of the admin listener of a running wxgate, for the commands that ask it.
//!
//! Needs its address and the admin key, and no other secret.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use reqwest::{Client, ClientBuilder, Method, StatusCode, redirect::Policy};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::{CommandError, ConfigFile};
use crate::{
    base::Secret,
    config::{self, ProcessEnvironment},
    net::{
        address::{ListenAddr, reachable, split_port},
        connect_error::{ConnectError, TcpFailure},
        egress::Egress,
    },
};

/// Address and key of the admin listener.
#[derive(Debug, clap::Args)]
pub(super) struct AdminArguments {
    /// Admin listener of the running wxgate: http://host:port, https://host:port or unix:/path
    /// [default: admin.listen of the configuration]
    #[arg(long, value_name = "URL", value_parser = AdminUrl::parse)]
    admin: Option<AdminUrl>,
    /// File that holds the admin key [default: the variable WXGATE_ADMIN_KEY, else admin.key of the
    /// configuration]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
}

/// Address that the client connects to.
#[derive(Debug, Clone)]
pub(super) enum AdminUrl {
    Http(String),
    Unix(PathBuf),
}

/// Client with address and key.
pub(super) struct AdminClient {
    client: Client,
    base: String,
    shown: String,
    key: Option<Secret>,
}

/// Failure of a call of the admin API.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminError {
    #[error("no wxgate answers at {address}: {cause}")]
    Unreachable {
        address: String,
        cause: &'static str,
    },
    #[error("{0}")]
    Refused(String),
}

const ADMIN_KEY: &str = "WXGATE_ADMIN_KEY";
/// Longest file that is read as a key.
const MAX_KEY_FILE: usize = 64 << 10;
/// Time limit for a call: a refresh waits for WeChat, a reload for a store.
const TIMEOUT: Duration = Duration::from_secs(30);

impl AdminUrl {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("the path of the socket is missing".to_owned())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let (scheme, authority) = text.split_once("://").unwrap_or(("http", text));
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        // Without a scheme a port is wanted, so that the path of a socket is not taken for a host.
        let has_scheme = text.contains("://");
        let is_address = split_port(authority)
            .is_some_and(|(host, port)| !host.is_empty() && (has_scheme || port.is_some()));
        let has_more = authority.contains(['/', '@', '?', '#']);
        if !matches!(scheme, "http" | "https") || !is_address || has_more {
            return Err("expected http://host:port, https://host:port or unix:/path".to_owned());
        }
        Ok(Self::Http(format!("{scheme}://{}", reachable(authority))))
    }

    fn of(listen: &ListenAddr) -> Self {
        match listen {
            ListenAddr::Tcp(address) => Self::Http(format!("http://{}", reachable(address))),
            ListenAddr::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => f.write_str(url),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl AdminClient {
    /// Client for calls that need the key.
    pub(super) fn new(arguments: &AdminArguments) -> Result<Self, CommandError> {
        let key = match &arguments.key_file {
            Some(path) => Some(key_of_file(path)?),
            None => std::env::var(ADMIN_KEY)
                .ok()
                .filter(|key| !key.is_empty())
                .map(Secret::new),
        };
        Self::with_key(arguments, key, true)
    }

    /// Client for probes, which need no key.
    pub(super) fn without_key(arguments: &AdminArguments) -> Result<Self, CommandError> {
        Self::with_key(arguments, None, false)
    }

    fn with_key(
        arguments: &AdminArguments,
        key: Option<Secret>,
        needs_key: bool,
    ) -> Result<Self, CommandError> {
        let wants_key = needs_key && key.is_none();
        let (url, key) = match &arguments.admin {
            Some(url) if !wants_key => (url.clone(), key),
            given => {
                let here = std::env::current_dir()?;
                let file = arguments.file.config.as_deref();
                let access = config::admin_access(file, &here, &ProcessEnvironment, wants_key);
                let access = access.map_err(|problems| {
                    CommandError::Config(format!(
                        "{problems}\nthe admin listener and its key can also be given by --admin URL and --key-file \
                         FILE or {ADMIN_KEY}"
                    ))
                })?;
                let url = given
                    .clone()
                    .unwrap_or_else(|| AdminUrl::of(&access.listen));
                (url, key.or(access.key))
            }
        };
        let (client, base) = match &url {
            AdminUrl::Http(base) => (builder(&url), base.clone()),
            AdminUrl::Unix(path) => (
                builder(&url).unix_socket(path.clone()),
                "http://localhost".to_owned(),
            ),
        };
        Ok(Self {
            client: client
                .build()
                .map_err(|_| CommandError::Running("the HTTP client cannot be built".to_owned()))?,
            base,
            shown: url.to_string(),
            key,
        })
    }

    /// Address, as it is shown to the operator.
    pub(super) fn address(&self) -> &str {
        &self.shown
    }

    /// Calls the API; gives the body of an answer with status 200.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, AdminError> {
        let (status, text) = self.send(method, path, body).await?;
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        if status == StatusCode::OK && !body.is_null() {
            return Ok(body);
        }
        let said = body["message"].as_str().map_or_else(
            || {
                format!(
                    "{} answered with HTTP status {status}: is that a wxgate?",
                    self.shown
                )
            },
            str::to_owned,
        );
        Err(AdminError::Refused(match status {
            StatusCode::UNAUTHORIZED => {
                format!("{said} (give it by --key-file FILE or {ADMIN_KEY})")
            }
            _ => match body["problems"].as_array() {
                Some(problems) => problems
                    .iter()
                    .filter_map(Value::as_str)
                    .fold(said, |text, problem| text + "\n" + problem),
                None => said,
            },
        }))
    }

    /// Sends a call and gives status and body of its answer.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, String), AdminError> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.map_err(|error| self.lost(&error))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| self.lost(&error))?;
        Ok((status, text))
    }

    fn lost(&self, error: &reqwest::Error) -> AdminError {
        let cause = match ConnectError::of(error, false) {
            _ if !error.is_connect() => "the connection broke, or no answer came in time",
            ConnectError::Host(TcpFailure::UnknownName | TcpFailure::DnsSilent) => {
                "the host name does not resolve; check the address"
            }
            ConnectError::Host(TcpFailure::TimedOut | TcpFailure::NoRoute) => {
                "it cannot be reached; check the address and the network"
            }
            ConnectError::Tls(_) => {
                "there is no TLS session with it; check whether it is http:// or https://, and the certificate"
            }
            _ => "is it running, and is this its admin.listen? --admin URL names another one",
        };
        AdminError::Unreachable {
            address: self.shown.clone(),
            cause,
        }
    }
}

impl From<AdminError> for CommandError {
    fn from(error: AdminError) -> Self {
        Self::Running(error.to_string())
    }
}

fn builder(url: &AdminUrl) -> ClientBuilder {
    // Plain HTTP needs no roots, which take a while to load and which an image may lack.
    let roots = match url {
        AdminUrl::Http(base) if base.starts_with("https:") => Egress::default().roots().ok(),
        _ => None,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut builder = Client::builder();
    if let Ok(tls) = tls {
        let roots = roots.unwrap_or_else(RootCertStore::empty);
        let tls = tls.with_root_certificates(roots).with_no_client_auth();
        builder = builder.tls_backend_preconfigured(tls);
    }
    // The admin key goes to this address alone: to no proxy from the environment, and nowhere that
    // an answer leads to.
    builder.no_proxy().redirect(Policy::none()).timeout(TIMEOUT)
}

fn key_of_file(path: &PathBuf) -> Result<Secret, CommandError> {
    let bad = |reason: &str| {
        CommandError::Usage(format!(
            "--key-file: cannot use {}: {reason}",
            path.display()
        ))
    };
    let text = std::fs::read_to_string(path).map_err(|error| bad(&error.to_string()))?;
    let key = text.trim_end_matches(['\n', '\r']);
    if key.is_empty() || key.len() > MAX_KEY_FILE || key.contains(char::is_control) {
        return Err(bad("expected the key alone, in one line"));
    }
    Ok(Secret::new(key))
}

#[cfg(test)]
mod tests {
    use super::AdminUrl;

    #[test]
    fn an_address_is_a_listener_and_nothing_more() {
        for (text, shown) in [
            ("127.0.0.1:8081", "http://127.0.0.1:8081"),
            ("http://gate:8081/", "http://gate:8081"),
            ("https://gate.internal", "https://gate.internal"),
            ("0.0.0.0:8081", "http://127.0.0.1:8081"),
            ("http://[::]:8081", "http://[::1]:8081"),
            ("unix:/run/wxgate/admin.sock", "unix:/run/wxgate/admin.sock"),
        ] {
            let url = AdminUrl::parse(text).map(|url| url.to_string());
            assert_eq!(url.as_deref(), Ok(shown));
        }
        for odd in [
            "",
            "gate",
            ":8081",
            "unix:",
            "/run/wxgate/admin.sock",
            "http://",
            "http://gate:8081/api",
            "http://gate/api",
            "http://key@gate:8081",
            "http://gate:port",
            "ftp://gate:8081",
        ] {
            assert!(AdminUrl::parse(odd).is_err(), "{odd}");
        }
    }
}
