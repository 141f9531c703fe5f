//! The console as an operator has it: a headless Chromium, driven by `tests/console/scenarios.js`.
//!
//! The scripts need Node and Chromium, which `scripts/setup` installs. They talk to the browser over
//! a pipe, so that no port is taken. Screenshots are left in `target/console`.

use std::{fmt::Write as _, path::Path, process::Command};

use wxgate::sandbox::{self, Fault, Rule, SandboxAccount};

use crate::support::{Gate, Setup, setup};

const LISTED: &str = "wx2222222222222222";
const FROZEN: &str = "wx3333333333333333";
const AWAY: &str = "wx4444444444444444";
const OLD: &str = "wx5555555555555555";
const AGENT: &str = "ww6666666666666666";
const KEYS: [(&str, &str); 2] = [
    ("ADMIN_KEY", "admin-key-0123456789"),
    ("CLIENT_KEY", "client-key-0123456789"),
];

/// Six accounts, each of another kind or in another state, and `more` healthy ones.
fn accounts(more: usize) -> Vec<(String, String, &'static str)> {
    let mut accounts: Vec<_> = [
        ("listed", LISTED, ""),
        ("frozen", FROZEN, ""),
        ("away", AWAY, ""),
        ("old", OLD, "token = \"classic\""),
        ("agent", AGENT, "platform = \"wecom\""),
    ]
    .map(|(name, appid, line)| (name.to_owned(), appid.to_owned(), line))
    .into();
    accounts.extend((0..more).map(|n| (format!("branch-{n}"), format!("wx{n:016x}"), "")));
    accounts
}

fn with_accounts(more: usize) -> Setup {
    let [(_, admin_key), (_, client_key)] = KEYS;
    let mut text = String::new();
    for (name, appid, line) in accounts(more) {
        let _ = writeln!(
            text,
            "[[account]]\nname = \"{name}\"\nappid = \"{appid}\"\nsecret = {{ value = \"s\" }}\n\
             api = [\"{{api}}\"]\n{line}"
        );
    }
    let _ = writeln!(
        text,
        "[[client]]\nname = \"crm\"\nkey = {{ value = \"{client_key}\" }}\n\
         deny = [\"/cgi-bin/menu/delete\"]\nmay = [\"ticket\"]"
    );
    setup()
        .default_account("shop")
        .set("admin", &format!("key = {{ value = \"{admin_key}\" }}"))
        .sandbox(|settings| {
            for (_, appid, line) in accounts(more) {
                settings.accounts.push(if line.contains("wecom") {
                    SandboxAccount::wecom(appid, "s")
                } else {
                    SandboxAccount::new(appid, "s")
                });
            }
        })
        .more(&text)
}

/// Starts with the account `frozen` refused for good, and the endpoint of `away` out of reach.
async fn gate(more: usize) -> Gate {
    let setup = with_accounts(more);
    let sandbox = sandbox::start(setup.sandbox_settings())
        .await
        .expect("the sandbox starts");
    let tokens = |fault, appid| {
        Rule::new("/cgi-bin/stable_token", fault)
            .account(appid)
            .always()
    };
    let control = sandbox.control();
    control.fault(tokens(Fault::errcode(40243), FROZEN));
    control.fault(tokens(Fault::Reset { executed: false }, AWAY));
    setup.start_with(sandbox).await
}

/// Plays a scenario, which fails with a sentence if the console is not as it should be.
async fn play(scenario: &'static str, more: usize) {
    let gate = gate(more).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pictures = root.join("target/console");
    std::fs::create_dir_all(&pictures).expect("target can be written");
    let mut node = Command::new("node");
    node.arg(root.join("tests/console/scenarios.js"))
        .arg(scenario)
        .envs(KEYS)
        .env("ADMIN", gate.admin_url(""))
        .env("PROXY", gate.url(""))
        .env("SANDBOX", gate.sandbox.http_url().expect("it listens"))
        .env("FILE", gate.folder.path().join("test.toml"))
        .env("PICTURES", pictures);
    let output = tokio::task::spawn_blocking(move || node.output())
        .await
        .expect("it runs")
        .expect("Node is installed: run scripts/setup");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{scenario}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_in_shows_the_accounts_and_logging_out_takes_them_away() {
    play("session", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn states_events_and_plots_follow_what_wechat_does() {
    play("states", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_planted_texts_stay_texts() {
    play("inert", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_can_be_done_with_the_keyboard() {
    play("keyboard", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_accounts_are_paged_searched_and_filtered_on_a_phone() {
    play("paging", 60).await;
}

/// Leaves `target/console/readme-*.png`, from which `docs/images` are made.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes the pictures of the READMEs, which takes two minutes"]
async fn pictures_for_the_readmes() {
    play("readme", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_themes_and_languages_fit_a_desk_and_a_phone() {
    play("pictures", 0).await;
}
