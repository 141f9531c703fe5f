//! What a service manager hears (`sd_notify`), in order.

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use rustix::process::Signal;

use super::service::{Service, stored};
use crate::support::program::LIMIT;

/// The next message other than of the watchdog and of states of accounts.
#[track_caller]
fn next(socket: &UnixDatagram) -> String {
    loop {
        let message = any(socket);
        if message != "WATCHDOG=1" && !message.starts_with("STATUS=") {
            return message;
        }
    }
}

#[track_caller]
fn any(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("a message in time");
    String::from_utf8(buffer[..length].to_vec()).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn start_reload_replacement_and_stop_are_told_in_order() {
    let place = tempfile::tempdir().expect("a folder");
    let path = place.path().join("notify");
    let name = format!("wxgate-test-{}", std::process::id());
    let by_name = SocketAddr::from_abstract_name(&name).expect("a name");
    for (socket, address) in [
        (UnixDatagram::bind(&path), path.display().to_string()),
        (UnixDatagram::bind_addr(&by_name), format!("@{name}")),
    ] {
        let socket = socket.expect("bound");
        socket.set_read_timeout(Some(LIMIT)).expect("a limit");
        let mut service = Service::start_with(stored(), |command| {
            command.env("NOTIFY_SOCKET", &address);
        })
        .await;
        assert_eq!(next(&socket), "READY=1\nSTATUS=serving");
        service.logged("new access token", 1);

        service.signal(Signal::HUP);
        let reloading = next(&socket);
        let usec = reloading
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .and_then(|rest| rest.lines().next()?.parse::<u64>().ok());
        assert!(usec.is_some_and(|usec| usec > 0), "{reloading}");
        assert_eq!(next(&socket), "READY=1\nSTATUS=serving");

        service.replace();
        let main = format!("MAINPID={}", service.pid().as_raw_nonzero());
        assert_eq!(next(&socket), format!("{main}\nREADY=1\nSTATUS=serving"));
        assert_eq!(next(&socket), main, "from the process that it knows");
        service.ended(0);

        service.signal(Signal::TERM);
        let stopping = next(&socket);
        assert!(stopping.starts_with("STOPPING=1\nSTATUS="), "{stopping}");
        service.ended(1);
        // Neither process has said anything else.
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .expect("a limit");
        let mut buffer = [0; 16];
        assert!(socket.recv(&mut buffer).is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_hears_of_a_node_that_works_and_not_of_one_that_does_not_run() {
    let place = tempfile::tempdir().expect("a folder");
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(LIMIT)).expect("a limit");
    let mut service = Service::start_with(stored(), |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "400000");
    })
    .await;
    let heard = |socket: &UnixDatagram, wanted: &str| while !any(socket).contains(wanted) {};
    heard(&socket, "STATUS=serving; 1 of 1 accounts have a token");
    for _ in 0..3 {
        heard(&socket, "WATCHDOG=1");
    }
    // Goes on in the process that replaces this one.
    service.replace();
    service.ended(0);
    for _ in 0..3 {
        heard(&socket, "WATCHDOG=1");
    }
    service.signal(Signal::STOP);
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a limit");
    let mut buffer = [0; 4096];
    let mut later = 0;
    while socket.recv(&mut buffer).is_ok() {
        later += 1;
    }
    assert!(later < 10, "only what was sent before");
    service.signal(Signal::CONT);
    // And during a stop, which takes longer than the watchdog waits.
    service.signal(Signal::TERM);
    heard(&socket, "STOPPING=1");
    for _ in 0..3 {
        heard(&socket, "WATCHDOG=1");
    }
    service.ended(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watchdog_for_another_process_is_not_served() {
    let place = tempfile::tempdir().expect("a folder");
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(LIMIT)).expect("a limit");
    let mut service = Service::start_with(stored(), |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .envs([("WATCHDOG_USEC", "200000"), ("WATCHDOG_PID", "1")]);
    })
    .await;
    service.logged("new access token", 1);
    service.signal(Signal::TERM);
    loop {
        let message = any(&socket);
        assert_ne!(message, "WATCHDOG=1");
        if message.starts_with("STOPPING=1") {
            break;
        }
    }
    service.ended(0);
}
