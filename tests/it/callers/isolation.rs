//! What one account, one client or one peer address can take from the others, through the whole
//! proxy. ARCHITECTURE.md has a row for each of these tests.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use wxgate::sandbox::{Fault, Rule};

use crate::support::{
    Gate,
    fake::{Act, Fake},
    raw::{Reply, Wire},
    setup,
};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";
const HELD: &str = "GET /cgi-bin/user/get HTTP/1.1\r\nHost: gate\r\n\r\n";
/// No call of a healthy account or caller takes longer.
const HEALTHY: Duration = Duration::from_secs(5);
/// Beyond any limit that is waited for here.
const LIMIT: Duration = Duration::from_secs(60);

/// Two clients that are known by their keys.
const CLIENTS: &str = "[[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = [\"shop\"]\n\
                       [[client]]\nname = \"erp\"\nkey = { value = \"erp-key-0123456789\" }\naccounts = [\"shop\"]\n";

fn with_key(request: &str, client: &str) -> String {
    request.replace(
        "Host: gate\r\n",
        &format!("Host: gate\r\nX-Wxgate-Key: {client}-key-0123456789\r\n"),
    )
}

/// A connection from this loopback address.
async fn connect_from(source: &str, proxy: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(format!("{source}:0").parse().expect("an address"))
        .expect("a loopback address");
    socket.connect(proxy).await.expect("the proxy listens")
}

async fn wire_from(source: &str, proxy: SocketAddr) -> Wire {
    Wire::over(connect_from(source, proxy).await)
}

/// Sends a request on a connection of its own and hands on its answer.
fn spawn_call(gate: &Gate, source: &'static str, request: String) -> JoinHandle<Option<Reply>> {
    let proxy = gate.proxy;
    tokio::spawn(async move { wire_from(source, proxy).await.ask(request).await })
}

/// A call that must not notice anything.
async fn is_unhurt(gate: &Gate, source: &'static str, request: String) {
    let asked = Instant::now();
    let reply = wire_from(source, gate.proxy).await.ask(request).await;
    let reply = reply.expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(asked.elapsed() < HEALTHY, "{:?}", asked.elapsed());
}

/// Each of these was refused, and says by whose fault.
async fn are_refused(calls: Vec<JoinHandle<Option<Reply>>>, holder: &str) {
    for call in calls {
        let reply = timeout(LIMIT, call)
            .await
            .expect("an answer at once")
            .expect("no panic")
            .expect("an answer");
        assert_eq!((reply.status, reply.slug()), (503, "overloaded"));
        let text = reply.text();
        assert!(
            text.contains(holder) && text.contains("upstream.max_share"),
            "{text}"
        );
    }
}

async fn metric(gate: &Gate, line: &str) -> bool {
    let page = gate.client.get(gate.admin_url("/metrics")).send().await;
    let page = page.expect("metrics").text().await.expect("text");
    page.lines().any(|seen| seen == line)
}

