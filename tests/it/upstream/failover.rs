//! Several API hosts of which some cannot be reached: calls move on at once, and return when a host
//! is back.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::{
    support::{
        Gate,
        fake::{Act, Fake, Greeting},
        header, json, setup,
        wire::DEADLINE,
    },
    upstream::egress::{BlackHole, refusing, refusing_at},
};

const INFO: &str = "/cgi-bin/user/info?openid=a";
/// More than the connection attempts that one worker makes at a time, many times over.
const CALLS: usize = 200;

const EMPTY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

/// Calls at the same time: their status codes and how long all of them took.
async fn burst(gate: &Gate) -> (Vec<u16>, Duration) {
    let started = Instant::now();
    let answers = join_all((0..CALLS).map(|_| gate.get(INFO))).await;
    let statuses = answers.iter().map(|answer| answer.status().as_u16());
    (statuses.collect(), started.elapsed())
}

async fn gate(hosts: &[String], connect_timeout: &str, workers: u8) -> Gate {
    setup()
        .set("server", &format!("workers = {workers}"))
        .set(
            "upstream",
            &format!("connect_timeout = \"{connect_timeout}\""),
        )
        .set("token", "wait = \"15s\"")
        .account(&format!("api = {hosts:?}"))
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_callers_of_a_host_that_is_left_move_on_at_once() {
    let good = Fake::start(|_| Act::ok("{}")).await;
    let good_url = format!("http://{}", good.address);
    let hole = BlackHole::start();
    let (_socket, refused) = refusing();
    let hole_url = format!("http://{}", hole.address);
    for (case, hosts) in [
        ("two hosts", vec![hole_url.clone(), good_url.clone()]),
        (
            "three hosts",
            vec![hole_url, format!("http://{refused}"), good_url.clone()],
        ),
    ] {
        let gate = gate(&hosts, "2s", 2).await;
        let (statuses, took) = burst(&gate).await;
        assert_eq!(statuses, vec![200; CALLS], "{case}");
        // One connect_timeout for the token and one for the calls, not one for each 32 of them.
        assert!(took < Duration::from_secs(9), "{case}: {took:?}");
        // A host that is down costs nothing more.
        let (statuses, took) = burst(&gate).await;
        assert_eq!(statuses, vec![200; CALLS], "{case}");
        assert!(took < Duration::from_secs(5), "{case}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_from_the_last_host_though_all_others_keep_silent() {
    let good = Fake::start(|_| Act::ok("{}")).await;
    let (first, second) = (BlackHole::start(), BlackHole::start());
    let hosts = [first.address, second.address, good.address].map(|host| format!("http://{host}"));
    let gate = setup()
        .set("upstream", "connect_timeout = \"400ms\"")
        // Not long enough for both of the first.
        .set("token", "fetch_timeout = \"600ms\"")
        .account(&format!("api = {hosts:?}"))
        .start()
        .await;
    let started = Instant::now();
    while gate.get(INFO).await.status() != 200 {
        assert!(started.elapsed() < DEADLINE, "no token");
    }
    assert_eq!(good.seen.token_calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_return_to_a_host_that_is_back_and_none_of_them_is_the_probe() {
    let second = Fake::start(|_| Act::ok("{\"host\":2}")).await;
    let (socket, first) = refusing();
    // Says no TLS, so that the handshake fails behind a connection.
    let no_tls = Fake::start_at(
        "127.0.0.1:0",
        Greeting::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".into()),
        |_| Act::Silent,
    )
    .await;
    let hosts = [
        format!("http://{first}"),
        format!("https://localhost:{}", no_tls.address.port()),
        format!("http://{}", second.address),
    ];
    let gate = gate(&hosts, "2s", 2).await;
    assert_eq!(json(gate.get(INFO).await).await["host"], 2);
    let dialled = no_tls.seen.connections();
    drop(socket);
    let back = Fake::start_at(&first.to_string(), Greeting::Plain, |_| {
        Act::ok("{\"host\":1}")
    })
    .await;
    let started = Instant::now();
    let mut calls = 0;
    loop {
        let answer = json(gate.get(INFO).await).await;
        calls += 1;
        if answer["host"] == 1 {
            break;
        }
        assert_eq!(answer["host"], 2, "no call waits for a host that is down");
        assert!(started.elapsed() < DEADLINE, "nobody returns");
    }
    assert!(calls > 20, "{calls}");
    let probes = no_tls.seen.connections() - dialled;
    assert!(probes <= 5, "{probes} probes in {:?}", started.elapsed());
    assert_eq!(back.seen.calls().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_sends_nothing_and_is_no_attempt() {
    let fake = Fake::start(|_| Act::Close(EMPTY.into())).await;
    let address = fake.address;
    let gate = gate(&[format!("http://{address}")], "2s", 1).await;
    // The token is there before the host goes.
    gate.warm().await;
    fake.stopped().await;
    let _socket = refusing_at(address);
    for request in [
        gate.client.get(gate.url(INFO)),
        gate.post("/cgi-bin/menu/create").body("{}"),
    ] {
        let answer = request.send().await.expect("an answer");
        assert_eq!(
            (
                answer.status().as_u16(),
                header(&answer, "x-wxgate-error").as_str(),
                header(&answer, "x-wxgate-sent").as_str(),
                header(&answer, "x-wxgate-attempts").as_str()
            ),
            (502, "upstream_failed", "no", "")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_hosts_down_each_call_gets_its_answer_in_time() {
    for count in [1, 2] {
        let mut fakes = Vec::new();
        for _ in 0..count {
            fakes.push(Fake::start(|_| Act::Close(EMPTY.into())).await);
        }
        let addresses: Vec<_> = fakes.iter().map(|fake| fake.address).collect();
        let hosts: Vec<_> = addresses.iter().map(|at| format!("http://{at}")).collect();
        let gate = gate(&hosts, "1500ms", 1).await;
        // The token is there before they go.
        gate.warm().await;
        for fake in fakes {
            fake.stopped().await;
        }
        let _holes: Vec<_> = addresses.into_iter().map(BlackHole::at).collect();
        let (statuses, took) = burst(&gate).await;
        assert_eq!(statuses, vec![504; CALLS], "{count}");
        assert!(took < Duration::from_secs(8), "{count}: {took:?}");
        let answer = gate.get(INFO).await;
        assert_eq!(
            (
                header(&answer, "x-wxgate-error").as_str(),
                header(&answer, "x-wxgate-sent").as_str(),
                header(&answer, "x-wxgate-attempts").as_str()
            ),
            ("upstream_timeout", "no", ""),
            "{count}"
        );
    }
}
