//! `wxgate sandbox`: the fake WeChat alone.

use std::{fmt::Write as _, path::PathBuf};

use super::{Failure, StopSignals, background_runtime, listen_address, print};
use crate::{
    net::address::ListenAddr,
    sandbox::{
        self, CertificateFiles, DEFAULT_APPID, DEFAULT_SECRET, SandboxAccount, SandboxSettings,
    },
};

/// The fake WeChat, for testing your own services: the token endpoints, a dozen API calls, and
/// faults on demand.
///
/// Tokens die when you say so (POST /sandbox/revoke), answers can be slowed down, cut short or
/// replaced; docs/sandbox.md lists everything. Nothing it hands out opens anything at WeChat.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Plain HTTP listener
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090", value_parser = listen_address)]
    listen: ListenAddr,
    /// TLS listener as well
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    tls_listen: Option<ListenAddr>,
    /// Certificate and key of your own (PEM); without them one is made at each start
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        requires = "tls_listen"
    )]
    tls_cert: Option<PathBuf>,
    /// The key that belongs to --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Write the root certificate of the TLS listener here, for the client's trust store
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    ca_out: Option<PathBuf>,
    /// An account, APPID:SECRET; may be repeated
    #[arg(long = "account", value_name = "APPID:SECRET", value_parser = account)]
    accounts: Vec<SandboxAccount>,
}

fn account(text: &str) -> Result<SandboxAccount, String> {
    match text.split_once(':') {
        Some((appid, secret)) if !appid.is_empty() && !secret.is_empty() => {
            Ok(SandboxAccount::new(appid, secret))
        }
        _ => Err("expected APPID:SECRET".to_owned()),
    }
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let certificate = arguments
        .tls_cert
        .zip(arguments.tls_key)
        .map(|(cert, key)| CertificateFiles { cert, key });
    let mut settings = SandboxSettings {
        http: Some(arguments.listen),
        https: arguments.tls_listen,
        certificate,
        ..SandboxSettings::default()
    };
    let default_account = arguments.accounts.is_empty();
    if !default_account {
        settings.accounts = arguments.accounts;
    }
    background_runtime()?.block_on(async {
        let sandbox = sandbox::start(settings).await.map_err(|error| {
            Failure::Running(format!(
                "the sandbox cannot start: {error}; is the address taken?"
            ))
        })?;
        if let Some(path) = arguments.ca_out {
            std::fs::write(&path, sandbox.ca_pem()).map_err(|error| {
                Failure::Running(format!("cannot write {}: {error}", path.display()))
            })?;
        }
        let mut text = String::from("The fake WeChat is up.\n");
        for url in [sandbox.http_url(), sandbox.https_url()]
            .into_iter()
            .flatten()
        {
            let _ = writeln!(text, "  listening on  {url}");
        }
        if default_account {
            let _ = writeln!(
                text,
                "  account       {DEFAULT_APPID}, secret {DEFAULT_SECRET}"
            );
        }
        if let Some(url) = sandbox.http_url() {
            let _ = writeln!(text, "  state         curl {url}/sandbox/state");
            let _ = writeln!(text, "  kill tokens   curl -X POST {url}/sandbox/revoke");
        }
        text.push_str("Everything it can do is in docs/sandbox.md. Ctrl-C ends it.\n");
        print(text.as_bytes())?;
        StopSignals::listen()?.next().await;
        sandbox.stopped().await;
        Ok(())
    })
}
