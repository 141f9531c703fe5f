//! Accounts whose address WeChat refuses in answers to calls, and codes under other names than
//! `errcode`: what operators get to see.

use serde_json::{Value, json};
use wxgate::sandbox::{DEFAULT_APPID, Fault, IpWhitelist, Response, Rule, SandboxAccount};

use crate::support::{
    Gate, Setup, json as body,
    program::{Program, folder, serve},
    setup,
    token_tools::get,
};

const USER: &str = "/cgi-bin/user/get?userid=a";
const CORP: &str = "ww0123456789abcdef";

/// `shop` on wechat, and `corp` on wecom.
fn two_platforms() -> Setup {
    setup()
        .sandbox(|sandbox| {
            sandbox
                .accounts
                .push(SandboxAccount::wecom(CORP, "corp-secret"));
        })
        .more(&format!(
            "[[account]]\nname = \"corp\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\nsecret = {{ value = \"corp-secret\" }}\napi = [\"{{api}}\"]\n"
        ))
        .default_account("shop")
}

/// Lets business calls of an account be refused so.
fn refuse(gate: &Gate, appid: &str, fault: &Value) -> u64 {
    let fault = serde_json::from_value::<Fault>(fault.clone()).expect("a fault");
    let rule = Rule::new("/**", fault).business().account(appid).always();
    gate.control().fault(rule)
}

async fn admin(gate: &Gate, target: &str) -> (u16, Value) {
    let call = gate.client.get(gate.admin_url(target));
    let answer = call.send().await.expect("the admin listener answers");
    (answer.status().as_u16(), body(answer).await)
}

async fn account(gate: &Gate, name: &str) -> Value {
    let (_, list) = admin(gate, "/api/accounts").await;
    let mut rows = list.as_array().expect("a list").iter();
    rows.find(|row| row["name"] == name).expect("it").clone()
}

