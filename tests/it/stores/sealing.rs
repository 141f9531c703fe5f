//! Tokens at rest: sealed with `store.encryption_key`, under a new key without a fetch, and never
//! used where they do not belong.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::sync::RwLock;
use wxgate::{
    internals::token::store::{Saved, StoreError, TokenStore as _},
    sandbox::{DEFAULT_APPID, TokenFilter, TokenKind},
};

use crate::{
    store_contract::{KEY, opened, sample, token_of},
    stores::restarts::{file_until, stopped},
    support::{
        Gate, Setup, json,
        program::{Program, finish, folder, serve, wxgate},
        setup,
        token_tools::{Said, get, said, sha256, with_accounts},
    },
};

const USER: &str = "/cgi-bin/user/info?openid=a";
const JSAPI: &str = "/-/accounts/shop/tickets/jsapi";
const OTHER: &str = "a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1";

fn plain() -> Setup {
    setup()
        .set("store", "kind = \"file\"")
        .set("store", "path = \"state\"")
}

fn sealed(keys: &str) -> Setup {
    plain().set(
        "store",
        &format!("encryption_key = {{ value = \"{keys}\" }}"),
    )
}

/// How a key is named in what it sealed.
fn id_of(key: &str) -> String {
    let bytes = if key == OTHER {
        [[0xa2; 16], [0xb1; 16]].concat()
    } else {
        BASE64_STANDARD.decode(key).expect("base64")
    };
    sha256(&bytes)[..8].to_owned()
}

