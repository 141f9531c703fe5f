//! Several nodes on one Redis in front of one WeChat: a token that dies costs one fetch, and no
//! trouble of the Redis or of another node costs a request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time::Instant,
};
use wxgate::sandbox::{self, DEFAULT_APPID, Fault, Rule, Sandbox, SandboxControl, TokenKind};

use crate::support::{
    Gate, Setup, json,
    program::{Program, folder, serve},
    redis::RedisServer,
    setup,
    token_tools::{Said, all, eventually, said, spawned, until},
};

const STABLE: &str = "/cgi-bin/stable_token";
const INFO: &str = "/cgi-bin/user/info?openid=a";
const RECORD: &str = "wxgate:{shop}";

/// The set-up of one node.
fn node(redis: &RedisServer) -> Setup {
    setup().set("store", "kind = \"redis\"").set(
        "store",
        &format!("url = {{ value = \"{}\" }}", redis.url("")),
    )
}

struct Nodes {
    /// All of them call the WeChat of the first.
    gates: Vec<Gate>,
    /// Refreshers and stores have threads of their own, as in the program; the callers are on those of
    /// the test.
    background: Option<Runtime>,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if let Some(background) = self.background.take() {
            background.shutdown_background();
        }
    }
}

impl Nodes {
    async fn start(count: usize, redis: &RedisServer, lines: &str, fetch: &str) -> Self {
        let node = |redis| node(redis).set("token", &format!("fetch_timeout = \"{fetch}\""));
        let sandbox = setup().start_sandbox().await;
        let api = format!("api = [\"{}\"]", sandbox.http_url().expect("it listens"));
        let background = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads");
        let start = |sandbox| {
            let setup = node(redis).account(lines).account(&api);
            async {
                background
                    .spawn(setup.start_with(sandbox))
                    .await
                    .expect("no panic")
            }
        };
        let mut gates = vec![start(sandbox).await];
        while gates.len() < count {
            gates.push(start(setup().start_sandbox().await).await);
        }
        for gate in &gates {
            gate.warm().await;
        }
        Self {
            gates,
            background: Some(background),
        }
    }

    fn control(&self) -> &SandboxControl {
        self.gates[0].control()
    }

    /// So many calls at once, evenly over the nodes; every other one sends a message.
    fn calls(&self, count: usize) -> Vec<JoinHandle<Said>> {
        let call = |n: usize| {
            let gate = &self.gates[n % self.gates.len()];
            match n / self.gates.len() % 2 {
                0 => spawned(gate.send_message(&format!("user-{n}"))),
                _ => spawned(
                    gate.client
                        .get(gate.url(&format!("/cgi-bin/user/info?openid=user-{n}"))),
                ),
            }
        };
        (0..count).map(call).collect()
    }

    async fn generations(&self) -> Vec<u64> {
        let mut generations = Vec::new();
        for gate in &self.gates {
            let accounts: Value = json(
                gate.client
                    .get(gate.admin_url("/api/accounts"))
                    .send()
                    .await
                    .unwrap(),
            )
            .await;
            generations.push(accounts[0]["generation"].as_u64().unwrap());
        }
        generations
    }

    /// Calls all nodes without a pause until told to stop; every answer must be good.
    fn load(&self) -> Load {
        let (going, served) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(AtomicUsize::new(0)),
        );
        let tasks = self
            .gates
            .iter()
            .flat_map(|gate| (0..8).map(move |_| gate))
            .map(|gate| {
                let (going, served) = (Arc::clone(&going), Arc::clone(&served));
                let (client, url) = (gate.client.clone(), gate.url(INFO));
                tokio::spawn(async move {
                    let mut failures = Vec::new();
                    while going.load(Ordering::Relaxed) {
                        let answer = said(client.get(&url)).await;
                        served.fetch_add(1, Ordering::Relaxed);
                        if !answer.is_fine() {
                            failures.push(answer);
                        }
                    }
                    failures
                })
            });
        let tasks = tasks.collect();
        Load {
            going,
            served,
            tasks,
        }
    }
}

struct Load {
    going: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Vec<Said>>>,
}

impl Load {
    /// Ends it and says how many calls there were. None may have failed.
    async fn end(self) -> usize {
        self.going.store(false, Ordering::Relaxed);
        for task in self.tasks {
            let failures = task.await.expect("no panic");
            assert!(
                failures.is_empty(),
                "{} failed, such as {:?}",
                failures.len(),
                failures[0]
            );
        }
        self.served.load(Ordering::Relaxed)
    }
}

