//! Secrets are planted everywhere they can be, everything that can go wrong goes wrong, and then
//! everything that the program ever wrote is searched for them, in every spelling.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use wxgate::{
    config,
    sandbox::{self, Fault, Rule, Sandbox, SandboxAccount, TokenFilter},
};

use crate::support::{
    client, header,
    program::{Program, finish, wxgate},
};

const APP_SECRET: &str = "pl4nted\"App/Secret+0f3c92a1b7d5e846";
const OTHER_SECRET: &str = "pl4nted-other-Secret=77c1e0d2f9";
const FIRST_TOKEN: &str = "88_pl4nted/First+Token=\"\\e1a9c7b35d2f4068-aaaaaaaaaaaaaaaa";
const SECOND_TOKEN: &str = "89_pl4nted/Second+Token=d4b8f2a61c7e9350-bbbbbbbbbbbbbbbb";
const TICKET: &str = "pl4nted-jsapi/Ticket+e5f1=c2d88a90";
const ADMIN_KEY: &str = "pl4nted-Admin/Key+3b9d";
const EGRESS: &str = "egress-user:pl4nted-Egress-Password-6ac1";
const CLIENT_TOKEN: &str = "pl4nted-Client-Token/5e20c8";
const CLIENT_SECRET: &str = "pl4nted-Client-Secret+9f41";
const CLIENT_KEY: &str = "pl4nted-Client-Key-c07b";
const AGENT_SECRET: &str = "pl4nted-Agent/Secret+4f77a1";
const KEPT_TOKEN: &str = "pl4nted-Kept-Token.by~another_server-d1c3";
const KEPT_KEY: &str = "pl4nted-Key-of/the+other-Server-0c2e";
const CODE: &str = "pl4nted-Login-Code-81de";
const BODY: &str = "pl4nted-Message-Text-20b7";

const CORP: &str = "ww4444444444444444";

/// Everything that nobody may see, and what it is.
const PLANTED: [(&str, &str); 15] = [
    ("AppSecret", APP_SECRET),
    ("the other AppSecret", OTHER_SECRET),
    ("the first token", FIRST_TOKEN),
    ("the second token", SECOND_TOKEN),
    ("the ticket", TICKET),
    ("the admin key", ADMIN_KEY),
    ("the egress proxy's credentials", EGRESS),
    ("a client's access_token", CLIENT_TOKEN),
    ("a client's secret", CLIENT_SECRET),
    ("a client's key", CLIENT_KEY),
    ("the secret of an agent", AGENT_SECRET),
    ("the token that another server keeps", KEPT_TOKEN),
    ("the key to that server", KEPT_KEY),
    ("a login code", CODE),
    ("a request body", BODY),
];

/// The spellings under which a value can slip out.
fn spellings(value: &str) -> Vec<String> {
    let encoded = utf8_percent_encode(value, NON_ALPHANUMERIC).to_string();
    let json = serde_json::to_string(value).expect("JSON");
    let hex = value.bytes().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let unpadded = |text: String| text.trim_end_matches('=').to_owned();
    vec![
        value.to_owned(),
        encoded.to_ascii_lowercase(),
        encoded,
        json.trim_matches('"').to_owned(),
        format!("{value:?}").trim_matches('"').to_owned(),
        unpadded(STANDARD.encode(value)),
        URL_SAFE_NO_PAD.encode(value),
        hex.to_ascii_uppercase(),
        hex,
        value.chars().take(16).collect(),
    ]
}

/// What was found where.
fn search(sinks: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (what, value) in PLANTED {
        for spelling in spellings(value) {
            for (sink, text) in sinks {
                if let Some(at) = text.find(&spelling) {
                    let around: String = text[..at]
                        .chars()
                        .rev()
                        .take(80)
                        .collect::<Vec<_>>()
                        .into_iter()
                        .rev()
                        .collect();
                    found.push(format!(
                        "{what} in {sink}, behind {around:?}, as {spelling}"
                    ));
                }
            }
        }
    }
    found
}

