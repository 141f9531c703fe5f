//! Table of transitions: a machine, an event, and the effects in their order.

use super::*;
use crate::{
    base::Secret,
    token::{budget::CLASSIC_PER_DAY, refresher::notices::FetchResult},
    wechat::ticket::TicketType,
};

/// Machine at the beginning of a row.
type From = fn() -> Machine;

const CONNECT: FetchError = FetchError::REFUSED;
const WRONG_SECRET: FetchError = FetchError::Refused {
    platform: Platform::Wechat,
    code: 40125,
    ip: None,
};

/// Effects in words.
fn words(effects: &Effects) -> String {
    let mut words = Vec::new();
    if effects.clear_evidence {
        words.push("clear evidence".to_owned());
    }
    if let Some(token) = &effects.install {
        words.push(format!("install {}", token.generation()));
    }
    if effects.save {
        words.push("save".to_owned());
    }
    words.extend(effects.notices.iter().filter_map(notice));
    for (CallerId(caller), refresh) in &effects.replies {
        words.push(match refresh {
            Refresh::Replay(token) => format!("replay {caller} with {}", token.generation()),
            Refresh::GiveBack(reason) => format!("give back {caller}: {}", reason.slug()),
        });
    }
    for (OperatorId(operator), report) in &effects.reports {
        words.push(match report {
            Ok(report) => format!("report {operator}: {}", report.refreshed),
            Err(blocked) => format!("report {operator}: {}", blocked.cause.label()),
        });
    }
    words.extend(effects.step.as_ref().map(step));
    if effects.release_lease {
        words.push("release".to_owned());
    }
    words.join(", ")
}

fn notice(notice: &Notice) -> Option<String> {
    let word = match notice {
        Notice::Fetched { result, .. } => match result {
            FetchResult::Late => "late",
            FetchResult::New | FetchResult::Same | FetchResult::Failed(_) => return None,
        },
        Notice::EndpointWorks => "works again",
        Notice::NewToken { .. } => return None,
        Notice::TokenFromPeer(_) => "from a peer",
        Notice::PeerRefused(_) => "peer refused",
        Notice::Failed { .. } => "failed",
        Notice::HalfLifeOver { .. } => "half life over",
        Notice::NoOtherToken => "no other token",
        Notice::NoForceLeft => "no force left",
        Notice::OutOfBudget(_) => "out of budget",
        Notice::Conflict(_) => "conflict",
    };
    Some(word.to_owned())
}

fn step(step: &Step) -> String {
    match step {
        Step::Preflight(known) if known.insists => "preflight for a person".to_owned(),
        Step::Preflight(_) => "preflight".to_owned(),
        Step::Fetch { mode, rejected, .. } => {
            let mode = match mode {
                FetchMode::Normal => "fetch",
                FetchMode::Forced => "fetch forced",
            };
            let past = rejected.as_ref().map_or("", |_| " past");
            format!("{mode}{past}")
        }
        Step::Probe(_) => "probe".to_owned(),
        Step::Write => "write".to_owned(),
    }
}

fn token(kind: ProviderKind) -> Machine {
    Machine::new(CredentialType::Token, kind, false)
}

fn fetching(kind: ProviderKind) -> Machine {
    token(kind).then(DEADLINE)
}

fn writing(kind: ProviderKind) -> Machine {
    let machine = fetching(kind);
    let sent = machine.at.time.now;
    machine.then(fetched("T1", sent, 7200))
}

/// Machine with a token that no request has used yet.
fn unproven(kind: ProviderKind) -> Machine {
    writing(kind).then(written())
}

/// Machine with a token that a request saw accepted.
fn proven(kind: ProviderKind) -> Machine {
    unproven(kind).accepted()
}

/// Machine that fetches, since a good token was rejected.
fn curing(kind: ProviderKind) -> Machine {
    proven(kind).then(rejected(1, 1, "/a"))
}

/// Machine to which the endpoint gave the rejected token again.
fn given_again(kind: ProviderKind) -> Machine {
    let machine = curing(kind);
    let sent = machine.at.time.now;
    machine.then(fetched("T1", sent, 7200))
}

fn forcing() -> Machine {
    given_again(ProviderKind::Stable).then(probed(Probe::Stale))
}

/// Machine that the endpoint has just refused.
fn refused() -> Machine {
    let machine = proven(ProviderKind::Stable).after(6960).then(DEADLINE);
    let sent = machine.at.time.now;
    machine.then(failed(sent, WRONG_SECRET))
}

