//! Real SDKs as callers, unchanged, through wxgate, while the token dies twice and they notice
//! nothing.
//!
//! Each has a script in `tests/sdk` that uses it as a service does. The key of a client stands
//! where the AppSecret would, so the SDKs fetch a token of their own, from wxgate.

use serde_json::{Value, json};
use wxgate::sandbox::{SandboxControl, TokenState};

use crate::{
    support::{Gate, setup, start},
    upstream::takeover,
};

mod agents;
pub mod environments;
mod login;
mod shared;
mod signed;
mod wecom;

use environments::{script, seen};

const USER: &str = "o-sdk-user";
const KEY: &str = "sdk-key-0123456789abcdef";
const CLIENT: &str = r#"
[[client]]
name = "sdk"
key = { value = "sdk-key-0123456789abcdef" }
accounts = ["shop"]
"#;
const UPLOAD: &str = "/cgi-bin/media/upload";
const SEND: &str = "/cgi-bin/message/custom/send";

/// A script that makes calls through an SDK.
struct Sdk {
    name: &'static str,
    script: &'static str,
    /// Behind base URL, sandbox and key.
    more: &'static [&'static str],
    /// What is called right after the second death of the token; the upload is after the first.
    second: &'static str,
    /// Whether it exchanges a login code too, where it has a key.
    logs_in: bool,
}

const fn sdk(name: &'static str, script: &'static str) -> Sdk {
    Sdk {
        name,
        script,
        more: &[],
        second: SEND,
        logs_in: true,
    }
}

const WECHATPY: Sdk = Sdk {
    second: "/cgi-bin/menu/get",
    ..sdk("wechatpy", "wechatpy_calls.py")
};
const WEROBOT: Sdk = Sdk {
    logs_in: false,
    ..sdk("WeRoBot", "werobot_calls.py")
};
const CO_WECHAT_API: Sdk = sdk("co-wechat-api", "node/co_wechat_api_calls.js");
const WECHAT_API: Sdk = Sdk {
    logs_in: false,
    ..sdk("wechat-api", "node/wechat_api_calls.js")
};
const NODE_EASYWECHAT: Sdk = sdk("node-easywechat", "node/node_easywechat_calls.js");
const NODE_EASYWECHAT_STABLE: Sdk = Sdk {
    name: "node-easywechat, stable token",
    more: &["stable"],
    ..NODE_EASYWECHAT
};

impl Sdk {
    /// Runs the script, which ends in an error if the SDK has one to report, and returns what it
    /// saw.
    async fn calls(
        &self,
        gate: &Gate,
        base: &str,
        key: Option<&str>,
        ways: &[(&str, String)],
    ) -> Value {
        let mut command = script(self.script);
        command
            .args([base, &gate.sandbox.http_url().expect("it listens")])
            .args(key)
            .args(self.more);
        command.envs(ways.iter().map(|(name, value)| (name, value)));
        seen(command).await
    }

    fn assert_all_went_well(&self, seen: &Value, control: &SandboxControl) {
        let name = self.name;
        assert_eq!(
            (&seen["user"], &seen["followers"]),
            (&json!(USER), &json!(2)),
            "{name}: {seen}"
        );
        assert_eq!(
            (&seen["sent"], &seen["again"]),
            (&json!(0), &json!(0)),
            "{name}"
        );
        assert_eq!(seen["menu"]["menu"]["button"], json!([]), "{name}");
        assert_eq!(
            seen["downloaded_sha256"], seen["uploaded_sha256"],
            "{name}: a file comes back as it went"
        );
        assert_eq!(seen["ticket"].as_str().map(str::len), Some(96), "{name}");
        for (optional, wanted) in [
            ("code_is_jpeg", json!(true)),
            ("template", json!(0)),
            ("templates", json!(1)),
        ] {
            assert!(
                seen[optional].is_null() || seen[optional] == wanted,
                "{name}: {optional} {}",
                seen[optional]
            );
        }
        for code in seen["literals"].as_array().into_iter().flatten() {
            assert_eq!(
                code,
                &json!(0),
                "{name}: a call to a host that is written in"
            );
        }
        assert_eq!(control.uploads().len(), 1, "{name}");
        let texts: Vec<String> = control
            .deliveries()
            .into_iter()
            .map(|delivery| delivery.content)
            .collect();
        assert!(
            texts[0].starts_with("你好 from ") && texts[1] == "again",
            "{name}: {texts:?}"
        );
    }