/// The files below a folder that hold a text, or what base64 or hex make of it.
fn holding(folder: &Path, text: &str) -> Vec<String> {
    let hex = text
        .bytes()
        .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    // Without its ends, which depend on what stands beside it.
    let shifted =
        |by: usize| BASE64_STANDARD.encode(&text.as_bytes()[by..text.len() / 3 * 3 - 3 + by]);
    let spellings: Vec<String> = [text.to_owned(), hex]
        .into_iter()
        .chain((0..3).map(shifted).filter(|part| part.len() > 8))
        .collect();
    let files = fs::read_dir(folder)
        .expect("readable")
        .map(|entry| entry.expect("an entry").path());
    let holds = |path: &std::path::PathBuf| {
        let content = String::from_utf8_lossy(&fs::read(path).expect("readable")).into_owned();
        spellings
            .iter()
            .any(|spelling| content.contains(spelling.as_str()))
    };
    let mut names: Vec<String> = files
        .filter(holds)
        .map(|path| {
            path.file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// Waits until the file of a record says this.
async fn recorded(folder: &Path, name: &str, part: &str) -> String {
    let path = folder.join("state").join(name);
    let bytes = file_until(&path, |bytes| String::from_utf8_lossy(bytes).contains(part)).await;
    String::from_utf8(bytes).expect("text")
}

fn current(gate: &Gate) -> String {
    gate.control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("a token")
}

async fn store_errors(gate: &Gate, operation: &str) -> u64 {
    let page = gate
        .client
        .get(gate.admin_url("/metrics"))
        .send()
        .await
        .expect("an answer")
        .text()
        .await
        .expect("text");
    let series = format!("wxgate_store_errors_total{{operation=\"{operation}\"}} ");
    page.lines()
        .find_map(|line| line.strip_prefix(&series))
        .map_or(0, |count| count.parse().expect("a number"))
}

/// Two generations of the token and a ticket, all of which have been written.
async fn lived_in(setup: Setup) -> (Gate, Vec<String>) {
    let gate = setup.start().await;
    gate.warm().await;
    let first = current(&gate);
    recorded(gate.folder.path(), "shop.json", "\"generation\":1").await;
    gate.control().revoke(TokenFilter::default());
    assert!(get(&gate, USER).await.is_fine());
    recorded(gate.folder.path(), "shop.json", "\"generation\":2").await;
    let ticket = json(gate.get(JSAPI).await).await["ticket"]
        .as_str()
        .expect("a ticket")
        .to_owned();
    recorded(gate.folder.path(), "shop.jsapi.json", "\"generation\":1").await;
    let tokens = vec![first, current(&gate), ticket];
    (gate, tokens)
}

/// A backup of the folder, or a disk that was sold, gives no token away; and the search that says
/// so can find one.
#[tokio::test(flavor = "multi_thread")]
async fn no_token_and_no_ticket_can_be_found_in_a_sealed_folder() {
    let (gate, tokens) = lived_in(plain()).await;
    let state = gate.folder.path().join("state");
    let found: Vec<_> = tokens.iter().map(|token| holding(&state, token)).collect();
    assert_eq!(
        found,
        [
            vec!["shop.json.bak"],
            vec!["shop.json"],
            vec!["shop.jsapi.json"]
        ],
        "the search works"
    );
    drop(gate);

    let (gate, tokens) = lived_in(sealed(KEY)).await;
    let state = gate.folder.path().join("state");
    for (token, file) in tokens
        .iter()
        .zip(["shop.json.bak", "shop.json", "shop.jsapi.json"])
    {
        assert_eq!(holding(&state, token), [""; 0]);
        assert!(
            holding(&state, &format!("\"sealed\":\"{}:", id_of(KEY))).contains(&file.to_owned()),
            "{file}"
        );
    }
    assert!(
        holding(&state, DEFAULT_APPID).contains(&"shop.json".to_owned()),
        "the rest can be read"
    );
    assert_eq!(holding(&state, KEY), [""; 0]);
    let before = gate.control().fetches();
    let (sandbox, folder) = stopped(gate).await;
    let gate = sealed(KEY).start_in(sandbox, folder).await;
    let answer = get(&gate, USER).await;
    assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
    assert_eq!(json(gate.get(JSAPI).await).await["ticket"], *tokens[2]);
    assert_eq!(
        (gate.control().fetches(), store_errors(&gate, "load").await),
        (before, 0)
    );
}

/// Who sets a key for the first time loses no token, and keeps none in plain text.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_with_a_key_seals_what_is_there_and_fetches_nothing() {
    let (gate, tokens) = lived_in(plain()).await;
    let before = gate.control().fetches();
    let (sandbox, folder) = stopped(gate).await;
    let gate = sealed(KEY).start_in(sandbox, folder).await;
    let answer = get(&gate, USER).await;
    assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
    assert_eq!(json(gate.get(JSAPI).await).await["ticket"], *tokens[2]);
    assert_eq!(gate.control().fetches(), before);
    for token in &tokens {
        assert_eq!(holding(&gate.folder.path().join("state"), token), [""; 0]);
    }
}

/// One of two nodes, restarted while the other serves.
type Node = Arc<RwLock<Option<Gate>>>;

async fn restarted(node: &Node, setup: impl FnOnce() -> Setup) {
    let mut place = node.write().await;
    let (sandbox, folder) = stopped(place.take().expect("it runs")).await;
    *place = Some(setup().start_in(sandbox, folder).await);
}

/// Calls whichever node is up, as a load balancer does, until told to stop.
async fn calling(nodes: [Node; 2], first: usize, stop: Arc<AtomicBool>, made: Arc<AtomicU64>) {
    while !stop.load(SeqCst) {
        let up = nodes
            .iter()
            .cycle()
            .skip(first)
            .take(2)
            .find_map(|node| node.try_read().ok().filter(|n| n.is_some()));
        let Some(up) = up else {
            tokio::task::yield_now().await;
            continue;
        };
        let gate = up.as_ref().expect("looked at");
        let answer = said(gate.send_message("user")).await;
        assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
        made.fetch_add(1, SeqCst);
    }
}

/// Pitfall: replacing a key means fetching every token anew, so nobody ever replaces one.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_replaced_under_load_without_a_failure_or_a_fetch() {
    let first = sealed(KEY).plain().start().await;
    let api = format!(
        "api = [\"{}\"]",
        first.sandbox.http_url().expect("it listens")
    );
    // The second node has a sandbox of its own that nobody asks.
    let second = sealed(KEY).plain().account(&api).start().await;
    for gate in [&first, &second] {
        gate.warm().await;
        recorded(
            gate.folder.path(),
            "shop.json",
            &format!("\"sealed\":\"{}:", id_of(KEY)),
        )
        .await;
    }
    let control = first.control().clone();
    let before = control.fetches();
    let nodes: [Node; 2] = [first, second].map(|gate| Arc::new(RwLock::new(Some(gate))));
    let (stop, made) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let callers: Vec<_> = (0..8)
        .map(|n| {
            tokio::spawn(calling(
                nodes.clone(),
                n % 2,
                Arc::clone(&stop),
                Arc::clone(&made),
            ))
        })
        .collect();
    for keys in [format!("{OTHER},{KEY}"), OTHER.to_owned()] {
        restarted(&nodes[0], || sealed(&keys).plain()).await;
        restarted(&nodes[1], || sealed(&keys).plain().account(&api)).await;
        let calls = made.load(SeqCst);
        while made.load(SeqCst) < calls + 50 {
            tokio::task::yield_now().await;
        }
        for node in &nodes {
            let place = node.read().await;
            let state = place.as_ref().expect("it runs").folder.path().join("state");
            assert_eq!(
                holding(&state, &format!("\"sealed\":\"{}:", id_of(OTHER))),
                ["shop.json", "shop.phantoms.json"]
            );
            assert_eq!(
                holding(&state, &format!("\"sealed\":\"{}:", id_of(KEY))),
                [""; 0]
            );
        }
    }
    stop.store(true, SeqCst);
    for caller in callers {
        caller.await.expect("no call failed");
    }
    assert_eq!(control.fetches(), before, "{} calls", made.load(SeqCst));
    for node in &nodes {
        assert_eq!(
            store_errors(node.read().await.as_ref().expect("it runs"), "load").await,
            0
        );
    }
}

/// Each wrong start costs one fetch, is counted, and leaves a record that the next right one can
/// use.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_key_opens_costs_one_fetch_and_is_written_over() {
    let mut gate = sealed(KEY).start().await;
    gate.warm().await;
    recorded(gate.folder.path(), "shop.json", "\"sealed\"").await;
    for (number, (setup, now)) in [
        (sealed(OTHER), "\"sealed\""),
        (plain(), "\"value\""),
        (sealed(KEY), "\"sealed\""),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = number < 2;
        let before = gate.control().fetches();
        let (sandbox, folder) = stopped(gate).await;
        gate = setup.start_in(sandbox, folder).await;
        let answer = get(&gate, USER).await;
        assert!(
            answer.is_fine() && answer.attempts == "1",
            "{number}: {answer:?}"
        );
        recorded(gate.folder.path(), "shop.json", now).await;
        let cost = u64::from(refused);
        assert_eq!(
            (
                gate.control().fetches() - before,
                store_errors(&gate, "load").await
            ),
            (cost, cost),
            "{number}"
        );
        assert_eq!(store_errors(&gate, "save").await, 0);
        let damaged = fs::read_dir(gate.folder.path().join("state")).expect("readable");
        assert!(
            !damaged
                .flatten()
                .any(|e| e.file_name().to_string_lossy().contains("damaged")),
            "it is no damage"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_which_key_is_missing_and_whose_token_it_is() {
    let gate = sealed(KEY).start().await;
    gate.warm().await;
    recorded(gate.folder.path(), "shop.json", "\"sealed\"").await;
    let (sandbox, state) = stopped(gate).await;
    for (setup, advice) in [
        (sealed(OTHER), "add that key behind the first one"),
        (plain(), "is not set: set it"),
    ] {
        let folder = folder(&setup, &sandbox);
        fs::create_dir(folder.path().join("state")).expect("made");
        fs::copy(
            state.path().join("state/shop.json"),
            folder.path().join("state/shop.json"),
        )
        .expect("copied");
        let program = Program::start(serve(folder.path()).env("WXGATE_LOG", "trace"));
        let line = program.logged("sealed with the key");
        for part in ["WARN", "shop", advice, "store.encryption_key", &id_of(KEY)] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        program.proxy();
        let mut check = wxgate(&["check", "--config"]);
        check.arg(folder.path().join("wxgate.toml"));
        let said = [program.stop().stderr, finish(check).stdout].concat();
        for key in [KEY, OTHER] {
            assert!(!said.contains(&key[..20]), "a key in {said}");
        }
    }
}

/// Whoever can write to the folder, but has no key, cannot have one account speak with the token of
/// another.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_in_the_place_of_another_is_not_used() {
    let two = || with_accounts(sealed(KEY).default_account("shop"), 1, "");
    let gate = two().start().await;
    gate.warm().await;
    assert!(
        get(&gate, "/@a0/cgi-bin/user/info?openid=a")
            .await
            .is_fine()
    );
    for name in ["shop.json", "a0.json"] {
        recorded(gate.folder.path(), name, "\"sealed\"").await;
    }
    let before = gate.control().fetches();
    let (sandbox, folder) = stopped(gate).await;
    let state = folder.path().join("state");
    fs::copy(state.join("shop.json"), state.join("a0.json")).expect("copied");
    fs::copy(state.join("shop.json"), state.join("shop.jsapi.json")).expect("copied");
    let gate = two().start_in(sandbox, folder).await;
    for target in [USER, "/@a0/cgi-bin/user/info?openid=a"] {
        let answer = get(&gate, target).await;
        assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
    }
    assert_eq!(
        (
            gate.control().fetches() - before,
            store_errors(&gate, "load").await
        ),
        (1, 1),
        "a0 asks anew"
    );
    let ticket: Said = get(&gate, JSAPI).await;
    assert!(
        ticket.is_fine() && !ticket.text().contains(&current(&gate)),
        "{ticket:?}"
    );
    assert_eq!(store_errors(&gate, "load").await, 2);
}

#[tokio::test]
async fn a_record_that_no_key_opens_is_refused_once_stays_for_the_right_key_and_gives_way_to_the_next()
 {
    let place = tempfile::tempdir().expect("a temporary folder");
    let open = |keys| opened(place.path(), keys);
    let shop = token_of("shop");
    open(Some(KEY))
        .save(&shop, sample(7, Some("a")))
        .await
        .expect("written");
    for keys in [Some(OTHER), None] {
        let store = open(keys);
        let refused = store.load(&shop).await;
        assert!(matches!(refused, Err(StoreError::Sealed(_))), "{refused:?}");
        assert_eq!(refused.unwrap_err().label(), "sealed");
        assert_eq!(store.load(&shop).await, Ok(None), "said once");
        drop(store);
        assert_eq!(
            open(Some(KEY)).load(&shop).await,
            Ok(Some(sample(7, Some("a")))),
            "it is still there"
        );
    }
    // Without a question first as well.
    assert_eq!(
        open(Some(OTHER)).save(&shop, sample(1, Some("b"))).await,
        Ok(Saved::Written)
    );
    assert_eq!(
        open(Some(OTHER)).load(&shop).await,
        Ok(Some(sample(1, Some("b"))))
    );
}

#[tokio::test]
async fn sealing_what_is_there_is_tried_again_with_the_next_write() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let open = |keys| opened(place.path(), keys);
    let shop = token_of("shop");
    for (generation, token) in [(1, "plain-one"), (2, "plain-two")] {
        open(None)
            .save(&shop, sample(generation, Some(token)))
            .await
            .expect("written");
    }
    let tokens = ["plain-one", "plain-two", "plain-three"];
    let shown = || tokens.map(|token| holding(place.path(), token).len());
    // A folder in the way of the new file.
    let obstacle = place.path().join(".shop.json.new");
    fs::create_dir(&obstacle).expect("made");
    let store = open(Some(KEY));
    assert_eq!(
        store.load(&shop).await,
        Ok(Some(sample(2, Some("plain-two")))),
        "it is used all the same"
    );
    fs::remove_dir(&obstacle).expect("removed");
    assert_eq!(shown(), [1, 1, 0]);
    assert_eq!(
        store.save(&shop, sample(3, Some("plain-three"))).await,
        Ok(Saved::Written)
    );
    assert_eq!(
        shown(),
        [0, 0, 0],
        "neither in the record nor in the previous one"
    );
}
