//! Stops and restarts in place: a connection that was taken gets its answer, whatever the moment.
//!
//! The clients are as simple as clients can be: one connection for each call, and no retry. A
//! refused connection between stop and start is counted apart, for there nobody listens.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use tokio::{
    net::UnixStream,
    time::{Instant, timeout},
};
use wxgate::{app::Grace, sandbox};

use crate::{
    node::listeners::{certificates, connector, shake},
    support::{
        Gate,
        program::{LIMIT, Program, folder, serve},
        raw::Wire,
        setup,
    },
};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";

/// Restarts of the real program, whose stop takes three seconds.
const PROGRAM_RESTARTS: usize = 5;
/// Restarts with a shorter grace, inside this process.
const RESTARTS: usize = 20;
/// Answers between two restarts.
const BETWEEN: usize = 100;

/// Clients at work, and what became of their calls.
struct Load {
    seen: Arc<Seen>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    over: AtomicBool,
    answered: AtomicUsize,
    refused: AtomicUsize,
    lost: AtomicUsize,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let seen = Arc::new(Seen::default());
        let client = || {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                while !seen.over.load(Relaxed) {
                    let count = match call(address) {
                        Ok(()) => &seen.answered,
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                            std::thread::sleep(Duration::from_millis(1));
                            &seen.refused
                        }
                        Err(error) => {
                            eprintln!("lost: {error}");
                            &seen.lost
                        }
                    };
                    count.fetch_add(1, Relaxed);
                }
            })
        };
        let clients = (0..4).map(|_| client()).collect();
        Self { seen, clients }
    }

    /// Waits until so many more calls were answered.
    async fn answers(&self, more: usize) {
        let enough = self.seen.answered.load(Relaxed) + more;
        let deadline = Instant::now() + LIMIT;
        while self.seen.answered.load(Relaxed) < enough {
            assert!(Instant::now() < deadline, "nothing is answered any more");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) {
        self.seen.over.store(true, Relaxed);
        for client in self.clients {
            tokio::task::spawn_blocking(|| client.join())
                .await
                .expect("no panic")
                .expect("no panic");
        }
        let (answered, refused) = (&self.seen.answered, &self.seen.refused);
        println!("answered {answered:?}, refused between stop and start {refused:?}");
        assert_eq!(self.seen.lost.load(Relaxed), 0, "taken and not answered");
    }
}

/// One call on a connection of its own. Any answer will do, whole and with its head.
fn call(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    // Whatever happens from here on is no refusal.
    let lost = |error: std::io::Error| std::io::Error::other(error);
    stream.set_read_timeout(Some(LIMIT))?;
    stream
        .write_all(INFO.replace("Host", "Connection: close\r\nHost").as_bytes())
        .map_err(lost)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(lost)?;
    if answer.starts_with(b"HTTP/1.1 ") {
        return Ok(());
    }
    Err(std::io::Error::other("closed without an answer"))
}

