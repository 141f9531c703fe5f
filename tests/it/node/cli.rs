//! The command line as an operator meets it: what is printed, and how it ends.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;
use wxgate::sandbox::{
    self, DEFAULT_APPID, DEFAULT_SECRET, Fault, Rule, Sandbox, SandboxAccount, TokenFilter,
    TokenKind,
};

use crate::support::{
    program::{Ended, Program, address, finish, folder, serve, wxgate},
    setup,
};

async fn sandbox() -> Sandbox {
    sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts")
}

fn written(text: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("wxgate.toml"), text).expect("the file is written");
    folder
}

fn with_file(arguments: &[&str], folder: &Path) -> Command {
    let mut command = wxgate(arguments);
    command
        .arg("--config")
        .arg(folder.join("wxgate.toml"))
        .current_dir(folder);
    command
}

fn not_whitelisted() -> Fault {
    serde_json::from_str(r#"{"kind":"errcode","code":40164,"ip":"198.51.100.7"}"#).expect("a fault")
}

#[test]
fn bad_usage_ends_with_2_and_help_with_0() {
    for bad in [
        &[][..],
        &["nonsense"],
        &["serve", "--nonsense"],
        &["--log-format", "xml", "demo"],
        &["token", "not a name"],
        &["token"],
        &["completions", "cobol"],
        &["sandbox", "--listen", "nowhere"],
        &["sandbox", "--account", "no-colon"],
    ] {
        let ended = finish(wxgate(bad));
        assert_eq!(ended.status, Some(2), "{bad:?}: {ended:?}");
        assert!(
            !ended.stderr.is_empty() && ended.stdout.is_empty(),
            "{bad:?}: {ended:?}"
        );
    }
    let mut command = wxgate(&["check"]);
    command.env("WXGATE_LOG", "wxgate=nonsense=twice");
    let ended = finish(command);
    assert_eq!(
        (ended.status, ended.stderr.contains("WXGATE_LOG")),
        (Some(2), true),
        "{ended:?}"
    );
    for (good, part) in [
        (&["--help"][..], "serve"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
        (&["serve", "--help"], "--config"),
        (&["check", "--help"], "--live"),
        (&["demo", "--help"], "--once"),
        (&["sandbox", "--help"], "--listen"),
        (&["token", "--help"], "--refresh"),
    ] {
        let ended = finish(wxgate(good));
        assert_eq!(ended.status, Some(0), "{good:?}: {ended:?}");
        assert!(
            ended.stdout.contains(part),
            "{part} is not in {}",
            ended.stdout
        );
    }
}

#[test]
fn the_version_tells_commit_and_features() {
    let ended = finish(wxgate(&["--version"]));
    let line = ended.stdout.trim();
    let inside = line
        .strip_prefix(concat!("wxgate ", env!("CARGO_PKG_VERSION"), " (commit "))
        .and_then(|rest| rest.strip_suffix(')'))
        .unwrap_or_else(|| panic!("{line}"));
    let (commit, features) = inside.split_once(", features: ").expect("features");
    let is_hash = commit.len() == 12 && commit.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(is_hash || commit == "unknown", "{line}");
    let sql = if cfg!(feature = "sql") { "sql" } else { "none" };
    assert_eq!(features, sql, "{line}");
}

#[test]
fn bad_configuration_ends_with_78_and_names_the_key() {
    let account = "[[account]]\nname = \"shop\"\nappid = \"wx1\"\n";
    let value = "secret = { value = \"s\" }\n";
    for (text, parts) in [
        (
            format!("[server]\nlissten = []\n{account}{value}"),
            &["server.lissten", "wxgate.toml:2", "listen"][..],
        ),
        (
            format!("{account}secret = {{ env = \"NOT_SET_ANYWHERE\" }}\n"),
            &["account[0].secret", "NOT_SET_ANYWHERE"],
        ),
        (
            format!("[admin]\nlisten = \"0.0.0.0:0\"\n{account}{value}"),
            &["admin.key"],
        ),
        (
            format!("{account}{value}platform = \"component\"\n"),
            &["account[0].platform", "component"],
        ),
        ("[server\n".to_owned(), &["wxgate.toml:1"]),
    ] {
        let folder = written(&text);
        for command in [&["serve"][..], &["check"], &["check", "--live"]] {
            let ended = finish(with_file(command, folder.path()));
            assert_eq!(ended.status, Some(78), "{command:?} {text}: {ended:?}");
            for part in parts {
                assert!(
                    ended.stderr.contains(part),
                    "{part} is not in {}",
                    ended.stderr
                );
            }
        }
    }
    let ended = finish(wxgate(&["serve", "--config", "/nonexistent/wxgate.toml"]));
    assert_eq!(
        (
            ended.status,
            ended.stderr.contains("/nonexistent/wxgate.toml")
        ),
        (Some(78), true),
        "{ended:?}"
    );
}

#[test]
fn check_tells_all_problems_at_once_and_what_it_understood() {
    let folder = written(
        "[server]\nworkers = -1\n[token]\nwait = \"3\"\n[[account]]\nname = \"a b\"\nappid = \"wx1\"\nsecret = { env = \"UNSET\" }\n",
    );
    let ended = finish(with_file(&["check"], folder.path()));
    assert_eq!(ended.status, Some(78));
    for key in [
        "server.workers",
        "token.wait",
        "account[0].name",
        "account[0].secret",
    ] {
        assert!(
            ended.stderr.contains(key),
            "{key} is not in {}",
            ended.stderr
        );
    }
    let good =
        "[server]\nlisten = [\"127.0.0.1:18080\"]\n[[account]]\nname = \"shop\"\nappid = \"wx1\"\n";
    let folder = written(&format!("{good}secret = {{ value = \"s-e-c-r-e-t\" }}\n"));
    let ended = finish(with_file(&["check"], folder.path()));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for part in [
        "warning",
        "account[0].secret",
        "1 account(s): shop",
        "127.0.0.1:18080",
        "127.0.0.1:8081",
    ] {
        assert!(
            ended.stdout.contains(part),
            "{part} is not in {}",
            ended.stdout
        );
    }
    assert!(!ended.stdout.contains("s-e-c-r-e-t") && !ended.stderr.contains("s-e-c-r-e-t"));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_live_says_what_wechat_says_of_every_account() {
    let sandbox = sandbox().await;
    sandbox
        .control()
        .add_account(&SandboxAccount::new("wx2222222222222222", "two"));
    let more = |name: &str, appid: &str, secret: &str| {
        format!(
            "[[account]]\nname = \"{name}\"\nappid = \"{appid}\"\nsecret = {{ value = \"{secret}\" }}\napi = [\"{{api}}\"]\n"
        )
    };
    let setup = setup()
        .more(&more("listed", "wx2222222222222222", "two"))
        .more(&more("wrong", "wx3333333333333333", "x"));
    let folder = folder(&setup, &sandbox);
    sandbox.control().fault(
        Rule::new("/cgi-bin/stable_token", not_whitelisted())
            .account("wx2222222222222222")
            .always(),
    );
    let ended = finish(with_file(&["check", "--live"], folder.path()));
    assert_eq!(ended.status, Some(1), "{ended:?}");
    for part in [
        "ok       shop: WeChat gave a token that is good for 7200 s",
        "BROKEN   listed: no token: WeChat refused the IP 198.51.100.7 with errcode 40164",
        "BROKEN   wrong: no token: WeChat refused with errcode 40013",
    ] {
        assert!(
            ended.stdout.contains(part),
            "{part} is not in {}",
            ended.stdout
        );
    }
    assert!(ended.stderr.contains("2 things are broken"), "{ended:?}");
    assert_eq!(sandbox.control().fetches(), 3);
    let token = sandbox
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("one was fetched");
    assert!(!ended.stdout.contains(&token) && !ended.stderr.contains(&token));

    let folder = self::folder(&self::setup(), &sandbox);
    assert_eq!(
        finish(with_file(&["check", "--live"], folder.path())).status,
        Some(0)
    );
    sandbox
        .control()
        .add_account(&SandboxAccount::new(DEFAULT_APPID, "changed"));
    let ended = finish(with_file(&["check", "--live"], folder.path()));
    assert_eq!(
        (ended.status, ended.stdout.contains("40125")),
        (Some(1), true),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_live_asks_wecom_and_looks_where_tokens_are_kept() {
    let sandbox = sandbox().await;
    sandbox
        .control()
        .add_account(&SandboxAccount::wecom("ww0123456789abcdef", "agent"));
    let account = |name: &str, more: &str| {
        format!("[[account]]\nname = \"{name}\"\napi = [\"{{api}}\"]\n{more}\n")
    };
    let wecom = |secret: &str| {
        format!(
            "platform = \"wecom\"\nappid = \"ww0123456789abcdef\"\nsecret = {{ value = \"{secret}\" }}"
        )
    };
    // The sandbox itself plays a server that gives its token away.
    let query =
        format!("grant_type=client_credential&appid={DEFAULT_APPID}&secret={DEFAULT_SECRET}");
    let central = format!(
        "{}/cgi-bin/token?{query}",
        sandbox.http_url().expect("it listens")
    );
    let kept = format!(
        "appid = \"wx1\"\ntoken = {{ from = \"http\", url = {{ value = \"{central}\" }} }}"
    );
    let setup = setup()
        .more(&account("agent", &wecom("agent")))
        .more(&account("wrong", &wecom("x")))
        .more(&account("kept", &kept));
    let ended = finish(with_file(
        &["check", "--live"],
        folder(&setup, &sandbox).path(),
    ));
    assert_eq!(ended.status, Some(1), "{ended:?}");
    for part in [
        "agent: WeCom gave a token that is good for 7200 s",
        "wrong: no token: WeCom refused with errcode 40001: the agent's secret is wrong",
        "kept: the other server keeps a token that is good for 7200 s",
    ] {
        assert!(
            ended.stdout.contains(part),
            "{part} is not in {}",
            ended.stdout
        );
    }
}

#[test]
fn schema_completions_and_manual_are_generated() {
    let schema = finish(wxgate(&["schema"]));
    assert_eq!(schema.status, Some(0));
    assert_eq!(
        schema.stdout,
        fs::read_to_string("config/wxgate.schema.json").expect("it is shipped")
    );
    for (shell, part) in [
        ("bash", "complete -F _wxgate"),
        ("zsh", "#compdef wxgate"),
        ("fish", "complete -c wxgate"),
    ] {
        let script = finish(wxgate(&["completions", shell]));
        assert_eq!(script.status, Some(0));
        for part in [part, "serve", "sandbox", "demo", "refresh"] {
            assert!(
                script.stdout.contains(part),
                "{part} is not in the script for {shell}"
            );
        }
    }
    let page = finish(wxgate(&["man"]));
    assert_eq!(page.status, Some(0));
    for part in [".TH wxgate 1", ".SH NAME", "serve", "sandbox"] {
        assert!(
            page.stdout.contains(part),
            "{part} is not in the manual page"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_ends_with_1_and_says_which() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = holder.local_addr().expect("bound").to_string();
    let sandbox = sandbox().await;
    for (table, line) in [
        ("server", format!("listen = [\"{taken}\"]")),
        ("admin", format!("listen = \"{taken}\"")),
    ] {
        let folder = folder(&setup().set(table, &line), &sandbox);
        let ended = finish(serve(folder.path()));
        assert_eq!(ended.status, Some(1), "{table}: {ended:?}");
        let said = ended.stderr.lines().last().unwrap_or_default();
        assert!(
            said.contains("cannot listen") && said.contains(&taken),
            "{table}: {}",
            ended.stderr
        );
    }
    assert_eq!(
        sandbox.control().fetches(),
        0,
        "who cannot start must not spend a token"
    );
    let ended = finish(wxgate(&["sandbox", "--listen", &taken]));
    assert_eq!(
        (ended.status, ended.stderr.contains("taken")),
        (Some(1), true),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn token_asks_a_running_wxgate_over_tcp_with_a_key() {
    let sandbox = sandbox().await;
    let keyed = || setup().set("admin", "key = { env = \"ADMIN_KEY\" }");
    let folder = folder(&keyed(), &sandbox);
    let program = Program::start(serve(folder.path()).env("ADMIN_KEY", "adm1n"));
    program.logged("new access token");
    // The file says port 0; whoever asks must know the real one.
    let admin = format!("listen = \"{}\"", program.admin());
    fs::write(
        folder.path().join("wxgate.toml"),
        keyed().set("admin", &admin).file(&sandbox),
    )
    .expect("written");
    let ask = |arguments: &[&str], key: &str| {
        let mut command = with_file(arguments, folder.path());
        command.env("ADMIN_KEY", key);
        finish(command)
    };
    token_command_works(&sandbox, |arguments| ask(arguments, "adm1n"));
    let refused = ask(&["token", "shop"], "wrong");
    assert_eq!(
        (refused.status, refused.stderr.contains("admin.key")),
        (Some(1), true),
        "{refused:?}"
    );
    assert_eq!(program.stop().status, Some(0));
    let gone = ask(&["token", "shop"], "adm1n");
    assert_eq!(
        (gone.status, gone.stderr.contains("no wxgate answers")),
        (Some(1), true),
        "{gone:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn token_asks_a_running_wxgate_over_a_unix_socket() {
    let sandbox = sandbox().await;
    let place = tempfile::tempdir().expect("a temporary folder");
    let socket = place.path().join("admin.sock");
    let folder = folder(
        &setup().set("admin", &format!("listen = \"unix:{}\"", socket.display())),
        &sandbox,
    );
    let program = Program::start(&mut serve(folder.path()));
    program.logged("new access token");
    token_command_works(&sandbox, |arguments| {
        finish(with_file(arguments, folder.path()))
    });
    assert_eq!(program.stop().status, Some(0));
}

#[track_caller]
fn token_command_works(sandbox: &Sandbox, ask: impl Fn(&[&str]) -> Ended) {
    let status = |ended: &Ended| -> Value {
        assert_eq!(ended.status, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("JSON")
    };
    let shown = ask(&["token", "shop"]);
    let value = status(&shown);
    assert_eq!(
        (&value["name"], &value["state"], &value["generation"]),
        (&"shop".into(), &"ok".into(), &1.into())
    );
    assert_eq!(
        value["fingerprint"].as_str().map(str::len),
        Some(8),
        "{value}"
    );
    let token = sandbox
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("it was fetched");
    assert!(!shown.stdout.contains(&token) && !shown.stderr.contains(&token));
    let same = status(&ask(&["token", "shop", "--refresh"]));
    assert_eq!(
        (&same["refreshed"], &same["generation"]),
        (&false.into(), &1.into()),
        "stable_token gave the same"
    );
    sandbox.control().revoke(TokenFilter::default());
    let fresh = status(&ask(&["token", "shop", "--refresh"]));
    assert_eq!(
        (&fresh["refreshed"], &fresh["generation"]),
        (&true.into(), &2.into())
    );
    let unknown = ask(&["token", "nobody"]);
    assert_eq!(
        (unknown.status, unknown.stderr.contains("nobody")),
        (Some(1), true),
        "{unknown:?}"
    );
    assert_eq!(ask(&["token", "nobody", "--refresh"]).status, Some(1));
}

#[test]
fn without_a_file_two_variables_make_an_account() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = wxgate(arguments);
        command
            .current_dir(empty.path())
            .envs(variables.iter().copied());
        command
    };
    let both = [
        ("WXGATE_APPID", "wx0000000000000001"),
        ("WXGATE_SECRET", "planted-0a1b"),
    ];
    let checked = finish(run(&["check"], &both));
    assert_eq!(checked.status, Some(0), "{checked:?}");
    assert!(
        checked.stdout.contains("1 account(s)") && !checked.stdout.contains("planted-0a1b"),
        "{checked:?}"
    );
    for missing in [&[][..], &both[..1], &both[1..]] {
        let ended = finish(run(&["serve"], missing));
        assert_eq!(ended.status, Some(78), "{missing:?}: {ended:?}");
        assert!(ended.stderr.contains("WXGATE_"), "{missing:?}: {ended:?}");
    }
    // Everything goes through an egress proxy of ours, so that nothing leaves the machine.
    let egress = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let proxy = format!("http://{}", egress.local_addr().expect("bound"));
    let mut command = run(&["serve"], &both);
    command
        .env("WXGATE_SERVER__LISTEN", "127.0.0.1:0")
        .env("WXGATE_ADMIN__LISTEN", "127.0.0.1:0");
    let program = Program::start(command.env("WXGATE_UPSTREAM__PROXY", proxy));
    program.proxy();
    program.admin();
    let (mut stream, _) = egress.accept().expect("the first token is asked for");
    let mut line = [0; 34];
    stream.read_exact(&mut line).expect("a request line");
    assert_eq!(
        String::from_utf8_lossy(&line),
        "CONNECT api.weixin.qq.com:443 HTTP"
    );
    stream
        .write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        .expect("written");
    program.logged("no connection to the token endpoint");
    assert!(
        empty.path().join("wxgate-state").is_dir(),
        "the default store is a folder here"
    );
    assert_eq!(program.stop().status, Some(0));
}

#[test]
fn demo_once_shows_a_cure_and_ends_well() {
    let ended = finish(wxgate(&["demo", "--once"]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for part in [
        "fake WeChat",
        "wxgate proxy",
        "attempts=1",
        "attempts=2",
        "token 2 times and delivered 2 messages",
    ] {
        assert!(
            ended.stdout.contains(part),
            "{part} is not in {}",
            ended.stdout
        );
    }
}

#[test]
fn demo_stays_up_with_lines_to_go_on_with() {
    let program = Program::start(&mut wxgate(&["demo"]));
    for part in [
        "curl 'http://127.0.0.1:",
        "curl -X POST http://127.0.0.1:",
        "/api/accounts",
        "Ctrl-C",
    ] {
        program.printed(part);
    }
    assert_eq!(program.stop().status, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_runs_alone() {
    let program = Program::start(&mut wxgate(&["sandbox", "--listen", "127.0.0.1:0"]));
    let base = format!("http://{}", address(&program.printed("listening on")));
    let account = program.printed("account");
    assert!(
        account.contains(DEFAULT_APPID) && account.contains(DEFAULT_SECRET),
        "{account}"
    );
    let body = serde_json::json!({"grant_type": "client_credential", "appid": DEFAULT_APPID, "secret": DEFAULT_SECRET});
    let client = crate::support::client();
    let granted = client
        .post(format!("{base}/cgi-bin/stable_token"))
        .json(&body)
        .send()
        .await
        .expect("an answer");
    let token = crate::support::json(granted).await["access_token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let users = client
        .get(format!("{base}/cgi-bin/user/get?access_token={token}"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(crate::support::json(users).await["total"], 2);
    assert_eq!(program.stop().status, Some(0));
}
