//! Programs for 企业微信 that know no other codes of a dead token than 40014 and 42001, while the
//! secret of their agent changes, and a group robot that needs no token.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use wxgate::sandbox::SandboxAccount;

use super::environments::{script, seen};
use crate::{
    support::{Gate, Setup, json as body, setup},
    upstream::takeover,
};

const CORP: &str = "ww0123456789abcdef";
const KEY: &str = "agent-key-0123456789";
const SECRET: &str = "secret-of-agent";
const NEXT: &str = "next-secret-of-agent";
const ROBOT: &str = "11111111-2222-3333-4444-555555555555";

fn agent(setup: Setup) -> Setup {
    setup
        .sandbox(|sandbox| {
            let agent = SandboxAccount::wecom(CORP, SECRET);
            sandbox.accounts.push(agent);
        })
        .more(&format!(
            "[[account]]\nname = \"agent\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\n\
             secret = {{ value = \"{SECRET}\" }}\napi = [\"{{api}}\"]\n"
        ))
}

fn keyed(setup: Setup) -> Setup {
    setup.more(&format!(
        "[[client]]\nname = \"crm\"\nkey = {{ value = \"{KEY}\" }}\naccounts = [\"agent\"]\n"
    ))
}

/// Has the secret of the agent changed, at WeCom and in the configuration.
async fn changed(gate: &Gate) {
    gate.control()
        .add_account(&SandboxAccount::wecom(CORP, NEXT));
    let text = gate.file().replace(SECRET, NEXT);
    let answer = gate.reload(&text).await;
    assert_eq!(answer.status(), 200, "{}", body(answer).await);
}

async fn revoked(gate: &Gate) {
    let answer = gate
        .client
        .post(gate.admin_url("/api/accounts/agent/refresh"))
        .json(&json!({"revoke": true}))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 200, "{}", body(answer).await);
}

/// What became of the calls to this path, from the log of a gate that has stopped.
fn outcomes(log: &str, path: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|line| line["path"] == path)
        .map(|line| line["outcome"].clone())
        .collect()
}

struct Crm {
    folder: PathBuf,
}

impl Crm {
    async fn calls(&self, gate: &Gate, old: Option<&str>) -> String {
        let mut script = script("wecom_crm_mcp_calls.py");
        script.args([&gate.url(""), CORP, KEY]);
        script.arg(&self.folder).args(old);
        let seen = seen(script).await;
        assert_eq!(seen["member"], "zhangsan", "{seen}");
        seen["token"].as_str().expect("a token").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wecom_crm_mcp_lives_through_a_change_of_the_agents_secret_and_heals_after_a_revoke() {
    let gate = keyed(agent(setup())).start().await;
    let crm = Crm {
        folder: gate.folder.path().join("crm"),
    };
    let first = crm.calls(&gate, None).await;
    assert!(first.starts_with("wxg1_"), "{first}");
    changed(&gate).await;
    assert_eq!(
        crm.calls(&gate, None).await,
        first,
        "the token on its disk is good for two hours"
    );
    revoked(&gate).await;
    let second = crm.calls(&gate, None).await;
    assert_ne!(second, first, "40014 made it ask again");
    assert_eq!(crm.calls(&gate, None).await, second);
    let log = gate.stop().await.1;
    let asked = outcomes(&log, "/cgi-bin/gettoken");
    assert_eq!(asked, ["ok", "ok"], "at the start, and after the revoke");
}

#[tokio::test(flavor = "multi_thread")]
async fn wecom_crm_mcp_with_a_real_token_on_its_disk_asks_again_by_itself() {
    let gate = keyed(agent(setup())).default_account("agent").start().await;
    let crm = Crm {
        folder: gate.folder.path().join("crm"),
    };
    let token = crm.calls(&gate, Some(&"r".repeat(214))).await;
    assert!(token.starts_with("wxg1_"), "{token}");
}

/// This one sends the dead token again (findings/corpwechatbot-keeps-a-dead-token.sh), so it is the
/// former phantom's two hours alone that carry it over a change.
#[tokio::test(flavor = "multi_thread")]
async fn corpwechatbot_lives_through_a_change_of_the_agents_secret() {
    let gate = takeover::start(keyed(agent(setup()))).await;
    let file = gate.folder.path().join("token.json");
    let send = async |text: &str| {
        let mut script = script("corpwechatbot_calls.py");
        script.args([CORP, KEY]).arg(&file).arg(text);
        script.envs(takeover::ways(&gate));
        seen(script).await
    };
    let first = send("first").await;
    changed(&gate).await;
    let second = send("second").await;
    assert_eq!(
        (&first["code"], &second["code"], &second["token"]),
        (&json!(0), &json!(0), &first["token"])
    );
    revoked(&gate).await;
    assert_eq!(send("lost").await["code"], 40014);
    fs::remove_file(&file).expect("its file");
    let third = send("third").await;
    assert_eq!(third["code"], 0);
    assert_ne!(third["token"], first["token"]);
    let texts: Vec<String> = gate
        .control()
        .deliveries()
        .into_iter()
        .map(|delivery| delivery.content)
        .collect();
    assert_eq!(texts, ["first", "second", "third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn onepush_sends_through_a_group_robot_beside_an_account_whose_secret_is_refused() {
    let clients = keyed(agent(setup())).set("server", "allow = [\"loopback\"]");
    for setup in [agent(setup()), clients] {
        let setup = setup.sandbox(|sandbox| sandbox.accounts.retain(|agent| agent.appid != CORP));
        let gate = takeover::start(setup).await;
        gate.control()
            .until(|control| control.counters().wecom_fetches > 0)
            .await;
        let mut script = script("onepush_robot.py");
        script.args([ROBOT, "the disk is full"]);
        script.envs(takeover::ways(&gate));
        let seen = seen(script).await;
        assert_eq!(
            (&seen["status"], &seen["answer"]["errcode"]),
            (&json!(200), &json!(0)),
            "{seen}"
        );
        let calls = gate.control().requests("/cgi-bin/webhook/send");
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].query, Some(format!("key={ROBOT}")));
        assert!(String::from_utf8_lossy(&calls[0].body).contains("the disk is full"));
    }
}
