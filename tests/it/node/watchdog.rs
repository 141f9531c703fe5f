//! The watchdog: a worker thread that is stuck takes readiness away until it runs again.

use std::{sync::mpsc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;
use wxgate::internals::telemetry::output::Output;

use crate::support::{Gate, json, program::LIMIT, raw::Wire, setup};

/// A worker gets so many connections before the next one gets its first.
const FILL: usize = 16;

/// Takes the sink of the access log away: a worker that writes a line blocks, its whole thread with
/// it, until the sender is dropped.
fn block_the_sink(gate: &Gate) -> mpsc::Sender<()> {
    let Output::Memory(lines) = gate.access_log.clone() else {
        panic!("tests log to memory");
    };
    let (release, released) = mpsc::channel();
    let (held, holding) = mpsc::channel();
    std::thread::spawn(move || {
        let _lines = lines.lock();
        let _ = held.send(());
        let _ = released.recv();
    });
    holding.recv().expect("the lock is taken");
    release
}

async fn readyz(gate: &Gate) -> (u16, Value) {
    let answer = gate.client.get(gate.admin_url("/readyz")).send().await;
    let answer = answer.expect("the admin listener answers");
    (answer.status().as_u16(), json(answer).await)
}

async fn ready_is(gate: &Gate, wanted: u16) -> Value {
    let started = Instant::now();
    loop {
        let (status, body) = readyz(gate).await;
        if status == wanted {
            return body;
        }
        assert!(started.elapsed() < LIMIT, "{status} {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_worker_takes_readiness_away_until_it_runs_again() {
    for (index, worker) in ["wxgate-0", "wxgate-1"].into_iter().enumerate() {
        let gate = setup().set("server", "workers = 2").start().await;
        let mut idle = Vec::new();
        for _ in 0..FILL * index {
            idle.push(Wire::connect(gate.proxy).await);
        }
        ready_is(&gate, 200).await;

        let release = block_the_sink(&gate);
        let mut wire = Wire::connect(gate.proxy).await;
        wire.send("GET /cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n\r\n")
            .await;
        assert_eq!(wire.reply().await.expect("an answer").status, 200);
        let body = ready_is(&gate, 503).await;
        assert_eq!(
            (&body["ready"], body["error"].as_str()),
            (&Value::Bool(false), Some("data_path_stuck"))
        );
        let stuck = body["stuck"].as_array().expect("a list");
        assert_eq!(
            (stuck.len(), stuck[0]["worker"].as_str()),
            (1, Some(worker)),
            "{body}"
        );
        assert!(stuck[0]["seconds"].as_u64() >= Some(3), "{body}");
        let live = gate.client.get(gate.admin_url("/livez")).send().await;
        assert_eq!(live.expect("an answer").status(), 200);
        let metrics = gate.client.get(gate.admin_url("/metrics")).send().await;
        let page = metrics.expect("an answer").text().await.expect("text");
        assert!(page.contains("\nwxgate_stuck_workers 1\n"), "{page}");

        drop(release);
        let body = ready_is(&gate, 200).await;
        assert_eq!(body.get("stuck"), None, "{body}");
        drop((wire, idle));
        gate.stop().await.0.expect("nothing had to be cut");
    }
}
