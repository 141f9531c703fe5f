//! What `deploy` gives to an operator's Prometheus and Grafana: it asks for metrics that there are, and
//! no alert fires on a fresh start.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::net::TcpStream;
use wxgate::sandbox::{self, SandboxControl, TokenFilter};

use super::listeners::certificates;
use crate::support::{
    Setup, client,
    program::{Program, folder, serve},
    setup,
};

const RULES: &str = "deploy/prometheus/alerts.yml";
const DASHBOARD: &str = "deploy/grafana/wxgate.json";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("wxgate_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// Samples of a page: series and value.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            (series.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

async fn page(program: &Program) -> String {
    let url = format!("http://{}/metrics", program.admin());
    let answer = client().get(url).send().await.expect("an answer");
    answer.text().await.expect("text")
}

/// Starts a program with the configuration of a setup.
async fn started(setup: &Setup) -> (Program, sandbox::Sandbox, tempfile::TempDir) {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = folder(setup, &sandbox);
    let certificates = certificates();
    for name in ["server.pem", "server.key"] {
        fs::copy(certificates.path().join(name), folder.path().join(name)).expect("copied");
    }
    let program = Program::start(&mut serve(folder.path()));
    program.logged("new access token");
    (program, sandbox, folder)
}

/// Has something happen of everything that is counted.
async fn cause_everything(
    program: &Program,
    control: &SandboxControl,
    folder: &Path,
) -> Vec<TcpStream> {
    let base = format!("http://{}", program.proxy());
    let key = "crm-key-0123456789";
    let ask = async |path: &str, key: &str| {
        let request = client().get(format!("{base}{path}"));
        let answer = request.header("x-wxgate-key", key).send().await;
        answer.expect("an answer").status().as_u16()
    };
    assert_eq!(ask("/cgi-bin/user/get", key).await, 200);
    fs::remove_dir_all(folder.join("state")).expect("it was there");
    control.revoke(TokenFilter::default());
    assert_eq!(ask("/cgi-bin/user/get", key).await, 200);
    let foreign = format!("/cgi-bin/user/get?access_token={}", "f".repeat(100));
    assert_eq!(ask(&foreign, key).await, 200);
    assert_eq!(ask("/cgi-bin/user/get", "").await, 401);
    assert_eq!(ask("/-/accounts/shop/tickets/jsapi", key).await, 200);
    // As many connections as one address may have, and one more.
    let mut open = Vec::new();
    for _ in 0..9 {
        open.push(
            TcpStream::connect(program.proxy())
                .await
                .expect("it listens"),
        );
    }
    open
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_alerts_and_dashboard_is_on_a_live_page() {
    let busy = setup()
        .set("server", "max_connections_per_client = 8")
        .set("store", "kind = \"file\"")
        .set("store", "path = \"state\"")
        .more(
            "[[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\n\
             accounts = [\"shop\"]\nmay = [\"ticket\"]\n",
        );
    let (program, sandbox, folder) = started(&busy).await;
    let _open = cause_everything(&program, sandbox.control(), folder.path()).await;
    let tls = setup().set(
        "server",
        "tls = { cert = \"server.pem\", key = \"server.key\" }",
    );
    let (with_tls, _sandbox, _folder) = started(&tls).await;
    let wanted: BTreeSet<String> = [RULES, DASHBOARD]
        .iter()
        .flat_map(|name| metrics_in(&fs::read_to_string(file(name)).expect("a file")))
        .collect();
    assert!(wanted.len() > 30, "{wanted:?}");
    let deadline = SystemTime::now() + Duration::from_secs(60);
    loop {
        let pages = format!("{}{}", page(&program).await, page(&with_tls).await);
        let there: BTreeSet<String> = samples(&pages)
            .into_keys()
            .map(|series| series.split('{').next().unwrap_or_default().to_owned())
            .collect();
        let missing: Vec<_> = wanted.difference(&there).collect();
        if missing.is_empty() {
            return;
        }
        assert!(
            SystemTime::now() < deadline,
            "{missing:?} are not in\n{pages}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs promtool in the folder of the rules.
fn promtool(arguments: &[&str], folder: &Path) {
    let run = Command::new("promtool")
        .args(arguments)
        .current_dir(folder)
        .output();
    let run = run.unwrap_or_else(|error| {
        panic!("this test runs promtool: install it (Debian: apt-get install prometheus): {error}")
    });
    let said = [run.stdout, run.stderr].concat();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn promtool_finds_that_each_alert_fires_when_it_should() {
    let rules = file(RULES);
    let folder = rules.parent().expect("a folder");
    promtool(&["check", "rules", "alerts.yml"], folder);
    promtool(&["test", "rules", "alerts_test.yml"], folder);
    let (rules, tests) = (
        fs::read_to_string(&rules).expect("a file"),
        fs::read_to_string(folder.join("alerts_test.yml")).expect("a file"),
    );
    for name in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let is_tested = |wanted: &str| tests.contains(&format!("alertname: {name}{wanted}"));
        assert!(
            is_tested(", exp_alerts: []") && is_tested("\n        exp_alerts:\n"),
            "{name}"
        );
    }
}

/// The page of a program that has just started, as series of a test that lasts an hour.
#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_no_alert_on_a_fresh_start() {
    let tls = setup().set(
        "server",
        "tls = { cert = \"server.pem\", key = \"server.key\" }",
    );
    let (program, _sandbox, _folder) = started(&tls).await;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let mut test = format!(
        "rule_files: [{:?}]\nevaluation_interval: 15s\ntests:\n  - interval: 15s\n    input_series:\n",
        file(RULES)
    );
    for (series, value) in samples(&page(&program).await) {
        // The clock of the test begins at zero.
        let is_time = series.contains("_timestamp_seconds") && value > 0.0;
        let value = if is_time {
            value - now.as_secs_f64()
        } else {
            value
        };
        test += &format!("      - {{ series: '{series}', values: '{value}x240' }}\n");
    }
    test += "    alert_rule_test:\n";
    let rules = fs::read_to_string(file(RULES)).expect("a file");
    for name in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        for time in ["1m", "10m", "1h"] {
            test +=
                &format!("      - {{ eval_time: {time}, alertname: {name}, exp_alerts: [] }}\n");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("fresh.yml"), test).expect("written");
    promtool(&["test", "rules", "fresh.yml"], folder.path());
}

#[test]
fn promtool_can_read_what_the_dashboard_asks_for() {
    let text = fs::read_to_string(file(DASHBOARD)).expect("a file");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let rules: Vec<Value> = targets
        .map(|target| target["expr"].as_str().expect("a text"))
        .map(|expr| expr.replace("$__rate_interval", "5m"))
        .map(|expr| json!({"record": "dashboard", "expr": expr}))
        .collect();
    assert!(rules.len() > 30, "{}", rules.len());
    // A JSON text is YAML as well.
    let rules = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("dashboard.yml"), rules.to_string()).expect("written");
    promtool(
        &["check", "rules", "--lint=none", "dashboard.yml"],
        folder.path(),
    );
}
