//! SIGUSR2: the program on disk takes the place of the running one, and no call is lost.

use std::fs;

use rustix::process::Signal;
use tokio::net::UnixStream;
use wxgate::sandbox::{DEFAULT_APPID, Fault, Rule, TokenKind};

use super::service::{Service, is_alive, locked_by, stored};
use crate::support::{
    client, header,
    program::{finish, serve},
    raw::Wire,
};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_hands_listeners_lock_and_token_on_and_ends_calls_under_way() {
    let setup = stored().set("server", "listen = [\"127.0.0.1:0\", \"unix:gate.sock\"]");
    let mut service = Service::start(setup).await;
    let proxy = service.proxy();
    let admin = service.admin();
    service.logged("new access token", 1);
    let socket = service.folder.path().join("gate.sock");
    let control = service.sandbox.control().clone();
    let rule = control.fault(Rule::new("/cgi-bin/user/get", Fault::Pass).hold());
    let mut waiting = Wire::connect(proxy).await;
    waiting
        .send(&INFO.replace("user/info?openid=o", "user/get"))
        .await;
    control.until(|control| control.hits(rule) == 1).await;
    let mut kept = Wire::connect(proxy).await;
    assert_eq!(kept.ask(INFO).await.expect("an answer").status, 200);

    service.replace();
    assert_eq!(locked_by(service.folder.path()), Some(service.pid()));
    // The old process answers what it has taken, and asks for no other node.
    let reply = kept.ask(INFO).await.expect("an answer");
    assert_eq!((reply.status, reply.header("connection")), (200, "close"));
    control.release(rule);
    assert_eq!(waiting.reply().await.expect("an answer").status, 200);
    let ready = client().get(format!("http://{admin}/readyz")).send().await;
    assert_eq!(ready.expect("an answer").status(), 200);
    service.ended(0);
    assert!(service.first.wait().expect("a child").success());

    // Now the new one is alone.
    let mut unix = Wire::over(
        UnixStream::connect(&socket)
            .await
            .expect("it is still there"),
    );
    assert_eq!(unix.ask(INFO).await.expect("an answer").status, 200);
    let second = finish(serve(service.folder.path()));
    assert!(
        second.stderr.contains("another wxgate"),
        "{}",
        second.stderr
    );
    assert!(
        second
            .stderr
            .contains(&service.pid().as_raw_nonzero().to_string()),
        "{}",
        second.stderr
    );
    assert_eq!(control.fetches(), 1, "the token is handed on");
    service.stop();
    assert!(!socket.exists(), "the last one removes it");
}

/// A second token would end the first one at once.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_in_memory_are_handed_on_too() {
    for token in ["classic", "stable"] {
        let setup = stored()
            .set("store", "kind = \"memory\"")
            .account(&format!("token = \"{token}\""));
        let service = Service::start(setup).await;
        let proxy = service.proxy();
        service.logged("new access token", 1);
        let mut wire = Wire::connect(proxy).await;
        assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
        service.signal(Signal::USR2);
        service.logged("replaced: the new process", 1);
        let mut wire = Wire::connect(proxy).await;
        assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
        assert_eq!(service.sandbox.control().fetches(), 1, "{token}");
        stop_successor(proxy).await;
    }
}

/// Without a lock file, the new process is found by its listening socket.
async fn stop_successor(proxy: std::net::SocketAddr) {
    let port = format!("{:04X} ", proxy.port());
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux tells");
    let inode = table
        .lines()
        .find(|line| line.contains(&format!(":{port}")) && line.contains(" 0A "))
        .and_then(|line| line.split_whitespace().nth(9))
        .expect("it listens")
        .to_owned();
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").expect("Linux tells").flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"));
        let mut links = descriptors.into_iter().flatten().flatten();
        let listens = links.any(|link| {
            fs::read_link(link.path()).is_ok_and(|target| target.to_string_lossy() == wanted)
        });
        let pid = rustix::process::Pid::from_raw(pid).expect("a number");
        if listens && is_alive(pid) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// The process that serves fetches; the one that drains takes its token from the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_dies_while_the_old_process_drains_is_replaced_once() {
    let setup = stored().account("token = \"classic\"");
    let mut service = Service::start(setup).await;
    let proxy = service.proxy();
    service.logged("new access token", 1);
    let control = service.sandbox.control().clone();
    let mut old = Wire::connect(proxy).await;
    assert_eq!(old.ask(INFO).await.expect("an answer").status, 200);
    service.replace();
    let first = control.current_token(DEFAULT_APPID, TokenKind::Classic);
    control.revoke(DEFAULT_APPID);
    // One request on it: the old process may still take it, and closes it after an answer.
    let mut new = Wire::connect(proxy).await;
    // Both processes find the token dead.
    old.send(INFO).await;
    new.send(INFO).await;
    for (name, wire) in [("old", &mut old), ("new", &mut new)] {
        let reply = wire.reply().await.expect("an answer");
        assert!(!reply.text().contains("40001"), "{name}: {}", reply.text());
        assert_eq!(reply.status, 200, "{name}");
    }
    assert_ne!(
        control.current_token(DEFAULT_APPID, TokenKind::Classic),
        first
    );
    assert_eq!(control.fetches(), 2, "{}", service.log());
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_process_has_the_configuration_of_the_disk_and_its_own_children_no_listener() {
    let mut service = Service::start(stored()).await;
    let proxy = service.proxy();
    service.logged("new access token", 1);
    let file = service.folder.path().join("wxgate.toml");
    let text = fs::read_to_string(&file).expect("it is there");
    fs::write(
        &file,
        text.replace("[server]\n", "[server]\nmax_body = \"16B\"\n"),
    )
    .expect("mine");
    service.replace();
    let answer = client()
        .post(format!("http://{proxy}/cgi-bin/message/custom/send"))
        .body("x".repeat(64))
        .send()
        .await
        .expect("an answer");
    assert_eq!(header(&answer, "x-wxgate-error"), "body_too_large");
    // A second replacement, from the process that was started by the first one.
    service.ended(0);
    service.replace();
    let descriptors = format!("/proc/{}/fdinfo", service.pid().as_raw_nonzero());
    for descriptor in fs::read_dir(descriptors).expect("it runs").flatten() {
        let number: u32 = descriptor
            .file_name()
            .to_string_lossy()
            .parse()
            .expect("a number");
        let info = fs::read_to_string(descriptor.path()).unwrap_or_default();
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .map(|flags| u32::from_str_radix(flags.trim(), 8).expect("octal"));
        // O_CLOEXEC
        let closes = flags.is_none_or(|flags| flags & 0o2_000_000 != 0);
        let link = format!("/proc/{}/fd/{number}", service.pid().as_raw_nonzero());
        let target = fs::read_link(link).unwrap_or_default();
        let target = target.to_string_lossy();
        let is_ours = target.starts_with("socket:") || target.ends_with("/lock");
        assert!(
            number < 3 || closes || !is_ours,
            "{number} {target}: {info}"
        );
    }
    service.stop();
}
