//! Connections to WeChat: kept, shared, given up in time, and never the reason why a call fails.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};
use wxgate::sandbox::{Fault, Rule};

use crate::support::{
    Gate, Setup,
    fake::{Act, Call, Fake},
    json, setup,
    wire::DEADLINE,
};

const INFO: &str = "/cgi-bin/user/info";
const SEND: &str = "/cgi-bin/message/custom/send";

fn connections(gate: &Gate, path: &str) -> HashSet<u64> {
    gate.control()
        .requests(path)
        .iter()
        .map(|request| request.connection)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_one_after_another_share_one_connection() {
    for plain in [false, true] {
        let setup = setup();
        let gate = if plain { setup.plain() } else { setup }.start().await;
        for number in 0..40 {
            assert_eq!(gate.get("/cgi-bin/user/info?openid=a").await.status(), 200);
            assert_eq!(
                json(
                    gate.send_message(&format!("u{number}"))
                        .send()
                        .await
                        .unwrap()
                )
                .await["errcode"],
                0
            );
            // Also after an answer that is larger than what is looked at.
            assert_eq!(
                gate.get("/cgi-bin/media/get?media_id=blob-100000")
                    .await
                    .bytes()
                    .await
                    .unwrap()
                    .len(),
                100_000
            );
        }
        let used: HashSet<_> = [INFO, SEND, "/cgi-bin/media/get"]
            .iter()
            .flat_map(|path| connections(&gate, path))
            .collect();
        assert_eq!(used.len(), 1, "plain {plain}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_answered_and_its_connections_serve_the_next_one() {
    let gate = setup().start().await;
    gate.warm().await;
    // All 64 are at WeChat at the same time before the first one is answered.
    let held = gate
        .control()
        .fault(Rule::new(SEND, Fault::Pass).always().hold());
    for burst in 0..2 {
        let calls: Vec<_> = (0..64)
            .map(|user| tokio::spawn(gate.send_message(&format!("b{burst}-{user}")).send()))
            .collect();
        timeout(
            DEADLINE,
            gate.control()
                .until(|c| c.path(SEND).requests == 64 * (burst + 1)),
        )
        .await
        .expect("all arrive");
        if burst == 0 {
            gate.control().release(held);
        }
        for call in calls {
            assert_eq!(json(call.await.unwrap().unwrap()).await["errcode"], 0);
        }
    }
    assert_eq!(gate.control().deliveries().len(), 128);
    assert!(
        connections(&gate, SEND).len() <= 80,
        "{} connections for two bursts of 64",
        connections(&gate, SEND).len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_after_pool_idle() {
    let gate = setup()
        .set("upstream", "pool_idle = \"300ms\"\nwarm = false")
        .start()
        .await;
    gate.sandbox.control().set_idle_close(None);
    gate.warm().await;
    let started = Instant::now();
    // The connection of the token call goes too, after five seconds of its own.
    timeout(
        DEADLINE,
        gate.control().until(|c| c.counters().open_connections <= 1),
    )
    .await
    .expect("closed");
    let took = started.elapsed();
    assert!(took < Duration::from_millis(4500), "{took:?}");
    gate.warm().await;
    assert_eq!(connections(&gate, INFO).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_pool_idle_no_connection_is_kept() {
    let gate = setup().set("upstream", "pool_idle = \"0s\"").start().await;
    for _ in 0..5 {
        gate.warm().await;
    }
    assert_eq!(connections(&gate, INFO).len(), 5);
}

/// A proxy that has met idle connections closed after this time before, as every proxy has that
/// runs for a minute.
async fn learned(setup: Setup, idle: Duration) -> Gate {
    let gate = setup
        .set("upstream", "warm = false")
        .sandbox(|sandbox| sandbox.idle_close = Some(idle))
        .start()
        .await;
    for _ in 0..3 {
        gate.warm().await;
        timeout(
            DEADLINE,
            gate.control().until(|c| c.counters().open_connections == 0),
        )
        .await
        .expect("closed");
    }
    gate
}

/// 30 GET and 30 POST, each as long after the one before as WeChat keeps an idle connection, give
/// or take a little.
async fn race(plain: bool, idle: Duration) {
    let setup = setup();
    let gate = learned(if plain { setup.plain() } else { setup }, idle).await;
    gate.control().clear_record();
    let mut failed = Vec::new();
    for round in 0..30_u32 {
        let pause = idle + Duration::from_millis(u64::from(round)) - Duration::from_millis(20);
        for post in [false, true] {
            tokio::time::sleep(pause).await;
            let call = if post {
                gate.send_message(&format!("race-{round}"))
            } else {
                gate.client.get(gate.url("/cgi-bin/user/info?openid=race"))
            };
            let answer = call.send().await.unwrap();
            if answer.status() != 200 {
                failed.push((round, post, answer.text().await.unwrap()));
            }
        }
    }
    assert_eq!(failed, []);
    assert_eq!(
        (
            gate.control().path(INFO).executed,
            gate.control().path(SEND).executed
        ),
        (30, 30)
    );
    assert_eq!(gate.control().deliveries().len(), 30);
    assert!(connections(&gate, "/**").len() >= 2, "the race took place");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_lost_or_doubled_when_wechat_closes_idle_connections() {
    // What is learned is trusted for seven tenths: a machine that stalls for the other three would
    // be believed to be WeChat.
    let idle = Duration::from_millis;
    tokio::join!(
        race(true, idle(300)),
        race(true, idle(320)),
        race(false, idle(340)),
        race(false, idle(360))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_near_the_age_at_which_wechat_closed_others_is_not_trusted() {
    let gate = learned(setup(), Duration::from_millis(400)).await;
    gate.warm().await;
    let kept = gate.control().requests(INFO).pop().unwrap().connection;
    gate.warm().await;
    assert_eq!(
        gate.control().requests(INFO).pop().unwrap().connection,
        kept,
        "a young one is"
    );
    // Still open at the other end, but only just.
    tokio::time::sleep(Duration::from_millis(330)).await;
    assert_eq!(gate.send_message("u").send().await.unwrap().status(), 200);
    assert_ne!(
        gate.control().requests(SEND).pop().unwrap().connection,
        kept
    );
}

/// One call, and a second one about as long after it as the other end keeps the connection: whether
/// that failed.
async fn first_race(post: bool, offset: i64) -> bool {
    const KEPT: i64 = 60;
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    let fake =
        Fake::start(move |_| Act::Linger(ok.into(), Duration::from_millis(KEPT as u64))).await;
    let gate = setup()
        .set("server", "workers = 1")
        .account(&fake.api())
        .start()
        .await;
    gate.warm().await;
    tokio::time::sleep(Duration::from_millis((KEPT + offset) as u64)).await;
    let call = if post {
        gate.send_message("u")
    } else {
        gate.client.get(gate.url("/cgi-bin/user/info?openid=a"))
    };
    let answer = call.send().await.unwrap();
    let served = fake.seen.calls().len();
    match answer.status().as_u16() {
        200 => assert_eq!(served, 2),
        502 => assert!(served <= 2),
        status => panic!("{status}"),
    }
    answer.status() != 200
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_close_of_all_does_not_cost_a_call_either() {
    let (mut gets, mut posts) = (0, 0);
    for offset in -10..10 {
        let (get, post) = tokio::join!(first_race(false, offset), first_race(true, offset));
        gets += usize::from(get);
        posts += usize::from(post);
    }
    // A close that crosses the request on the wire cannot be told from an execution, so a POST may
    // be refused for it.
    assert!(
        gets == 0 && posts <= 1,
        "{gets} GET and {posts} POST of 20 failed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_lost_or_doubled_when_wechat_closes_after_every_answer() {
    for plain in [true, false] {
        let setup = setup();
        let gate = if plain { setup.plain() } else { setup }.start().await;
        gate.warm().await;
        gate.control().set_close_each(true);
        gate.control().clear_record();
        let mut failed = 0;
        for round in 0..60 {
            failed += usize::from(gate.get("/cgi-bin/user/info?openid=a").await.status() != 200);
            failed += usize::from(
                gate.send_message(&format!("u{round}"))
                    .send()
                    .await
                    .unwrap()
                    .status()
                    != 200,
            );
        }
        // Without a pause in between the close may still be on its way, and then a POST must not be
        // repeated.
        let deliveries = gate.control().deliveries().len();
        assert!(
            deliveries + failed >= 60 && deliveries <= 60,
            "{deliveries} delivered, {failed} failed"
        );
        assert!(failed <= 3, "{failed} of 120 failed, plain {plain}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_died_while_idle_costs_no_call() {
    // Closes or resets each connection after its first answer, which does not say so.
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    for act in [Act::Close(ok.into()), Act::Reset(ok.into())] {
        let answered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answered);
        let own = act.clone();
        let fake = Fake::start(move |_: &Call| {
            count.fetch_add(1, SeqCst);
            own.clone()
        })
        .await;
        let gate = setup()
            .set("upstream", "warm = false")
            .account(&fake.api())
            .start()
            .await;
        for round in 0..30 {
            let call = if round % 2 == 0 {
                gate.send_message("u")
            } else {
                gate.client.get(gate.url("/cgi-bin/user/info?openid=a"))
            };
            let answer = call.send().await.unwrap();
            // A reset may overtake the answer that went before it; the call is then lost, not
            // doubled.
            let lost = matches!(act, Act::Reset(_)) && answer.status() == 502;
            assert!(
                answer.status() == 200 || lost,
                "round {round}: {}",
                answer.text().await.unwrap()
            );
            // The close has reached this machine, so that the next call can know of it.
            fake.seen.until(|seen| seen.open() == 0).await;
        }
        assert_eq!(answered.load(SeqCst), 30, "each call was sent once");
    }
}
