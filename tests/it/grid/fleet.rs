//! Nodes through the configuration parser, each with its own way to the store, in front of one
//! WeChat; and their callers.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, sleep},
};
use wxgate::sandbox::{Fault, Rule, SandboxControl};

use crate::support::{Gate, json, setup, token_tools::said};

const INFO: &str = "/cgi-bin/user/info";
/// Between two calls of one caller.
const PACE: Duration = Duration::from_millis(150);
/// Callers of each node.
const CALLERS: usize = 2;

pub struct Fleet {
    /// All of them call the WeChat of the first.
    pub gates: Vec<Gate>,
}

/// What a node says of its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub generation: u64,
    pub fingerprint: Option<String>,
    pub forced_left: u64,
}

/// Callers that call until told to stop, and somebody who looks at the generations.
pub struct Load {
    going: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Calls>>,
    lookers: Vec<JoinHandle<Vec<u64>>>,
}

#[derive(Debug, Default)]
pub struct Calls {
    pub served: usize,
    pub failures: Vec<String>,
    pub longest: Duration,
    /// Generations of a node that went back.
    pub backwards: usize,
}

impl Fleet {
    /// Refreshers and stores run on `background`, as they have threads of their own in the program.
    /// The first token says that it lives for `life` seconds, if that is given.
    pub async fn start(background: &Handle, urls: Vec<String>, life: Option<u64>) -> Self {
        let sandbox = setup().start_sandbox().await;
        if let Some(life) = life {
            let short = Fault::Token {
                expires_in: Some(life.to_string()),
                access_token: None,
            };
            sandbox.control().fault(Rule::new("/cgi-bin/*token", short));
        }
        let api = format!("api = [\"{}\"]", sandbox.http_url().expect("it listens"));
        let mut first = Some(sandbox);
        let mut gates = Vec::new();
        for url in urls {
            let sandbox = match first.take() {
                Some(sandbox) => sandbox,
                None => setup().start_sandbox().await,
            };
            let node = setup()
                .set("server", "workers = 1")
                .set("store", "kind = \"redis\"")
                .set("store", &format!("url = {{ value = \"{url}\" }}"))
                .account(&api);
            gates.push(
                background
                    .spawn(node.start_with(sandbox))
                    .await
                    .expect("no panic"),
            );
        }
        for gate in &gates {
            gate.warm().await;
        }
        Self { gates }
    }

    /// Stops all nodes and waits for their ends.
    pub async fn stop(self) {
        for gate in self.gates {
            gate.stop().await.0.expect("nothing had to be cut");
        }
    }

    pub fn control(&self) -> &SandboxControl {
        self.gates[0].control()
    }

    pub async fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for gate in &self.gates {
            rows.push(row(&gate.client, &gate.admin_url("/api/accounts")).await);
        }
        rows
    }

    pub fn load(&self) -> Load {
        let going = Arc::new(AtomicBool::new(true));
        let (mut callers, mut lookers) = (Vec::new(), Vec::new());
        for (n, gate) in self.gates.iter().enumerate() {
            for caller in 0..CALLERS {
                let url = gate.url(&format!("{INFO}?openid={n}-{caller}"));
                callers.push(tokio::spawn(call(
                    gate.client.clone(),
                    url,
                    Arc::clone(&going),
                )));
            }
            lookers.push(tokio::spawn(look(
                gate.client.clone(),
                gate.admin_url("/api/accounts"),
                Arc::clone(&going),
            )));
        }
        Load {
            going,
            callers,
            lookers,
        }
    }

    /// How often a caller was served with a token that it had already seen replaced.
    pub fn returns(&self) -> usize {
        let mut seen: HashMap<String, Vec<String>> = HashMap::new();
        let mut returns = 0;
        for request in self.control().requests(INFO) {
            let query = request.query.unwrap_or_default();
            let part = |name: &str| {
                query
                    .split('&')
                    .find_map(|pair| pair.strip_prefix(name))
                    .unwrap_or("")
                    .to_owned()
            };
            let (caller, token) = (part("openid="), part("access_token="));
            let tokens = seen.entry(caller).or_default();
            if tokens.last() != Some(&token) {
                returns += usize::from(tokens.contains(&token));
                tokens.push(token);
            }
        }
        returns
    }
}

impl Load {
    pub async fn end(self) -> Calls {
        self.going.store(false, Ordering::Relaxed);
        let mut all = Calls::default();
        for caller in self.callers {
            let one = caller.await.expect("no panic");
            all.served += one.served;
            all.failures.extend(one.failures);
            all.longest = all.longest.max(one.longest);
        }
        for looker in self.lookers {
            let generations = looker.await.expect("no panic");
            all.backwards += generations
                .windows(2)
                .filter(|pair| pair[1] < pair[0])
                .count();
        }
        all
    }
}

async fn call(client: reqwest::Client, url: String, going: Arc<AtomicBool>) -> Calls {
    let mut calls = Calls::default();
    while going.load(Ordering::Relaxed) {
        let start = Instant::now();
        let answer = said(client.get(&url)).await;
        calls.longest = calls.longest.max(start.elapsed());
        calls.served += 1;
        if !answer.is_fine() {
            calls.failures.push(format!("{answer:?}"));
        }
        sleep(PACE).await;
    }
    calls
}

async fn look(client: reqwest::Client, url: String, going: Arc<AtomicBool>) -> Vec<u64> {
    let mut generations = Vec::new();
    while going.load(Ordering::Relaxed) {
        generations.push(row(&client, &url).await.generation);
        sleep(PACE * 2).await;
    }
    generations
}

async fn row(client: &reqwest::Client, url: &str) -> Row {
    let accounts: Value = json(client.get(url).send().await.expect("an answer")).await;
    let account = &accounts[0];
    Row {
        generation: account["generation"].as_u64().expect("a number"),
        fingerprint: account["fingerprint"].as_str().map(str::to_owned),
        forced_left: account["budgets"]["forced"].as_u64().expect("a number"),
    }
}