fn exhausted() -> Machine {
    let mut machine = token(ProviderKind::Classic);
    for _ in 0..CLASSIC_PER_DAY {
        machine.life.record.budget.spend_classic(NOON_MS).unwrap();
    }
    machine
}

fn shared() -> Machine {
    let machine = Machine::new(CredentialType::Token, ProviderKind::Stable, true)
        .then(DEADLINE)
        .then(asked(None, true));
    let sent = machine.at.time.now;
    machine.then(fetched("T1", sent, 7200)).then(written())
}

fn ticket() -> Machine {
    let credential = CredentialType::Ticket(TicketType::Jsapi);
    let machine = Machine::new(credential, ProviderKind::Stable, false).then(DEADLINE);
    let sent = machine.at.time.now;
    machine.then(fetched("K1", sent, 7200)).then(written())
}

fn dormant() -> Machine {
    ticket().after(6960).then(Event::Deadline {
        unused_for: Duration::from_secs(5 * 3600),
    })
}

/// Answer of the other nodes with this record.
fn asked(record: Option<TokenRecord>, leased: bool) -> Event {
    Event::StepEnded(StepOutcome::Preflight(Preflight {
        settled: record.is_some(),
        record: record.map(Box::new),
        leased,
        heard: true,
    }))
}

/// Record of another node.
fn record(generation: u64, token: &str) -> TokenRecord {
    let stored = StoredToken {
        value: Secret::new(token.to_owned()),
        fetched_ms: NOON_MS,
        expires_ms: NOON_MS + 7_200_000,
    };
    TokenRecord {
        identity: AccountIdentity::of(&account(ProviderKind::Stable)),
        generation: Generation(generation),
        token: Some(stored),
        budget: DailyBudget::default(),
        refusal: None,
        asked_ms: NOON_MS,
    }
}

fn replicated(generation: u64, token: &str) -> Event {
    Event::Replicated(Some(Box::new(record(generation, token))))
}

fn refusal() -> TokenRecord {
    let refusal = crate::token::store::StoredRefusal {
        code: 40125,
        failures: 1,
        until_ms: NOON_MS + 60_000,
    };
    TokenRecord {
        token: None,
        refusal: Some(refusal),
        ..record(0, "")
    }
}

/// Name, start, event, and the effects in words.
type Row = (&'static str, From, fn(Instant) -> Event, &'static str);

