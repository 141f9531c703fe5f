//! Boots the whole proxy in-process, through the real configuration parser, on free ports, against
//! the sandbox.

pub mod fake;
pub mod logfmt;
pub mod program;
pub mod raw;
pub mod redis;
pub mod token_tools;
pub mod wire;

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, path::Path, time::Duration};

use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use wxgate::{
    app::{App, Grace},
    config,
    internals::{
        net::egress::Egress,
        proxy::AccessLogSettings,
        telemetry::{format::Format, output::Output},
    },
    sandbox::{self, DEFAULT_APPID, DEFAULT_SECRET, Sandbox, SandboxControl},
};

/// The name of the configuration file in a gate's folder.
const FILE: &str = "test.toml";

/// A running proxy with a fake WeChat behind it. Dropping it stops both.
pub struct Gate {
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
    pub sandbox: Sandbox,
    /// The access log, JSON lines. Complete only after [`Gate::stop`].
    pub access_log: Output,
    pub client: Client,
    pub folder: TempDir,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<std::io::Result<()>>,
}

/// What a test wants to be different from the plain set-up.
pub struct Setup {
    root: String,
    tables: BTreeMap<String, String>,
    account: String,
    secret: String,
    more: String,
    sandbox: sandbox::SandboxSettings,
    plain: bool,
    grace: Grace,
}

/// One account named `shop`, stable tokens, memory store, TLS to the sandbox.
pub fn setup() -> Setup {
    let mut tables = BTreeMap::new();
    tables.insert(
        "server".to_owned(),
        "listen = [\"127.0.0.1:0\"]\n".to_owned(),
    );
    tables.insert("admin".to_owned(), "listen = \"127.0.0.1:0\"\n".to_owned());
    tables.insert("upstream".to_owned(), "ca_file = \"root.pem\"\n".to_owned());
    tables.insert("store".to_owned(), "kind = \"memory\"\n".to_owned());
    Setup {
        root: String::new(),
        tables,
        account: String::new(),
        secret: DEFAULT_SECRET.to_owned(),
        more: String::new(),
        sandbox: sandbox::SandboxSettings::default(),
        plain: false,
        grace: Grace {
            leaving: Duration::ZERO,
            idle: Duration::ZERO,
            closing: Duration::from_secs(5),
        },
    }
}

impl Setup {
    /// Adds a line to a table, such as `("replay", "disk = \"0\"")`; a key given twice replaces the
    /// first.
    pub fn set(mut self, table: &str, line: &str) -> Self {
        let key = line.split('=').next().unwrap_or_default().trim().to_owned();
        let lines = self.tables.entry(table.to_owned()).or_default();
        *lines = lines
            .lines()
            .filter(|l| l.split('=').next().unwrap_or_default().trim() != key)
            .fold(String::new(), |mut kept, line| {
                let _ = writeln!(kept, "{line}");
                kept
            });
        let _ = writeln!(lines, "{line}");
        self
    }

    /// Sets the account that is used when nothing selects one.
    pub fn default_account(mut self, name: &str) -> Self {
        self.root = format!("default_account = \"{name}\"\n");
        self
    }

    /// Adds a line to the account.
    pub fn account(mut self, line: &str) -> Self {
        let _ = writeln!(self.account, "{line}");
        self
    }

    /// Sets the AppSecret of the account.
    pub fn secret(mut self, secret: &str) -> Self {
        secret.clone_into(&mut self.secret);
        self
    }

    /// Adds text at the end of the file, such as a further `[[account]]`; `{api}` stands for the
    /// sandbox's URL.
    pub fn more(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self
    }

    /// Changes the sandbox.
    pub fn sandbox(mut self, change: impl FnOnce(&mut sandbox::SandboxSettings)) -> Self {
        change(&mut self.sandbox);
        self
    }

    /// Plain HTTP to the sandbox instead of TLS.
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// What the sandbox would be started with.
    pub fn sandbox_settings(&self) -> sandbox::SandboxSettings {
        self.sandbox.clone()
    }

    pub fn grace(mut self, grace: Grace) -> Self {
        self.grace = grace;
        self
    }

    /// The configuration file for a sandbox. `api` of the account is set unless the test set it.
    pub fn file(&self, sandbox: &Sandbox) -> String {
        let api = if self.plain {
            sandbox.http_url()
        } else {
            sandbox.https_url()
        }
        .expect("the sandbox listens");
        let mut text = self.root.clone();
        for (table, lines) in &self.tables {
            let _ = write!(text, "[{table}]\n{lines}");
        }
        let _ = write!(
            text,
            "[[account]]\nname = \"shop\"\nappid = \"{DEFAULT_APPID}\"\nsecret = {{ value = \"{}\" }}\n{}",
            self.secret, self.account
        );
        if !self.account.contains("api =") {
            let _ = writeln!(text, "api = [\"{api}\"]");
        }
        text.push_str(&self.more.replace("{api}", &api));
        text
    }

    pub async fn start(self) -> Gate {
        let sandbox = self.start_sandbox().await;
        self.start_with(sandbox).await
    }

    /// The sandbox alone, for a test that has to prepare it before the first token is fetched.
    pub async fn start_sandbox(&self) -> Sandbox {
        sandbox::start(self.sandbox.clone())
            .await
            .expect("the sandbox starts")
    }

