//! The same for 企业微信: two agents of one corp, each behind a client key, and an SDK that takes them
//! for secrets.

use serde_json::json;
use wxgate::sandbox::SandboxAccount;

use super::{script, seen};
use crate::support::{header, json as body, setup};

const CORP: &str = "ww0123456789abcdef";
const AGENT_KEY: &str = "agent-key-0123456789";

fn agent(name: &str) -> String {
    format!(
        "[[account]]\nname = \"{name}\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\n\
         secret = {{ value = \"secret-of-{name}\" }}\napi = [\"{{api}}\"]\n\
         [[client]]\nname = \"{name}-service\"\nkey = {{ value = \"{name}-key-0123456789\" }}\naccounts = [\"{name}\"]\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn wechatpy_enterprise_takes_a_client_key_for_the_secret_of_its_agent() {
    let gate = setup()
        .sandbox(|s| s.accounts.push(SandboxAccount::wecom(CORP, "secret-of-agent")))
        .sandbox(|s| s.accounts.push(SandboxAccount::wecom(CORP, "secret-of-other")))
        .more(&agent("agent"))
        .more(&agent("other"))
        .more("[[client]]\nname = \"both\"\nkey = { value = \"both-key-0123456789\" }\naccounts = [\"agent\", \"other\"]\n")
        .start()
        .await;
    gate.control().until(|control| control.fetches() == 3).await;
    gate.control().clear_record();
    let mut calls = script("wechatpy_enterprise_calls.py");
    calls.args([
        &gate.url(""),
        &gate.sandbox.http_url().expect("it listens"),
        CORP,
        AGENT_KEY,
    ]);
    let seen = seen(calls).await;
    assert_eq!(seen["codes"], json!([0, 0, 0, 0, 0, 0]), "{seen}");
    assert_eq!(gate.control().uploads().len(), 1, "{seen}");
    assert!(
        seen["token"]
            .as_str()
            .is_some_and(|token| token.starts_with("wxg1_")),
        "{seen}"
    );
    let attempts = json!([null, "1", "1", "2", "1", "2", null, "1"]);
    assert_eq!(
        seen["attempts"], attempts,
        "a token of wxgate's own, then the two deaths, cured unseen, and a ticket that all share"
    );
    let control = gate.control();
    assert_eq!(control.counters().wecom_fetches, 2, "one for each death");
    let texts: Vec<String> = control
        .deliveries()
        .into_iter()
        .map(|delivery| delivery.content)
        .collect();
    assert_eq!(texts, ["你好 from wechatpy.enterprise", "again"]);
    for request in control.requests("/**") {
        let whole = format!("{request:?}");
        assert!(
            !whole.contains("wxg1_") && !whole.contains(AGENT_KEY),
            "{whole}"
        );
    }

    // Of several agents of a corp, the key says which one is meant; a key for several has to be
    // told.
    let ask = async |target: &str| body(gate.get(target).await).await;
    let both = ask(&format!(
        "/cgi-bin/gettoken?corpid={CORP}&corpsecret=both-key-0123456789"
    ))
    .await;
    assert_eq!(both["errcode"], 40013);
    assert!(
        both["errmsg"]
            .as_str()
            .is_some_and(|text| text.contains("agent, other")),
        "{both}"
    );
    let other = ask(&format!(
        "/@other/cgi-bin/gettoken?corpid={CORP}&corpsecret=both-key-0123456789"
    ))
    .await;
    assert_eq!(
        (&other["errcode"], &other["errmsg"], &other["expires_in"]),
        (&json!(0), &json!("ok"), &json!(7200))
    );
    let token = other["access_token"].as_str().expect("a token");
    let answer = gate
        .get(&format!("/cgi-bin/user/get?userid=u&access_token={token}"))
        .await;
    assert_eq!(header(&answer, "x-wxgate-account"), "other");
    let wrong = ask(&format!(
        "/cgi-bin/gettoken?corpid={CORP}&corpsecret=secret-of-agent"
    ))
    .await;
    assert_eq!(wrong["errcode"], 40001, "{wrong}");
}

/// Pitfall: WeCom writes `created_at` as a text, and a model that wants one fails at a number.
#[tokio::test(flavor = "multi_thread")]
async fn py_wecom_toolkit_uploads_a_picture() {
    let gate = setup()
        .sandbox(|s| {
            s.accounts
                .push(SandboxAccount::wecom(CORP, "secret-of-agent"))
        })
        .more(&agent("agent"))
        .start()
        .await;
    // A token that a call was accepted with is renewed at once when it dies.
    let member = gate
        .client
        .get(gate.url("/cgi-bin/user/get?userid=zhangsan"))
        .header("x-wxgate-key", AGENT_KEY);
    let member = body(member.send().await.expect("an answer")).await;
    assert_eq!(member["errcode"], 0, "{member}");
    gate.control().revoke(CORP);
    let mut upload = script("py_wecom_toolkit_upload.py");
    upload.args([&gate.url(""), CORP, AGENT_KEY]);
    upload.arg(gate.folder.path().join("cache"));
    let seen = seen(upload).await;
    assert_eq!(seen["ok"], true, "{seen}");
    assert!(seen["created_at"].is_string(), "{seen}");
    let uploads = gate.control().uploads();
    assert_eq!(
        uploads.len(),
        1,
        "the first met a dead token, and was sent again"
    );
    assert_eq!(
        (&seen["media_id"], &seen["sha256"]),
        (&json!(uploads[0].media_id), &json!(uploads[0].sha256)),
        "{seen}"
    );
}
