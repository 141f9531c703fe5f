//! What the tests of tokens and replays share: waiting for the sandbox, many calls at once, many
//! accounts at once.

use std::{fmt::Write as _, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use reqwest::{RequestBuilder, Response};
use tokio::{task::JoinHandle, time::Instant};
use wxgate::sandbox::{Fault, Rule, SandboxAccount, SandboxControl};

use crate::support::{Gate, Setup, header};

/// Nothing that is waited for here takes longer, unless it never comes.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// An answer, read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub status: u16,
    pub attempts: String,
    pub replay: String,
    pub error: String,
    pub retry_after: String,
    pub body: Vec<u8>,
}

impl Said {
    pub async fn of(answer: Response) -> Self {
        Self {
            status: answer.status().as_u16(),
            attempts: header(&answer, "x-wxgate-attempts"),
            replay: header(&answer, "x-wxgate-replay"),
            error: header(&answer, "x-wxgate-error"),
            retry_after: header(&answer, "retry-after"),
            body: answer
                .bytes()
                .await
                .expect("the answer comes whole")
                .to_vec(),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn errcode(&self) -> Option<i64> {
        serde_json::from_slice::<serde_json::Value>(&self.body)
            .ok()?
            .get("errcode")?
            .as_i64()
    }

    /// A call that went well: 200 and no error in the body.
    pub fn is_fine(&self) -> bool {
        self.status == 200 && self.error.is_empty() && matches!(self.errcode(), None | Some(0))
    }
}

pub async fn said(request: RequestBuilder) -> Said {
    Said::of(request.send().await.expect("the proxy answers")).await
}

pub async fn get(gate: &Gate, target: &str) -> Said {
    Said::of(gate.get(target).await).await
}

/// Sends on a task of its own.
pub fn spawned(request: RequestBuilder) -> JoinHandle<Said> {
    tokio::spawn(said(request))
}

pub async fn joined(call: JoinHandle<Said>) -> Said {
    tokio::time::timeout(DEADLINE, call)
        .await
        .expect("no call waits for ever")
        .expect("no panic")
}

pub async fn all(calls: Vec<JoinHandle<Said>>) -> Vec<Said> {
    let mut answers = Vec::with_capacity(calls.len());
    for call in calls {
        answers.push(joined(call).await);
    }
    answers
}

/// Waits until the sandbox has seen what the test is waiting for.
pub async fn until(
    control: &SandboxControl,
    what: &str,
    reached: impl FnMut(&SandboxControl) -> bool,
) {
    let waited = tokio::time::timeout(DEADLINE, control.until(reached)).await;
    assert!(
        waited.is_ok(),
        "{what} was not seen in time: {:?}",
        control.counters()
    );
}

/// Looks until something is so; for states of others that nobody announces. How long that took
/// comes back.
pub async fn eventually(what: &str, mut reached: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    let looking = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reached = tokio::time::timeout(DEADLINE, looking).await;
    assert!(reached.is_ok(), "{what}: not in time");
    start.elapsed()
}

/// Calls until an answer is as wished; what came last is returned. For states that only time and
/// the proxy bring about.
pub async fn call_until(gate: &Gate, target: &str, wished: impl Fn(&Said) -> bool) -> Said {
    let calling = async {
        loop {
            let answer = get(gate, target).await;
            if wished(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, calling)
        .await
        .unwrap_or_else(|_| panic!("{target} never answered as wished"))
}

/// The appid of account `a0`, `a1`, …
pub fn appid(number: usize) -> String {
    format!("wx{number:016x}")
}

/// Adds accounts `a0`, `a1`, … to the one that is there, so that a table of cases needs one gate
/// and no case meets the limits that another one has used up. `lines` go into each `[[account]]`.
pub fn with_accounts(setup: Setup, count: usize, lines: &str) -> Setup {
    let secret = |number| format!("secret-{number}");
    let mut text = String::new();
    for number in 0..count {
        let (appid, secret) = (appid(number), secret(number));
        let _ = write!(
            text,
            "[[account]]\nname = \"a{number}\"\nappid = \"{appid}\"\nsecret = {{ value = \"{secret}\" }}\napi = [\"{{api}}\"]\n{lines}\n"
        );
    }
    setup
        .sandbox(|sandbox| {
            sandbox
                .accounts
                .extend((0..count).map(|n| SandboxAccount::new(appid(n), secret(n))))
        })
        .more(&text)
}

/// Gives account `aN` its first token and has it accepted once, as an honest account's token is.
pub async fn warm_account(gate: &Gate, number: usize) {
    let answer = get(
        gate,
        &format!("/@a{number}/cgi-bin/user/info?openid=warm-up"),
    )
    .await;
    assert!(answer.is_fine(), "{answer:?}");
}

pub fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes)
        .as_ref()
        .iter()
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// Bytes that no two places of a body have in common, so that a shifted or halved copy has another
/// hash.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Starts after the sandbox has been told how to misbehave, so that the very first fetch can be
/// hit.
pub async fn start_after(setup: Setup, prepare: impl FnOnce(&SandboxControl)) -> Gate {
    let sandbox = setup.start_sandbox().await;
    prepare(sandbox.control());
    setup.start_with(sandbox).await
}

/// Starts with a first token of which the token endpoint says that it lives for so many seconds.
/// The sandbox goes on taking it; later tokens live as long as usual.
pub async fn start_with_short_token(setup: Setup, seconds: u32) -> Gate {
    let short = Fault::Token {
        expires_in: Some(seconds.to_string()),
        access_token: None,
    };
    let prepare = |control: &SandboxControl| {
        control.fault(Rule::new("/cgi-bin/*token", short));
    };
    start_after(setup, prepare).await
}
