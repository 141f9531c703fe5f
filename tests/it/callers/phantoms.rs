//! Phantom tokens: the token endpoints answered by wxgate, in the shapes that SDKs parse.

use reqwest::Response;
use serde_json::{Value, json};
use wxgate::sandbox::{DEFAULT_APPID, SandboxAccount, TokenState};

use crate::support::{Gate, header, json as body, setup, start};

const KEY: &str = "crm-key-0123456789";
const CLIENT: &str =
    "[[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = [\"shop\"]\n";

async fn classic(gate: &Gate, appid: &str, secret: &str) -> Value {
    body(
        gate.get(&format!(
            "/cgi-bin/token?grant_type=client_credential&appid={appid}&secret={secret}"
        ))
        .await,
    )
    .await
}

async fn stable(gate: &Gate, secret: &str, force: bool) -> Value {
    let order = json!({
        "grant_type": "client_credential", "appid": DEFAULT_APPID, "secret": secret, "force_refresh": force,
    });
    body(
        gate.post("/cgi-bin/stable_token")
            .json(&order)
            .send()
            .await
            .expect("an answer"),
    )
    .await
}

fn token(answer: &Value) -> String {
    answer["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

async fn call_with(gate: &Gate, token: &str) -> Response {
    gate.get(&format!("/cgi-bin/user/info?openid=o&access_token={token}"))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_phantom_comes_from_every_endpoint_every_time_at_no_cost() {
    let gate = setup().more(CLIENT).start().await;
    gate.control().until(|control| control.fetches() == 1).await;
    gate.control().clear_record();
    let first = classic(&gate, DEFAULT_APPID, KEY).await;
    assert_eq!(
        first.as_object().map(serde_json::Map::len),
        Some(2),
        "{first}"
    );
    assert_eq!(first["expires_in"], 7200);
    let phantom = token(&first);
    assert!(phantom.starts_with("wxg1_") && (64..=128).contains(&phantom.len()));
    for n in 0..50 {
        assert_eq!(token(&stable(&gate, KEY, n % 2 == 0).await), phantom);
        assert_eq!(token(&classic(&gate, DEFAULT_APPID, KEY).await), phantom);
    }
    let form = format!("grant_type=client_credential&appid={DEFAULT_APPID}&secret={KEY}");
    let posted = gate
        .post("/cgi-bin/token")
        .body(form)
        .send()
        .await
        .expect("an answer");
    assert_eq!(token(&body(posted).await), phantom);
    let answer = call_with(&gate, &phantom).await;
    assert_eq!(
        (
            answer.status().as_u16(),
            header(&answer, "x-wxgate-account").as_str()
        ),
        (200, "shop")
    );
    assert_eq!(body(answer).await["openid"], "o");
    let seen = gate.control().requests("/**");
    assert_eq!(seen.len(), 1, "only the call went to WeChat");
    assert_eq!(seen[0].token_params, 1);
    assert_eq!(gate.control().fetches(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_gets_wechats_own_answer() {
    let gate = setup().more(CLIENT).start().await;
    for (answer, errcode) in [
        (
            classic(&gate, DEFAULT_APPID, "sandbox0sandbox0sandbox0sandbox0").await,
            40125,
        ),
        (classic(&gate, DEFAULT_APPID, "").await, 41004),
        (classic(&gate, "wxffffffffffffffff", KEY).await, 40013),
        (classic(&gate, "", KEY).await, 41002),
        (stable(&gate, "wrong", true).await, 40125),
        (
            body(gate.get("/cgi-bin/token?appid=a&secret=b").await).await,
            40002,
        ),
        (body(gate.get("/cgi-bin/stable_token").await).await, 43002),
        (
            body(gate.get("/cgi-bin/gettoken?corpid=ww1&corpsecret=x").await).await,
            40013,
        ),
    ] {
        assert_eq!(answer["errcode"], errcode, "{answer}");
        assert!(
            answer.get("access_token").is_none() && !answer.to_string().contains("sandbox0"),
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_phantom_is_called_stale_and_costs_wechat_nothing() {
    let gate = setup().more(CLIENT).start().await;
    let good = token(&classic(&gate, DEFAULT_APPID, KEY).await);
    gate.control().until(|control| control.fetches() == 1).await;
    gate.control().clear_record();
    let last = good.pop_last();
    let forged = format!("{}{}", last.0, if last.1 == 'A' { 'B' } else { 'A' });
    let middle = good.replacen(&good[20..24], "AAAA", 1);
    for bad in [
        forged.as_str(),
        &middle,
        "wxg1_",
        "wxg1_nonsense",
        &good[..68],
        &format!("{good}A"),
    ] {
        let answer = call_with(&gate, bad).await;
        assert_eq!(answer.status(), 200, "{bad}");
        assert_eq!(header(&answer, "x-wxgate-attempts"), "");
        let answer = body(answer).await;
        assert_eq!(answer["errcode"], 40001, "{answer}");
    }
    let both = gate
        .get(&format!(
            "/cgi-bin/user/info?access_token={good}&access_token={forged}"
        ))
        .await;
    assert_eq!(
        (
            both.status().as_u16(),
            header(&both, "x-wxgate-error").as_str()
        ),
        (200, "bad_request")
    );
    assert_eq!(gate.control().counters().requests, 0);
    assert_eq!(gate.control().fetches(), 0);
}

trait PopLast {
    fn pop_last(&self) -> (&str, char);
}

impl PopLast for String {
    fn pop_last(&self) -> (&str, char) {
        (
            &self[..self.len() - 1],
            self.chars().last().expect("not empty"),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_or_name_revokes_it_and_a_second_node_knows_it() {
    let gate = setup().more(CLIENT).start().await;
    let twin = setup().more(CLIENT).start().await;
    let phantom = token(&classic(&gate, DEFAULT_APPID, KEY).await);
    assert_eq!(call_with(&twin, &phantom).await.status(), 200);
    assert_eq!(
        body(call_with(&twin, &phantom).await).await["openid"],
        "o",
        "no state is shared"
    );
    let file = gate.file();
    let errcode = async || body(call_with(&gate, &phantom).await).await["errcode"].clone();
    assert_eq!(
        gate.reload(&file.replace(KEY, "crm-key-9876543210"))
            .await
            .status(),
        200
    );
    assert_eq!(errcode().await, 40001);
    assert_eq!(gate.reload(&file).await.status(), 200);
    assert_eq!(
        body(call_with(&gate, &phantom).await).await["openid"],
        "o",
        "the old key makes it good again"
    );
    let removed = file.replace("name = \"crm\"", "name = \"other\"");
    assert_eq!(gate.reload(&removed).await.status(), 200);
    assert_eq!(errcode().await, 40001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phantom_selects_its_account_and_disagrees_with_others() {
    let more = "[[account]]\nname = \"news\"\nappid = \"wxnews0000000000\"\nsecret = { value = \"s-news\" }\napi = [\"{api}\"]\n\
                hosts = [\"news.internal\"]\n";
    let gate = setup()
        .sandbox(|s| {
            s.accounts
                .push(SandboxAccount::new("wxnews0000000000", "s-news"))
        })
        .more(more)
        .start()
        .await;
    let news = token(&classic(&gate, "wxnews0000000000", "ignored").await);
    let answer = gate
        .get(&format!("/cgi-bin/user/info?access_token={news}"))
        .await;
    assert_eq!(header(&answer, "x-wxgate-account"), "news");
    let answer = gate
        .get(&format!("/@news/cgi-bin/user/info?access_token={news}"))
        .await;
    assert_eq!(header(&answer, "x-wxgate-account"), "news");
    let conflict = gate
        .get(&format!("/@shop/cgi-bin/user/info?access_token={news}"))
        .await;
    assert_eq!(header(&conflict, "x-wxgate-error"), "account_conflict");
    let url = gate.url(&format!("/cgi-bin/user/info?access_token={news}"));
    let conflict = gate
        .client
        .get(url)
        .header("x-wxgate-account", "shop")
        .send()
        .await
        .expect("an answer");
    assert_eq!(header(&conflict, "x-wxgate-error"), "account_conflict");
    let other = body(
        gate.get(
            "/@shop/cgi-bin/token?grant_type=client_credential&appid=wxnews0000000000&secret=x",
        )
        .await,
    );
    assert_eq!(
        other.await["errcode"],
        40013,
        "the prefix names another account than the appid"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_value_is_stripped_and_the_network_lets_sdks_in_without_a_key() {
    let gate = start().await;
    let phantom = token(&classic(&gate, DEFAULT_APPID, "whatever-the-service-still-holds").await);
    for value in [
        phantom.as_str(),
        "",
        "ACCESS_TOKEN",
        "70_a-real-token-of-another-time",
        "%77xg1_encoded",
    ] {
        let answer = call_with(&gate, value).await;
        assert_eq!(body(answer).await["openid"], "o", "{value}");
    }
    let seen = gate.control().requests("/cgi-bin/user/info");
    assert!(
        seen.iter()
            .all(|request| request.token_params == 1 && request.token == TokenState::Current)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_the_account_is_denied_in_plain_words() {
    let more = "[[account]]\nname = \"news\"\nappid = \"wxnews0000000000\"\nsecret = { value = \"s\" }\napi = [\"{api}\"]\n";
    let gate = setup().more(more).more(CLIENT).start().await;
    let target =
        format!("/cgi-bin/token?grant_type=client_credential&appid=wxnews0000000000&secret={KEY}");
    let answer = gate.get(&target).await;
    assert_eq!(
        (
            answer.status().as_u16(),
            header(&answer, "x-wxgate-error").as_str()
        ),
        (200, "account_denied")
    );
}

mod login {
    use super::*;

    const PATH: &str = "/sns/jscode2session";

    async fn sent(gate: &Gate, target: &str, key: &str) -> (String, u16) {
        gate.control().clear_record();
        let request = gate.client.get(gate.url(target));
        let request = if key.is_empty() {
            request
        } else {
            request.header("x-wxgate-key", key)
        };
        let status = request.send().await.expect("an answer").status().as_u16();
        let seen = gate.control().requests("/sns/**").pop();
        (
            seen.and_then(|request| request.query).unwrap_or_default(),
            status,
        )
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_code_is_exchanged_with_the_secret_that_the_caller_does_not_have() {
        let gate = setup().more(CLIENT).start().await;
        let real = format!("secret={}", "sandbox0".repeat(4));
        for (query, key, expected) in [
            (
                "js_code=c&grant_type=authorization_code",
                KEY,
                format!("{real}&appid={DEFAULT_APPID}&js_code=c&grant_type=authorization_code"),
            ),
            (
                &format!("appid={DEFAULT_APPID}&secret=&js_code=c"),
                KEY,
                format!("{real}&appid={DEFAULT_APPID}&js_code=c"),
            ),
            // What an unmodified SDK sends that has the client's key as its secret: the key also
            // says who calls.
            (
                &format!("appid={DEFAULT_APPID}&secret={KEY}&js_code=c"),
                "",
                format!("{real}&appid={DEFAULT_APPID}&js_code=c"),
            ),
            (
                &format!("appid={DEFAULT_APPID}&secret=its-own&js_code=c"),
                KEY,
                format!("appid={DEFAULT_APPID}&secret=its-own&js_code=c"),
            ),
        ] {
            for path in [PATH, "/sns/oauth2/access_token"] {
                let (seen, _) = sent(&gate, &format!("{path}?{query}"), key).await;
                assert_eq!(seen, expected, "{path}?{query}");
            }
        }
        let (seen, _) = sent(
            &gate,
            "/sns/oauth2/refresh_token?grant_type=refresh_token&refresh_token=r",
            KEY,
        )
        .await;
        assert_eq!(
            seen, "grant_type=refresh_token&refresh_token=r",
            "that call takes no secret"
        );
        let wrong = gate.get(&format!("{PATH}?js_code=c&secret=nobodys")).await;
        assert_eq!(wrong.status(), 200, "it brings a secret, as SDKs do");
        assert_eq!(header(&wrong, "x-wxgate-error"), "client_unknown");
        assert_eq!(
            sent(
                &gate,
                &format!("{PATH}?appid=wxffffffffffffffff&js_code=c"),
                KEY
            )
            .await,
            (String::new(), 400)
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_phantom_on_a_login_call_says_who_calls_and_does_not_travel_on() {
        let gate = setup().more(CLIENT).start().await;
        let phantom = token(&classic(&gate, DEFAULT_APPID, KEY).await);
        let (seen, _) = sent(
            &gate,
            &format!("{PATH}?js_code=c&access_token={phantom}"),
            "",
        )
        .await;
        assert_eq!(
            seen,
            format!(
                "secret={}&appid={DEFAULT_APPID}&js_code=c",
                "sandbox0".repeat(4)
            )
        );
        let (seen, _) = sent(
            &gate,
            &format!("/sns/userinfo?openid=o&access_token={phantom}"),
            "",
        )
        .await;
        assert_eq!(seen, "openid=o");
        let (seen, _) = sent(&gate, "/sns/userinfo?openid=o&access_token=of-a-user", KEY).await;
        assert_eq!(seen, "openid=o&access_token=of-a-user");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_appid_of_a_login_selects_where_nothing_else_does() {
        let more = "[[account]]\nname = \"mini\"\nappid = \"wxmini0000000000\"\nsecret = { value = \"s-mini\" }\napi = [\"{api}\"]\n";
        let gate = setup().more(more).start().await;
        let (seen, _) = sent(
            &gate,
            &format!("{PATH}?appid=wxmini0000000000&js_code=c"),
            "",
        )
        .await;
        assert_eq!(seen, "secret=s%2Dmini&appid=wxmini0000000000&js_code=c");
        let (seen, status) = sent(
            &gate,
            &format!("/@shop{PATH}?appid=wxmini0000000000&js_code=c"),
            "",
        )
        .await;
        assert_eq!(
            (seen.as_str(), status),
            ("", 400),
            "the secret of one account never goes with the appid of another"
        );
    }
}