    /// Each death was met by one call, which was sent again, and cost one fetch; nothing else was
    /// refused.
    fn assert_two_deaths_cost_two_fetches(&self, control: &SandboxControl) {
        let name = self.name;
        assert_eq!(
            control.fetches(),
            3,
            "{name}: one at the start, one for each death"
        );
        let records = control.requests("/**");
        let refused: Vec<&str> = records
            .iter()
            .filter(|request| matches!(request.token, TokenState::Stale(_)))
            .map(|request| request.path.as_str())
            .collect();
        assert_eq!(refused, [UPLOAD, self.second], "{name}");
        for path in refused {
            let executed = records
                .iter()
                .filter(|request| request.path == path && request.errcode.unwrap_or(0) == 0);
            let wanted = if path == SEND { 2 } else { 1 };
            assert_eq!(
                executed.count(),
                wanted,
                "{name}: {path} was sent again, once"
            );
        }
        let mut paths: Vec<&str> = records
            .iter()
            .map(|request| request.path.as_str())
            .collect();
        paths.sort_unstable();
        paths.dedup();
        assert!(
            paths.len() >= 7,
            "{name}: six different calls and the token: {paths:?}"
        );
    }

    /// Every call of the SDK was answered at once: it asked for its token once, saw no error and
    /// repeated nothing.
    fn assert_nothing_was_noticed(&self, log: &str) {
        let name = self.name;
        let lines: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let count =
            |wanted: &dyn Fn(&Value) -> bool| lines.iter().filter(|line| wanted(line)).count();
        let is_token = |line: &Value| {
            line["path"]
                .as_str()
                .is_some_and(|path| path.contains("token"))
        };
        assert_eq!(count(&is_token), 1, "{name}: {log}");
        assert_eq!(
            count(&|line| line["attempts"] == 2),
            2,
            "{name}: both deaths were cured by wxgate: {log}"
        );
        assert_eq!(
            count(&|line| line["status"] != 200 || line["outcome"] != "ok" && !is_token(line)),
            0,
            "{name}: {log}"
        );
    }

    /// Neither the token that wxgate made up nor the key that bought it got to WeChat, not even
    /// with a login code.
    fn assert_nothing_of_ours_left(&self, seen: &Value, control: &SandboxControl) {
        let name = self.name;
        let token = seen["token"].as_str().expect("a token");
        assert!(
            token.starts_with("wxg1_") && (64..=128).contains(&token.len()),
            "{name}: the token is wxgate's own"
        );
        assert_eq!(
            seen["session"].is_string(),
            self.logs_in,
            "{name}: {}",
            seen["session"]
        );
        for request in control.requests("/**") {
            assert!(request.token_params <= 1, "{name}: {request:?}");
            let whole = format!("{request:?}");
            for ours in [token, KEY, "wxg1_"] {
                assert!(!whole.contains(ours), "{name}: {whole}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wechatpy_needs_no_secret_at_all_where_the_network_is_trusted() {
    let gate = start().await;
    gate.warm().await;
    let seen = WECHATPY.calls(&gate, &gate.url(""), None, &[]).await;
    WECHATPY.assert_all_went_well(&seen, gate.control());
    WECHATPY.assert_two_deaths_cost_two_fetches(gate.control());
    let attempts = json!(["1", "1", "2", "1", "1", "2", "1", "1", "1"]);
    assert_eq!(
        seen["attempts"], attempts,
        "the two calls right after a death were cured unseen"
    );
    let tokens: Vec<_> = gate
        .control()
        .requests("/**")
        .into_iter()
        .map(|request| request.token_params)
        .collect();
    assert!(
        tokens.iter().all(|count| *count <= 1),
        "the SDK's own token is gone: {tokens:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sdks_with_another_base_url_do_their_work_with_a_client_key_as_secret() {
    for sdk in [
        WECHATPY,
        CO_WECHAT_API,
        WECHAT_API,
        NODE_EASYWECHAT,
        NODE_EASYWECHAT_STABLE,
    ] {
        let gate = setup().more(CLIENT).start().await;
        gate.control().until(|control| control.fetches() == 1).await;
        let seen = sdk.calls(&gate, &gate.url(""), Some(KEY), &[]).await;
        sdk.assert_all_went_well(&seen, gate.control());
        sdk.assert_two_deaths_cost_two_fetches(gate.control());
        sdk.assert_nothing_of_ours_left(&seen, gate.control());
        sdk.assert_nothing_was_noticed(&gate.stop().await.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sdks_that_know_only_wechats_own_host_do_their_work_where_its_name_leads_to_wxgate() {
    for sdk in [
        WEROBOT,
        WECHATPY,
        CO_WECHAT_API,
        WECHAT_API,
        NODE_EASYWECHAT,
    ] {
        let gate = takeover::start(setup().more(CLIENT)).await;
        gate.control().until(|control| control.fetches() == 1).await;
        let seen = sdk
            .calls(
                &gate,
                &format!("https://{}", takeover::HOST),
                Some(KEY),
                &takeover::ways(&gate),
            )
            .await;
        sdk.assert_all_went_well(&seen, gate.control());
        sdk.assert_two_deaths_cost_two_fetches(gate.control());
        sdk.assert_nothing_of_ours_left(&seen, gate.control());
        sdk.assert_nothing_was_noticed(&gate.stop().await.1);
    }
}
