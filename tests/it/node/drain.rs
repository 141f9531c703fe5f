//! SIGTERM and SIGINT on the real program: nobody who behaves loses a request.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use wxgate::{
    app::Grace,
    sandbox::{self, Fault, Rule, Sandbox, SandboxControl},
};

use crate::support::{
    client, header, json,
    program::{LIMIT, Program, folder, serve},
    setup,
};

struct Node {
    program: Program,
    proxy: SocketAddr,
    admin: SocketAddr,
    sandbox: Sandbox,
    _folder: TempDir,
}

impl Node {
    async fn start() -> Self {
        let sandbox = sandbox::start(sandbox::SandboxSettings::default())
            .await
            .expect("the sandbox starts");
        let folder = folder(&setup(), &sandbox);
        let program = Program::start(&mut serve(folder.path()));
        let (proxy, admin) = (program.proxy(), program.admin());
        let answer = client()
            .get(format!("http://{proxy}/cgi-bin/user/get"))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        Self {
            program,
            proxy,
            admin,
            sandbox,
            _folder: folder,
        }
    }

    async fn readiness(&self) -> Option<u16> {
        let answer = client()
            .get(format!("http://{}/readyz", self.admin))
            .send()
            .await
            .ok()?;
        Some(answer.status().as_u16())
    }

