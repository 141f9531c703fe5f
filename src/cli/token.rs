//! `wxgate token`: shows the state of an account's token from the admin API of a running wxgate,
//! but never the token.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;

use super::{CommandError, background_runtime, print};
use crate::{
    base::AccountName,
    config::Config,
    net::address::{ListenAddr, split_port},
};

pub(super) fn run(
    config: &Config,
    account: &AccountName,
    refresh: bool,
) -> Result<(), CommandError> {
    background_runtime()?.block_on(async {
        let admin = AdminClient::new(config)?;
        if refresh {
            let path = format!("/api/accounts/{account}/refresh");
            let answer = admin.call(|client, base| {
                client
                    .post(format!("{base}{path}"))
                    .json(&serde_json::json!({"force": false}))
            });
            return show(&answer.await?);
        }
        let accounts = admin
            .call(|client, base| client.get(format!("{base}/api/accounts")))
            .await?;
        let found = accounts
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["name"] == account.as_str());
        match found {
            Some(entry) => show(entry),
            None => Err(CommandError::Running(format!(
                "the running wxgate has no account named {account}"
            ))),
        }
    })
}

struct AdminClient<'c> {
    client: Client,
    base: String,
    config: &'c Config,
}

impl<'c> AdminClient<'c> {
    fn new(config: &'c Config) -> Result<Self, CommandError> {
        let egress = &config.proxy.upstream.egress;
        let tls = egress
            .tls()
            .map_err(|error| CommandError::Config(error.to_string()))?;
        // Without a proxy from the environment, which would get to see the admin key.
        let mut builder = Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .no_proxy()
            .timeout(Duration::from_secs(30));
        let base = match &config.admin.listen {
            ListenAddr::Tcp(address) => format!("http://{}", reachable(address)),
            ListenAddr::Unix(path) => {
                builder = builder.unix_socket(path.clone());
                "http://localhost".to_owned()
            }
        };
        let client = builder
            .build()
            .map_err(|_| CommandError::Running("the HTTP client cannot be built".to_owned()))?;
        Ok(Self {
            client,
            base,
            config,
        })
    }

    async fn call(
        &self,
        request: impl FnOnce(&Client, &str) -> RequestBuilder,
    ) -> Result<Value, CommandError> {
        let mut request = request(&self.client, &self.base);
        if let Some(key) = &self.config.admin.key {
            request = request.bearer_auth(key.expose());
        }
        let unreachable = |_| {
            CommandError::Running(format!(
                "no wxgate answers at admin.listen = {}; is it running with this configuration?",
                self.config.admin.listen
            ))
        };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let body: Value = answer.json().await.map_err(unreachable)?;
        match status {
            StatusCode::OK => Ok(body),
            _ => Err(CommandError::Running(
                body["message"]
                    .as_str()
                    .unwrap_or("the running wxgate refused")
                    .to_owned(),
            )),
        }
    }
}

/// Returns the address to connect to: loopback for a listener on all addresses.
fn reachable(address: &str) -> String {
    match split_port(address) {
        Some(("0.0.0.0", Some(port))) => format!("127.0.0.1:{port}"),
        Some(("[::]", Some(port))) => format!("[::1]:{port}"),
        _ => address.to_owned(),
    }
}

fn show(value: &Value) -> Result<(), CommandError> {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    print(text.as_bytes())
}
