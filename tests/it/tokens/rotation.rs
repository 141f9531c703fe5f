//! Rotation of secrets that nobody notices: another AppSecret by a reload, phantoms of the former
//! one, and several keys of one client.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;
use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, Fault, Rule, SandboxAccount};

use crate::{
    stores::restarts::{file_until, stopped},
    support::{
        Gate, Setup, header, json as body, program::LIMIT, redis::RedisServer, setup,
        token_tools::eventually,
    },
};

const STABLE: &str = "/cgi-bin/stable_token";
const NEXT: &str = "rotated0rotated0rotated0rotated0";
const KEY: &str = "crm-key-0123456789";
const SECOND_KEY: &str = "crm-key-of-next-year";
const CLIENT: &str =
    "[[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = [\"shop\"]\n";
const TWO_KEYS: &str = "[[client]]\nname = \"crm\"\nkeys = [{ value = \"crm-key-0123456789\" }, \
                        { value = \"crm-key-of-next-year\" }]\naccounts = [\"shop\"]\n";

fn rotated(text: &str) -> String {
    text.replace(DEFAULT_SECRET, NEXT)
}

/// Has the AppSecret reset at WeChat.
fn reset(gate: &Gate) {
    gate.control()
        .add_account(&SandboxAccount::new(DEFAULT_APPID, NEXT));
}

