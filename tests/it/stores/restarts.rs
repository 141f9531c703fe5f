//! A restart costs no token: what the folder remembers, after a clean stop, a kill, a damaged file.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use rustix::process::Signal;
use tempfile::TempDir;
use wxgate::sandbox::{
    self, DEFAULT_APPID, DEFAULT_SECRET, Fault, Revocation, Rule, Sandbox, TokenKind,
};

use crate::support::{
    Gate, Setup, client,
    program::{Program, finish, folder, serve},
    setup,
    token_tools::{DEADLINE, Said, all, get, said, spawned, until},
};

const USER: &str = "/cgi-bin/user/info?openid=a";
const RECORD: &str = "state/shop.json";

fn on_disk(lines: &str) -> Setup {
    setup()
        .set("store", "kind = \"file\"")
        .set("store", "path = \"state\"")
        .account(lines)
}

/// Waits for a file to be as wished; nobody announces it.
pub async fn file_until(path: &Path, wished: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let waiting = async {
        loop {
            match fs::read(path) {
                Ok(bytes) if wished(&bytes) => return bytes,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, waiting)
        .await
        .unwrap_or_else(|_| panic!("{} is not as wished", path.display()))
}

async fn stored(folder: &TempDir, sandbox: &Sandbox, kind: TokenKind) {
    let token = sandbox
        .control()
        .current_token(DEFAULT_APPID, kind)
        .expect("a token");
    file_until(&folder.path().join(RECORD), |bytes| {
        String::from_utf8_lossy(bytes).contains(&token)
    })
    .await;
}

/// Stops, and waits until the refreshers have let go of the folder, which a process does by ending.
pub async fn stopped(gate: Gate) -> (Sandbox, TempDir) {
    let (sandbox, folder) = gate.stop_keeping().await;
    let lock = fs::File::open(folder.path().join("state/lock")).expect("the lock file");
    let waiting = async {
        while rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting)
        .await
        .expect("a stopped proxy gives the folder back");
    (sandbox, folder)
}

/// Pitfall: tokens and budgets live in memory, so a crash loop spends the day's 2000 fetches.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_on_the_same_folder_fetches_nothing() {
    for (mode, kind) in [
        ("stable", TokenKind::Stable),
        ("classic", TokenKind::Classic),
    ] {
        let lines = format!("token = \"{mode}\"");
        let mut gate = on_disk(&lines).start().await;
        gate.warm().await;
        for round in 0..3 {
            stored(&gate.folder, &gate.sandbox, kind).await;
            let (sandbox, folder) = stopped(gate).await;
            gate = on_disk(&lines).start_in(sandbox, folder).await;
            let answer = get(&gate, USER).await;
            assert!(
                answer.is_fine() && answer.attempts == "1",
                "{mode}, restart {round}: {answer:?}"
            );
            assert_eq!(gate.control().fetches(), 1, "{mode}, restart {round}");
        }
        // What came from the folder may be replaced at once when it is dead, like any token that
        // was good before.
        gate.control().revoke(DEFAULT_APPID);
        let calls = (0..50)
            .map(|n| spawned(gate.send_message(&format!("user-{n}"))))
            .collect();
        assert!(all(calls).await.iter().all(Said::is_fine), "{mode}");
        assert_eq!(gate.control().fetches(), 2, "{mode}");
    }
}

/// WeChat allows twenty forced calls a day, so what was spent of them must outlive the process.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_gives_no_forced_refresh_back() {
    let gate = on_disk("").start().await;
    gate.warm().await;
    let dead_for_good = || Revocation {
        sticky: true,
        ..Revocation::default()
    };
    gate.control().revoke_with(DEFAULT_APPID, dead_for_good());
    assert!(get(&gate, USER).await.is_fine());
    assert_eq!(gate.control().counters().forced_fetches, 1);
    stored(&gate.folder, &gate.sandbox, TokenKind::Stable).await;
    let (sandbox, folder) = stopped(gate).await;
    let gate = on_disk("").start_in(sandbox, folder).await;
    assert!(get(&gate, USER).await.is_fine());
    gate.control().revoke_with(DEFAULT_APPID, dead_for_good());
    let answer = get(&gate, USER).await;
    assert_eq!(
        (answer.errcode(), answer.replay.as_str()),
        (Some(40001), "skipped; reason=budget"),
        "{answer:?}"
    );
    assert_eq!(
        gate.control().counters().forced_fetches,
        1,
        "the last one is less than a minute ago"
    );
}

