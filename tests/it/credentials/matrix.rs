//! All documented paths, with the parameters of their rows, by callers of every kind: the bytes that
//! reach WeChat.

use std::collections::HashSet;

use super::{CORP, KEY, strange_token, token_call};
use crate::support::{
    Gate,
    fake::{Act, FAKE_TOKEN, Fake},
    raw::{Reply, Wire},
    setup,
};

const ROWS: &str = include_str!("../../data/wechat/credential-paths.tsv");

/// A row of the table of documented paths.
struct Row {
    platform: &'static str,
    path: &'static str,
    kind: &'static str,
    /// Query without the account's token.
    query: String,
}

/// How a caller says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    None,
    Key,
    Phantom,
    Network,
    ForeignToken,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for line in ROWS.lines().skip(1) {
        let columns: Vec<&'static str> = line.split('\t').collect();
        let [platform, path, _, kind, parameter] = columns[..] else {
            panic!("{line}")
        };
        let in_query = parameter.split("body:").next().unwrap_or_default();
        for alternative in in_query.replace("[,agency_token]", "").split('|') {
            let names = alternative.split(',').filter(|name| !name.is_empty());
            // The account's token is what callers leave out; other kinds' tokens are theirs.
            let is_accounts = matches!(kind, "account" | "corp");
            let names = names.filter(|name| !(is_accounts && *name == "access_token"));
            let pairs: Vec<String> = names.map(|name| format!("{name}=v")).collect();
            rows.push(Row {
                platform,
                path,
                kind,
                query: pairs.join("&"),
            });
        }
    }
    rows
}

/// Paths that wxgate answers or refuses itself, by the contract's sentences.
fn is_answered_here(row: &Row) -> bool {
    const OWN: [&str; 16] = [
        "/cgi-bin/token",
        "/cgi-bin/stable_token",
        "/cgi-bin/gettoken",
        "/cgi-bin/get_jsapi_ticket",
        "/cgi-bin/clear_quota",
        "/cgi-bin/clear_quota/v2",
        "/cgi-bin/openapi/quota/clear",
        "/cgi-bin/component/clear_quota",
        "/cgi-bin/component/clear_quota/v2",
        "/cgi-bin/component/api_start_push_ticket",
        "/cgi-bin/corpgroup/corp/gettoken",
        "/tcb/getqcloudtoken",
        "/tcb/getcodesecret",
        "/retail/B2b/getappkey",
        "/cgi-bin/exmail/publicmail/get_auth_code_list",
        "/sns/jscode2session",
    ];
    OWN.contains(&row.path) || row.path == "/sns/oauth2/access_token"
}

/// True if the call takes the account's token, decided from the row alone.
fn takes_token(row: &Row, both_kinds: &HashSet<&str>) -> bool {
    match row.kind {
        "account" | "corp" | "donut_secret" => true,
        "component" => {
            both_kinds.contains(row.path) && !row.query.contains("component_access_token")
        }
        _ => false,
    }
}

/// A gate for callers from 10.0.0.0/8, whose addresses a proxy on this machine tells.
async fn gate(fake: &Fake, clients: &str) -> Gate {
    let api = fake.api();
    setup()
        .set("server", "allow = [\"10.0.0.0/8\"]")
        .set("server", "trusted_proxies = [\"127.0.0.0/8\"]")
        .account(&api)
        .more(&format!(
            "[[account]]\nname = \"corp\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\n\
             secret = {{ value = \"secret-of-corp\" }}\n{api}\n"
        ))
        .more(clients)
        .start()
        .await
}

struct Caller<'g> {
    gate: &'g Gate,
    fake: &'g Fake,
    identity: Identity,
    wire: Wire,
    /// Parameter of the identity, for accounts of WeChat and of WeCom.
    parameters: [String; 2],
    calls: u32,
}

impl<'g> Caller<'g> {
    async fn new(gate: &'g Gate, fake: &'g Fake, identity: Identity) -> Self {
        let mut caller = Self {
            gate,
            fake,
            identity: Identity::None,
            wire: Wire::connect(gate.proxy).await,
            parameters: [String::new(), String::new()],
            calls: 0,
        };
        match identity {
            Identity::Phantom => {
                let wecom = format!("/cgi-bin/gettoken?corpid={CORP}&corpsecret={KEY}");
                for (index, target) in [token_call(KEY), wecom].into_iter().enumerate() {
                    let answer = caller.send(&target).await.json();
                    let phantom = answer["access_token"].as_str().expect("a phantom");
                    caller.parameters[index] = format!("access_token={phantom}");
                }
            }
            Identity::ForeignToken => {
                let strange = format!("access_token={}", strange_token());
                caller.parameters = [strange.clone(), strange];
            }
            Identity::None | Identity::Key | Identity::Network => {}
        }
        caller.identity = identity;
        caller
    }

