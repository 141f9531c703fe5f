//! `wxgate demo`: sandbox and proxy in one process on loopback, with a few sample calls.
//!
//! Uses the real configuration parser, real TLS and real sockets; only WeChat is fake. Nothing
//! leaves the machine, and no file is left behind.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use reqwest::{Client, RequestBuilder, Response};
use tokio::sync::oneshot;

use super::{CommandError, StopSignals, background_runtime, print};
use crate::{
    app::{App, Grace},
    config::{self, Config},
    net::listen::BoundAddr,
    sandbox::{self, DEFAULT_APPID, DEFAULT_SECRET, Sandbox, TokenFilter},
};

pub(super) fn run(once: bool) -> Result<(), CommandError> {
    background_runtime()?.block_on(async {
        let folder = tempfile::tempdir()?;
        let sandbox = sandbox::start(sandbox::SandboxSettings::default()).await?;
        let ca = folder.path().join("sandbox-root.pem");
        std::fs::write(&ca, sandbox.ca_pem())?;
        let app = start(&sandbox, folder.path())?;
        let addresses = Addresses::of(&app, &sandbox)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(
            app.with_grace(Grace {
                leaving: Duration::ZERO,
                idle: Duration::ZERO,
                closing: Duration::from_secs(1),
            })
            .run(
                async {
                    let _ = stopped.await;
                },
                std::future::pending(),
            ),
        );
        print(addresses.introduction().as_bytes())?;
        let went_well = Calls::new(&addresses, &sandbox)?.make().await;
        if went_well.is_ok() && !once {
            // Before the text that mentions Ctrl-C is printed.
            let mut signals = StopSignals::listen()?;
            print(addresses.what_next().as_bytes())?;
            signals.next().await;
        }
        // The outcome is that of the calls, not of the stop.
        let _ = stop.send(());
        let _ = running.await;
        sandbox.stopped().await;
        went_well
    })
}

/// Starts the proxy on the usual ports if these are free, else on any.
fn start(sandbox: &Sandbox, folder: &std::path::Path) -> Result<App, CommandError> {
    let build = |listen: &str, admin: &str| {
        let config = configuration(sandbox, folder, listen, admin)?;
        App::build(&config, None).map_err(|error| CommandError::Running(error.to_string()))
    };
    build("127.0.0.1:8080", "127.0.0.1:8081").or_else(|_| build("127.0.0.1:0", "127.0.0.1:0"))
}

fn configuration(
    sandbox: &Sandbox,
    folder: &std::path::Path,
    listen: &str,
    admin: &str,
) -> Result<Config, CommandError> {
    let api = sandbox.https_url().unwrap_or_default();
    let text = format!(
        "[server]\nlisten = [\"{listen}\"]\n[admin]\nlisten = \"{admin}\"\n\
         [upstream]\nca_file = \"sandbox-root.pem\"\n[store]\nkind = \"memory\"\n\
         [[account]]\nname = \"demo\"\nappid = \"{DEFAULT_APPID}\"\nsecret = {{ value = \"{DEFAULT_SECRET}\" }}\napi = [\"{api}\"]\n"
    );
    config::parse(&text, folder, "demo", &BTreeMap::<String, String>::new())
        .map_err(|problems| CommandError::Running(problems.to_string()))
}

struct Addresses {
    proxy: String,
    admin: String,
    sandbox: String,
}

impl Addresses {
    fn of(app: &App, sandbox: &Sandbox) -> Result<Self, CommandError> {
        let missing = || {
            CommandError::Running("the demo's listeners are not where they should be".to_owned())
        };
        Ok(Self {
            proxy: app
                .addresses()
                .first()
                .and_then(BoundAddr::tcp)
                .ok_or_else(missing)?
                .to_string(),
            admin: app.admin_address().to_string(),
            sandbox: sandbox.http_url().ok_or_else(missing)?,
        })
    }

    fn introduction(&self) -> String {
        format!(
            "wxgate demo: everything runs on this machine, nothing is sent anywhere else.\n\n\
             \x20 fake WeChat    {}   (also over TLS, which the proxy uses)\n\
             \x20 wxgate proxy   http://{}   <- your services call this, without any token\n\
             \x20 wxgate console http://{}   <- open it in a browser\n\n\
             Four calls through the proxy, none of them with a credential:\n\n",
            self.sandbox, self.proxy, self.admin
        )
    }

