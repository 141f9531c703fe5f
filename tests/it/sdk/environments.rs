//! Interpreters and packages for the tests that run other people's clients.
//!
//! scripts/test makes the environments and names them in WXGATE_TEST_PYTHON and WXGATE_TEST_NODE;
//! without these, the same environments are made here, in the same places.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// What a machine needs; shown when something of it is missing.
const NEEDED: &str = "this test runs other people's clients: install python3 with venv and pip, nodejs, npm and curl \
                      (Debian: apt-get install python3-venv python3-pip nodejs npm curl), or let scripts/test do it";

/// Variables by which a client would go another way than the test wants, or believe somebody else.
const LEFT_OUT: [&str; 11] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
];

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A command that sees nothing of the caller's proxies and certificates.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for variable in LEFT_OUT {
        command.env_remove(variable);
    }
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A command that runs a script below `tests/sdk` with the SDKs.
pub fn script(path: &str) -> Command {
    let script = repository("tests/sdk").join(path);
    if path.ends_with(".py") {
        let mut python = command(python());
        python.arg(script);
        return python;
    }
    let mut node = command("node");
    node.env("NODE_PATH", node_modules())
        .arg("--require")
        .arg(repository("tests/sdk/node/takeover.js"))
        .arg(script);
    node
}

/// Runs a script, which ends in an error if its SDK has one to report, and returns what it saw.
pub async fn seen(mut script: Command) -> Value {
    let printed = tokio::task::spawn_blocking(move || run(&mut script))
        .await
        .expect("the SDK raised nothing");
    serde_json::from_slice(&printed).expect("JSON")
}

/// Runs a command that must succeed, and returns what it printed.
#[track_caller]
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; {NEEDED}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?} failed:\n{said}\n{NEEDED}"
    );
    output.stdout
}

/// A Python with nothing but its own library.
pub fn plain_python() -> OsString {
    std::env::var_os("WXGATE_TEST_PYTHON").unwrap_or_else(|| "python3".into())
}

/// A Python that has the SDKs.
pub fn python() -> OsString {
    if let Some(python) = std::env::var_os("WXGATE_TEST_PYTHON") {
        return python;
    }
    let (venv, requirements) = (
        repository("target/test-venv"),
        repository("tests/sdk/requirements.txt"),
    );
    let python = venv.join("bin/python");
    up_to_date(&venv, "installed.txt", &requirements, || {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--no-input",
            "--disable-pip-version-check",
            "--quiet",
            "-r",
        ]);
        run(pip.arg(&requirements));
    });
    python.into()
}

/// The folder of the Node SDKs, for NODE_PATH.
pub fn node_modules() -> OsString {
    if let Some(modules) = std::env::var_os("WXGATE_TEST_NODE") {
        return modules;
    }
    let (folder, source) = (repository("target/test-node"), repository("tests/sdk/node"));
    up_to_date(
        &folder,
        "installed.json",
        &source.join("package-lock.json"),
        || {
            fs::create_dir_all(&folder).expect("target can be written");
            for file in ["package.json", "package-lock.json", ".npmrc"] {
                fs::copy(source.join(file), folder.join(file)).expect("a copy");
            }
            let mut npm = Command::new("npm");
            run(npm
                .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
                .current_dir(&folder));
        },
    );
    folder.join("node_modules").into()
}

/// Makes a folder anew unless its stamp is a copy of this file. Tests that come at the same time
/// wait for each other.
fn up_to_date(folder: &Path, stamp: &str, wanted: &Path, make: impl FnOnce()) {
    let lock = fs::File::create(folder.with_extension("lock")).expect("target can be written");
    lock.lock().expect("a lock");
    let wanted = fs::read(wanted).expect("it is part of the tests");
    let stamp = folder.join(stamp);
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return;
    }
    let _ = fs::remove_dir_all(folder);
    make();
    fs::write(stamp, wanted).expect("the environment is ours");
}