    /// Sends a call from an address of its own, so that no limit of one address counts.
    async fn send(&mut self, target: &str) -> Reply {
        self.calls += 1;
        let [_, b, c, d] = self.calls.to_be_bytes();
        let key = match self.identity {
            Identity::Key => format!("X-Wxgate-Key: {KEY}\r\n"),
            _ => String::new(),
        };
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: wxgate\r\nX-Forwarded-For: 10.{b}.{c}.{d}\r\n{key}\r\n"
        );
        self.wire.send(request).await;
        match self.wire.reply().await {
            Some(reply) => reply,
            None => panic!("no answer to {target}"),
        }
    }

    async fn check(&mut self, row: &Row, takes_token: bool) {
        let (account, own) = match row.platform {
            "wecom" => ("corp", &self.parameters[1]),
            _ => ("shop", &self.parameters[0]),
        };
        let joined = |pairs: [&str; 2]| {
            let is_left_out =
                |pair: &&str| pair.is_empty() || takes_token && *pair == "access_token=v";
            let pairs: Vec<&str> = pairs
                .into_iter()
                .filter(|pair| !is_left_out(pair))
                .collect();
            match pairs.join("&") {
                query if query.is_empty() => row.path.to_owned(),
                query => format!("{}?{query}", row.path),
            }
        };
        let pairs = [own.as_str(), &row.query].join("&");
        let target = match pairs.trim_matches('&') {
            "" => format!("/@{account}{}", row.path),
            query => format!("/@{account}{}?{query}", row.path),
        };
        let sent = match self.identity {
            _ if takes_token => joined([&format!("access_token={FAKE_TOKEN}"), &row.query]),
            Identity::Phantom => joined(["", &row.query]),
            _ => joined([own, &row.query]),
        };
        // Without a key: what needs nothing of ours, and shows no secret.
        let is_let_in = self.identity != Identity::None
            || !takes_token && !row.query.is_empty() && !row.kind.ends_with("_secret");
        let reply = self.send(&target).await;
        let arrived: Vec<String> = self
            .fake
            .seen
            .take()
            .iter()
            .map(|call| call.target().trim_end_matches('?').to_owned())
            .collect();
        let case = format!(
            "{:?} {target}: {}",
            self.identity,
            String::from_utf8_lossy(&reply.body)
        );
        if is_let_in {
            assert_eq!(arrived, [sent], "{case}");
            assert_eq!(
                reply.header("x-wxgate-account"),
                if takes_token { account } else { "" }
            );
        } else {
            let error = reply.header("x-wxgate-error");
            assert_eq!((error, arrived), ("client_unknown", Vec::new()), "{case}");
        }
    }
}

/// 0 tokens with calls that take another credential, 0 calls sent again, 0 calls refused that need
/// nothing of ours.
#[tokio::test(flavor = "multi_thread")]
async fn every_documented_call_gets_the_credential_that_it_takes() {
    // A call without the account's token is told what would have a token replaced.
    let fake = Fake::start(|call| {
        Act::ok(if call.target().contains(FAKE_TOKEN) {
            r#"{"errcode":0,"errmsg":"ok"}"#
        } else {
            r#"{"errcode":42001,"errmsg":"access_token expired"}"#
        })
    })
    .await;
    let rows = rows();
    let of_kind = |kind| -> HashSet<&str> {
        let rows = rows.iter().filter(|row| row.kind == kind);
        rows.map(|row| row.path).collect()
    };
    let both_kinds: HashSet<&str> = &of_kind("account") & &of_kind("component");
    let keyed = format!("[[client]]\nname = \"crm\"\nkey = {{ value = \"{KEY}\" }}\n");
    let network = "[[client]]\nname = \"net\"\nfrom = [\"10.0.0.0/8\"]\n";
    for (identity, clients) in [
        (Identity::None, keyed.as_str()),
        (Identity::Key, &keyed),
        (Identity::Phantom, &keyed),
        (Identity::Network, network),
        (Identity::ForeignToken, network),
    ] {
        let gate = gate(&fake, clients).await;
        fake.seen.until(|seen| seen.token_calls() == 2).await;
        fake.seen.take();
        let mut caller = Caller::new(&gate, &fake, identity).await;
        for row in rows.iter().filter(|row| !is_answered_here(row)) {
            caller.check(row, takes_token(row, &both_kinds)).await;
        }
    }
}
