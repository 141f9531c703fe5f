//! A real SDK as the caller: wechatpy, unchanged, through wxgate.
//!
//! Python comes from WXGATE_TEST_PYTHON, which scripts/test sets; without it, the environment that scripts/test would
//! make is made here.

use std::{ffi::OsString, fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::start;

const REQUIREMENTS: &str = "tests/sdk/requirements.txt";
const NEEDED: &str = "this test runs a Python SDK: install python3 with venv and pip (Debian: apt-get install python3-venv \
                      python3-pip), or set WXGATE_TEST_PYTHON to an interpreter that has tests/sdk/requirements.txt";

/// An interpreter that has the SDK.
fn python() -> OsString {
    if let Some(python) = std::env::var_os("WXGATE_TEST_PYTHON") {
        return python;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (venv, requirements) = (root.join("target/test-venv"), root.join(REQUIREMENTS));
    let (python, stamp) = (venv.join("bin/python"), venv.join("installed.txt"));
    let wanted = fs::read(&requirements).expect("the requirements are part of the tests");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) && python.exists() {
        return python.into();
    }
    let _ = fs::remove_dir_all(&venv);
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet", "-r"]);
    run(pip.arg(&requirements));
    fs::write(stamp, wanted).expect("the environment is ours");
    python.into()
}

#[track_caller]
fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; {NEEDED}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{said}\n{NEEDED}");
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn wechatpy_does_its_work_while_the_token_dies_twice_and_notices_nothing() {
    let gate = start().await;
    gate.warm().await;
    let (proxy, sandbox) = (gate.url(""), gate.sandbox.http_url().expect("it listens"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/wechatpy_calls.py");
    let calls = move || run(Command::new(python()).arg(script).args([proxy, sandbox]));
    let printed = tokio::task::spawn_blocking(calls).await.expect("the SDK raised nothing");
    let seen: Value = serde_json::from_slice(&printed).expect("JSON");

    assert_eq!((&seen["user"], &seen["followers"]), (&json!("o-sdk-user"), &json!(2)), "{seen}");
    assert_eq!((&seen["sent"], &seen["again"]), (&json!(0), &json!(0)));
    assert_eq!(seen["menu"]["menu"]["button"], json!([]));
    assert_eq!(seen["downloaded_sha256"], seen["uploaded_sha256"], "a file comes back as it went, through a replay");
    assert_eq!((&seen["code_type"], &seen["code_is_jpeg"]), (&json!("image/jpeg"), &json!(true)));
    let attempts = json!(["1", "1", "2", "1", "1", "2", "1", "1"]);
    assert_eq!(seen["attempts"], attempts, "the two calls right after a death were cured unseen");

    let control = gate.control();
    assert_eq!(control.fetches(), 3, "one at the start, one for each death");
    assert_eq!(control.uploads().len(), 1);
    assert_eq!(control.delivered_to("o-sdk-user"), 2);
    let texts: Vec<String> = control.deliveries().into_iter().map(|delivery| delivery.content).collect();
    assert_eq!(texts, ["你好 from wechatpy", "again"]);
    let tokens: Vec<_> = control.requests("/**").into_iter().map(|request| request.token_params).collect();
    assert!(tokens.iter().all(|count| *count <= 1), "the SDK's own token is gone: {tokens:?}");
}
