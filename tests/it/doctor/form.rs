//! `wxgate check` on the form of a configuration: slips that the text itself shows. They are warnings,
//! lines of the start, and stop nothing.

use std::process::Command;

use super::Patient;
use crate::support::program::{Ended, Program, finish, serve};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const APPID: &str = "wx0123456789abcdef";

async fn patient(appid: &str, secret: &[u8]) -> Patient {
    let patient = Patient::new(|setup| setup).await;
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n[store]\nkind = \"memory\"\n\
         [upstream]\nca_file = \"root.pem\"\n[[account]]\nname = \"shop\"\nappid = \"{appid}\"\n\
         secret = {{ file = \"shop.secret\" }}\napi = [\"{}\"]\n",
        patient.sandbox.https_url().expect("it listens")
    );
    patient.put("wxgate.toml", &text);
    std::fs::write(patient.path().join("shop.secret"), secret).expect("written");
    patient
}

fn check(patient: &Patient, change: impl FnOnce(&mut Command)) -> Ended {
    let mut command = patient.command(&["check"]);
    change(&mut command);
    finish(command)
}

#[track_caller]
fn assert_warned(case: &str, ended: &Ended, part: &str) {
    assert_eq!(ended.status, Some(0), "{case}: {ended:?}");
    let warned = ended
        .stdout
        .lines()
        .any(|line| line.starts_with("warning: ") && line.contains(part));
    assert!(warned, "{case}: no warning has {part:?}: {}", ended.stdout);
    assert!(!ended.stdout.contains(SECRET), "{case}: {}", ended.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn slips_in_appid_and_secret_are_told() {
    let fine = check(&patient(APPID, SECRET.as_bytes()).await, |_| {});
    assert!(!fine.stdout.contains("warning"), "{fine:?}");
    for (case, appid, secret, part) in [
        (
            "BOM",
            APPID,
            format!("\u{feff}{SECRET}\n"),
            "byte order mark",
        ),
        (
            "quotes",
            APPID,
            format!("\"{SECRET}\"\n"),
            "a pair of quotes around the AppSecret was removed",
        ),
        (
            "Chinese quotes",
            APPID,
            format!("\u{201c}{SECRET}\u{201d}"),
            "a pair of quotes",
        ),
        (
            "trailing blank",
            APPID,
            format!("{SECRET} \n"),
            "a blank around the AppSecret was removed",
        ),
        (
            "U+200B",
            APPID,
            format!("{SECRET}\u{200b}"),
            "invisible character",
        ),
        (
            "31 characters",
            APPID,
            SECRET[1..].to_owned(),
            "has 31 characters",
        ),
        (
            "NAME=",
            APPID,
            format!("SHOP_SECRET={SECRET}"),
            "reads NAME=",
        ),
        ("gh_", "gh_0123456789ab", SECRET.to_owned(), "original ID"),
        (
            "upper case",
            "WX0123456789ABCDEF",
            SECRET.to_owned(),
            "capital letters",
        ),
        (
            "17 characters",
            "wx0123456789abcde",
            SECRET.to_owned(),
            "has 17 characters",
        ),
        (
            "exchanged",
            "fedcba9876543210fedcba9876543210",
            APPID.to_owned(),
            "are appid and secret exchanged",
        ),
    ] {
        let ended = check(&patient(appid, secret.as_bytes()).await, |_| {});
        assert_warned(case, &ended, part);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleaned_secret_is_the_one_that_is_used_and_the_start_tells_it() {
    let secret = wxgate::sandbox::DEFAULT_SECRET;
    let patient = patient(APPID, format!("\u{feff}\"{secret}\" \n").as_bytes()).await;
    let program = Program::start(&mut serve(patient.path()));
    program.logged("a pair of quotes around the AppSecret was removed");
    program.logged("new access token");
    assert!(!program.stderr().contains(secret));
    assert_eq!(program.stop().status, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_accounts_without_a_default_are_told() {
    let more = format!(
        "[[account]]\nname = \"two\"\nappid = \"wx0123456789abcdee\"\nsecret = {{ value = \"{SECRET}\" }}\n"
    );
    let patient = Patient::new(|setup| setup.more(&more)).await;
    assert_warned(
        "two accounts",
        &check(&patient, |_| {}),
        "default_account: is not set",
    );
    let patient = Patient::new(|setup| setup.more(&more).default_account("shop")).await;
    let ended = check(&patient, |_| {});
    assert!(!ended.stdout.contains("default_account"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_with_one_underscore_too_few_is_told() {
    let patient = patient(APPID, SECRET.as_bytes()).await;
    for (name, meant) in [
        ("WXGATE_SERVER_LISTEN", "WXGATE_SERVER__LISTEN"),
        (
            "WXGATE_SERVER_MAX_CONNECTIONS",
            "WXGATE_SERVER__MAX_CONNECTIONS",
        ),
        ("WXGATE_SERVER_TLS_CERT", "WXGATE_SERVER__TLS__CERT"),
        ("WXGATE_UPSTREAM_PROXY", "WXGATE_UPSTREAM__PROXY"),
        ("WXGATE_STORE_URL", "WXGATE_STORE__URL__VALUE"),
    ] {
        let ended = check(&patient, |command| {
            command.env(name, "x");
        });
        assert_warned(name, &ended, &format!("did you mean {meant}"));
        assert!(
            ended
                .stdout
                .contains(&format!("environment variable {name}")),
            "{ended:?}"
        );
    }
    for name in [
        "WXGATE_ADMIN_KEY",
        "WXGATE_LOG_FORMAT",
        "WXGATE_STORE_KEY",
        "WXGATE_SHOP_SECRET",
    ] {
        let ended = check(&patient, |command| {
            command.env(name, "text");
        });
        assert!(!ended.stdout.contains("did you mean"), "{name}: {ended:?}");
    }
    // A secret of the configuration reads that very name.
    let text = std::fs::read_to_string(patient.path().join("wxgate.toml")).expect("it is there");
    let text = text.replace("file = \"shop.secret\"", "env = \"WXGATE_UPSTREAM_PROXY\"");
    patient.put("wxgate.toml", &text);
    let ended = check(&patient, |command| {
        command.env("WXGATE_UPSTREAM_PROXY", SECRET);
    });
    assert!(!ended.stdout.contains("did you mean"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syntax_error_is_one_line_with_its_place() {
    let patient = Patient::new(|setup| setup).await;
    let rest = "\n[[account]]\nname = \"shop\"\nappid = \"wx0123456789abcdef\"\nsecret = { env = \"SHOP_SECRET\" }\n";
    for (case, text, part) in [
        (
            "missing quote",
            format!("[admin]\nlisten = \"127.0.0.1:8081{rest}"),
            "wxgate.toml:2: this is not TOML: ",
        ),
        (
            "Chinese quotes",
            format!("[admin]\nlisten = “127.0.0.1:8081”{rest}"),
            "column 10 has the character “ (U+201C)",
        ),
        (
            "Chinese comma",
            format!("[server]\nlisten = [\"a:1\"，\"b:1\"]{rest}"),
            "the character ， (U+FF0C)",
        ),
        (
            "Chinese brackets",
            format!("【admin】\nlisten = \"a:1\"{rest}"),
            "the character 【 (U+3010)",
        ),
        (
            "missing bracket",
            format!("[server\nlisten = [\"a:1\"]{rest}"),
            "wxgate.toml:1: this is not TOML: ",
        ),
        (
            "closing quote",
            format!("[admin]\nlisten = \"a:1”{rest}"),
            "wxgate.toml:2: this is not TOML: ",
        ),
    ] {
        patient.put("wxgate.toml", &text);
        let ended = check(&patient, |_| {});
        assert_eq!(ended.status, Some(78), "{case}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{case}: {}", ended.stderr);
        assert!(ended.stderr.contains(part), "{case}: {}", ended.stderr);
    }
}