/// Pitfalls: an old secret's token is used after the secret was changed (WSO2), a token of another
/// account or kind is taken from a store that knows only one key.
#[tokio::test(flavor = "multi_thread")]
async fn another_secret_kind_or_appid_takes_no_token_from_the_folder() {
    let gate = on_disk("").start().await;
    gate.warm().await;
    stored(&gate.folder, &gate.sandbox, TokenKind::Stable).await;
    let (sandbox, folder) = stopped(gate).await;
    let gate = on_disk("token = \"classic\"")
        .start_in(sandbox, folder)
        .await;
    assert!(get(&gate, USER).await.is_fine());
    assert_eq!(gate.control().counters().classic_fetches, 1, "another kind");
    stored(&gate.folder, &gate.sandbox, TokenKind::Classic).await;
    let (sandbox, folder) = stopped(gate).await;
    sandbox
        .control()
        .add_account(&sandbox::SandboxAccount::new(DEFAULT_APPID, "new-secret"));
    let api = sandbox.https_url().expect("TLS");
    let changed = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n[upstream]\nca_file = \"root.pem\"\n[store]\nkind = \"file\"\npath = \"state\"\n[[account]]\nname = \"shop\"\nappid = \"{DEFAULT_APPID}\"\nsecret = {{ value = \"new-secret\" }}\ntoken = \"classic\"\napi = [\"{api}\"]\n"
    );
    fs::write(folder.path().join("wxgate.toml"), changed).expect("written");
    let serve = Serve::start(folder.path());
    assert!(serve.get(USER).await.is_fine());
    assert_eq!(
        sandbox.control().counters().classic_fetches,
        2,
        "another secret"
    );
}

/// A record that a crash, a full disk or a curious hand has damaged is an empty one: one fetch, no
/// failure, and the damaged file is kept for whoever wants to know.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_costs_one_fetch_and_nothing_else() {
    let gate = on_disk("token = \"classic\"").start().await;
    gate.warm().await;
    stored(&gate.folder, &gate.sandbox, TokenKind::Classic).await;
    let (mut sandbox, mut folder) = stopped(gate).await;
    let whole = fs::read(folder.path().join(RECORD)).expect("the record");
    let damages: [&[u8]; 5] = [
        b"",
        &whole[..whole.len() / 2],
        b"\0\0\0\0",
        b"{\"errcode\":40001}",
        b"[]",
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        for name in [RECORD.to_owned(), format!("{RECORD}.bak")] {
            fs::write(folder.path().join(name), damage).expect("damaged");
        }
        let before = sandbox.control().fetches();
        let gate = on_disk("token = \"classic\"")
            .start_in(sandbox, folder)
            .await;
        let answer = get(&gate, USER).await;
        assert!(
            answer.is_fine() && answer.attempts == "1",
            "damage {number}: {answer:?}"
        );
        assert_eq!(gate.control().fetches(), before + 1, "damage {number}");
        stored(&gate.folder, &gate.sandbox, TokenKind::Classic).await;
        (sandbox, folder) = stopped(gate).await;
    }
    let aside = fs::read_dir(folder.path().join("state"))
        .expect("the folder")
        .filter(|entry| {
            entry
                .as_ref()
                .is_ok_and(|entry| entry.file_name().to_string_lossy().contains("damaged"))
        });
    assert!(
        aside.count() >= 2,
        "what was damaged is set aside, not deleted"
    );
}

/// Tokens are for the owner's eyes only.
#[tokio::test(flavor = "multi_thread")]
async fn the_folder_and_its_files_are_private() {
    let gate = on_disk("").start().await;
    gate.warm().await;
    stored(&gate.folder, &gate.sandbox, TokenKind::Stable).await;
    let state = gate.folder.path().join("state");
    let mode = |path: &Path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(&state), 0o700);
    for entry in fs::read_dir(&state).expect("readable") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        let content = String::from_utf8_lossy(&fs::read(&path).expect("readable")).into_owned();
        assert!(
            !content.contains(DEFAULT_SECRET),
            "{} holds the secret",
            path.display()
        );
    }
}

/// A store that cannot be written (here: the folder is gone) stops no traffic.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_stops_no_traffic() {
    let gate = on_disk("").start().await;
    gate.warm().await;
    stored(&gate.folder, &gate.sandbox, TokenKind::Stable).await;
    fs::remove_dir_all(gate.folder.path().join("state")).expect("removed");
    for _ in 0..3 {
        gate.control().revoke(DEFAULT_APPID);
        let answer = said(gate.send_message("a")).await;
        assert!(answer.is_fine() && answer.attempts == "2", "{answer:?}");
    }
    assert_eq!(gate.control().fetches(), 4);
}

