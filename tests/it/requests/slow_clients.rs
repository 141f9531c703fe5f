//! Clients that take their time, in paused time over pipes: each is cut at its limit, and no other
//! one is.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Response,
    body::{Frame, Incoming},
    http::request::Parts,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::{Instant, sleep, timeout},
};
use wxgate::internals::net::connection::{self, Connections};

const ASK: &[u8] = b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n";

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn full(text: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, Infallible> {
    http_body_util::Full::new(text.into()).boxed_unsync()
}

/// `/echo` answers with the body; `/wait/N` after N seconds; `/huge` with a MiB; `/trickle/N` with
/// a byte a second.
async fn handle(head: Box<Parts>, body: Incoming) -> Answer {
    let mut parts = head.uri.path().split('/').skip(1);
    let word = parts.next().unwrap_or_default().to_owned();
    let count: u64 = parts
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_default();
    match &*word {
        "wait" => {
            sleep(Duration::from_secs(count)).await;
            Response::new(full("waited"))
        }
        "huge" => Response::new(full(vec![b'a'; 1 << 20])),
        "trickle" => {
            let bytes = futures_util::stream::unfold(count, |left| async move {
                sleep(Duration::from_secs(1)).await;
                (left > 0).then(|| (Ok(Frame::data(Bytes::from_static(b"t"))), left - 1))
            });
            Response::new(StreamBody::new(bytes).boxed_unsync())
        }
        _ => {
            let body = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            Response::new(full(body))
        }
    }
}

/// A served connection: the client's end, and the task that ends with it.
fn connect(connections: &Connections) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(4 * 1024);
    let connections = connections.clone();
    let serving = async move {
        connection::serve(theirs, &connections, || false, handle).await;
    };
    (ours, tokio::task::spawn_local(serving))
}

/// How long until the other end closes; what it says before is thrown away.
async fn cut_after(client: &mut DuplexStream) -> u64 {
    let started = Instant::now();
    let mut scrap = [0; 1024];
    while client.read(&mut scrap).await.is_ok_and(|count| count > 0) {}
    started.elapsed().as_secs()
}

/// Sends bytes that are read at once.
async fn send(client: &mut DuplexStream, bytes: &[u8]) {
    client.write_all(bytes).await.expect("it is read");
}

/// Reads until the other end closes.
async fn rest_of(client: &mut DuplexStream) -> String {
    let mut text = String::new();
    client
        .read_to_string(&mut text)
        .await
        .expect("an answer and an end");
    text
}

/// Sends a request and reads its answer up to the last byte, which the caller knows.
async fn ask(client: &mut DuplexStream, request: &[u8], last: &[u8]) {
    send(client, request).await;
    let mut answer = Vec::new();
    while !answer.ends_with(last) {
        let read = timeout(Duration::from_secs(600), client.read_buf(&mut answer))
            .await
            .expect("an answer in time");
        assert!(
            read.expect("it is open") > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&answer)
        );
    }
}

/// Writes one byte a second for as long as somebody reads.
async fn drip(client: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
    for byte in bytes.iter().cycle() {
        sleep(Duration::from_secs(1)).await;
        if client.write_all(&[*byte]).await.is_err() {
            return;
        }
    }
}