/// Another central server, which answers everybody with its token. Its address.
async fn other_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let body = format!("{{\"access_token\":\"{KEPT_TOKEN}\",\"expires_in\":7000}}");
            let head = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all((head + &body).as_bytes()).await;
            });
        }
    });
    address
}

/// A CONNECT proxy that wants a password, and breaks off when told to. Kept: the heads that it got.
struct EgressProxy {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
    broken: Arc<Mutex<bool>>,
}

impl EgressProxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (heads, broken) = (
            Arc::<Mutex<Vec<String>>>::default(),
            Arc::<Mutex<bool>>::default(),
        );
        let (kept, fails) = (Arc::clone(&heads), Arc::clone(&broken));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Self::tunnel(stream, Arc::clone(&kept), Arc::clone(&fails)));
            }
        });
        Self {
            address,
            heads,
            broken,
        }
    }

    async fn tunnel(
        mut stream: TcpStream,
        heads: Arc<Mutex<Vec<String>>>,
        broken: Arc<Mutex<bool>>,
    ) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        heads.lock().unwrap().push(head.clone());
        let authorized = head.contains(&format!("Basic {}", STANDARD.encode(EGRESS)));
        if *broken.lock().unwrap() || !authorized {
            let realm = format!(
                "HTTP/1.1 407 {head:?}\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
            );
            let _ = stream.write_all(realm.as_bytes()).await;
            return None;
        }
        let mut target = TcpStream::connect(head.split(' ').nth(1)?).await.ok()?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
        copy_bidirectional(&mut stream, &mut target)
            .await
            .ok()
            .map(|_| ())
    }
}

