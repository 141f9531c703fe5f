//! Phantom tokens of 企业微信: gettoken answered by wxgate, with several agents behind one corpid.

use std::collections::HashSet;

use serde_json::{Value, json};
use wxgate::sandbox::{DEFAULT_APPID, Revocation, SandboxAccount, SandboxControl, TokenState};

use crate::support::{
    Gate, Setup,
    raw::Wire,
    setup,
    token_tools::{Said, all, get, said, spawned},
};

const CORP: &str = "ww0123456789abcdef";
const MAIL: &str = "mail-key-0123456789";
const BOTH: &str = "both-key-0123456789";
const NONE: &str = "none-key-0123456789";
const KEYS: [&str; 3] = [MAIL, BOTH, NONE];

/// The WeChat account `shop`, and the agents `mail`, `pay` and `door` of one corp.
fn agents() -> Setup {
    let agent = |name: &str| {
        format!(
            "[[account]]\nname = \"{name}\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\n\
             secret = {{ value = \"secret-of-{name}\" }}\napi = [\"{{api}}\"]\nhosts = [\"{name}.internal\"]\n"
        )
    };
    let known = ["mail", "pay", "door"]
        .map(|name| SandboxAccount::wecom(CORP, format!("secret-of-{name}")));
    let setup = setup()
        .default_account("shop")
        .sandbox(|sandbox| sandbox.accounts.extend(known));
    ["mail", "pay", "door"]
        .iter()
        .fold(setup, |setup, name| setup.more(&agent(name)))
}

fn clients() -> String {
    let client = |name: &str, accounts: &str| {
        format!(
            "[[client]]\nname = \"{name}\"\nkey = {{ value = \"{name}-key-0123456789\" }}\naccounts = [{accounts}]\n"
        )
    };
    [
        client("mail", "\"mail\""),
        client("both", "\"mail\", \"pay\", \"shop\""),
        client("none", "\"shop\""),
    ]
    .concat()
}

/// Every account has its first token, and nothing is counted yet.
async fn started(setup: Setup) -> Gate {
    let gate = setup.start().await;
    gate.control().until(|control| control.fetches() == 4).await;
    gate.control().clear_record();
    gate
}

fn gettoken(corpid: &str, secret: &str) -> String {
    format!("/cgi-bin/gettoken?corpid={corpid}&corpsecret={secret}")
}

fn body(said: &Said) -> Value {
    serde_json::from_slice(&said.body).unwrap_or_else(|_| panic!("{said:?}"))
}

async fn phantom(gate: &Gate, target: &str) -> String {
    let answer = body(&get(gate, target).await);
    answer["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{target}: {answer}"))
        .to_owned()
}

/// The tokens that messages arrived with.
fn tokens(control: &SandboxControl) -> HashSet<String> {
    let queries = control
        .requests("/cgi-bin/message/send")
        .into_iter()
        .filter_map(|record| record.query);
    queries
        .filter_map(|query| query.split("access_token=").nth(1).map(str::to_owned))
        .collect()
}