/// Gives a test a day of paused time, so that a connection which is never cut fails it.
async fn local(test: impl Future<Output = ()>) {
    let day = Duration::from_secs(24 * 60 * 60);
    timeout(day, tokio::task::LocalSet::new().run_until(test))
        .await
        .expect("all ends within a day");
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_finish_the_first_head_is_cut_within_ten_seconds() {
    local(async {
        let connections = Connections::default();
        for begin in [
            &b""[..],
            b"G",
            b"GET /echo HTTP/1.1\r\nHost: h\r\n",
            b"PRI * HTTP/2.0\r\n",
            b"\r\n",
            b"\x16\x03\x01",
        ] {
            let (mut client, serving) = connect(&connections);
            send(&mut client, begin).await;
            let seconds = cut_after(&mut client).await;
            assert!(seconds <= 10, "{begin:?}: {seconds} s");
            serving.await.expect("it ended");
        }
        assert_eq!(connections.count(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_is_cut_however_steadily_it_drips() {
    local(async {
        let connections = Connections::default();
        for (first, limit) in [(true, 10), (false, 15)] {
            let (mut client, _serving) = connect(&connections);
            if !first {
                ask(&mut client, ASK, b"\r\n\r\n").await;
            }
            let (mut reader, mut writer) = tokio::io::split(client);
            let started = Instant::now();
            let mut scrap = [0; 1024];
            let end = async { while reader.read(&mut scrap).await.is_ok_and(|count| count > 0) {} };
            tokio::select! {
                () = end => {}
                () = drip(&mut writer, b"GET /echo-a-rather-long-request-line-that-never-ends") => {}
            }
            let seconds = started.elapsed().as_secs();
            assert!((5..=limit + 1).contains(&seconds), "cut after {seconds} s");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_later_head_that_stops_half_way_is_cut_and_an_idle_connection_much_later() {
    local(async {
        let connections = Connections::default();
        let (mut half, _a) = connect(&connections);
        ask(&mut half, ASK, b"\r\n\r\n").await;
        send(&mut half, &ASK[..10]).await;
        let seconds = cut_after(&mut half).await;
        assert!((5..=15).contains(&seconds), "{seconds} s");
        let (mut idle, _b) = connect(&connections);
        ask(&mut idle, ASK, b"\r\n\r\n").await;
        sleep(Duration::from_secs(60)).await;
        ask(&mut idle, ASK, b"\r\n\r\n").await;
        let seconds = cut_after(&mut idle).await;
        assert!((60..=80).contains(&seconds), "{seconds} s");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whoever_never_reads_is_cut_and_whoever_reads_slowly_is_not() {
    local(async {
        let connections = Connections::default();
        let (mut deaf, serving) = connect(&connections);
        send(&mut deaf, b"GET /huge HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let started = Instant::now();
        serving.await.expect("it ended");
        let seconds = started.elapsed().as_secs();
        assert!((60..=80).contains(&seconds), "{seconds} s");
        let (mut slow, _serving) = connect(&connections);
        send(&mut slow, b"GET /huge HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let (mut read, mut buffer) = (0, vec![0; 4 * 1024]);
        // A byte a second on average, and never nothing for long.
        while read < 1 << 20 {
            sleep(Duration::from_secs(40)).await;
            let count = slow.read(&mut buffer).await.expect("it is open");
            assert!(count > 0, "cut after {read} bytes");
            read += count;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_take_its_time_and_one_that_never_comes_ends() {
    local(async {
        let connections = Connections::default();
        let (mut client, _serving) = connect(&connections);
        ask(
            &mut client,
            b"GET /wait/120 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"waited",
        )
        .await;
        ask(
            &mut client,
            b"GET /trickle/300 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"0\r\n\r\n",
        )
        .await;
        send(&mut client, b"GET /wait/100000 HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let seconds = cut_after(&mut client).await;
        assert!((170..=200).contains(&seconds), "{seconds} s");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_under_way_is_not_cut_for_bytes_that_came_behind_the_request() {
    local(async {
        let connections = Connections::default();
        // A stray line end, as old clients send behind a body; and a whole next request.
        for (early, last) in [
            (&b"\r\n"[..], &b"0\r\n\r\n"[..]),
            (b"GET /wait/1 HTTP/1.1\r\nHost: h\r\n\r\n", b"waited"),
        ] {
            let (mut client, _serving) = connect(&connections);
            send(&mut client, b"GET /trickle/60 HTTP/1.1\r\nHost: h\r\n\r\n").await;
            sleep(Duration::from_secs(3)).await;
            ask(&mut client, early, last).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_slow_clients_hold_up_no_healthy_one() {
    local(async {
        let connections = Connections::default();
        let begins = [
            &b""[..],
            b"G",
            &ASK[..20],
            b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n1",
            b"GET /huge HTTP/1.1\r\nHost: h\r\n\r\n",
        ];
        let mut slow = Vec::new();
        for n in 0..500 {
            let (mut client, serving) = connect(&connections);
            send(&mut client, begins[n % begins.len()]).await;
            slow.push((client, serving));
        }
        let (mut healthy, _serving) = connect(&connections);
        for _ in 0..200 {
            let asked = Instant::now();
            ask(&mut healthy, ASK, b"\r\n\r\n").await;
            assert!(asked.elapsed() < Duration::from_secs(1));
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(connections.count(), 1, "all but the healthy one are gone");
        for (_, serving) in slow {
            serving.await.expect("it ended");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_idle_and_stalled_connections_and_lets_requests_end() {
    local(async {
        let connections = Connections::default();
        let (mut idle, _a) = connect(&connections);
        ask(&mut idle, ASK, b"\r\n\r\n").await;
        let (mut silent, _b) = connect(&connections);
        let (mut half, _c) = connect(&connections);
        send(&mut half, &ASK[..20]).await;
        let (mut busy, _d) = connect(&connections);
        send(&mut busy, b"GET /wait/20 HTTP/1.1\r\nHost: h\r\n\r\n").await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(connections.count(), 4);
        connections.close_idle();
        assert_eq!(cut_after(&mut idle).await, 0);
        let (seconds, _) = tokio::join!(cut_after(&mut silent), cut_after(&mut half));
        assert!(seconds <= 15, "{seconds} s");
        let answer = rest_of(&mut busy).await;
        assert!(
            answer.contains("connection: close\r\n") && answer.ends_with("waited"),
            "{answer}"
        );
        timeout(Duration::from_secs(5), connections.all_gone())
            .await
            .expect("all gone");
        // Whoever comes later gets one answer.
        let (mut late, _e) = connect(&connections);
        send(&mut late, ASK).await;
        let answer = rest_of(&mut late).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"),
            "{answer}"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_begun_when_idle_connections_are_closed_is_answered() {
    local(async {
        let connections = Connections::default();
        let (mut kept, _a) = connect(&connections);
        ask(&mut kept, ASK, b"\r\n\r\n").await;
        send(&mut kept, &ASK[..20]).await;
        let (mut woken, _b) = connect(&connections);
        ask(&mut woken, ASK, b"\r\n\r\n").await;
        parked(&connections, 1).await;
        send(&mut woken, &ASK[..1]).await;
        let (mut body, _c) = connect(&connections);
        let post = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo";
        send(&mut body, post).await;
        let (mut silent, _d) = connect(&connections);
        sleep(Duration::from_secs(1)).await;
        connections.close_idle();
        sleep(Duration::from_secs(3)).await;
        let rests = [&ASK[20..], &ASK[1..], b"dy", ASK];
        for (client, rest) in [&mut kept, &mut woken, &mut body, &mut silent]
            .into_iter()
            .zip(rests)
        {
            send(client, rest).await;
            let answer = rest_of(client).await;
            assert!(
                answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"),
                "{answer}"
            );
        }
        connections.all_gone().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_taken_during_a_stop_may_be_silent_until_its_end() {
    local(async {
        let connections = Connections::default();
        let (mut client, theirs) = tokio::io::duplex(4096);
        let all = connections.clone();
        tokio::task::spawn_local(async move {
            connection::serve(theirs, &all, || true, handle).await;
        });
        sleep(Duration::from_secs(24)).await;
        send(&mut client, &ASK[..20]).await;
        sleep(Duration::from_secs(5)).await;
        ask(&mut client, &ASK[20..], b"\r\n\r\n").await;
        assert_eq!(cut_after(&mut client).await, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_closed_by_its_answer_is_neither_parked_nor_served_again() {
    local(async {
        let connections = Connections::default();
        let (mut client, theirs) = tokio::io::duplex(4096);
        let all = connections.clone();
        tokio::task::spawn_local(async move {
            connection::serve(theirs, &all, || true, handle).await;
        });
        send(&mut client, ASK).await;
        let answer = rest_of(&mut client).await;
        assert!(answer.contains("connection: close"), "{answer}");
        // The client keeps its side open. It gets time to read, and no more than that.
        let closed = Instant::now();
        while connections.count() > 0 {
            assert_eq!(connections.parked(), 0);
            assert!(closed.elapsed() < Duration::from_secs(4), "it is kept");
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_oldest_connection_that_is_not_answered_makes_room() {
    local(async {
        let connections = Connections::default();
        let (mut busy, _a) = connect(&connections);
        send(&mut busy, b"GET /wait/5 HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let (mut idle, _b) = connect(&connections);
        ask(&mut idle, ASK, b"\r\n\r\n").await;
        parked(&connections, 1).await;
        let (mut silent, _c) = connect(&connections);
        sleep(Duration::from_millis(10)).await;
        connections.shed();
        assert_eq!(cut_after(&mut idle).await, 0);
        assert_eq!(connections.count(), 2);
        connections.close_unanswered();
        assert_eq!(cut_after(&mut silent).await, 0);
        let answer = rest_of(&mut busy).await;
        assert!(answer.ends_with("waited"), "{answer}");
        connections.all_gone().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_in_front_asks_every_client_to_close() {
    local(async {
        let (mut client, theirs) = tokio::io::duplex(4096);
        let connections = Connections::default();
        tokio::task::spawn_local(async move {
            connection::serve(theirs, &connections, || true, handle).await;
        });
        send(&mut client, ASK).await;
        let answer = rest_of(&mut client).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"),
            "{answer}"
        );
    })
    .await;
}

/// Waits until so many connections are parked.
async fn parked(connections: &Connections, count: usize) {
    let soon = Instant::now() + Duration::from_secs(5);
    while connections.parked() != count {
        assert!(
            Instant::now() < soon,
            "{} parked, not {count}",
            connections.parked()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_parked_and_answers_when_it_is_asked_again() {
    local(async {
        let connections = Connections::default();
        let (mut client, _serving) = connect(&connections);
        for pause in [0, 1, 60, 2] {
            sleep(Duration::from_secs(pause)).await;
            ask(&mut client, ASK, b"\r\n\r\n").await;
            assert_eq!(connections.parked(), 0);
            parked(&connections, 1).await;
        }
        // Its first bytes, then the rest: it is awake in between, and in one piece.
        send(&mut client, &ASK[..7]).await;
        parked(&connections, 0).await;
        sleep(Duration::from_secs(9)).await;
        assert_eq!(connections.parked(), 0, "half a head is no idleness");
        ask(&mut client, &ASK[7..], b"\r\n\r\n").await;
        // Two at once, larger than the first look ahead, the second with a body.
        let filler = format!(
            "GET /echo HTTP/1.1\r\nHost: h\r\nX-Filler: {}\r\n\r\n",
            "a".repeat(3000)
        );
        let post = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n\r\nthe end";
        parked(&connections, 1).await;
        ask(
            &mut client,
            format!("{filler}{post}").as_bytes(),
            b"the end",
        )
        .await;
        parked(&connections, 1).await;
        assert!(
            (69..=71).contains(&cut_after(&mut client).await),
            "the limit counts from the last sign of life"
        );
        assert_eq!(connections.count(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_parked_while_something_is_under_way() {
    local(async {
        let connections = Connections::default();
        let (mut waiting, _first) = connect(&connections);
        let (mut trickling, _second) = connect(&connections);
        let (mut sending, _third) = connect(&connections);
        let (_silent, _fourth) = connect(&connections);
        // An answer that is not read: hyper still has most of it.
        let (mut lazy, _fifth) = connect(&connections);
        send(&mut waiting, b"GET /wait/8 HTTP/1.1\r\nHost: h\r\n\r\n").await;
        send(
            &mut trickling,
            b"GET /trickle/8 HTTP/1.1\r\nHost: h\r\n\r\n",
        )
        .await;
        send(
            &mut sending,
            b"POST /wait/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf",
        )
        .await;
        send(&mut lazy, b"GET /huge HTTP/1.1\r\nHost: h\r\n\r\n").await;
        for _ in 0..70 {
            sleep(Duration::from_millis(100)).await;
            assert_eq!(connections.parked(), 0);
        }
        sleep(Duration::from_secs(5)).await;
        assert_eq!(connections.parked(), 2, "those that were answered whole");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn parked_connections_are_closed_at_a_stop_and_by_their_clients() {
    local(async {
        let connections = Connections::default();
        let (mut staying, _first) = connect(&connections);
        let (mut leaving, second) = connect(&connections);
        for client in [&mut staying, &mut leaving] {
            ask(client, ASK, b"\r\n\r\n").await;
        }
        parked(&connections, 2).await;
        drop(leaving);
        second.await.expect("it ended");
        assert_eq!(connections.count(), 1);
        connections.close_idle();
        assert_eq!(cut_after(&mut staying).await, 0);
        connections.all_gone().await;
    })
    .await;
}

/// As the data path is set up.
fn paced() -> Connections {
    let connections = Connections::default();
    connections.set_min_rate(1024);
    connections
}

#[tokio::test(start_paused = true)]
async fn bodies_below_the_minimum_rate_are_cut_in_both_directions() {
    local(async {
        let connections = paced();
        // A request that drips, and one that stops.
        for drips in [true, false] {
            let (mut client, serving) = connect(&connections);
            send(
                &mut client,
                b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n",
            )
            .await;
            let started = Instant::now();
            let dripping = async {
                if drips {
                    drip(&mut client, b"a").await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! { () = dripping => {}, ended = serving => ended.expect("it ended") }
            let seconds = started.elapsed().as_secs();
            assert!((19..=23).contains(&seconds), "{drips}: {seconds} s");
        }
        // An answer that trickles, and a caller that reads half a KiB a second.
        for (target, every) in [("trickle/300", 1), ("huge", 8)] {
            let (mut client, serving) = connect(&connections);
            send(
                &mut client,
                format!("GET /{target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes(),
            )
            .await;
            let started = Instant::now();
            let reading = async {
                let mut buffer = vec![0; 4 * 1024];
                loop {
                    sleep(Duration::from_secs(every)).await;
                    let _ = client.read(&mut buffer).await;
                }
            };
            tokio::select! { () = reading => {}, ended = serving => ended.expect("it ended") }
            let seconds = started.elapsed().as_secs();
            assert!((19..=33).contains(&seconds), "{target}: {seconds} s");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn bodies_above_the_minimum_rate_may_take_their_time() {
    local(async {
        let connections = paced();
        let (mut client, _serving) = connect(&connections);
        send(
            &mut client,
            b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 120000\r\n\r\n",
        )
        .await;
        for _ in 0..60 {
            sleep(Duration::from_secs(1)).await;
            send(&mut client, &[b'a'; 2000]).await;
        }
        let (mut read, mut buffer) = (0, vec![0; 2000]);
        while read < 120_000 {
            sleep(Duration::from_secs(1)).await;
            let count = client.read(&mut buffer).await.expect("it is open");
            assert!(count > 0, "cut after {read} bytes");
            read += count;
        }
        // An answer may be late, however long, and the next request too.
        ask(
            &mut client,
            b"GET /wait/100 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"waited",
        )
        .await;
        sleep(Duration::from_secs(40)).await;
        ask(&mut client, ASK, b"\r\n\r\n").await;
    })
    .await;
}
