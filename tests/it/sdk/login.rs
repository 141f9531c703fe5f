//! Web logins (网页授权) through SDKs, from the code to the second look at the user.
//!
//! Only the first call carries the key; the others bring the user's token alone, so nothing in them
//! says who calls or which account is meant.

use serde_json::{Value, json};
use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, SandboxAccount};

use super::{
    CLIENT, KEY,
    environments::{script, seen},
};
use crate::{
    support::{Gate, Setup, setup},
    upstream::takeover,
};

const SCRIPTS: [&str; 2] = ["wechatpy_login.py", "node/wechat_oauth_login.js"];
const SECOND_APPID: &str = "wx00000000000000aa";
const SECOND_SECRET: &str = "mall0000mall0000mall0000mall0000";
const CALLS: [&str; 5] = [
    "/sns/oauth2/access_token",
    "/sns/userinfo",
    "/sns/auth",
    "/sns/oauth2/refresh_token",
    "/sns/userinfo",
];

/// An account, and the text that the SDK has for its AppSecret.
struct Login {
    appid: &'static str,
    appsecret: &'static str,
    key: &'static str,
}

const FIRST: Login = Login {
    appid: DEFAULT_APPID,
    appsecret: DEFAULT_SECRET,
    key: KEY,
};
const SECOND: Login = Login {
    appid: SECOND_APPID,
    appsecret: SECOND_SECRET,
    key: KEY,
};

/// Callers known by key, whose calls without one are told by their address.
fn keyed() -> Setup {
    setup()
        .set("server", "allow = [\"loopback\"]")
        .more(&CLIENT.replace("accounts = [\"shop\"]\n", ""))
}

/// A second account, and no default.
fn with_two_accounts(setup: Setup) -> Setup {
    setup
        .sandbox(|sandbox| {
            let second = SandboxAccount::new(SECOND_APPID, SECOND_SECRET);
            sandbox.accounts.push(second);
        })
        .more(&format!(
            "[[account]]\nname = \"mall\"\nappid = \"{SECOND_APPID}\"\n\
             secret = {{ value = \"{SECOND_SECRET}\" }}\napi = [\"{{api}}\"]\n"
        ))
}

/// Logs a user in with each SDK. Nothing but the code and the user's own tokens go to WeChat.
async fn logs_in(gate: &Gate, login: &Login, base: &str) {
    for path in SCRIPTS {
        gate.control().clear_record();
        let mut script = script(path);
        let code = format!("code-of-{path}-{}", login.appid).replace('/', "-");
        script.args([base, login.appid, login.key, &code]);
        if base.starts_with("https:") {
            script.envs(takeover::ways(gate));
        }
        let seen = seen(script).await;

        let openid = &seen["openids"][0];
        assert!(openid.is_string(), "{path}: {seen}");
        assert_eq!(
            seen["openids"],
            json!([openid, openid, openid, openid]),
            "{path}"
        );
        assert_eq!(
            (&seen["nickname"], &seen["checked"]),
            (&json!("Sandbox"), &json!(true)),
            "{path}: {seen}"
        );
        assert_ne!(seen["tokens"][0], seen["tokens"][1], "{path}");
        assert_only_the_users_credentials_arrived(gate, login, &seen);
    }
}

fn assert_only_the_users_credentials_arrived(gate: &Gate, login: &Login, seen: &Value) {
    let records = gate.control().requests("/**");
    let paths: Vec<&str> = records.iter().map(|record| record.path.as_str()).collect();
    assert_eq!(paths, CALLS, "each once, and no token call");
    let used = [None, Some(0), Some(0), None, Some(1)];
    for (record, token) in records.iter().zip(used) {
        let query = record.query.as_deref().unwrap_or_default();
        assert!(!query.contains(KEY) && !query.contains("wxg1_"), "{query}");
        assert_eq!(record.token_params, usize::from(token.is_some()), "{query}");
        if let Some(token) = token {
            let token = seen["tokens"][token].as_str().expect("a token");
            assert!(query.contains(token), "{query}");
        }
        assert_eq!(
            query.contains(login.appsecret),
            record.path == CALLS[0],
            "the AppSecret goes with the code alone: {query}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_login_by_key() {
    let gate = keyed().start().await;
    gate.control().until(|control| control.fetches() == 1).await;
    logs_in(&gate, &FIRST, &gate.url("")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_login_by_network() {
    let gate = setup().start().await;
    gate.control().until(|control| control.fetches() == 1).await;
    let login = Login {
        key: "no-secret-here",
        ..FIRST
    };
    logs_in(&gate, &login, &gate.url("")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn web_logins_of_two_accounts_without_a_default() {
    for (setup, key) in [(keyed(), KEY), (setup(), "no-secret-here")] {
        let gate = with_two_accounts(setup).start().await;
        gate.control().until(|control| control.fetches() == 2).await;
        for login in [FIRST, SECOND] {
            logs_in(&gate, &Login { key, ..login }, &gate.url("")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_login_under_wechats_own_host() {
    let gate = takeover::start(keyed()).await;
    gate.control().until(|control| control.fetches() == 1).await;
    logs_in(&gate, &FIRST, &format!("https://{}", takeover::HOST)).await;
}