async fn until_metric(gate: &Gate, line: &str) {
    let seen = async {
        while !metric(gate, line).await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, seen)
        .await
        .unwrap_or_else(|_| panic!("{line:?} is never counted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_whose_api_hangs_leaves_the_others_their_part() {
    let black_hole = Fake::start(|_| Act::Silent).await;
    let stuck = format!(
        "[[account]]\nname = \"stuck\"\nappid = \"wx00000000000stuck\"\nsecret = {{ value = \"s-stuck\" }}\n{}\n",
        black_hole.api()
    );
    let gate = setup()
        .set("upstream", "max_in_flight = 8")
        .default_account("shop")
        .more(&stuck)
        .start()
        .await;
    gate.warm().await;
    let request = HELD.replace("/cgi-bin", "/@stuck/cgi-bin");
    let call = || spawn_call(&gate, "127.0.0.1", request.clone());
    let held: Vec<_> = (0..6).map(|_| call()).collect();
    black_hole.seen.until(|seen| seen.calls().len() == 6).await;
    are_refused((0..6).map(|_| call()).collect(), "account stuck").await;
    for _ in 0..20 {
        is_unhurt(&gate, "127.0.0.1", INFO.to_owned()).await;
    }
    assert_eq!(black_hole.seen.calls().len(), 6, "75 % of eight");
    held.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_account_has_everything_that_is_there() {
    let black_hole = Fake::start(|_| Act::Silent).await;
    let gate = setup()
        .set("upstream", "max_in_flight = 8")
        .account(&black_hole.api())
        .start()
        .await;
    let calls: Vec<_> = (0..8)
        .map(|_| spawn_call(&gate, "127.0.0.1", HELD.to_owned()))
        .collect();
    black_hole.seen.until(|seen| seen.calls().len() == 8).await;
    let mut ninth = Wire::connect(gate.proxy).await;
    let reply = ninth.ask(HELD).await.expect("an answer");
    assert!(reply.text().contains("upstream.max_in_flight"), "{reply:?}");
    calls.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_slow_calls_leaves_the_others_their_part() {
    let gate = setup()
        .set("upstream", "max_in_flight = 8")
        .more(CLIENTS)
        .start()
        .await;
    is_unhurt(&gate, "127.0.0.1", with_key(INFO, "erp")).await;
    let held = gate
        .control()
        .fault(Rule::new("/cgi-bin/user/get", Fault::Pass).always().hold());
    let call = || spawn_call(&gate, "127.0.0.1", with_key(HELD, "crm"));
    let calls: Vec<_> = (0..6).map(|_| call()).collect();
    gate.control()
        .until(|control| control.hits(held) == 6)
        .await;
    are_refused((0..4).map(|_| call()).collect(), "client crm").await;
    // What a client holds is known across a reload that changes it.
    let changed = gate.file().replacen("accounts = [\"shop\"]", "", 1);
    assert_eq!(gate.reload(&changed).await.status(), 200);
    are_refused((0..4).map(|_| call()).collect(), "client crm").await;
    for _ in 0..20 {
        is_unhurt(&gate, "127.0.0.1", with_key(INFO, "erp")).await;
    }
    gate.control().remove_fault(held);
    for call in calls {
        let reply = call.await.expect("no panic").expect("an answer");
        assert_eq!(reply.status, 200);
    }
    // With its calls at an end, the client is served again.
    is_unhurt(&gate, "127.0.0.1", with_key(INFO, "crm")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_clients_an_address_leaves_the_others_their_part() {
    let gate = setup().set("upstream", "max_in_flight = 4").start().await;
    is_unhurt(&gate, "127.0.0.1", INFO.to_owned()).await;
    let held = gate
        .control()
        .fault(Rule::new("/cgi-bin/user/get", Fault::Pass).always().hold());
    let call = || spawn_call(&gate, "127.0.0.2", HELD.to_owned());
    let calls: Vec<_> = (0..3).map(|_| call()).collect();
    gate.control()
        .until(|control| control.hits(held) == 3)
        .await;
    are_refused(vec![call(), call()], "the address 127.0.0.2").await;
    for _ in 0..10 {
        is_unhurt(&gate, "127.0.0.1", INFO.to_owned()).await;
    }
    calls.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_body_takes_no_place_before_it_is_in() {
    let gate = setup().set("upstream", "max_in_flight = 1").start().await;
    gate.warm().await;
    let send = "POST /cgi-bin/message/custom/send HTTP/1.1\r\nHost: gate\r\n";
    let mut slow = Vec::new();
    for begin in [
        "Content-Length: 60000\r\n\r\n{",
        "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ]
    .into_iter()
    .cycle()
    .take(10)
    {
        let mut wire = Wire::connect(gate.proxy).await;
        wire.send(format!("{send}{begin}")).await;
        slow.push(wire);
    }
    until_metric(&gate, "wxgate_inflight_requests 10").await;
    is_unhurt(&gate, "127.0.0.1", INFO.to_owned()).await;
    // One that is longer than what is read first has its place.
    let mut long = Wire::connect(gate.proxy).await;
    long.send(format!("{send}Content-Length: 70000\r\n\r\n{{"))
        .await;
    until_metric(&gate, "wxgate_inflight_requests 11").await;
    let mut refused = Wire::connect(gate.proxy).await;
    let reply = refused.ask(INFO).await.expect("an answer");
    assert_eq!(reply.slug(), "overloaded");
}

/// An answer of which only the head and some bytes come, then nothing.
fn begun_answer() -> Vec<u8> {
    let mut answer =
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 500000\r\n\r\n".to_vec();
    answer.resize(answer.len() + 10_000, b'j');
    answer
}

fn huge_answer() -> Vec<u8> {
    let length = 32 << 20;
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n");
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + length, b'j');
    answer
}

/// Reads ten bytes a second until the connection ends.
async fn read_slowly(mut stream: TcpStream, request: &str) {
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it is read");
    let mut bytes = [0; 10];
    while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {
        sleep(Duration::from_secs(1)).await;
    }
}

/// In real time: the window of `server.min_rate` is 10 s, after a first one that is not looked at.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_trickle_are_ended_in_both_directions_and_free_their_places() {
    let fake = Fake::start(|call| {
        if call.head.contains("trickle") {
            Act::Linger(begun_answer(), LIMIT * 2)
        } else if call.head.contains("huge") {
            Act::Answer(huge_answer())
        } else {
            Act::ok("{}")
        }
    })
    .await;
    let gate = setup()
        .set("upstream", "max_in_flight = 3")
        .account(&fake.api())
        .start()
        .await;
    gate.warm().await;
    let get = |name: &str| format!("GET /cgi-bin/{name} HTTP/1.1\r\nHost: gate\r\n\r\n");
    let reader = connect_from("127.0.0.1", gate.proxy).await;
    let huge = get("huge");
    let reader = tokio::spawn(async move { read_slowly(reader, &huge).await });
    let mut trickle = connect_from("127.0.0.1", gate.proxy).await;
    trickle
        .write_all(get("trickle").as_bytes())
        .await
        .expect("it is read");
    let head = "POST /cgi-bin/upload HTTP/1.1\r\nHost: gate\r\nContent-Length: ";
    let mut uploads = Vec::new();
    for length in [60_000, 70_000] {
        let mut wire = Wire::connect(gate.proxy).await;
        wire.send(format!("{head}{length}\r\n\r\n{{")).await;
        uploads.push(wire);
    }
    until_metric(&gate, "wxgate_inflight_requests 4").await;
    fake.seen.until(|seen| seen.calls().len() >= 3).await;
    let mut refused = Wire::connect(gate.proxy).await;
    let reply = refused.ask(INFO).await.expect("an answer");
    assert_eq!(reply.slug(), "overloaded", "all places are taken");

    // Whoever drips a byte a second is told that it was too slow.
    let dripping = uploads.into_iter().map(|mut wire| async move {
        let reply = loop {
            if !wire.is_silent_for(Duration::from_secs(1)).await {
                break timeout(LIMIT, wire.reply()).await.expect("an answer");
            }
            wire.send("a").await;
        };
        let reply = reply.expect("an answer");
        assert_eq!(reply.status, 400, "{}", reply.text());
        assert!(reply.closes());
    });
    let started = Instant::now();
    timeout(LIMIT, futures_util::future::join_all(dripping))
        .await
        .expect("both are ended");
    let mut rest = Vec::new();
    let _ = timeout(LIMIT, trickle.read_to_end(&mut rest))
        .await
        .expect("the answer that trickles is ended");
    assert!(rest.len() < 500_000);
    until_metric(
        &gate,
        "wxgate_connections_ended_total{reason=\"slow_reader\"} 1",
    )
    .await;
    until_metric(
        &gate,
        "wxgate_connections_ended_total{reason=\"slow_answer\"} 1",
    )
    .await;
    assert!(
        started.elapsed() < Duration::from_secs(45),
        "{:?}",
        started.elapsed()
    );
    until_metric(&gate, "wxgate_inflight_requests 0").await;
    for _ in 0..3 {
        is_unhurt(&gate, "127.0.0.1", INFO.to_owned()).await;
    }
    reader.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_address_beyond_its_part_are_closed_at_once() {
    let gate = setup()
        .set("server", "max_connections_per_client = 2")
        .start()
        .await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut wire = wire_from("127.0.0.2", gate.proxy).await;
        assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
        open.push(wire);
    }
    for _ in 0..5 {
        let mut third = wire_from("127.0.0.2", gate.proxy).await;
        assert!(third.is_closed().await);
    }
    let counted = "wxgate_connections_ended_total{reason=\"max_connections_per_client\"} 5";
    until_metric(&gate, counted).await;
    is_unhurt(&gate, "127.0.0.1", INFO.to_owned()).await;
    for wire in &mut open {
        assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
    }
    open.pop();
    let again = async {
        loop {
            let mut wire = wire_from("127.0.0.2", gate.proxy).await;
            if wire
                .ask(INFO)
                .await
                .is_some_and(|reply| reply.status == 200)
            {
                return;
            }
        }
    };
    timeout(LIMIT, again)
        .await
        .expect("its place is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_client_beyond_its_part_are_told_so_and_closed() {
    let gate = setup()
        .set("server", "max_connections_per_client = 2")
        .more(CLIENTS)
        .start()
        .await;
    let mut open = Vec::new();
    for source in ["127.0.0.2", "127.0.0.3"] {
        let mut wire = wire_from(source, gate.proxy).await;
        let reply = wire.ask(with_key(INFO, "crm")).await.expect("an answer");
        assert_eq!(reply.status, 200);
        open.push(wire);
    }
    let mut third = wire_from("127.0.0.4", gate.proxy).await;
    let reply = third.ask(with_key(INFO, "crm")).await.expect("an answer");
    assert_eq!((reply.status, reply.slug()), (503, "overloaded"));
    let text = reply.text();
    assert!(
        text.contains("client crm") && text.contains("server.max_connections_per_client"),
        "{text}"
    );
    assert!(reply.closes() && third.is_closed().await);
    is_unhurt(&gate, "127.0.0.4", with_key(INFO, "erp")).await;
}