    /// With a sandbox that is already there.
    pub async fn start_with(self, sandbox: Sandbox) -> Gate {
        let folder = tempfile::tempdir().expect("a temporary folder");
        self.start_in(sandbox, folder).await
    }

    /// With a folder that is already there; relative paths of the configuration are relative to it.
    pub async fn start_in(self, sandbox: Sandbox, folder: TempDir) -> Gate {
        std::fs::write(folder.path().join("root.pem"), sandbox.ca_pem())
            .expect("the root is written");
        let text = self.file(&sandbox);
        std::fs::write(folder.path().join(FILE), &text).expect("the configuration is written");
        let place = folder.path().to_owned();
        let load = move || {
            config::load(
                Some(Path::new(FILE)),
                &place,
                &BTreeMap::<String, String>::new(),
            )
        };
        let config = load().unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        let access_log = Output::memory();
        let log = AccessLogSettings {
            format: Format::Json,
            output: access_log.clone(),
        };
        let app = App::build(&config, Some(log))
            .expect("the proxy starts")
            .with_grace(self.grace);
        let (app, _) = app.reloading(Box::new(load));
        let proxy = app
            .addresses()
            .iter()
            .find_map(|a| a.tcp())
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        let admin = app
            .admin_address()
            .tcp()
            .expect("the admin listener is on TCP");
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app.run(
            async {
                let _ = stopped.await;
            },
            std::future::pending(),
        ));
        Gate {
            proxy,
            admin,
            sandbox,
            access_log,
            client: client(),
            folder,
            stop: Some(stop),
            running,
        }
    }
}

/// The plain set-up, started.
pub async fn start() -> Gate {
    setup().start().await
}

/// An HTTP client that keeps connections, follows nothing and takes no proxy from the environment.
pub fn client() -> Client {
    let tls = Egress::default().tls().expect("the platform has roots");
    Client::builder()
        .tls_backend_preconfigured((*tls).clone())
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(60))
        .build()
        .expect("a client")
}

impl Gate {
    pub fn control(&self) -> &SandboxControl {
        self.sandbox.control()
    }

    pub fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.proxy)
    }

    pub fn admin_url(&self, target: &str) -> String {
        format!("http://{}{target}", self.admin)
    }

    pub async fn get(&self, target: &str) -> Response {
        self.client
            .get(self.url(target))
            .send()
            .await
            .expect("the proxy answers")
    }

    pub fn post(&self, target: &str) -> RequestBuilder {
        self.client.post(self.url(target))
    }

    /// Sends a message to this user through `message/custom/send`.
    pub fn send_message(&self, openid: &str) -> RequestBuilder {
        let message =
            serde_json::json!({"touser": openid, "msgtype": "text", "text": {"content": "hello"}});
        self.post("/cgi-bin/message/custom/send").json(&message)
    }

    /// Waits until the first token is there, so that a test can count from then on.
    pub async fn warm(&self) {
        let answer = self.get("/cgi-bin/user/info?openid=warm-up").await;
        assert_eq!(
            answer.status(),
            200,
            "{}",
            answer.text().await.unwrap_or_default()
        );
    }

    /// The page of metrics.
    pub async fn metrics(&self) -> String {
        let page = self.client.get(self.admin_url("/metrics")).send().await;
        page.expect("an answer").text().await.expect("text")
    }

    /// The configuration file as it is now.
    pub fn file(&self) -> String {
        std::fs::read_to_string(self.folder.path().join(FILE))
            .expect("the configuration can be read")
    }

    /// Writes another configuration file and has it loaded.
    pub async fn reload(&self, text: &str) -> Response {
        std::fs::write(self.folder.path().join(FILE), text).expect("the configuration is written");
        self.client
            .post(self.admin_url("/api/reload"))
            .send()
            .await
            .expect("the admin listener answers")
    }

    /// Writes raw bytes on a fresh connection and returns everything that comes back until the
    /// other end closes, or nothing comes for a second.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.proxy)
            .await
            .expect("the proxy listens");
        stream.write_all(bytes).await.expect("the proxy reads");
        let mut answer = Vec::new();
        let mut buffer = [0; 16 * 1024];
        while let Ok(Ok(count @ 1..)) =
            tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buffer)).await
        {
            answer.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Drains and returns how that ended, the access log complete.
    pub async fn stop(mut self) -> (std::io::Result<()>, String) {
        let _ = self.stop.take().expect("not stopped before").send(());
        let ended = (&mut self.running).await.expect("the proxy does not panic");
        (ended, self.access_log.contents())
    }

    /// Drains; the sandbox and the folder live on, for a test that starts again on them.
    pub async fn stop_keeping(mut self) -> (Sandbox, TempDir) {
        let _ = self.stop.take().expect("not stopped before").send(());
        (&mut self.running)
            .await
            .expect("the proxy does not panic")
            .expect("nothing had to be cut");
        (self.sandbox, self.folder)
    }
}

/// The named response header, or an empty text.
pub fn header(answer: &Response, name: &str) -> String {
    answer
        .headers()
        .get(name)
        .map(|value| value.to_str().expect("ASCII").to_owned())
        .unwrap_or_default()
}

/// The body as JSON.
pub async fn json(answer: Response) -> Value {
    let text = answer.text().await.expect("a body");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