    fn what_next(&self) -> String {
        let Self {
            proxy,
            admin,
            sandbox,
        } = self;
        format!(
            "Still running. Try it yourself:\n\n\
             \x20 curl 'http://{proxy}/cgi-bin/user/info?openid=you'         a call without a token\n\
             \x20 curl -X POST {sandbox}/sandbox/revoke             kill the token, then call again\n\
             \x20 curl 'http://{proxy}/cgi-bin/token?grant_type=client_credential&appid={DEFAULT_APPID}&secret=any'\n\
             \x20                                                             what an SDK asks for: a token for wxgate only\n\
             \x20 curl 'http://{proxy}/-/accounts/demo/jssdk?url=https%3A%2F%2Fshop.example%2F'\n\
             \x20                                                             a signature for wx.config\n\
             \x20 curl http://{admin}/api/accounts                        how the account's token is\n\
             \x20 curl {sandbox}/sandbox/counters                   what the fake WeChat has seen\n\n\
             Ctrl-C ends it. Your own account next: wxgate serve, see config/minimal.toml.\n"
        )
    }
}

/// Sample calls, each printed when its answer has come.
struct Calls<'d> {
    client: Client,
    base: String,
    sandbox: &'d Sandbox,
}

impl<'d> Calls<'d> {
    fn new(addresses: &Addresses, sandbox: &'d Sandbox) -> Result<Self, CommandError> {
        let tls = crate::net::egress::Egress {
            ca_file: None,
            ..Default::default()
        };
        // Without a proxy from the environment: nothing may leave the machine.
        let mut builder = Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30));
        // The calls are plain HTTP, but reqwest would build a TLS setup of its own without this.
        if let Ok(tls) = tls.tls() {
            builder = builder.tls_backend_preconfigured((*tls).clone());
        }
        let client = builder
            .build()
            .map_err(|_| CommandError::Running("the HTTP client cannot be built".to_owned()))?;
        Ok(Self {
            client,
            base: format!("http://{}", addresses.proxy),
            sandbox,
        })
    }

    async fn make(&self) -> Result<(), CommandError> {
        let user = format!("{}/cgi-bin/user/info?openid=demo-user", self.base);
        self.call("GET  /cgi-bin/user/info", 1, self.client.get(&user))
            .await?;
        let message = serde_json::json!({"touser": "demo-user", "msgtype": "text", "text": {"content": "hello"}});
        let send = format!("{}/cgi-bin/message/custom/send", self.base);
        self.call(
            "POST /cgi-bin/message/custom/send",
            1,
            self.client.post(&send).json(&message),
        )
        .await?;
        self.sandbox.control().revoke(TokenFilter::default());
        print(
            "     ... the fake WeChat now kills the token, as happens when somebody else fetches one ...\n".as_bytes(),
        )?;
        self.call(
            "POST /cgi-bin/message/custom/send",
            2,
            self.client.post(&send).json(&message),
        )
        .await?;
        self.call("GET  /cgi-bin/user/info", 1, self.client.get(&user))
            .await?;
        self.summary()
    }

    async fn call(
        &self,
        name: &str,
        attempts: u32,
        request: RequestBuilder,
    ) -> Result<(), CommandError> {
        let answer = request
            .send()
            .await
            .map_err(|error| CommandError::Running(format!("{name}: {}", error.without_url())))?;
        let made = header(&answer, "x-wxgate-attempts");
        let body = answer.text().await.unwrap_or_default();
        let note = match made.as_str() {
            "2" => "   <- refused, token renewed, sent again: the caller saw nothing of it",
            _ => "",
        };
        let shown: String = body.chars().take(48).collect();
        let mut line = String::new();
        let _ = writeln!(line, "  {name:<36} attempts={made}  {shown}{note}");
        print(line.as_bytes())?;
        if made != attempts.to_string()
            || crate::wechat::verdict::errcode(body.as_bytes()).unwrap_or(0) != 0
        {
            return Err(CommandError::Running(format!(
                "{name}: expected {attempts} attempt(s) and a good answer"
            )));
        }
        Ok(())
    }

    fn summary(&self) -> Result<(), CommandError> {
        let control = self.sandbox.control();
        let (fetches, delivered) = (control.fetches(), control.delivered_to("demo-user"));
        print(
            format!(
                "\nThe fake WeChat was asked for a token {fetches} times and delivered {delivered} messages, each exactly once.\n\n"
            )
            .as_bytes(),
        )?;
        if (fetches, delivered) == (2, 2) {
            Ok(())
        } else {
            Err(CommandError::Running(
                "expected two token fetches and two messages".to_owned(),
            ))
        }
    }
}

fn header(answer: &Response, name: &str) -> String {
    answer
        .headers()
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("-")
        .to_owned()
}