/// The record holds the token that WeChat takes now.
async fn shared(redis: &RedisServer, control: &SandboxControl) -> Duration {
    eventually("the record holds the current token", async || {
        let token = control
            .current_token(DEFAULT_APPID, TokenKind::Stable)
            .expect("a token");
        let record: Option<Vec<u8>> = redis.run(&["GET", RECORD]);
        record.is_some_and(|record| String::from_utf8_lossy(&record).contains(&token))
    })
    .await
}

/// How many calls are in flight; a larger number can be asked for by hand.
fn in_flight() -> usize {
    std::env::var("WXGATE_TEST_IN_FLIGHT")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(600)
}

#[tokio::test(flavor = "multi_thread")]
async fn six_hundred_calls_over_three_nodes_on_a_revoked_token_cost_one_fetch() {
    for mode in ["stable", "classic"] {
        let redis = RedisServer::start();
        let nodes = Nodes::start(3, &redis, &format!("token = \"{mode}\""), "20s").await;
        assert_eq!(nodes.control().fetches(), 1, "{mode}: one for three nodes");
        let count = in_flight();
        nodes.control().revoke(DEFAULT_APPID);
        let fetch = nodes
            .control()
            .fault(Rule::new("/cgi-bin/*token", Fault::Pass).hold());
        let start = Instant::now();
        let calls = nodes.calls(count);
        until(nodes.control(), "the refusals", |control| {
            control.counters().stale == count as u64
        })
        .await;
        nodes.control().release(fetch);
        let released = Instant::now();
        for answer in all(calls).await {
            assert!(
                answer.is_fine() && answer.attempts == "2",
                "{mode}: {answer:?}"
            );
        }
        println!(
            "{mode}: {count} calls refused in {:?}, answered {:?} later",
            released - start,
            released.elapsed()
        );
        assert_eq!(nodes.control().fetches(), 2, "{mode}: one more for all");
        assert_eq!(
            nodes.control().deliveries().len(),
            count / 2,
            "{mode}: each message once"
        );
        assert_eq!(nodes.generations().await, [2, 2, 2], "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_redis_under_load_costs_no_call_and_is_made_good_within_two_seconds() {
    let mut redis = RedisServer::start();
    let nodes = Nodes::start(3, &redis, "", "5s").await;
    let load = nodes.load();
    for round in 0..2 {
        redis.kill();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = nodes.control().fetches();
        nodes.control().revoke(DEFAULT_APPID);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let fetches = nodes.control().fetches() - before;
        assert!(
            (1..=3).contains(&fetches),
            "round {round}: {fetches}, at most one for each node"
        );
        redis.restart();
        let back = Instant::now();
        let took = shared(&redis, nodes.control()).await;
        println!("round {round}: shared again after {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        // By then all of them are promised to be there again.
        tokio::time::sleep_until(back + Duration::from_secs(2)).await;
    }
    let before = nodes.control().fetches();
    nodes.control().revoke(DEFAULT_APPID);
    shared(&redis, nodes.control()).await;
    eventually("all have the newest", async || {
        let generations = nodes.generations().await;
        generations
            .iter()
            .all(|generation| *generation == generations[0])
    })
    .await;
    let served = load.end().await;
    println!("{served} calls");
    assert_eq!(
        nodes.control().fetches() - before,
        1,
        "they act as one again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_happens_to_the_record_costs_a_call_or_more_than_a_few_fetches() {
    let redis = RedisServer::start();
    let nodes = Nodes::start(3, &redis, "", "5s").await;
    let load = nodes.load();
    let before = nodes.control().fetches();
    for trouble in [
        &["FLUSHALL"][..],
        &["DEL", RECORD],
        &["SET", RECORD, "poison"],
        &["SET", RECORD, r#"{"format":1,"#],
    ] {
        redis.run::<()>(trouble);
        let took = shared(&redis, nodes.control()).await;
        println!("{trouble:?}: made good after {took:?}");
        assert!(took < Duration::from_secs(8), "{trouble:?}: {took:?}");
    }
    assert_eq!(nodes.control().fetches(), before, "all of it from memory");
    // Nobody's to repair: each node goes on by itself.
    for trouble in [
        &["RPUSH", RECORD, "other's"][..],
        &["SET", RECORD, r#"{"format":2,"record":{}}"#],
    ] {
        redis.run::<()>(&["DEL", RECORD]);
        redis.run::<()>(trouble);
        nodes.control().revoke(DEFAULT_APPID);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let fetches = nodes.control().fetches() - before;
    assert!((2..=6).contains(&fetches), "{fetches}");
    redis.run::<()>(&["DEL", RECORD]);
    shared(&redis, nodes.control()).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stalls_or_becomes_a_replica_costs_no_call() {
    let redis = RedisServer::start();
    let nodes = Nodes::start(3, &redis, "", "5s").await;
    let load = nodes.load();
    redis.run::<()>(&["CLIENT", "PAUSE", "3000", "ALL"]);
    nodes.control().revoke(DEFAULT_APPID);
    tokio::time::sleep(Duration::from_millis(3500)).await;
    shared(&redis, nodes.control()).await;
    redis.signal(Signal::STOP);
    nodes.control().revoke(DEFAULT_APPID);
    tokio::time::sleep(Duration::from_secs(2)).await;
    redis.signal(Signal::CONT);
    shared(&redis, nodes.control()).await;
    redis.run::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    nodes.control().revoke(DEFAULT_APPID);
    tokio::time::sleep(Duration::from_secs(2)).await;
    redis.run::<()>(&["REPLICAOF", "NO", "ONE"]);
    let took = shared(&redis, nodes.control()).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    load.end().await;
}

/// The program as nodes of its own, one of which is stopped in the middle of a fetch.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopped_with_the_lease_is_waited_for_no_longer_than_the_lease_and_its_late_write_changes_nothing()
 {
    let rounds = std::env::var("WXGATE_TEST_STOPS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2);
    let redis = RedisServer::start();
    let sandbox: Sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("it starts");
    // A lease of three seconds.
    let setup = node(&redis)
        .set("token", "fetch_timeout = \"1s\"")
        .set("token", "wait = \"5s\"")
        .account("token = \"classic\"");
    let control = sandbox.control();
    let mut nodes = Vec::new();
    for round in 0..rounds {
        // A node replaces no more than ten refused tokens in a row.
        if round % 7 == 0 {
            nodes = (0..2).map(|_| Stoppable::start(&setup, &sandbox)).collect();
            for node in &nodes {
                assert!(said(node.call()).await.is_fine());
            }
        }
        let (frozen, other) = (&nodes[round % 2], &nodes[(round + 1) % 2]);
        control.revoke(DEFAULT_APPID);
        let fetch = control.fault(Rule::new("/cgi-bin/token", Fault::Pass).hold());
        let stuck = spawned(frozen.call());
        until(control, "the fetch", |control| control.hits(fetch) == 1).await;
        kill_process(frozen.program.pid, Signal::STOP).expect("our own");
        let start = Instant::now();
        let answer = said(other.call()).await;
        println!("round {round}: cured after {:?}", start.elapsed());
        assert!(answer.is_fine() && answer.attempts == "2", "{answer:?}");
        assert!(
            start.elapsed() < Duration::from_millis(4500),
            "{:?}",
            start.elapsed()
        );
        let record: Vec<u8> = redis.run(&["GET", RECORD]);
        control.release(fetch);
        let fetches = control.fetches();
        kill_process(frozen.program.pid, Signal::CONT).expect("our own");
        assert!(
            said(frozen.call()).await.is_fine(),
            "it has the other's token"
        );
        let _ = stuck.await;
        assert_eq!(
            redis.run::<Vec<u8>>(&["GET", RECORD]),
            record,
            "round {round}: the late write"
        );
        assert_eq!(control.fetches(), fetches, "round {round}");
    }
}

struct Stoppable {
    program: Program,
    _folder: tempfile::TempDir,
    client: reqwest::Client,
    url: String,
}

impl Stoppable {
    fn start(setup: &Setup, sandbox: &Sandbox) -> Self {
        let folder = folder(setup, sandbox);
        let program = Program::start(&mut serve(folder.path()));
        let url = format!("http://{}{INFO}", program.proxy());
        Self {
            program,
            _folder: folder,
            client: crate::support::client(),
            url,
        }
    }

    fn call(&self) -> reqwest::RequestBuilder {
        self.client.get(&self.url)
    }
}