async fn metric(gate: &Gate, series: &str) -> Option<f64> {
    let call = gate.client.get(gate.admin_url("/metrics"));
    let page = call.send().await.expect("an answer").text().await;
    let page = page.expect("text");
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_address_degrades_the_account_until_the_next_accepted_call() {
    let gate = two_platforms().start().await;
    // First tokens are paced: both are there before fetches are counted.
    for name in ["shop", "corp"] {
        assert_eq!(get(&gate, &format!("/@{name}{USER}")).await.status, 200);
    }
    for (name, appid, code, ip, said) in [
        ("shop", DEFAULT_APPID, 40164, "203.0.113.9", None),
        (
            "shop",
            DEFAULT_APPID,
            45035,
            "203.0.113.9",
            Some("access clientip is not registered, requestIP: 203.0.113.9 rid: 1-2-3"),
        ),
        (
            "shop",
            DEFAULT_APPID,
            61004,
            "203.0.113.9",
            Some("access clientip is not registered requestIP: 203.0.113.9 rid: 1-2-3"),
        ),
        ("corp", CORP, 60020, "203.0.113.9", None),
    ] {
        let call = format!("/@{name}{USER}");
        assert_eq!(get(&gate, &call).await.status, 200);
        assert_eq!(account(&gate, name).await["state"], "ok", "{code}");
        let gauge = format!("wxgate_account_degraded{{account=\"{name}\"}}");
        assert_eq!(metric(&gate, &gauge).await, Some(0.0));
        let (generation, fetches) = (
            account(&gate, name).await["generation"].clone(),
            gate.control().fetches(),
        );

        let mut fault = json!({"kind": "errcode", "code": code, "ip": ip});
        if let Some(message) = said {
            fault["message"] = json!(message);
        }
        let rule = refuse(&gate, appid, &fault);
        for _ in 0..2 {
            let answer = get(&gate, &call).await;
            // WeChat's own bytes, sent once.
            assert_eq!((answer.status, answer.errcode()), (200, Some(code)));
            assert_eq!((&*answer.attempts, &*answer.error), ("1", ""));
            assert!(answer.text().contains(ip), "{}", answer.text());
        }
        let row = account(&gate, name).await;
        assert_eq!(
            (&row["state"], &row["usable"]),
            (&json!("degraded"), &json!(true))
        );
        let error = &row["last_error"];
        assert_eq!(
            (&error["errcode"], &error["ip"], &error["failures"]),
            (&json!(code), &json!(ip), &json!(2)),
            "{row}"
        );
        let sentence = error["sentence"].as_str().expect("a sentence");
        assert!(
            sentence.contains(ip) && sentence.contains(": "),
            "{sentence}"
        );
        assert_eq!(metric(&gate, &gauge).await, Some(1.0));

        // The node stays ready, and names the account.
        let (status, ready) = admin(&gate, "/readyz").await;
        assert_eq!((status, &ready["ready"]), (200, &json!(true)));
        let degraded = &ready["degraded"][0];
        assert_eq!(
            (&degraded["account"], &degraded["errcode"], &degraded["ip"]),
            (&json!(name), &json!(code), &json!(ip)),
            "{ready}"
        );
        let asked = format!("/readyz?account={name}");
        let (status, ready) = admin(&gate, &asked).await;
        assert_eq!((status, &ready["error"]), (503, &json!("account_failing")));
        assert_eq!(ready["degraded"][0]["ip"], ip);

        // No fetch can cure it, and none was made.
        assert_eq!(gate.control().fetches(), fetches);
        assert_eq!(account(&gate, name).await["generation"], generation);
        gate.control().remove_fault(rule);
        assert_eq!(get(&gate, &call).await.status, 200);
        let row = account(&gate, name).await;
        assert_eq!(
            (&row["state"], &row["last_error"]),
            (&json!("ok"), &Value::Null)
        );
        assert_eq!(
            admin(&gate, &asked).await,
            (200, json!({"ready": true, "lacking": []}))
        );
        assert_eq!(metric(&gate, &gauge).await, Some(0.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_refusal_of_the_address_degrades_an_account() {
    let gate = two_platforms().start().await;
    for (name, appid, fault) in [
        (
            "shop",
            DEFAULT_APPID,
            json!({"kind": "errcode", "code": 61004, "message": "api is not authorized"}),
        ),
        (
            "shop",
            DEFAULT_APPID,
            json!({"kind": "errcode", "code": 60020}),
        ),
        (
            "shop",
            DEFAULT_APPID,
            json!({"kind": "respond", "body": "{\"ret\":40164,\"err_msg\":\"invalid ip 203.0.113.9\"}"}),
        ),
        (
            "shop",
            DEFAULT_APPID,
            json!({"kind": "respond", "body": "{\"errcode\":40164}", "headers": [["Content-Disposition", "attachment"]]}),
        ),
        ("corp", CORP, json!({"kind": "errcode", "code": 40164})),
        (
            "corp",
            CORP,
            json!({"kind": "errcode", "code": 48002, "message": "api forbidden, from ip: 203.0.113.9"}),
        ),
    ] {
        let rule = refuse(&gate, appid, &fault);
        assert_eq!(get(&gate, &format!("/@{name}{USER}")).await.status, 200);
        assert_eq!(account(&gate, name).await["state"], "ok", "{fault}");
        gate.control().remove_fault(rule);
    }
    // The refused address of a call that brings its own token is none of the account's business.
    gate.control()
        .fault(Rule::new("/sns/**", Fault::errcode(40164)));
    let foreign = get(&gate, "/@shop/sns/userinfo?access_token=user").await;
    assert_eq!(foreign.errcode(), Some(40164));
    assert_eq!(account(&gate, "shop").await["state"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_of_one_account_is_asked_by_its_name() {
    let setup = two_platforms();
    let sandbox = setup.start_sandbox().await;
    let fault = serde_json::from_value::<Fault>(
        json!({"kind": "errcode", "code": 60020, "ip": "198.51.100.7"}),
    );
    let rule = Rule::new("/cgi-bin/gettoken", fault.expect("a fault"));
    sandbox.control().fault(rule.always());
    let gate = setup.start_with(sandbox).await;
    gate.warm().await;
    assert_eq!(
        admin(&gate, "/readyz?account=shop").await,
        (200, json!({"ready": true, "lacking": []}))
    );
    get(&gate, &format!("/@corp{USER}")).await;
    let (status, corp) = admin(&gate, "/readyz?account=corp").await;
    assert_eq!((status, &corp["error"]), (503, &json!("account_failing")));
    let lacking = &corp["lacking"][0];
    assert_eq!(
        (&lacking["account"], &lacking["errcode"], &lacking["ip"]),
        (&json!("corp"), &json!(60020), &json!("198.51.100.7")),
        "the token endpoint's refusal names the address in the same place"
    );
    let (status, node) = admin(&gate, "/readyz").await;
    assert_eq!(
        (status, node["lacking"].as_array().map(Vec::len)),
        (200, Some(1))
    );
    for unknown in ["nobody", "", "shop%20", "SHOP"] {
        let (status, answer) = admin(&gate, &format!("/readyz?account={unknown}")).await;
        assert_eq!((status, &answer["error"]), (404, &json!("account_unknown")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_under_ret_reach_metrics_and_log_and_are_never_stale() {
    let gate = setup().start().await;
    gate.warm().await;
    let fetches = gate.control().fetches();
    let counted = |code: &str| {
        format!("wxgate_upstream_errcode_total{{account=\"shop\",errcode=\"{code}\"}}")
    };
    for (text, code) in [
        (
            r#"{"base_resp":{"err_msg":"quota","ret":45009},"list":[]}"#,
            "45009",
        ),
        (r#"{"ret":2009,"err_msg":"no"}"#, "2009"),
        (r#"{"base_resp":{"ret":40001,"err_msg":"no"}}"#, "40001"),
        (r#"{"ret":42001}"#, "42001"),
    ] {
        let before = metric(&gate, &counted(code)).await.unwrap_or_default();
        let response = Response {
            body: text.to_owned(),
            ..Response::default()
        };
        gate.control()
            .fault(Rule::new("/publisher/stat", Fault::Respond(response)));
        let answer = get(&gate, "/publisher/stat").await;
        assert_eq!((answer.text(), &*answer.attempts), (text.to_owned(), "1"));
        assert_eq!(
            metric(&gate, &counted(code)).await,
            Some(before + 1.0),
            "{text}"
        );
    }
    assert_eq!(gate.control().fetches(), fetches);
    let (_, log) = gate.stop().await;
    for code in [45009, 2009, 40001, 42001] {
        assert!(
            log.contains(&format!("\"errcode\":{code}")),
            "{code}: {log}"
        );
    }
}

/// One line a minute, however many calls are refused, and one at the end.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_the_refused_address_once_a_minute() {
    let setup = setup();
    let sandbox = setup.start_sandbox().await;
    let folder = folder(&setup, &sandbox);
    let program = Program::start(&mut serve(folder.path()));
    let proxy = program.proxy();
    let client = crate::support::client();
    let call = async || {
        let url = format!("http://{proxy}{USER}");
        client
            .get(url)
            .send()
            .await
            .expect("an answer")
            .status()
            .as_u16()
    };
    assert_eq!(call().await, 200);
    let fault = json!({"kind": "errcode", "code": 40164, "ip": "203.0.113.9"});
    let fault = serde_json::from_value::<Fault>(fault).expect("a fault");
    sandbox
        .control()
        .fault(Rule::new("/**", fault).business().times(20));
    for _ in 0..21 {
        assert_eq!(call().await, 200);
    }
    let ended = program.stop();
    let lines = |part: &str| {
        ended
            .stderr
            .lines()
            .filter(|line| line.contains(part))
            .count()
    };
    assert_eq!(
        lines("calls fail: WeChat refused the IP 203.0.113.9"),
        1,
        "{}",
        ended.stderr
    );
    assert_eq!(
        lines("accepts the address of this node again"),
        1,
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_refused_for_the_address_degrades_the_account_too() {
    let gate = two_platforms().start().await;
    assert_eq!(get(&gate, &format!("/@shop{USER}")).await.status, 200);
    let rule = Rule::new("/sns/jscode2session", Fault::errcode(40164)).always();
    gate.control().fault(rule);
    let answer = get(
        &gate,
        "/@shop/sns/jscode2session?js_code=c&grant_type=authorization_code",
    )
    .await;
    assert_eq!(answer.errcode(), Some(40164));
    let row = account(&gate, "shop").await;
    assert_eq!(row["state"], "degraded", "{row}");
    assert_eq!(row["last_error"]["ip"], "203.0.113.9");
}

/// The whitelist of an account as its console keeps it: each kind of account checks other calls.
#[tokio::test(flavor = "multi_thread")]
async fn a_whitelist_that_lacks_the_node_degrades_the_account_and_names_the_node() {
    let gate = two_platforms().start().await;
    for (name, appid, code) in [("shop", DEFAULT_APPID, 40164), ("corp", CORP, 60020)] {
        let call = format!("/@{name}{USER}");
        assert_eq!(get(&gate, &call).await.errcode().unwrap_or(0), 0);
        let list = IpWhitelist {
            addresses: vec!["192.0.2.0/24".parse().expect("a network")],
            checked: None,
            code: None,
        };
        gate.control().set_whitelist(appid, Some(list));
        assert_eq!(get(&gate, &call).await.errcode(), Some(code));
        let row = account(&gate, name).await;
        assert_eq!(
            (&row["state"], &row["last_error"]["ip"]),
            (&json!("degraded"), &json!("127.0.0.1")),
            "{row}"
        );
        gate.control().set_whitelist(appid, None);
        assert_eq!(get(&gate, &call).await.errcode().unwrap_or(0), 0);
        assert_eq!(account(&gate, name).await["state"], "ok");
    }
}
