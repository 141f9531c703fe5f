//! Replacements that do not come about: the running process goes on, serves and fetches.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use rustix::process::Signal;
use wxgate::sandbox;

use super::service::{Service, clean, locked_by, prepare, program, stored};
use crate::support::{client, raw::Wire};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";

/// Puts a script in the place of the program.
fn install(service: &Service, script: &str) {
    let path = program(service.folder.path());
    fs::remove_file(&path).expect("the link is there");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("mine");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mine");
}

/// Checks that the first process serves, and fetches when a token dies.
async fn goes_on(service: &mut Service, fetches: u64) {
    let proxy = service.proxy();
    let admin = service.admin();
    assert!(service.first.try_wait().expect("a child").is_none());
    assert_eq!(locked_by(service.folder.path()), Some(service.pid()));
    let control = service.sandbox.control();
    assert_eq!(control.fetches(), fetches);
    let mut wire = Wire::connect(proxy).await;
    for revoked in [false, true] {
        if revoked {
            control.revoke(sandbox::DEFAULT_APPID);
        }
        let reply = wire.ask(INFO).await.expect("an answer");
        assert!(reply.text().contains("openid"), "{}", reply.text());
    }
    assert_eq!(control.fetches(), fetches + 1);
    let reload = client()
        .post(format!("http://{admin}/api/reload"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(reload.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_come_to_serve_leaves_the_old_one_serving() {
    let limit = |command: &mut Command| {
        command.env("WXGATE_HANDOVER_LIMIT_MS", "1500");
    };
    let mut service = Service::start_with(stored(), limit).await;
    service.logged("new access token", 1);
    let mut fetches = 1;
    for (script, reason) in [
        ("exit 7", "ended before it served (exit status: 7)"),
        ("kill -9 $$", "ended before it served (signal: 9"),
        ("exec sleep 600", "did not serve within 1.5 s and was ended"),
        (
            "exec 0</dev/null; exec sleep 600",
            "ended before it served (signal: 9",
        ),
        (
            "printf 'nonsense, and more of it' >&0; exec sleep 600",
            "could not be talked to and was ended",
        ),
    ] {
        install(&service, script);
        service.signal(Signal::USR2);
        let line = service.logged(
            "the program is not replaced",
            usize::try_from(fetches).unwrap(),
        );
        assert!(line.contains(reason), "{script}: {line}");
        assert!(line.contains("/wxgate "), "{line}");
        goes_on(&mut service, fetches).await;
        fetches += 1;
    }
    // No file at all, and one that is no program.
    let path = program(service.folder.path());
    for (index, prepare) in [
        |path: &std::path::Path| fs::write(path, "no program").expect("mine"),
        |path: &std::path::Path| fs::remove_file(path).expect("mine"),
    ]
    .into_iter()
    .enumerate()
    {
        prepare(&path);
        service.signal(Signal::USR2);
        let line = service.logged("cannot be started", index + 1);
        assert!(line.contains("the program is not replaced"), "{line}");
        goes_on(&mut service, fetches).await;
        fetches += 1;
    }
    // And then a good one.
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_wxgate"), &path).expect("a link");
    service.replace();
    service.ended(0);
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_used_leaves_the_old_process_serving() {
    let mut service = Service::start(stored()).await;
    service.logged("new access token", 1);
    let file = service.folder.path().join("wxgate.toml");
    let text = fs::read_to_string(&file).expect("it is there");
    fs::write(&file, text.replace("[server]", "[sever]")).expect("mine");
    service.signal(Signal::USR2);
    let line = service.logged("the program is not replaced", 1);
    assert!(line.contains("exit status: 78"), "{line}");
    assert!(service.log().contains("sever"), "the new process says why");
    fs::write(&file, text).expect("mine");
    goes_on(&mut service, 1).await;
    service.stop();
}

/// While the first one waits for its new process, nothing else gets in its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_is_told_and_a_stop_ends_the_new_process() {
    let mut service = Service::start(stored()).await;
    service.logged("new access token", 1);
    install(&service, "echo $$ >child; exec sleep 600");
    service.signal(Signal::USR2);
    service.logged("replacing this process", 1);
    let child = service.folder.path().join("child");
    while !fs::read_to_string(&child).is_ok_and(|pid| pid.ends_with('\n')) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let child = fs::read_to_string(&child).expect("it is there");
    let child = rustix::process::Pid::from_raw(child.trim().parse().expect("a number"));
    service.signal(Signal::USR2);
    service.logged("another replacement is under way", 1);
    service.signal(Signal::TERM);
    service.logged("wxgate is stopping", 1);
    service.ended(0);
    assert!(service.first.wait().expect("a child").success());
    assert!(!super::service::is_alive(child.expect("a number")));
}

/// Where the tests may not make namespaces, this says so and passes.
#[tokio::test(flavor = "multi_thread")]
async fn process_1_is_not_replaced() {
    let unshare = ["--pid", "--fork", "--kill-child", "--map-root-user"];
    let possible = Command::new("unshare").args(unshare).arg("true").status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no unshare, or no right to make a PID namespace");
        return;
    }
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = prepare(&stored(), &sandbox);
    let mut command = Command::new("unshare");
    command
        .args(unshare)
        .arg(program(folder.path()))
        .args(["serve", "--config", "wxgate.toml"]);
    clean(&mut command, folder.path());
    let mut service = Service::run(command, folder, sandbox);
    service.logged("new access token", 1);
    let outside = format!(
        "/proc/{0}/task/{0}/children",
        service.pid().as_raw_nonzero()
    );
    let child = fs::read_to_string(outside).expect("Linux tells");
    let child = child
        .trim()
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(child.expect("one"), Signal::USR2).expect("it runs");
    let line = service.logged("the program is not replaced", 1);
    assert!(
        line.contains("process 1") && line.contains("restart the container"),
        "{line}"
    );
    let proxy = service.proxy();
    let reply = Wire::connect(proxy).await.ask(INFO).await;
    assert_eq!(reply.expect("an answer").status, 200);
    let _ = service.first.kill();
}