/// A running `wxgate serve`, killed when dropped.
struct Serve {
    program: Program,
    proxy: SocketAddr,
}

impl Serve {
    fn start(folder: &Path) -> Self {
        let program = Program::start(&mut serve(folder));
        let proxy = program.proxy();
        Self { program, proxy }
    }

    async fn get(&self, target: &str) -> Said {
        said(client().get(format!("http://{}{target}", self.proxy))).await
    }

    /// Without a warning. Returns what it logged.
    fn kill(self) -> String {
        self.program.signal(Signal::KILL);
        self.program.end().stderr
    }
}

async fn prepared(lines: &str) -> (Sandbox, TempDir) {
    let setup = on_disk(lines);
    let sandbox = setup.start_sandbox().await;
    let folder = folder(&setup, &sandbox);
    (sandbox, folder)
}

/// Killed without a warning, five times: the next call is served with the token that was there.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_comes_back_without_a_fetch() {
    let (sandbox, folder) = prepared("token = \"classic\"").await;
    for round in 0..5 {
        let serve = Serve::start(folder.path());
        let answer = serve.get(USER).await;
        assert!(
            answer.is_fine() && answer.attempts == "1",
            "start {round}: {answer:?}"
        );
        assert_eq!(sandbox.control().fetches(), 1, "start {round}");
        stored(&folder, &sandbox, TokenKind::Classic).await;
        serve.kill();
    }
}

/// Killed while it fetched: what was spent is remembered, what was not finished is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_in_the_middle_of_a_refresh_comes_back_and_recovers() {
    let (sandbox, folder) = prepared("token = \"classic\"").await;
    let serve = Serve::start(folder.path());
    assert!(serve.get(USER).await.is_fine());
    stored(&folder, &sandbox, TokenKind::Classic).await;
    sandbox.control().revoke(DEFAULT_APPID);
    let held = sandbox
        .control()
        .fault(Rule::new("/cgi-bin/token", Fault::Pass).hold());
    let url = format!("http://{}{USER}", serve.proxy);
    let lost = tokio::spawn(client().get(url).send());
    until(sandbox.control(), "the fetch", |control| {
        control.hits(held) == 1
    })
    .await;
    serve.kill();
    assert!(
        lost.await.expect("no panic").is_err(),
        "the caller of a killed process has no answer"
    );
    sandbox.control().release(held);
    let serve = Serve::start(folder.path());
    let answer = serve.get(USER).await;
    assert!(
        answer.is_fine() && answer.attempts == "2",
        "the stored token is dead, and is replaced unseen: {answer:?}"
    );
    assert_eq!(sandbox.control().fetches(), 3);
}

/// Pitfall: two instances on one store each fetch and kill the other one's token, and nobody finds
/// out for days.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_folder_ends_at_once_and_says_why() {
    let (sandbox, folder) = prepared("").await;
    let first = Serve::start(folder.path());
    assert!(first.get(USER).await.is_fine());
    let second = finish(serve(folder.path()));
    let said = second.stderr;
    assert_eq!(second.status, Some(1), "{said}");
    let pid = first.program.pid.to_string();
    for part in ["another wxgate", pid.as_str(), "state", "store.path"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(
        first.get(USER).await.is_fine(),
        "the first one does not notice"
    );
    assert_eq!(sandbox.control().fetches(), 1);
    // The lock goes with the process, however it ends.
    first.kill();
    let next = Serve::start(folder.path());
    assert!(next.get(USER).await.is_fine());
}

/// What stands on standard error is shipped to log servers that many can read.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_process_holds_neither_token_nor_secret() {
    let (sandbox, folder) = prepared("").await;
    let serve = Serve::start(folder.path());
    sandbox.control().revoke(DEFAULT_APPID);
    for target in [
        USER,
        "/cgi-bin/user/info?access_token=mine&openid=a",
        "/wxa/a",
    ] {
        serve.get(target).await;
    }
    let tokens: Vec<_> = sandbox
        .control()
        .requests("/**")
        .into_iter()
        .filter_map(|r| r.query)
        .collect();
    let log = serve.kill();
    assert!(!log.is_empty());
    let secrets = tokens
        .iter()
        .filter_map(|query| query.strip_prefix("access_token=")?.split('&').next());
    for secret in secrets.chain([DEFAULT_SECRET]) {
        assert!(!log.contains(secret), "a secret in the log");
    }
}
