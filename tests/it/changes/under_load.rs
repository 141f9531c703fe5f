//! Replacements of the program, and restarts behind listeners that a service manager holds, under
//! clients that never try again.
//!
//! `WXGATE_TEST_CHANGES=20` makes it twenty of each, with more than 40,000 calls in each test; that
//! takes minutes.

use std::{env, fs, net::TcpListener};

use rustix::process::{Pid, Signal, kill_process};
use wxgate::sandbox;

use super::{
    activation::{passed, sockets},
    load::Load,
    service::{Node, Service, prepare, stored},
};

/// Answers between two changes in the full form.
const BETWEEN: usize = 2000;

/// Number of changes, and of answers between two of them.
fn extent() -> (usize, usize) {
    let changes = env::var("WXGATE_TEST_CHANGES")
        .ok()
        .map(|text| text.parse().expect("a number"));
    changes.map_or((3, 300), |changes| (changes, BETWEEN))
}

#[tokio::test(flavor = "multi_thread")]
async fn replacements_lose_no_call_and_double_none() {
    let (changes, between) = extent();
    let mut service = Service::start(stored()).await;
    let proxy = service.proxy();
    service.logged("new access token", 1);
    let file = service.folder.path().join("wxgate.toml");
    let good = fs::read_to_string(&file).expect("it is there");
    let load = Load::start(proxy);
    for change in 1..=changes {
        load.answers(between / 2);
        // First in vain: the old process goes on.
        fs::write(&file, good.replace("[server]", "[sever]")).expect("mine");
        service.signal(Signal::USR2);
        service.logged("the program is not replaced", change);
        fs::write(&file, &good).expect("mine");
        load.answers(between / 2);
        service.replace();
    }
    load.answers(between);
    let calls = load.end(service.sandbox.control());
    println!(
        "{changes} replacements, as many in vain: {calls} calls, each answered once and sent once"
    );
    assert_eq!(service.sandbox.control().fetches(), 1, "the token goes on");
    for index in 0..changes {
        service.ended(index);
    }
    assert!(service.first.wait().expect("a child").success());
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_behind_a_held_listener_lose_no_call_and_double_none() {
    let (changes, between) = extent();
    let data = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let admin = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (proxy, setup) = sockets(stored(), &data, &admin);
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = prepare(&setup, &sandbox);
    let command = || passed(folder.path(), &data, &admin, ":");
    let mut node = Node(command().spawn().expect("the program starts"));
    let load = Load::start(proxy);
    for _ in 0..changes {
        load.answers(between);
        kill_process(Pid::from_child(&node.0), Signal::TERM).expect("it runs");
        assert!(node.0.wait().expect("a child").success());
        // Between these two lines nobody takes connections.
        node = Node(command().spawn().expect("the program starts"));
    }
    load.answers(between);
    let calls = load.end(sandbox.control());
    println!("{changes} restarts: {calls} calls, each answered once and sent once");
    assert_eq!(sandbox.control().fetches(), 1, "the token goes on");
}