async fn phantom(gate: &Gate, key: &str) -> String {
    let order = json!({
        "grant_type": "client_credential", "appid": DEFAULT_APPID, "secret": key,
    });
    let sent = gate.post(STABLE).json(&order).send().await;
    let answer = body(sent.expect("an answer")).await;
    answer["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

/// What a call with this phantom is answered: `openid` of a good answer, else `errcode`.
async fn call(gate: &Gate, phantom: &str) -> Value {
    let target = format!("/cgi-bin/user/info?openid=o&access_token={phantom}");
    let answer = body(gate.get(&target).await).await;
    answer
        .get("openid")
        .or_else(|| answer.get("errcode"))
        .cloned()
        .unwrap_or_else(|| panic!("{answer}"))
}

async fn refresh(gate: &Gate, order: Value) -> (StatusCode, Value) {
    let answer = gate
        .client
        .post(gate.admin_url("/api/accounts/shop/refresh"))
        .json(&order)
        .send()
        .await
        .expect("an answer");
    (answer.status(), body(answer).await)
}

/// Has a good configuration loaded.
async fn reloaded(gate: &Gate, text: &str) {
    let answer = gate.reload(text).await;
    let status = answer.status();
    assert_eq!(status, StatusCode::OK, "{}", body(answer).await);
}

/// The `(status, first problem)` of a reload that is refused.
async fn refused(gate: &Gate, text: &str) -> String {
    let answer = gate.reload(text).await;
    let status = answer.status();
    let answer = body(answer).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    answer["problems"][0]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn phantoms_of_the_former_appsecret_stay_good_until_they_are_revoked() {
    let gate = setup().more(CLIENT).start().await;
    let old = phantom(&gate, KEY).await;
    assert_eq!(call(&gate, &old).await, "o");
    reset(&gate);
    reloaded(&gate, &rotated(&gate.file())).await;
    let new = phantom(&gate, KEY).await;
    assert_ne!(old, new);
    assert_eq!(
        (call(&gate, &old).await, call(&gate, &new).await),
        (json!("o"), json!("o"))
    );
    let (status, answer) = refresh(&gate, json!({"revoke": true})).await;
    assert_eq!(
        (status, &answer["refreshed"]),
        (StatusCode::OK, &json!(false)),
        "{answer}"
    );
    assert_eq!(
        (call(&gate, &old).await, call(&gate, &new).await),
        (json!(40001), json!("o"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_or_no_client_ends_a_phantom_of_the_former_appsecret_at_once() {
    let gate = setup().more(CLIENT).start().await;
    let old = phantom(&gate, KEY).await;
    reset(&gate);
    let text = rotated(&gate.file());
    reloaded(&gate, &text).await;
    for other in [
        text.replace(KEY, SECOND_KEY),
        text.replace("name = \"crm\"", "name = \"erp\""),
    ] {
        reloaded(&gate, &other).await;
        assert_eq!(call(&gate, &old).await, 40001);
    }
    reloaded(&gate, &text).await;
    assert_eq!(call(&gate, &old).await, "o");
    let gone = text
        .replace("name = \"shop\"", "name = \"mall\"")
        .replace("[\"shop\"]", "[\"mall\"]");
    reloaded(&gate, &gone).await;
    assert_eq!(call(&gate, &old).await, 40001, "the account is gone");
    reloaded(&gate, &text).await;
    assert_eq!(
        call(&gate, &old).await,
        40001,
        "it comes back as another one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_appsecret_keeps_the_former_one_and_is_the_answer_of_the_reload() {
    let gate = setup().more(CLIENT).start().await;
    gate.control().until(|control| control.fetches() == 1).await;
    let old = phantom(&gate, KEY).await;
    let (before, text) = (gate.file(), rotated(&gate.file()));
    for code in [40125, 40001] {
        let rule = gate
            .control()
            .fault(Rule::new(STABLE, Fault::errcode(code)).always());
        let problem = refused(&gate, &text).await;
        for part in ["shop", &code.to_string(), "former one stays in use"] {
            assert!(problem.contains(part), "{part}: {problem}");
        }
        gate.control().remove_fault(rule);
        assert_eq!(call(&gate, &old).await, "o");
        let (status, answer) = refresh(&gate, json!({})).await;
        assert_eq!(status, StatusCode::OK, "by the former AppSecret: {answer}");
    }
    reset(&gate);
    let wrong = before.replace(DEFAULT_SECRET, "wrong0wrong0wrong0wrong0wrong0wr");
    assert!(refused(&gate, &wrong).await.contains("40125"));
    reloaded(&gate, &text).await;
    assert_eq!(call(&gate, &old).await, "o");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_failure_takes_the_new_appsecret_and_calls_go_on_with_the_current_token() {
    for fault in [
        Fault::errcode(-1),
        Fault::errcode(40164),
        Fault::errcode(45009),
        Fault::Reset { executed: false },
        Fault::Hang { executed: false },
    ] {
        let gate = setup()
            .set("token", "fetch_timeout = \"1s\"")
            .more(CLIENT)
            .start()
            .await;
        gate.control().until(|control| control.fetches() == 1).await;
        let old = phantom(&gate, KEY).await;
        reset(&gate);
        let rule = gate
            .control()
            .fault(Rule::new(STABLE, fault.clone()).always());
        reloaded(&gate, &rotated(&gate.file())).await;
        let new = phantom(&gate, KEY).await;
        assert_ne!(old, new, "{fault:?}");
        assert_eq!(
            (call(&gate, &old).await, call(&gate, &new).await),
            (json!("o"), json!("o"))
        );
        gate.control().remove_fault(rule);
        let (status, answer) = refresh(&gate, json!({})).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(call(&gate, &new).await, "o");
    }
}

/// An SDK that never drops a token goes on through the rotation on WeCom too.
#[tokio::test(flavor = "multi_thread")]
async fn a_phantom_of_a_wecom_agent_outlives_its_secret() {
    const CORP: &str = "ww0123456789abcdef";
    const OLD: &str = "secret-of-agent";
    let agent = format!(
        "[[account]]\nname = \"agent\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\n\
         secret = {{ value = \"{OLD}\" }}\napi = [\"{{api}}\"]\n"
    );
    let gate = setup()
        .default_account("shop")
        .sandbox(|sandbox| {
            for secret in [OLD, NEXT] {
                sandbox.accounts.push(SandboxAccount::wecom(CORP, secret));
            }
        })
        .more(&agent)
        .start()
        .await;
    let token_call = format!("/cgi-bin/gettoken?corpid={CORP}&corpsecret=any");
    let phantom = body(gate.get(&token_call).await).await["access_token"].clone();
    let phantom = phantom.as_str().expect("a phantom").to_owned();
    let errcode = async || {
        let target = format!("/cgi-bin/user/get?userid=u&access_token={phantom}");
        body(gate.get(&target).await).await["errcode"].clone()
    };
    assert_eq!(errcode().await, 0);
    let text = gate.file();
    let rule = Rule::new("/cgi-bin/gettoken", Fault::errcode(40001));
    gate.control().fault(rule);
    assert!(
        refused(&gate, &text.replace(OLD, NEXT))
            .await
            .contains("agent")
    );
    reloaded(&gate, &text.replace(OLD, NEXT)).await;
    assert_eq!(errcode().await, 0);
}

fn on_disk() -> Setup {
    setup()
        .set("store", "kind = \"file\"")
        .set("store", "path = \"state\"")
        .more(CLIENT)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_another_appsecret_takes_phantoms_of_the_former_one() {
    let key = "encryption_key = { value = \"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\" }";
    for sealed in [false, true] {
        let node = || {
            if sealed {
                on_disk().set("store", key)
            } else {
                on_disk()
            }
        };
        let gate = node().start().await;
        let old = phantom(&gate, KEY).await;
        let record = gate.folder.path().join("state/shop.phantoms.json");
        file_until(&record, |bytes| !bytes.is_empty()).await;
        reset(&gate);
        let (sandbox, folder) = stopped(gate).await;
        let text = fs::read_to_string(&record).expect("readable");
        assert!(!text.contains(DEFAULT_SECRET));
        assert_eq!(text.contains("\"sealed\""), sealed, "{text}");
        let gate = node().secret(NEXT).start_in(sandbox, folder).await;
        assert_eq!(call(&gate, &old).await, "o", "the first call there is");
        let (sandbox, folder) = stopped(gate).await;
        let gate = node().secret(NEXT).start_in(sandbox, folder).await;
        assert_eq!(call(&gate, &old).await, "o", "after one more restart");
        assert_eq!(
            refresh(&gate, json!({"revoke": true})).await.0,
            StatusCode::OK
        );
        let (sandbox, folder) = stopped(gate).await;
        let gate = node().secret(NEXT).start_in(sandbox, folder).await;
        assert_eq!(call(&gate, &old).await, 40001);
        // A restart with the former AppSecret, as after a mistake.
        let (sandbox, folder) = stopped(gate).await;
        sandbox
            .control()
            .add_account(&SandboxAccount::new(DEFAULT_APPID, DEFAULT_SECRET));
        let gate = node().start_in(sandbox, folder).await;
        assert_eq!(call(&gate, &old).await, "o");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_share_a_store_take_each_others_phantoms_and_revocations() {
    let redis = RedisServer::start();
    let url = format!("url = {{ value = \"{}\" }}", redis.url(""));
    let sandbox = setup().start_sandbox().await;
    let api = format!("api = [\"{}\"]", sandbox.http_url().expect("it listens"));
    let node = || {
        setup()
            .set("store", "kind = \"redis\"")
            .set("store", &url)
            .account(&api)
            .more(CLIENT)
    };
    let a = node().start_with(sandbox).await;
    let b = node().start().await;
    let old = phantom(&a, KEY).await;
    for gate in [&a, &b] {
        assert_eq!(call(gate, &old).await, "o");
    }
    reset(&a);
    reloaded(&a, &rotated(&a.file())).await;
    let new = phantom(&a, KEY).await;
    assert_eq!(call(&a, &old).await, "o");
    assert_eq!(call(&b, &old).await, "o", "its own, for now");
    eventually(
        "the node that follows later takes the new one",
        async || call(&b, &new).await == "o",
    )
    .await;
    // A node that never knew the former AppSecret.
    let c = node().secret(NEXT).start().await;
    eventually("the node that joins takes both", async || {
        call(&c, &old).await == "o" && call(&c, &new).await == "o"
    })
    .await;
    reloaded(&b, &rotated(&b.file())).await;
    assert_eq!(
        (call(&b, &old).await, call(&b, &new).await),
        (json!("o"), json!("o"))
    );
    assert_eq!(refresh(&a, json!({"revoke": true})).await.0, StatusCode::OK);
    for gate in [&a, &b, &c] {
        eventually("revoked on every node", async || {
            call(gate, &old).await == 40001
        })
        .await;
        assert_eq!(call(gate, &new).await, "o");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_of_a_client_has_a_phantom_of_its_own_that_ends_with_the_key() {
    let gate = setup().more(TWO_KEYS).start().await;
    let (one, two) = (phantom(&gate, KEY).await, phantom(&gate, SECOND_KEY).await);
    assert_ne!(one, two);
    for _ in 0..3 {
        assert_eq!(
            (
                &phantom(&gate, KEY).await,
                &phantom(&gate, SECOND_KEY).await
            ),
            (&one, &two)
        );
    }
    for key in [KEY, SECOND_KEY] {
        let by_key = gate.client.get(gate.url("/cgi-bin/user/info?openid=o"));
        let answer = by_key
            .header("x-wxgate-key", key)
            .send()
            .await
            .expect("an answer");
        assert_eq!(body(answer).await["openid"], "o", "{key}");
        // Neither key goes on to WeChat under another name.
        let leak = gate
            .client
            .get(gate.url(&format!("/cgi-bin/user/info?openid={key}")));
        let answer = leak
            .header("x-wxgate-key", KEY)
            .send()
            .await
            .expect("an answer");
        assert_eq!(header(&answer, "x-wxgate-error"), "bad_request", "{key}");
    }
    let text = gate.file();
    let only = |key: &str| text.replace(TWO_KEYS, &CLIENT.replace(KEY, key));
    reloaded(&gate, &only(KEY)).await;
    assert_eq!(
        (call(&gate, &one).await, call(&gate, &two).await),
        (json!("o"), json!(40001))
    );
    assert_eq!(phantom(&gate, KEY).await, one, "the same as before");
    reloaded(&gate, &only(SECOND_KEY)).await;
    assert_eq!(
        (call(&gate, &one).await, call(&gate, &two).await),
        (json!(40001), json!("o"))
    );
    assert_eq!(phantom(&gate, SECOND_KEY).await, two);
}

/// Calls without a pause, by key and by the phantom of the former AppSecret, while AppSecret and key
/// are replaced.
#[tokio::test(flavor = "multi_thread")]
async fn under_load_nobody_notices_a_rotation() {
    for kind in ["stable", "classic"] {
        let gate = Arc::new(
            setup()
                .account(&format!("token = \"{kind}\""))
                .more(TWO_KEYS)
                .start()
                .await,
        );
        let old = phantom(&gate, KEY).await;
        assert_eq!(call(&gate, &old).await, "o");
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let (gate, stop, done) = (Arc::clone(&gate), Arc::clone(&stop), Arc::clone(&done));
                let token = if caller % 2 == 0 {
                    old.clone()
                } else {
                    String::new()
                };
                tokio::spawn(async move {
                    while !stop.load(Relaxed) {
                        let target = format!("/cgi-bin/user/info?openid=o&access_token={token}");
                        let asked = gate.client.get(gate.url(&target));
                        let asked = if token.is_empty() {
                            asked.header("x-wxgate-key", SECOND_KEY)
                        } else {
                            asked
                        };
                        let answer = body(asked.send().await.expect("an answer")).await;
                        assert_eq!(answer["openid"], "o", "{answer}");
                        done.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        let some_calls = async || {
            let before = done.load(Relaxed);
            let more = async {
                while done.load(Relaxed) < before + 32 {
                    tokio::task::yield_now().await;
                }
            };
            timeout(LIMIT, more).await.expect("calls go on");
        };
        some_calls().await;
        reset(&gate);
        // The trial lasts until calls have been answered meanwhile.
        let path = if kind == "stable" {
            STABLE
        } else {
            "/cgi-bin/token"
        };
        let rule = gate.control().fault(Rule::new(path, Fault::Pass).hold());
        let text = rotated(&gate.file());
        let reload = tokio::spawn({
            let (gate, text) = (Arc::clone(&gate), text.clone());
            async move { reloaded(&gate, &text).await }
        });
        timeout(
            LIMIT,
            gate.control().until(|control| control.hits(rule) == 1),
        )
        .await
        .expect("the new AppSecret is tried");
        some_calls().await;
        gate.control().release(rule);
        reload.await.expect("reloaded");
        some_calls().await;
        stop.store(true, Relaxed);
        for caller in callers {
            caller.await.expect("no call failed");
        }
        assert_eq!(gate.control().fetches(), 2, "one by each AppSecret");
    }
}

/// With classic tokens, the fetch of a trial ends the token before after five minutes.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_goes_on_when_the_appsecret_of_another_is_refused_with_its_own() {
    const OTHER: &str = "wx2222222222222222";
    let other = format!(
        "[[account]]\nname = \"other\"\nappid = \"{OTHER}\"\nsecret = {{ value = \"two\" }}\napi = [\"{{api}}\"]\n"
    );
    let gate = setup()
        .account("token = \"classic\"")
        .sandbox(|sandbox| sandbox.accounts.push(SandboxAccount::new(OTHER, "two")))
        .more(&other)
        .start()
        .await;
    let info = |account: &str| format!("/@{account}/cgi-bin/user/info?openid=o");
    for account in ["shop", "other"] {
        assert_eq!(gate.get(&info(account)).await.status(), 200);
    }
    reset(&gate);
    let text = rotated(&gate.file()).replace("\"two\"", "\"wrong\"");
    let problem = refused(&gate, &text).await;
    assert!(
        problem.contains("other") && !problem.contains("shop"),
        "{problem}"
    );
    assert_eq!(gate.control().classic_fetches(), 2);
    gate.control().advance(Duration::from_secs(400));
    for account in ["shop", "other"] {
        let answer = gate.get(&info(account)).await;
        assert_eq!(header(&answer, "x-wxgate-attempts"), "1", "{account}");
        assert_eq!(body(answer).await["openid"], "o", "{account}");
    }
}
