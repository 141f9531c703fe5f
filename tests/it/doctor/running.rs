//! `status`, `token`, `reload` and `health` beside a running wxgate, whose secrets they cannot see; the
//! line with which it starts; manual pages and completions.

use std::{fs, process::Command};

use wxgate::sandbox::{Fault, Rule};

use super::Patient;
use crate::support::{
    Setup,
    program::{Ended, Program, finish, serve, wxgate},
};

/// A wxgate with an admin key, whose AppSecret is in its own environment only.
struct Running {
    patient: Patient,
    program: Program,
}

impl Running {
    async fn start(change: impl FnOnce(Setup) -> Setup, fault: Option<Rule>) -> Self {
        let keyed = |setup: Setup| setup.set("admin", "key = { env = \"WXGATE_ADMIN_KEY\" }");
        let patient = Patient::new(|setup| change(keyed(setup))).await;
        if let Some(rule) = fault {
            patient.sandbox.control().fault(rule);
        }
        let file = patient.path().join("wxgate.toml");
        let text = fs::read_to_string(&file).expect("it is there");
        let secret = wxgate::sandbox::DEFAULT_SECRET;
        let hidden = format!("secret = {{ value = \"{secret}\" }}");
        fs::write(
            &file,
            text.replace(&hidden, "secret = { env = \"SHOP_SECRET\" }"),
        )
        .expect("written");
        let mut command = serve(patient.path());
        command
            .env("WXGATE_ADMIN_KEY", "adm1n-k3y-of-the-test")
            .env("SHOP_SECRET", secret);
        let program = Program::start(&mut command);
        program.admin();
        Self { patient, program }
    }

    /// Runs a command in a folder without configuration, with the address and a key file.
    fn ask(&self, arguments: &[&str]) -> Ended {
        let key = self.patient.path().join("admin.key");
        fs::write(&key, "adm1n-k3y-of-the-test\n").expect("written");
        let mut command = self.bare(arguments);
        command.arg("--key-file").arg(key);
        finish(command)
    }

    fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = wxgate(arguments);
        command
            .args(["--admin", &format!("http://{}", self.program.admin())])
            .current_dir(std::env::temp_dir());
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_need_the_admin_key_and_no_appsecret() {
    let running = Running::start(|setup| setup, None).await;
    running.program.logged("new access token");
    let status = running.ask(&["status"]);
    assert_eq!(status.status, Some(0), "{status:?}");
    assert!(status.stdout.contains("shop  ok"), "{status:?}");
    for arguments in [&["token", "shop"][..], &["token", "shop", "--refresh"]] {
        let ended = running.ask(arguments);
        assert_eq!(ended.status, Some(0), "{arguments:?}: {ended:?}");
        assert!(ended.stdout.contains("\"generation\": 1"), "{ended:?}");
    }
    let reload = running.ask(&["reload"]);
    assert_eq!(reload.status, Some(0), "{reload:?}");
    assert!(reload.stdout.contains("\"reloaded\": true"), "{reload:?}");
    // By the variable, and by the configuration, whose other secrets stay unread.
    let mut command = running.bare(&["token", "shop"]);
    command.env("WXGATE_ADMIN_KEY", "adm1n-k3y-of-the-test");
    assert_eq!(finish(command).status, Some(0));
    let file = running.patient.path().join("wxgate.toml");
    let text = fs::read_to_string(&file).expect("it is there");
    let admin = running.program.admin().to_string();
    let (before, after) = text.split_once("[admin]").expect("a table");
    let after = after.replacen("127.0.0.1:0", &admin, 1);
    fs::write(&file, format!("{before}[admin]{after}")).expect("written");
    let mut command = running.patient.command(&["token", "shop"]);
    command.env("WXGATE_ADMIN_KEY", "adm1n-k3y-of-the-test");
    let ended = finish(command);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    // A bad configuration is refused by the one that runs, and told.
    fs::write(&file, "[server\n").expect("written");
    let refused = running.ask(&["reload"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("this is not TOML"), "{refused:?}");
    assert_eq!(running.program.stop().status, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_key_is_told() {
    let running = Running::start(|setup| setup, None).await;
    running.program.logged("new access token");
    let none = finish(running.bare(&["token", "shop"]));
    assert_eq!(none.status, Some(1), "{none:?}");
    assert!(none.stderr.contains("--key-file"), "{none:?}");
    let mut command = running.bare(&["status"]);
    command.env("WXGATE_ADMIN_KEY", "wrong");
    let wrong = finish(command);
    assert_eq!(wrong.status, Some(3), "{wrong:?}");
    let mut command = running.bare(&["token", "shop"]);
    command.args(["--key-file", "/nonexistent/key"]);
    let missing = finish(command);
    assert_eq!(
        (missing.status, missing.stderr.contains("--key-file")),
        (Some(2), true),
        "{missing:?}"
    );
    let unset = finish(running.patient.command(&["token", "shop"]));
    assert_eq!(unset.status, Some(78), "{unset:?}");
    assert!(
        unset.stderr.contains("admin.key") && unset.stderr.contains("--key-file"),
        "{unset:?}"
    );
    assert!(!unset.stderr.contains("SHOP_SECRET"), "{unset:?}");
    assert_eq!(running.program.stop().status, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_scripts_how_bad_it_is() {
    let wrong: Fault = serde_json::from_str(r#"{"kind":"errcode","code":40125}"#).expect("a fault");
    let rule = || Rule::new("/cgi-bin/stable_token", wrong.clone()).always();
    let bad = |name: &str| {
        format!(
            "[[account]]\nname = \"{name}\"\nappid = \"wx2222222222222222\"\nsecret = {{ value = \"x\" }}\napi = [\"{{api}}\"]\n"
        )
    };
    let running = Running::start(|setup| setup.more(&bad("two")), None).await;
    running.program.logged("new access token");
    running.program.logged("40013");
    let some = running.ask(&["status"]);
    assert_eq!(some.status, Some(1), "{some:?}");
    assert!(
        some.stdout.contains("40013") && some.stderr.contains("1 of 2 account(s)"),
        "{some:?}"
    );
    assert_eq!(running.program.stop().status, Some(0));

    let running = Running::start(|setup| setup, Some(rule())).await;
    running.program.logged("40125");
    let none = running.ask(&["status"]);
    assert_eq!(none.status, Some(3), "{none:?}");
    assert!(none.stdout.contains("40125"), "{none:?}");
    let Running { patient, program } = running;
    let address = format!("http://{}", program.admin());
    assert_eq!(program.stop().status, Some(0));
    let mut command = wxgate(&["status", "--admin", &address]);
    command
        .env("WXGATE_ADMIN_KEY", "k")
        .current_dir(patient.path());
    let gone = finish(command);
    assert_eq!(gone.status, Some(3), "{gone:?}");
    assert!(gone.stderr.contains("no wxgate answers"), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_looks_at_a_probe_and_needs_no_key() {
    let wrong: Fault = serde_json::from_str(r#"{"kind":"errcode","code":40125}"#).expect("a fault");
    let rule = Rule::new("/cgi-bin/stable_token", wrong).always();
    let running = Running::start(|setup| setup, Some(rule)).await;
    running.program.logged("40125");
    let alive = finish(running.bare(&["health"]));
    assert_eq!(
        (alive.status, alive.stdout.as_str()),
        (Some(0), "alive\n"),
        "{alive:?}"
    );
    let ready = finish(running.bare(&["health", "--ready"]));
    assert_eq!(ready.status, Some(1), "{ready:?}");
    assert!(ready.stderr.contains("503"), "{ready:?}");
    let address = running.program.admin().to_string();
    assert_eq!(running.program.stop().status, Some(0));
    let gone = finish(wxgate(&["health", "--admin", &address]));
    assert_eq!(gone.status, Some(1), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_line_tells_what_runs() {
    let running = Running::start(|setup| setup.set("store", "kind = \"file\""), None).await;
    let line = running.program.logged("wxgate has started");
    for part in [
        &format!("version={}", env!("CARGO_PKG_VERSION"))[..],
        "wxgate.toml",
        "accounts=1",
        "store=file:",
        &format!("listen={}", running.program.proxy()),
        &format!("admin={}", running.program.admin()),
    ] {
        let plain = line.replace('"', "");
        assert!(plain.contains(part), "{part} is not in {line}");
    }
    assert_eq!(running.program.stop().status, Some(0));
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = wxgate(&["man"]);
    command.arg(folder.path().join("man1"));
    let ended = finish(command);
    assert_eq!(
        (ended.status, ended.stdout.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    let whole = finish(wxgate(&["man"])).stdout;
    let bash = finish(wxgate(&["completions", "bash"])).stdout;
    for name in [
        "serve",
        "check",
        "status",
        "token",
        "reload",
        "health",
        "demo",
        "sandbox",
        "schema",
        "completions",
        "man",
    ] {
        let path = folder.path().join(format!("man1/wxgate-{name}.1"));
        let page = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(page.contains(&format!(".TH wxgate-{name} 1")), "{page}");
        assert!(whole.contains(&format!(".TH wxgate-{name} 1")), "{name}");
        assert!(
            bash.contains(&format!("wxgate__subcmd__{name}")) || bash.contains(name),
            "{name}"
        );
    }
    let page = fs::read_to_string(folder.path().join("man1/wxgate.1")).expect("the main page");
    assert!(page.contains(".TH wxgate 1"), "{page}");
    let status = fs::read_to_string(folder.path().join("man1/wxgate-status.1")).expect("a page");
    for option in ["admin", "key\\-file", "config", "log\\-format"] {
        assert!(status.contains(option), "{option}: {status}");
    }
}