async fn wechat() -> Sandbox {
    let accounts = vec![
        SandboxAccount::new("wx1111111111111111", APP_SECRET),
        SandboxAccount::new("wx2222222222222222", OTHER_SECRET),
        SandboxAccount::new("wx5555555555555555", "unknown"),
        SandboxAccount::wecom(CORP, AGENT_SECRET),
    ];
    let settings = sandbox::SandboxSettings {
        accounts,
        ..sandbox::SandboxSettings::default()
    };
    let sandbox = sandbox::start(settings).await.expect("the sandbox starts");
    let token = |value: &str| Fault::Token {
        expires_in: None,
        access_token: Some(value.to_owned()),
    };
    let endpoint = |fault| Rule::new("/cgi-bin/stable_token", fault);
    let refused: Fault =
        serde_json::from_str(r#"{"kind":"errcode","code":40164,"ip":"198.51.100.7"}"#)
            .expect("a fault");
    sandbox
        .control()
        .fault(endpoint(refused).account("wx2222222222222222").always());
    let ticket =
        serde_json::json!({"errcode": 0, "errmsg": "ok", "ticket": TICKET, "expires_in": 7200})
            .to_string();
    let given = Fault::respond(200, "application/json", ticket);
    sandbox
        .control()
        .fault(Rule::new("/cgi-bin/ticket/getticket", given).always());
    sandbox
        .control()
        .fault(endpoint(token(FIRST_TOKEN)).account("wx1111111111111111"));
    sandbox.control().fault(
        endpoint(token(SECOND_TOKEN))
            .account("wx1111111111111111")
            .always(),
    );
    sandbox
}

/// Five accounts: one that works, one that is refused, one whose API host speaks no TLS, an agent
/// of WeCom, and one whose token another server keeps. Callers have a key, or come from here.
fn configuration(sandbox: &Sandbox, other_server: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let api = sandbox.https_url().expect("it listens");
    let dark = sandbox
        .http_url()
        .expect("it listens")
        .replace("http:", "https:");
    let account = |name: &str, appid: u32, secret: &str, api: &str| {
        let appid = appid.to_string().repeat(16);
        format!(
            "[[account]]\nname = \"{name}\"\nappid = \"wx{appid}\"\nsecret = {secret}\napi = [\"{api}\"]\n"
        )
    };
    let text = [
        "default_account = \"shop\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n",
        "[admin]\nlisten = \"127.0.0.1:0\"\nkey = { env = \"PLANTED_ADMIN_KEY\" }\n",
        "[upstream]\nca_file = \"root.pem\"\nresponse_timeout = \"2s\"\n[store]\npath = \"state\"\n",
        &account("shop", 1, "{ env = \"PLANTED_SECRET\" }", &api),
        &account("refused", 2, "{ file = \"other.secret\" }", &api),
        &account("dark", 3, "{ env = \"PLANTED_SECRET\" }", &dark),
        &format!(
            "[[account]]\nname = \"agent\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\napi = [\"{api}\"]\n"
        ),
        "secret = { env = \"PLANTED_AGENT\" }\n",
        &format!(
            "[[account]]\nname = \"kept\"\nappid = \"wx5555555555555555\"\napi = [\"{api}\"]\n"
        ),
        &format!("token = {{ from = \"http\", url = {{ value = \"http://{other_server}/\" }}, "),
        "header = { \"X-Key\" = { env = \"PLANTED_KEPT\" } } }\n",
        "[[client]]\nname = \"crm\"\nkey = { env = \"PLANTED_CLIENT\" }\nmay = [\"refresh\", \"ticket\"]\n",
        "deny = [\"/cgi-bin/menu/**\"]\nrate = { per_second = 1000 }\n",
        "[[client]]\nname = \"here\"\nfrom = [\"loopback\"]\nmode = \"report\"\nallow = [\"/cgi-bin/**\"]\n",
    ];
    fs::write(folder.path().join("wxgate.toml"), text.concat()).expect("written");
    fs::write(folder.path().join("root.pem"), sandbox.ca_pem()).expect("written");
    fs::write(folder.path().join("other.secret"), OTHER_SECRET).expect("written");
    folder
}

fn with_secrets(arguments: &[&str], folder: &Path, egress: &EgressProxy, format: &str) -> Command {
    let mut command = wxgate(arguments);
    command
        .arg("--config")
        .arg(folder.join("wxgate.toml"))
        .current_dir(folder)
        .args(["--log-format", format]);
    command
        .env("PLANTED_ADMIN_KEY", ADMIN_KEY)
        .env("PLANTED_SECRET", APP_SECRET)
        .env("PLANTED_AGENT", AGENT_SECRET);
    command
        .env("PLANTED_CLIENT", CLIENT_KEY)
        .env("PLANTED_KEPT", KEPT_KEY);
    command.env(
        "WXGATE_UPSTREAM__PROXY",
        format!("http://{EGRESS}@{}", egress.address),
    );
    command
        .env("WXGATE_LOG", "trace")
        .env("RUST_BACKTRACE", "full");
    command
}

/// A response as a client sees it, headers and all.
async fn seen(request: reqwest::RequestBuilder) -> String {
    match request.send().await {
        Ok(answer) => {
            let head = format!("{} {:?}", answer.status(), answer.headers());
            format!(
                "{head}\n{}",
                String::from_utf8_lossy(&answer.bytes().await.unwrap_or_default())
            )
        }
        Err(error) => format!("{:?}", error.without_url()),
    }
}

/// Calls of every kind, while everything fails that can fail. Returns what the caller saw.
async fn trouble(
    proxy: &str,
    control: &sandbox::SandboxControl,
    egress: &EgressProxy,
    phantoms: &[String; 2],
) -> String {
    let client = client();
    let mut answers = String::new();
    let get = |target: &str| {
        client
            .get(format!("{proxy}{target}"))
            .header("x-wxgate-key", CLIENT_KEY)
    };
    let token = utf8_percent_encode(CLIENT_TOKEN, NON_ALPHANUMERIC);
    let secret = utf8_percent_encode(CLIENT_SECRET, NON_ALPHANUMERIC);
    let tokens = format!("?access_token={token}&session={secret}");
    let send = || {
        let message =
            serde_json::json!({"touser": "o1", "msgtype": "text", "text": {"content": BODY}});
        client
            .post(format!("{proxy}/cgi-bin/message/custom/send{tokens}"))
            .bearer_auth(CLIENT_KEY)
            .json(&message)
    };
    let redirect = |location: String| Fault::Redirect {
        status: 302,
        location,
    };
    let echo = utf8_percent_encode(FIRST_TOKEN, NON_ALPHANUMERIC).to_string();
    let rigged = [
        Fault::Pass,
        Fault::errcode(45009),
        Fault::Reset { executed: true },
        Fault::Hang { executed: false },
        Fault::Cut {
            after: 4,
            chunked: true,
            end: sandbox::Ending::Reset,
        },
        Fault::Raw {
            text: None,
            end: sandbox::Ending::Close,
        },
        Fault::Switch,
        Fault::TwoLengths,
        Fault::BigHeader {
            bytes: 200_000,
            fields: 1,
        },
        redirect(format!(
            "https://elsewhere.test/login?access_token={echo}&x=1"
        )),
        redirect(format!("/cgi-bin/user/get?a=1&ACCESS%5FTOKEN={echo}#f")),
        redirect(format!("https://elsewhere.test/{echo}")),
    ];
    for fault in rigged {
        let rule = control.fault(Rule::new("/cgi-bin/message/custom/send", fault));
        answers += &seen(send()).await;
        control.remove_fault(rule);
    }
    for target in [
        format!("/cgi-bin/user/info{tokens}&openid=o1"),
        format!(
            "/sns/jscode2session?appid=wx1111111111111111&secret={secret}&js_code={CODE}&grant_type=x"
        ),
        format!(
            "/cgi-bin/token?grant_type=client_credential&appid=wx1111111111111111&secret={secret}"
        ),
        format!("/cgi-bin/user/info?secret={secret}&access_token={token}"),
        format!("/cgi-bin/user/info?ACCESS_TOKEN={token}"),
        format!("/cgi-bin/user/info?a;access_token={token}"),
        format!("/cgi-bin/user/info?{token}"),
        format!("/@nobody/cgi-bin/user/get{tokens}"),
        format!("/@refused/cgi-bin/user/get{tokens}"),
        format!("/@dark/cgi-bin/user/get{tokens}"),
        format!("/-/accounts/shop/token{tokens}"),
        "/-/accounts/shop/token".to_owned(),
        "/-/accounts/shop/jssdk?url=https%3A%2F%2Fa.test%2F".to_owned(),
        format!("/-/accounts/shop/jssdk?url={token}"),
        "/-/accounts/refused/tickets/jsapi".to_owned(),
        "/-/accounts/dark/tickets/jsapi".to_owned(),
        format!("/cgi-bin//../user/get{tokens}"),
        format!("/cgi-bin/menu/get?access_token={}", phantoms[0]),
        format!("/cgi-bin/user/info?openid=o&access_token={}", phantoms[0]),
        format!(
            "/cgi-bin/user/info?openid=o&access_token={}&access_token={}",
            phantoms[0], phantoms[1]
        ),
        format!("/@agent/cgi-bin/user/info?access_token={}", phantoms[0]),
        format!("/cgi-bin/user/get?userid=u&access_token={}", phantoms[1]),
        format!("/cgi-bin/user/get?userid=u&ACCESS_TOKEN={}", phantoms[1]),
        format!("/cgi-bin/user/get?userid=u&access_token={}x", phantoms[1]),
        format!("/cgi-bin/gettoken?corpid={CORP}&corpsecret={secret}"),
        format!("/cgi-bin/stable_token?appid=wx1111111111111111&secret={CLIENT_KEY}"),
        format!("/cgi-bin/anything?secret={CLIENT_KEY}"),
        format!("/@kept/sns/jscode2session?secret={CLIENT_KEY}&js_code={CODE}"),
        "/@kept/cgi-bin/user/info?openid=o".to_owned(),
        "/@agent/-/accounts/agent/tickets/agent_config".to_owned(),
    ] {
        answers += &seen(get(&target)).await;
        answers += &seen(client.get(format!("{proxy}{target}"))).await;
    }
    let login =
        format!("/sns/jscode2session?appid=wx1111111111111111&secret={CLIENT_KEY}&js_code={CODE}");
    let echo = utf8_percent_encode(APP_SECRET, NON_ALPHANUMERIC).to_string();
    for fault in [
        Fault::Pass,
        Fault::Reset { executed: true },
        redirect(format!("https://elsewhere.test/sns?secret={echo}&x=1")),
        redirect(format!("/{}", utf8_percent_encode(&echo, NON_ALPHANUMERIC))),
        Fault::Cut {
            after: 4,
            chunked: true,
            end: sandbox::Ending::Reset,
        },
    ] {
        let rule = control.fault(Rule::new("/sns/jscode2session", fault));
        answers += &seen(client.get(format!("{proxy}{login}"))).await;
        control.remove_fault(rule);
    }
    control.revoke(TokenFilter::default());
    let cured = send().send().await.expect("an answer");
    assert_eq!(
        header(&cured, "x-wxgate-attempts"),
        "2",
        "the first token died: {cured:?}"
    );
    answers += &format!("{:?}", cured.headers());
    let order = serde_json::json!({"rejected": FIRST_TOKEN}).to_string();
    answers += &seen(
        client
            .post(format!("{proxy}/-/accounts/shop/token/refresh"))
            .body(order),
    )
    .await;
    control.set_close_each(true);
    answers += &seen(send()).await;
    *egress.broken.lock().unwrap() = true;
    answers += &seen(send()).await;
    *egress.broken.lock().unwrap() = false;
    answers
}

/// What a client of this secret gets in place of a token.
async fn phantom(url: String) -> String {
    let answer = crate::support::json(client().get(url).send().await.expect("an answer")).await;
    answer["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_ever_written_anywhere() {
    for format in ["text", "json"] {
        let (sandbox, egress) = (wechat().await, EgressProxy::start().await);
        let folder = configuration(&sandbox, &other_server().await);
        let command = |arguments: &[&str]| with_secrets(arguments, folder.path(), &egress, format);
        let mut sinks = BTreeMap::new();
        let program = Program::start(&mut command(&["serve"]));
        let (proxy, admin) = (
            format!("http://{}", program.proxy()),
            format!("http://{}", program.admin()),
        );
        program.logged("new access token");
        program.logged("198.51.100.7");

        let classic = "/cgi-bin/token?grant_type=client_credential&appid=wx1111111111111111&secret";
        let phantoms = [
            phantom(format!("{proxy}{classic}={CLIENT_KEY}")).await,
            phantom(format!(
                "{proxy}/cgi-bin/gettoken?corpid={CORP}&corpsecret={CLIENT_KEY}"
            ))
            .await,
        ];
        sinks.insert(
            "answers".to_owned(),
            trouble(&proxy, sandbox.control(), &egress, &phantoms).await,
        );
        for target in [
            "/",
            "/livez",
            "/readyz?all",
            "/metrics",
            "/api/accounts",
            "/nothing?key=x",
        ] {
            let request = || client().get(format!("{admin}{target}"));
            sinks.insert(
                format!("GET {target} without the key"),
                seen(request().bearer_auth(CLIENT_KEY)).await,
            );
            sinks.insert(
                format!("GET {target}"),
                seen(request().bearer_auth(ADMIN_KEY)).await,
            );
        }
        for account in ["shop", "refused", "dark"] {
            let refresh = client()
                .post(format!("{admin}/api/accounts/{account}/refresh"))
                .bearer_auth(ADMIN_KEY);
            sinks.insert(format!("refresh of {account}"), seen(refresh).await);
        }
        let fingerprint = wxgate::internals::base::Secret::new(SECOND_TOKEN).fingerprint();
        assert!(
            sinks["GET /api/accounts"].contains(&fingerprint),
            "the second token is in use"
        );

        let process = Path::new("/proc").join(program.pid.as_raw_nonzero().to_string());
        sinks.insert(
            "the command line".to_owned(),
            fs::read_to_string(process.join("cmdline")).expect("readable"),
        );
        // One request is still in flight when the program is told to stop twice.
        let hang = sandbox
            .control()
            .fault(Rule::new("/cgi-bin/user/info", Fault::Pass).hold());
        let cut = tokio::spawn(seen(client().get(format!(
            "{proxy}/cgi-bin/user/info?access_token={CLIENT_TOKEN}&openid=x"
        ))));
        sandbox
            .control()
            .until(|control| control.hits(hang) == 1)
            .await;
        program.signal(Signal::TERM);
        program.logged("stopping");
        program.signal(Signal::TERM);
        let ended = program.end();
        sinks.insert(
            "the answer that was cut".to_owned(),
            cut.await.expect("no panic"),
        );
        for part in ["DEBUG", "198.51.100.7", "upstream failed", &fingerprint] {
            assert!(
                ended.stderr.contains(part),
                "the log does not even hold {part}:\n{}",
                ended.stderr
            );
        }
        sinks.insert("standard error".to_owned(), ended.stderr);
        sinks.insert("standard output".to_owned(), ended.stdout);

        for arguments in [&["check"][..], &["check", "--live"], &["token", "shop"]] {
            let ended = finish(command(arguments));
            sinks.insert(
                format!("{arguments:?}"),
                format!("{}{}", ended.stdout, ended.stderr),
            );
        }
        let mut state = String::new();
        for entry in fs::read_dir(folder.path().join("state")).expect("the store") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let content = String::from_utf8_lossy(&fs::read(&path).expect("readable")).into_owned();
            match name.starts_with("shop.j") {
                true => state += &content,
                false => _ = sinks.insert(format!("state/{name}"), content),
            }
        }
        // Outwards everything did go: the search looks for what really was there.
        let heads = egress.heads.lock().unwrap().concat();
        assert!(heads.contains(&STANDARD.encode(EGRESS)), "{heads}");
        assert!(
            !search(&BTreeMap::from([("state".to_owned(), state.clone())])).is_empty(),
            "the store holds the token"
        );
        for (what, value) in PLANTED
            .into_iter()
            .filter(|(what, _)| !what.contains("token") && !what.contains("ticket"))
        {
            let kept = spellings(value)
                .into_iter()
                .any(|spelling| state.contains(&spelling));
            assert!(!kept, "{what} is in the token's own file");
        }
        assert!(
            spellings(TICKET)
                .iter()
                .any(|spelling| state.contains(spelling)),
            "the store holds the ticket"
        );
        let found = search(&sinks);
        assert!(found.is_empty(), "{format}: {found:#?}");
        // Callers do get phantoms where they ask for tokens.
        for (sink, text) in sinks.iter().filter(|(sink, _)| *sink != "answers") {
            assert!(!text.contains("wxg1_"), "a phantom in {sink}: {text}");
        }
        let arrived = format!("{:?}", sandbox.control().requests("/**"));
        for (what, value) in [
            ("a client's key", CLIENT_KEY),
            ("a phantom", "wxg1_"),
            ("the other key", KEPT_KEY),
        ] {
            assert!(!arrived.contains(value), "{what} reached WeChat");
        }
        assert!(
            arrived.contains(KEPT_TOKEN),
            "what another server keeps is in use"
        );
    }
}

#[test]
fn the_search_finds_every_spelling_of_everything() {
    for (what, value) in PLANTED {
        for spelling in spellings(value) {
            let sinks = BTreeMap::from([(
                "a log".to_owned(),
                format!("2026 INFO {spelling} and so on"),
            )]);
            let found = search(&sinks);
            assert!(
                found
                    .iter()
                    .any(|hit| hit.starts_with(&format!("{what} in a log"))),
                "{what} as {spelling}: {found:?}"
            );
        }
    }
    assert!(
        search(&BTreeMap::from([(
            "a log".to_owned(),
            "nothing, pl4nted or not".to_owned()
        )]))
        .is_empty()
    );
}

#[test]
fn no_settings_show_a_secret_when_they_are_formatted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("other.secret"), OTHER_SECRET).expect("written");
    let text = "[admin]\nkey = { env = \"KEY\" }\n\
         [[account]]\nname = \"a\"\nappid = \"wx1\"\nsecret = { env = \"SECRET\" }\n\
         [[account]]\nname = \"b\"\nappid = \"wx2\"\nsecret = { file = \"other.secret\" }\n\
         [[account]]\nname = \"c\"\nappid = \"wx3\"\nsecret = { value = 'pl4nted-Client-Secret+9f41' }\n\
         [[account]]\nname = \"d\"\nplatform = \"wecom\"\nappid = \"ww4\"\nsecret = { env = \"AGENT\" }\n\
         [[account]]\nname = \"e\"\nappid = \"wx5\"\ntoken = { from = \"http\", url = { env = \"KEPT_URL\" }, \
         header = { \"X-Key\" = { env = \"KEPT\" } } }\n\
         [[account]]\nname = \"f\"\nappid = \"wx6\"\ntoken = { from = \"redis\", url = { env = \"REDIS\" }, key = \"k\" }\n\
         [[client]]\nname = \"crm\"\nkey = { env = \"CLIENT\" }\n";
    let proxy = format!("http://{EGRESS}@127.0.0.1:3128");
    let variables: BTreeMap<String, String> = [
        ("KEY", ADMIN_KEY),
        ("SECRET", APP_SECRET),
        ("WXGATE_UPSTREAM__PROXY", proxy.as_str()),
        ("AGENT", AGENT_SECRET),
        ("KEPT", KEPT_KEY),
        (
            "KEPT_URL",
            "https://tokens.test/pl4nted-Kept-Token.by~another_server-d1c3",
        ),
        (
            "REDIS",
            "rediss://:pl4nted-Admin%2FKey%2B3b9d@redis.test:6379",
        ),
        ("CLIENT", CLIENT_KEY),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let config = config::parse(text, folder.path(), "wxgate.toml", &variables)
        .unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(
        config.accounts[0].secret.as_ref().unwrap().expose(),
        APP_SECRET
    );
    let mut sinks = BTreeMap::new();
    let egress = &config.proxy.upstream.egress;
    assert_eq!(
        egress
            .proxy
            .as_ref()
            .and_then(|p| p.credentials.as_ref())
            .map(|c| c.expose()),
        Some(EGRESS)
    );
    sinks.insert("Config".to_owned(), format!("{config:?}{config:#?}"));
    sinks.insert(
        "parts".to_owned(),
        format!(
            "{:?}{:?}{:?}{:?}",
            config.proxy, config.admin, config.token, config.store
        ),
    );
    sinks.insert(
        "AccountSettings".to_owned(),
        format!("{:?}", config.accounts),
    );
    let authorization = egress
        .proxy
        .as_ref()
        .and_then(|proxy| proxy.basic_authorization());
    sinks.insert("Egress".to_owned(), format!("{egress:?}{authorization:?}"));
    sinks.insert("check".to_owned(), config::check_text(&config));
    assert_eq!(search(&sinks), Vec::<String>::new());
}