async fn send(gate: &Gate, phantom: &str, user: &str) -> Said {
    let message =
        json!({"touser": user, "msgtype": "text", "agentid": 1, "text": {"content": "hello"}});
    said(
        gate.post(&format!("/cgi-bin/message/send?access_token={phantom}"))
            .json(&message),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_behind_a_key_works_with_a_phantom_as_with_a_token() {
    let gate = started(agents().more(&clients())).await;
    let answer = get(&gate, &gettoken(CORP, MAIL)).await;
    let fields = body(&answer);
    assert_eq!(
        (answer.status, fields.as_object().map(serde_json::Map::len)),
        (200, Some(4)),
        "{fields}"
    );
    assert_eq!(
        (&fields["errcode"], &fields["errmsg"]),
        (&json!(0), &json!("ok"))
    );
    assert_eq!(fields["expires_in"], 7200);
    let mail = fields["access_token"]
        .as_str()
        .expect("a phantom")
        .to_owned();
    assert!(
        mail.starts_with("wxg1_") && (64..=128).contains(&mail.len()),
        "{mail}"
    );
    // As an SDK that takes each error for a reason to ask again.
    let storm = (0..100)
        .map(|_| spawned(gate.client.get(gate.url(&gettoken(CORP, MAIL)))))
        .collect();
    for again in all(storm).await {
        assert_eq!(body(&again)["access_token"], mail.as_str());
    }
    assert!(send(&gate, &mail, "u1").await.is_fine());
    for code in [40014, 42001] {
        gate.control().revoke_with(
            CORP,
            Revocation {
                code: Some(code),
                ..Revocation::default()
            },
        );
        let cured = send(&gate, &mail, "u1").await;
        assert!(
            cured.is_fine() && cured.attempts == "2",
            "{code}: {cured:?}"
        );
        assert_eq!(
            phantom(&gate, &gettoken(CORP, MAIL)).await,
            mail,
            "it outlives what it stands for"
        );
    }
    assert_eq!(
        (
            gate.control().counters().wecom_fetches,
            gate.control().delivered_to("u1")
        ),
        (2, 3)
    );
    for record in gate.control().requests("/**") {
        let text = format!("{record:?}");
        assert!(
            !text.contains("wxg1_") && KEYS.iter().all(|key| !text.contains(key)),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_agents_of_a_corp_a_selector_or_the_only_right_decides() {
    let gate = started(agents().more(&clients())).await;
    let ask = async |prefix: &str, name: &'static str, value: &str, key: &str| {
        let target = format!("{prefix}{}", gettoken(CORP, key));
        body(&said(gate.client.get(gate.url(&target)).header(name, value)).await)
    };
    let of = |answer: &Value| {
        answer["access_token"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    };
    let (mail, pay) = (
        ask("/@mail", "x-a", "b", BOTH).await,
        ask("/@pay", "x-a", "b", BOTH).await,
    );
    let (mail, pay) = (of(&mail), of(&pay));
    assert_ne!(mail, pay);
    assert_eq!(of(&ask("", "x-wxgate-account", "pay", BOTH).await), pay);
    assert_eq!(of(&ask("", "host", "pay.internal", BOTH).await), pay);
    assert_ne!(
        of(&ask("", "x-a", "b", MAIL).await),
        mail,
        "its own of the same agent"
    );
    for (prefix, name, value, key, said) in [
        ("", "x-a", "b", BOTH, "(mail, pay)"),
        ("", "x-a", "b", NONE, "(mail, pay, door)"),
        ("/@shop", "x-a", "b", BOTH, "another account"),
        ("", "host", "shop.internal", MAIL, ""),
        (
            "/@pay",
            "x-wxgate-account",
            "mail",
            BOTH,
            "account_conflict",
        ),
        ("/@pay", "x-a", "b", MAIL, "account_denied"),
        ("/@nobody", "x-a", "b", BOTH, "account_unknown"),
    ] {
        let answer = ask(prefix, name, value, key).await;
        let (errcode, errmsg) = (
            answer["errcode"].as_u64(),
            answer["errmsg"].as_str().unwrap_or_default(),
        );
        match said {
            "" => assert_eq!(errcode, Some(0), "{answer}"),
            "account_conflict" | "account_unknown" => {
                assert_eq!(errcode, Some(990_400), "{answer}")
            }
            "account_denied" => assert_eq!(errcode, Some(990_403), "{answer}"),
            said => assert!(
                errcode == Some(40013) && errmsg.contains(said),
                "{said}: {answer}"
            ),
        }
        assert_eq!(
            answer.get("access_token").is_some(),
            said.is_empty(),
            "{answer}"
        );
    }
    // Each goes to its own agent, whoever else shares the corpid.
    for (phantom, user) in [(&mail, "m"), (&pay, "p")] {
        assert!(send(&gate, phantom, user).await.is_fine());
    }
    assert_eq!(tokens(gate.control()).len(), 2);
    assert_eq!(gate.control().counters().wecom_fetches, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_in_the_codes_of_wecom() {
    let gate = started(agents().more(&clients())).await;
    for (target, errcode) in [
        (gettoken(CORP, "secret-of-mail"), 40001),
        (gettoken(CORP, "nonsense"), 40001),
        (gettoken(CORP, ""), 41004),
        (gettoken("", MAIL), 41002),
        (gettoken("wwffffffffffffffff", MAIL), 40013),
        (gettoken(DEFAULT_APPID, BOTH), 40013),
        (
            format!("/cgi-bin/token?grant_type=client_credential&appid={CORP}&secret={MAIL}"),
            40013,
        ),
    ] {
        let answer = get(&gate, &target).await;
        assert_eq!(
            (answer.status, answer.errcode(), answer.error.as_str()),
            (200, Some(errcode), ""),
            "{target}"
        );
        assert!(
            body(&answer).get("access_token").is_none() && !answer.text().contains("secret-of"),
            "{answer:?}"
        );
    }
    let good = phantom(&gate, &gettoken(CORP, MAIL)).await;
    for bad in [
        good.replacen("wxg1_A", "wxg1_B", 1),
        good[..68].to_owned(),
        format!("wxg1_{}", "A".repeat(64)),
    ] {
        if bad != good {
            let answer = send(&gate, &bad, "u").await;
            assert_eq!(
                (answer.status, answer.errcode(), answer.attempts.as_str()),
                (200, Some(40014), ""),
                "{bad}"
            );
        }
    }
    // Programs for WeCom know 40014 and 42001 only, also on the paths that both platforms have.
    let shared = |phantom: &str| format!("/cgi-bin/getcallbackip?access_token={phantom}");
    let answer = get(&gate, &shared(&format!("{}A", &good[..68]))).await;
    assert_eq!((answer.status, answer.errcode()), (200, Some(40014)));
    assert!(answer.text().contains("invalid access_token, wxgate: "));
    // Nothing says whose it was: the default account is one of WeChat.
    let answer = get(&gate, &shared("wxg1_nonsense")).await;
    assert_eq!((answer.status, answer.errcode()), (200, Some(40001)));
    let changed = gate.file().replace(MAIL, "mail-key-9876543210");
    assert_eq!(gate.reload(&changed).await.status(), 200);
    let answer = get(&gate, &shared(&good)).await;
    assert_eq!((answer.status, answer.errcode()), (200, Some(40014)));
    let narrowed = changed
        .replace("mail-key-9876543210", MAIL)
        .replace("accounts = [\"mail\"]", "accounts = [\"pay\"]");
    assert_eq!(gate.reload(&narrowed).await.status(), 200);
    let answer = send(&gate, &good, "u").await;
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (200, "account_denied"),
        "{answer:?}"
    );
    assert!(gate.control().requests("/**").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_clients_the_secret_says_nothing_and_a_shared_corpid_needs_a_selector() {
    let gate = started(agents()).await;
    let answer = get(&gate, &gettoken(CORP, "whatever")).await;
    assert_eq!(answer.errcode(), Some(40013), "{answer:?}");
    assert!(
        answer.text().contains("(mail, pay, door)") && answer.text().contains("/@NAME"),
        "{answer:?}"
    );
    let door = phantom(&gate, &format!("/@door{}", gettoken(CORP, "whatever"))).await;
    assert_eq!(
        phantom(&gate, &format!("/@door{}", gettoken(CORP, ""))).await,
        door
    );
    let posted = said(
        gate.post("/@door/cgi-bin/gettoken")
            .json(&json!({"corpid": CORP, "corpsecret": "x"})),
    )
    .await;
    assert_eq!(body(&posted)["access_token"], door.as_str());
    assert!(send(&gate, &door, "d").await.is_fine());
    let seen = gate.control().requests("/cgi-bin/message/send");
    assert_eq!(
        (seen[0].token, seen[0].token_params),
        (TokenState::Current, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_gettoken_reaches_wecom() {
    let gate = started(agents().more(&clients())).await;
    let api = gate.sandbox.https_url().expect("it listens");
    let authority = api.trim_start_matches("https://");
    for path in [
        "/cgi-bin/gettoken",
        "/CGI-BIN/GetToken",
        "//cgi-bin///gettoken",
        "/@mail/cgi-bin/gettoken",
        "/@mail//cgi-bin/GETTOKEN",
    ] {
        for form in [path.to_owned(), format!("http://{authority}{path}")] {
            for (method, query) in [
                ("GET", format!("?corpid={CORP}&corpsecret={MAIL}")),
                ("GET", String::new()),
                ("DELETE", String::new()),
            ] {
                let request = format!("{method} {form}{query} HTTP/1.1\r\nHost: gate\r\n\r\n");
                let reply = Wire::connect(gate.proxy)
                    .await
                    .ask(request)
                    .await
                    .expect("an answer");
                let fine = reply.json()["errcode"] == 0;
                assert_eq!(
                    fine,
                    !query.is_empty(),
                    "{method} {form}{query}: {}",
                    reply.text()
                );
            }
        }
    }
    assert!(gate.control().requests("/**").is_empty());
}