#[track_caller]
fn check(rows: &[Row]) {
    let mut wrong = Vec::new();
    for (name, from, event, expected) in rows {
        let mut machine = from();
        let event = event(machine.at.time.now);
        let got = words(&machine.on(event));
        if got != *expected {
            wrong.push(format!("{name}:\n  expected {expected}\n  got      {got}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_first_token() {
    check(&[
        (
            "an empty store",
            || token(ProviderKind::Stable),
            |_| Event::Loaded(None),
            "",
        ),
        (
            "a token in the store",
            || token(ProviderKind::Stable),
            |_| Event::Loaded(Some(Box::new(record(4, "T4")))),
            "install 4",
        ),
        (
            "time to start",
            || token(ProviderKind::Stable),
            |_| DEADLINE,
            "fetch",
        ),
        (
            "a classic fetch is on record first",
            || token(ProviderKind::Classic),
            |_| DEADLINE,
            "save, fetch",
        ),
        (
            "a deadline while a step is under way",
            || fetching(ProviderKind::Stable),
            |_| DEADLINE,
            "",
        ),
        (
            "a token",
            || fetching(ProviderKind::Stable),
            |now| fetched("T1", now, 7200),
            "save, write",
        ),
        (
            "the token is stored",
            || writing(ProviderKind::Stable),
            |_| written(),
            "clear evidence, install 1",
        ),
        (
            "the store panics",
            || writing(ProviderKind::Stable),
            |_| Event::StepEnded(StepOutcome::Panicked),
            "failed",
        ),
        (
            "no connection",
            || fetching(ProviderKind::Stable),
            |now| failed(now, CONNECT),
            "failed",
        ),
        ("no budget", exhausted, |_| DEADLINE, "out of budget"),
        (
            "a step that is not under way",
            || fetching(ProviderKind::Stable),
            |_| written(),
            "",
        ),
        (
            "a step without a refresh",
            || token(ProviderKind::Stable),
            |_| written(),
            "",
        ),
    ]);
}

#[test]
fn a_token_in_its_time() {
    check(&[
        (
            "before its time",
            || proven(ProviderKind::Stable),
            |_| DEADLINE,
            "",
        ),
        (
            "its time",
            || proven(ProviderKind::Stable).after(6960),
            |_| DEADLINE,
            "fetch",
        ),
        (
            "a look each minute",
            || proven(ProviderKind::External).after(60),
            |_| DEADLINE,
            "fetch",
        ),
        (
            "the same token again",
            || proven(ProviderKind::Stable).after(6960).then(DEADLINE),
            |now| fetched("T1", now, 240),
            "install 1, save",
        ),
        (
            "the same token of another server",
            || proven(ProviderKind::External).after(60).then(DEADLINE),
            |now| fetched("T1", now, 7100),
            "install 1",
        ),
        (
            "after failures",
            || refused().after(600).then(DEADLINE),
            |now| fetched("T1", now, 100),
            "install 1, save, works again",
        ),
        (
            "a second token of a stable endpoint long before the end is a sign",
            || {
                let machine = proven(ProviderKind::Stable).then(ordered(1, false));
                let sent = machine.at.time.now;
                let machine = machine.then(fetched("T2", sent, 7200)).then(written());
                machine.accepted()
            },
            |_| rejected(1, 2, "/a"),
            "clear evidence, fetch past",
        ),
    ]);
}

#[test]
fn a_rejection() {
    check(&[
        (
            "a newer token is there",
            || proven(ProviderKind::Stable),
            |_| rejected(1, 0, "/a"),
            "replay 1 with 1",
        ),
        (
            "a good token died",
            || proven(ProviderKind::Stable),
            |_| rejected(1, 1, "/a"),
            "clear evidence, fetch past",
        ),
        (
            "a first token that was never accepted",
            || unproven(ProviderKind::Stable),
            |_| rejected(1, 1, "/a"),
            "clear evidence, fetch past",
        ),
        (
            "a token that came after a rejection and was never accepted",
            || {
                let machine = curing(ProviderKind::Stable);
                let sent = machine.at.time.now;
                machine.then(fetched("T2", sent, 7200)).then(written())
            },
            |_| rejected(2, 2, "/a"),
            "clear evidence, give back 2: backoff",
        ),
        (
            "a refresh is under way",
            || curing(ProviderKind::Stable),
            |_| rejected(2, 1, "/a"),
            "clear evidence",
        ),
        (
            "the endpoint is failing",
            refused,
            |_| rejected(1, 1, "/a"),
            "clear evidence, give back 1: refresh_failed",
        ),
        (
            "another token",
            || curing(ProviderKind::Stable),
            |now| fetched("T2", now, 7200),
            "save, write",
        ),
        (
            "another token is stored",
            || {
                let machine = curing(ProviderKind::Stable).then(rejected(2, 1, "/b"));
                let sent = machine.at.time.now;
                machine.then(fetched("T2", sent, 7200))
            },
            |_| written(),
            "clear evidence, install 2, replay 1 with 2, replay 2 with 2",
        ),
        (
            "one passing failure: the next attempt is near",
            || curing(ProviderKind::Stable),
            |now| failed(now, CONNECT),
            "failed",
        ),
        (
            "the second failure",
            || {
                let machine = curing(ProviderKind::Stable);
                let sent = machine.at.time.now;
                machine.then(failed(sent, CONNECT)).after(2).then(DEADLINE)
            },
            |now| failed(now, CONNECT),
            "failed, give back 1: refresh_failed",
        ),
        (
            "a refusal",
            || curing(ProviderKind::Stable),
            |now| failed(now, WRONG_SECRET),
            "failed, give back 1: refresh_failed",
        ),
        (
            "a lost answer is taken at its word",
            || {
                let machine = unproven(ProviderKind::Stable).after(6960).then(DEADLINE);
                let sent = machine.at.time.now;
                machine.then(failed(sent, FetchError::Broken))
            },
            |_| rejected(1, 1, "/a"),
            "clear evidence, fetch past",
        ),
    ]);
}

#[test]
fn a_rejected_token_that_is_given_again() {
    check(&[
        (
            "stable: a probe",
            || curing(ProviderKind::Stable),
            |now| fetched("T1", now, 7200),
            "install 1, save, probe",
        ),
        (
            "another path took it meanwhile",
            || curing(ProviderKind::Stable).accepted(),
            |now| fetched("T1", now, 7200),
            "install 1, save, give back 1: same_token",
        ),
        (
            "another server: nothing new",
            || curing(ProviderKind::External),
            |now| fetched("T1", now, 7200),
            "install 1, give back 1: same_token",
        ),
        (
            "another server, read before the rejection",
            || {
                let machine = proven(ProviderKind::External).after(60).then(DEADLINE);
                machine.then(rejected(1, 1, "/a"))
            },
            |now| fetched("T1", now, 7100),
            "install 1, fetch past",
        ),
        (
            "classic: nothing to be done",
            || curing(ProviderKind::Classic),
            |now| fetched("T1", now, 7200),
            "install 1, save, give back 1: same_token",
        ),
        (
            "the probe is fine: the path is denied",
            || given_again(ProviderKind::Stable),
            |_| probed(Probe::Fine),
            "give back 1: same_token",
        ),
        (
            "a denied path",
            || given_again(ProviderKind::Stable).then(probed(Probe::Fine)),
            |_| rejected(2, 1, "/a"),
            "clear evidence, give back 2: path_lies",
        ),
        (
            "the probe says nothing",
            || given_again(ProviderKind::Stable),
            |_| Event::StepEnded(StepOutcome::Panicked),
            "give back 1: same_token",
        ),
        (
            "the probe is stale",
            || given_again(ProviderKind::Stable),
            |_| probed(Probe::Stale),
            "save, fetch forced",
        ),
        (
            "the probe is stale, and WeCom has no other token",
            || given_again(ProviderKind::Wecom),
            |_| probed(Probe::Stale),
            "no other token, give back 1: same_token",
        ),
        (
            "no forced refresh is left",
            || {
                let mut machine = given_again(ProviderKind::Stable);
                let budget = &mut machine.life.record.budget;
                budget.spend_forced(NOON_MS, Forcer::Refresher).unwrap();
                machine
            },
            |_| probed(Probe::Stale),
            "no force left, give back 1: budget",
        ),
        (
            "forced",
            forcing,
            |now| fetched("T2", now, 7200),
            "save, write",
        ),
        (
            "forced in vain",
            forcing,
            |now| fetched("T1", now, 7200),
            "install 1, save, give back 1: same_token",
        ),
    ]);
}

#[test]
fn an_operator() {
    check(&[
        (
            "asks",
            || proven(ProviderKind::Stable),
            |_| ordered(1, false),
            "fetch",
        ),
        (
            "forces",
            || proven(ProviderKind::Stable),
            |_| ordered(1, true),
            "save, fetch forced",
        ),
        (
            "waits for a refresh",
            || curing(ProviderKind::Stable),
            |_| ordered(1, true),
            "",
        ),
        (
            "cannot force",
            || proven(ProviderKind::Wecom),
            |_| ordered(1, true),
            "report 1: cannot_force",
        ),
        (
            "has no budget",
            exhausted,
            |_| ordered(1, false),
            "report 1: budget",
        ),
        (
            "asked, and it is the same token",
            || proven(ProviderKind::Stable).then(ordered(1, false)),
            |now| fetched("T1", now, 7200),
            "install 1, save, report 1: false",
        ),
        (
            "is answered when the token is in use",
            || {
                let machine = proven(ProviderKind::Stable).then(ordered(1, false));
                let sent = machine.at.time.now;
                machine.then(fetched("T2", sent, 7200))
            },
            |_| written(),
            "clear evidence, install 2, report 1: true",
        ),
        (
            "is told of a failure",
            || proven(ProviderKind::Stable).then(ordered(1, false)),
            |now| failed(now, CONNECT),
            "failed, report 1: connect",
        ),
        (
            "forces after an ordinary refresh",
            || curing(ProviderKind::Stable).then(ordered(1, true)),
            |now| failed(now, CONNECT),
            "failed, report 1: connect",
        ),
        (
            "is not kept from it by a refusal",
            refused,
            |_| ordered(1, false),
            "fetch",
        ),
    ]);
}

#[test]
fn other_nodes() {
    let with_lease: From = || shared().after(6960).then(DEADLINE);
    check(&[
        (
            "are asked first",
            || Machine::new(CredentialType::Token, ProviderKind::Stable, true),
            |_| DEADLINE,
            "preflight",
        ),
        (
            "are asked for a person too",
            || Machine::new(CredentialType::Token, ProviderKind::Stable, true),
            |_| ordered(1, false),
            "preflight for a person",
        ),
        ("have nothing", with_lease, |_| asked(None, true), "fetch"),
        (
            "do not answer",
            with_lease,
            |_| Event::StepEnded(StepOutcome::Panicked),
            "fetch",
        ),
        (
            "have a newer token",
            with_lease,
            |_| asked(Some(record(2, "T2")), true),
            "install 2, from a peer, release",
        ),
        (
            "were refused",
            || Machine::new(CredentialType::Token, ProviderKind::Stable, true).then(DEADLINE),
            |_| asked(Some(refusal()), true),
            "peer refused, release",
        ),
        (
            "get the lease back once the token is stored",
            || {
                let machine = shared().after(6960).then(DEADLINE).then(asked(None, true));
                let sent = machine.at.time.now;
                machine.then(fetched("T2", sent, 7200))
            },
            |_| written(),
            "clear evidence, install 2, release",
        ),
        (
            "learn of a refusal",
            || shared().after(6960).then(DEADLINE).then(asked(None, true)),
            |now| failed(now, WRONG_SECRET),
            "save, failed, release",
        ),
    ]);
}

#[test]
fn records_of_other_nodes() {
    check(&[
        (
            "write a newer token",
            shared,
            |_| replicated(2, "T2"),
            "install 2, from a peer",
        ),
        ("write the same token", shared, |_| replicated(1, "T1"), ""),
        (
            "number it anew",
            shared,
            |_| replicated(3, "T1"),
            "install 3",
        ),
        (
            "number two alike",
            shared,
            |_| replicated(1, "T0"),
            "install 2, save, from a peer",
        ),
        (
            "write an older one",
            || shared().then(replicated(3, "T3")),
            |_| replicated(2, "T2"),
            "save",
        ),
        (
            "lose the record",
            shared,
            |_| Event::Replicated(None),
            "save",
        ),
        (
            "write a token while one is fetched",
            || {
                shared()
                    .accepted()
                    .then(rejected(1, 1, "/a"))
                    .then(asked(None, true))
            },
            |_| replicated(2, "T2"),
            "install 2, from a peer, replay 1 with 2",
        ),
        (
            "were faster than an answer of WeChat",
            || {
                let machine = shared().after(6960).then(DEADLINE).then(asked(None, true));
                machine.then(replicated(2, "T2"))
            },
            |now| fetched("T3", now, 7200),
            "late, release",
        ),
        (
            "are not heard by a retired refresher",
            || shared().then(Event::Retired),
            |_| replicated(2, "T2"),
            "",
        ),
    ]);
}

#[test]
fn tickets_and_the_end() {
    let gone = |_| Event::TokenReplaced;
    check(&[
        (
            "a ticket that nobody wants rests",
            dormant,
            |_| DEADLINE,
            "",
        ),
        (
            "a ticket is wanted again",
            || dormant().then(Event::Wanted),
            |_| DEADLINE,
            "fetch",
        ),
        ("its token was rejected", ticket, gone, "fetch past"),
        ("a ticket that rests is left alone", dormant, gone, ""),
        (
            "there was no token to ask with",
            || {
                let machine = ticket().after(6960).then(DEADLINE);
                let sent = machine.at.time.now;
                machine
                    .then(failed(sent, FetchError::NoToken))
                    .then(Event::TokenReplaced)
            },
            |_| DEADLINE,
            "fetch",
        ),
        (
            "nothing starts by itself after the account is gone",
            || {
                proven(ProviderKind::Stable)
                    .then(Event::Retired)
                    .after(7000)
            },
            |_| DEADLINE,
            "",
        ),
        (
            "a request in flight is served",
            || proven(ProviderKind::Stable).then(Event::Retired),
            |_| rejected(1, 1, "/a"),
            "clear evidence, fetch past",
        ),
    ]);
}

#[test]
fn early_deaths_of_good_tokens_are_a_conflict_from_the_second_on() {
    let mut machine = proven(ProviderKind::Classic);
    let mut conflicts = Vec::new();
    for generation in 1..4 {
        machine = machine.after(60).accepted();
        machine.on(rejected(generation, generation, "/a"));
        let sent = machine.at.time.now;
        let token = format!("T{}", generation + 1);
        conflicts.push(words(&machine.on(fetched(&token, sent, 7200))));
        machine.on(written());
    }
    assert_eq!(
        conflicts,
        [
            "save, write",
            "save, conflict, write",
            "save, conflict, write"
        ]
    );
}

#[test]
fn a_path_that_rejected_a_replay_is_denied_once_the_token_is_accepted() {
    let mut machine = unproven(ProviderKind::Stable).then(Event::ReplayRejected {
        generation: Generation(1),
        path: "/a".into(),
        accepted: false,
    });
    machine = machine.accepted();
    let denied = words(&machine.on(rejected(1, 1, "/a")));
    assert_eq!(denied, "clear evidence, give back 1: path_lies");
}