    /// Sends a request that the sandbox holds, and returns once it is held. Releasing the rule
    /// answers it.
    async fn held_request(&self) -> (u64, tokio::task::JoinHandle<(u16, String)>) {
        let rule = self
            .sandbox
            .control()
            .fault(Rule::new("/cgi-bin/user/info", Fault::Pass).hold());
        let url = format!("http://{}/cgi-bin/user/info?openid=slow", self.proxy);
        let request = tokio::spawn(async move {
            let answer = client().get(url).send().await.expect("an answer");
            (
                answer.status().as_u16(),
                json(answer).await["openid"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            )
        });
        let hit = |control: &SandboxControl| control.hits(rule) == 1;
        timeout(LIMIT, self.sandbox.control().until(hit))
            .await
            .expect("the request arrives");
        (rule, request)
    }
}

/// Asks again and again until the condition holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_turns_readiness_off_takes_connections_for_a_moment_and_answers_what_is_in_flight() {
    for signal in [Signal::TERM, Signal::INT] {
        let node = Node::start().await;
        assert_eq!(node.readiness().await, Some(200));
        let mut idle = TcpStream::connect(node.proxy).expect("a connection");
        let mut kept = KeptConnection::open(node.proxy);
        assert!(!kept.send("before").expect("an answer").asks_to_close);
        let (rule, slow) = node.held_request().await;

        let told = Instant::now();
        node.program.signal(signal);
        eventually("readiness is gone", async || {
            node.readiness().await == Some(503)
        })
        .await;
        let told_callers = client()
            .get(format!("http://{}/-/readyz", node.proxy))
            .send()
            .await
            .expect("still served");
        assert_eq!(told_callers.status(), 503);
        assert_eq!(json(told_callers).await["error"], "draining");
        let late = client()
            .get(format!("http://{}/cgi-bin/user/get", node.proxy))
            .send()
            .await
            .expect("still served");
        assert_eq!(
            (late.status().as_u16(), header(&late, "connection")),
            (200, "close".to_owned())
        );

        eventually("no connection is taken any more", async || {
            TcpStream::connect(node.proxy).is_err()
        })
        .await;
        let taken_for = told.elapsed();
        assert!(
            taken_for >= Duration::from_millis(2500),
            "connections were taken for {taken_for:?} only"
        );
        idle.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(
            idle.read(&mut [0; 16]).unwrap_or(0),
            0,
            "an idle connection is closed"
        );

        assert!(!slow.is_finished(), "the slow request is still in flight");
        node.sandbox.control().release(rule);
        assert_eq!(slow.await.expect("no panic"), (200, "slow".to_owned()));
        let ended = node.program.end();
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        assert!(
            told.elapsed() < Duration::from_secs(28),
            "longer than the grace"
        );
        assert!(
            ended.stderr.contains("stopping: ") && ended.stderr.contains("stopped; "),
            "{}",
            ended.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once_with_status_1() {
    let node = Node::start().await;
    let (_rule, slow) = node.held_request().await;
    node.program.signal(Signal::TERM);
    // At once: nobody waits before pressing Ctrl-C again.
    node.program.logged("stopping: ");
    let again = Instant::now();
    node.program.signal(Signal::TERM);
    let ended = node.program.end();
    assert_eq!(ended.status, Some(1), "{}", ended.stderr);
    assert!(
        again.elapsed() < Duration::from_secs(10),
        "{:?}",
        again.elapsed()
    );
    assert!(ended.stderr.contains("stopped at once"), "{}", ended.stderr);
    assert!(slow.await.is_err(), "the request was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_retry_lose_nothing_when_they_are_asked_to_close() {
    const CLIENTS: usize = 8;
    let node = Node::start().await;
    let proxy = node.proxy;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            std::thread::spawn(move || {
                let mut connection = KeptConnection::open(proxy);
                let mut sent = Vec::new();
                loop {
                    let id = format!("{client}-{}", sent.len());
                    let answer = connection
                        .send(&id)
                        .unwrap_or_else(|error| panic!("{id} was lost: {error}"));
                    assert_eq!(answer.status, 200, "{id}");
                    sent.push(id);
                    if answer.asks_to_close {
                        return sent;
                    }
                }
            })
        })
        .collect();
    let busy = |control: &SandboxControl| control.counters().deliveries > 100;
    timeout(LIMIT, node.sandbox.control().until(busy))
        .await
        .expect("the clients are at work");
    node.program.signal(Signal::TERM);
    let sent = tokio::task::spawn_blocking(|| {
        clients
            .into_iter()
            .flat_map(|client| client.join().expect("no request was lost"))
            .collect::<Vec<_>>()
    });
    let sent = sent.await.expect("no panic");
    assert_eq!(node.program.end().status, Some(0));
    let delivered: Vec<_> = node
        .sandbox
        .control()
        .deliveries()
        .into_iter()
        .map(|delivery| delivery.openid)
        .collect();
    assert!(sent.len() > 100, "only {} requests", sent.len());
    assert_eq!(delivered.len(), sent.len(), "each was delivered once");
    assert_eq!(
        delivered.into_iter().collect::<HashSet<_>>(),
        sent.into_iter().collect::<HashSet<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_in_flight_after_the_grace_is_cut_and_said() {
    let grace = Grace {
        leaving: Duration::ZERO,
        idle: Duration::ZERO,
        closing: Duration::from_millis(200),
    };
    let gate = setup().grace(grace).start().await;
    gate.warm().await;
    let rule = gate
        .control()
        .fault(Rule::new("/cgi-bin/user/get", Fault::Pass).hold());
    let request = gate.client.get(gate.url("/cgi-bin/user/get")).send();
    let request = tokio::spawn(request);
    timeout(
        LIMIT,
        gate.control().until(|control| control.hits(rule) == 1),
    )
    .await
    .expect("the request arrives");
    let (ended, _) = gate.stop().await;
    let error = ended.expect_err("a request was cut");
    assert!(error.to_string().contains("still in flight"), "{error}");
    assert!(request.await.expect("no panic").is_err());
}

/// A client without any cleverness: one connection, one request after the other, no retry.
struct KeptConnection {
    stream: TcpStream,
}

struct Answered {
    status: u16,
    asks_to_close: bool,
}

impl KeptConnection {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the proxy listens");
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    fn send(&mut self, openid: &str) -> std::io::Result<Answered> {
        let body = format!(
            "{{\"touser\":\"{openid}\",\"msgtype\":\"text\",\"text\":{{\"content\":\"x\"}}}}"
        );
        let length = body.len();
        let head = "POST /cgi-bin/message/custom/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json";
        self.stream
            .write_all(format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .split("content-length: ")
                    .nth(1)
                    .and_then(|rest| rest.lines().next());
                let length: usize = length
                    .and_then(|length| length.trim().parse().ok())
                    .expect("a length");
                if body.len() >= length {
                    let status = head
                        .split(' ')
                        .nth(1)
                        .and_then(|status| status.parse().ok())
                        .expect("a status");
                    return Ok(Answered {
                        status,
                        asks_to_close: head.contains("\nconnection: close"),
                    });
                }
            }
            match self.stream.read(&mut buffer)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => answer.extend_from_slice(&buffer[..count]),
            }
        }
    }
}