/// A port that nobody else gets for as long as the socket lives, although it does not listen: else
/// a client could get it as its own port while nobody listens there.
fn reserved() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("a socket");
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .expect("a free port");
    let address = socket.local_addr().expect("bound").as_socket();
    (socket, address.expect("TCP"))
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_of_the_program_under_load_lose_no_connection_that_was_taken() {
    let (_port, address) = reserved();
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let setup = setup().set("server", &format!("listen = [\"{address}\"]"));
    let folder = folder(&setup, &sandbox);
    let mut program = Program::start(&mut serve(folder.path()));
    program.proxy();
    let load = Load::start(address);
    for _ in 0..PROGRAM_RESTARTS {
        load.answers(BETWEEN).await;
        program.signal(Signal::TERM);
        let ended = tokio::task::spawn_blocking(|| program.end()).await;
        let ended = ended.expect("no panic");
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        program = Program::start(&mut serve(folder.path()));
    }
    load.answers(BETWEEN).await;
    load.end().await;
    assert_eq!(program.stop().status, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_restarts_under_load_lose_no_connection_that_was_taken() {
    let (_port, address) = reserved();
    let grace = Grace {
        leaving: Duration::from_millis(50),
        idle: Duration::from_millis(50),
        closing: LIMIT,
    };
    let setup = || {
        setup()
            .set("server", &format!("listen = [\"{address}\"]"))
            .grace(grace)
    };
    let mut gate = setup().start().await;
    let load = Load::start(address);
    for _ in 0..RESTARTS {
        load.answers(BETWEEN).await;
        let (sandbox, folder) = gate.stop_keeping().await;
        gate = setup().start_in(sandbox, folder).await;
    }
    load.answers(BETWEEN).await;
    load.end().await;
}

/// Waits until nobody listens at the address any more.
async fn closed(address: SocketAddr) {
    let deadline = Instant::now() + LIMIT;
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < deadline, "connections are still taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_taken_during_a_stop_of_the_program_are_served_once_when_they_ask_later() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = folder(&setup(), &sandbox);
    let program = Program::start(&mut serve(folder.path()));
    let address = program.proxy();
    program.logged("new access token");
    let mut early = Wire::connect(address).await;
    program.signal(Signal::TERM);
    program.logged("stopping: ");
    let mut late = Wire::connect(address).await;
    let mut half = Wire::connect(address).await;
    half.send(&INFO[..20]).await;
    closed(address).await;
    half.send(&INFO[20..]).await;
    for (name, wire) in [("early", &mut early), ("late", &mut late)] {
        wire.send(INFO).await;
        let reply = wire.reply().await.unwrap_or_else(|| panic!("{name}"));
        assert_eq!(reply.status, 200, "{name}");
        assert_eq!(reply.header("connection"), "close", "{name}");
        assert!(wire.is_closed().await, "{name}");
    }
    assert_eq!(half.reply().await.expect("an answer").status, 200);
    let ended = tokio::task::spawn_blocking(|| program.end()).await;
    assert_eq!(ended.expect("no panic").status, Some(0));
}

/// Begins to stop a gate. The task ends with it.
fn stop(gate: Gate) -> tokio::task::JoinHandle<(std::io::Result<()>, String)> {
    tokio::spawn(gate.stop())
}

fn grace(idle: Duration) -> Grace {
    Grace {
        leaving: Duration::from_millis(100),
        idle,
        closing: LIMIT,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_may_ask_once_more_and_an_idle_one_is_closed_in_the_end() {
    for (idle, asks) in [(LIMIT, true), (Duration::from_millis(300), false)] {
        let gate = setup().grace(grace(idle)).start().await;
        let address = gate.proxy;
        let mut kept = Wire::connect(address).await;
        assert_eq!(kept.ask(INFO).await.expect("an answer").status, 200);
        let stopping = stop(gate);
        closed(address).await;
        if asks {
            let reply = kept.ask(INFO).await.expect("an answer");
            assert_eq!((reply.status, reply.header("connection")), (200, "close"));
        }
        assert!(kept.is_closed().await);
        let (ended, _) = timeout(LIMIT, stopping)
            .await
            .expect("it ends")
            .expect("no panic");
        assert!(ended.is_ok(), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_under_way_at_the_stop_is_finished_and_served() {
    let gate = crate::node::listeners::start_in(
        setup().grace(grace(Duration::ZERO)).set(
            "server",
            "tls = { cert = \"server.pem\", key = \"server.key\" }",
        ),
        certificates(),
    )
    .await;
    let address = gate.proxy;
    let connector = connector(gate.folder.path(), None, &rustls::version::TLS13);
    let tcp = tokio::net::TcpStream::connect(address)
        .await
        .expect("it listens");
    let stopping = stop(gate);
    closed(address).await;
    let mut wire = Wire::over(shake(&connector, tcp).await.expect("a handshake"));
    assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
    let (ended, _) = stopping.await.expect("no panic");
    assert!(ended.is_ok(), "{ended:?}");
}

/// The limit keeps them in the queue of the kernel until the stop, where nobody may forget them.
#[tokio::test(flavor = "multi_thread")]
async fn the_queue_of_a_listener_is_emptied_before_it_is_closed() {
    let gate = setup()
        .grace(grace(Duration::ZERO))
        .set("server", "max_connections = 1")
        .set("server", "listen = [\"127.0.0.1:0\", \"unix:gate.sock\"]")
        .start()
        .await;
    let socket = gate.folder.path().join("gate.sock");
    let mut first = Wire::connect(gate.proxy).await;
    assert_eq!(first.ask(INFO).await.expect("an answer").status, 200);
    let mut queued = Vec::new();
    let mut queued_unix = Vec::new();
    for _ in 0..5 {
        let mut wire = Wire::connect(gate.proxy).await;
        wire.send(INFO).await;
        queued.push(wire);
        let mut wire = Wire::over(connect(&socket).await);
        wire.send(INFO).await;
        queued_unix.push(wire);
    }
    let stopping = stop(gate);
    assert!(first.is_closed().await, "it is idle");
    drop(first);
    for mut wire in queued {
        assert_eq!(wire.reply().await.expect("an answer").status, 200);
    }
    for mut wire in queued_unix {
        assert_eq!(wire.reply().await.expect("an answer").status, 200);
    }
    let (ended, _) = stopping.await.expect("no panic");
    assert!(ended.is_ok(), "{ended:?}");
}

async fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).await.expect("it listens")
}
