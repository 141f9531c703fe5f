//! Many requests and one dead token: what a refresh costs, and that nobody's misfortune becomes
//! another's.

use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use wxgate::sandbox::{DEFAULT_APPID, Fault, Rule, TokenFilter};

use crate::support::{
    Gate, setup,
    token_tools::{
        all, appid, get, joined, spawned, start_with_short_token, until, warm_account,
        with_accounts,
    },
};

const STABLE: &str = "/cgi-bin/stable_token";
const CLASSIC: &str = "/cgi-bin/token";

async fn warm(lines: &str) -> Gate {
    let gate = setup().account(lines).start().await;
    gate.warm().await;
    gate
}

/// Pitfall: concurrent threads or nodes refresh at once, each fetch kills the token of the one
/// before, and 40001 appears at random for a while.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_calls_on_a_revoked_token_cost_one_fetch_in_either_mode() {
    for (mode, endpoint) in [("stable", STABLE), ("classic", CLASSIC)] {
        let gate = warm(&format!("token = \"{mode}\"")).await;
        // No overlap, as for a token that WeChat has withdrawn: an answer that used it late would
        // be stale again.
        gate.control().revoke(TokenFilter::default());
        // The fetch lasts until every call has been refused, so that all of them want the same
        // refresh.
        let fetch = gate
            .control()
            .fault(Rule::new(endpoint, Fault::Pass).hold());
        let calls: Vec<_> = (0..500)
            .map(|n| match n % 2 {
                0 => spawned(gate.send_message(&format!("user-{n}"))),
                _ => spawned(
                    gate.client
                        .get(gate.url(&format!("/cgi-bin/user/info?openid=user-{n}"))),
                ),
            })
            .collect();
        until(gate.control(), "500 refusals", |control| {
            control.counters().stale == 500
        })
        .await;
        gate.control().release(fetch);
        for answer in all(calls).await {
            assert!(
                answer.is_fine() && answer.attempts == "2",
                "{mode}: {answer:?}"
            );
        }
        assert_eq!(
            gate.control().fetches(),
            2,
            "{mode}: one at the start, one for all 500"
        );
        assert_eq!(
            gate.control().deliveries().len(),
            250,
            "{mode}: each message once"
        );
        assert_eq!(gate.control().counters().forced_fetches, 0, "{mode}");
    }
}

/// Pitfall: a late rejection of an old token evicts the fresh one (Kong and others), and the next
/// call fetches again.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_refusal_of_an_old_token_is_replayed_without_a_fetch() {
    for mode in ["stable", "classic"] {
        let gate = warm(&format!("token = \"{mode}\"")).await;
        gate.control().revoke(TokenFilter::default());
        let late = gate
            .control()
            .fault(Rule::new("/cgi-bin/menu/get", Fault::Pass).hold());
        let slow = spawned(gate.client.get(gate.url("/cgi-bin/menu/get")));
        until(gate.control(), "the slow call", |control| {
            control.hits(late) == 1
        })
        .await;
        assert_eq!(
            get(&gate, "/cgi-bin/user/info?openid=a").await.attempts,
            "2"
        );
        assert_eq!(gate.control().fetches(), 2);
        gate.control().release(late);
        let slow = joined(slow).await;
        assert!(slow.is_fine() && slow.attempts == "2", "{mode}: {slow:?}");
        assert_eq!(
            gate.control().fetches(),
            2,
            "{mode}: the token that was refused is not the current one any more"
        );
        let next = get(&gate, "/cgi-bin/user/info?openid=b").await;
        assert!(
            next.is_fine() && next.attempts == "1",
            "{mode}: the fresh token is still there: {next:?}"
        );
    }
}

/// Pitfall: the refresh belongs to the request that asked first, and its cancellation poisons all
/// who wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_in_the_middle_of_a_refresh_takes_nobody_with_it() {
    let gate = setup().set("server", "workers = 1").start().await;
    gate.warm().await;
    gate.control().revoke(TokenFilter::default());
    let fetch = gate.control().fault(Rule::new(STABLE, Fault::Pass).hold());
    let mut leader = TcpStream::connect(gate.proxy)
        .await
        .expect("the proxy listens");
    leader
        .write_all(b"GET /cgi-bin/user/info?openid=leader HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sent");
    until(gate.control(), "the leader's fetch", |control| {
        control.hits(fetch) == 1
    })
    .await;
    let followers: Vec<_> = (0..20)
        .map(|n| spawned(gate.send_message(&format!("follower-{n}"))))
        .collect();
    until(gate.control(), "the followers", |control| {
        control.counters().stale == 21
    })
    .await;
    drop(leader);
    // The one worker has met the end of the leader's connection before it takes and answers a
    // connection made later.
    gate.raw(b"GET /-/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    gate.control().release(fetch);
    for answer in all(followers).await {
        assert!(answer.is_fine() && answer.attempts == "2", "{answer:?}");
    }
    assert_eq!(gate.control().fetches(), 2);
    assert_eq!(gate.control().deliveries().len(), 20);
}

/// Pitfall: as above, with nobody else waiting: the fetch is cancelled, its token lost, and the
/// next caller pays again.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_nobody_waits_for_any_more_is_still_finished_and_kept() {
    let gate = setup().set("server", "workers = 1").start().await;
    gate.warm().await;
    gate.control().revoke(TokenFilter::default());
    let fetch = gate.control().fault(Rule::new(STABLE, Fault::Pass).hold());
    let mut only = TcpStream::connect(gate.proxy)
        .await
        .expect("the proxy listens");
    only.write_all(b"GET /cgi-bin/user/info?openid=only HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sent");
    until(gate.control(), "the fetch", |control| {
        control.hits(fetch) == 1
    })
    .await;
    drop(only);
    gate.raw(b"GET /-/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    gate.control().release(fetch);
    let next = get(&gate, "/cgi-bin/user/info?openid=next").await;
    assert!(next.is_fine(), "{next:?}");
    assert_eq!(
        gate.control().fetches(),
        2,
        "the fetch of the caller that left served the next one"
    );
}

/// Pitfall: a guard against loops (one fetch per minute) that also stops honest refreshes: after
/// the second revocation callers see 40001 until the minute is over.
#[tokio::test(flavor = "multi_thread")]
async fn five_honest_revocations_in_a_row_cost_five_fetches_and_no_caller_sees_any() {
    for mode in ["stable", "classic"] {
        let gate = warm(&format!("token = \"{mode}\"")).await;
        for round in 0..5 {
            gate.control().revoke(TokenFilter::default());
            let calls = (0..20)
                .map(|n| spawned(gate.send_message(&format!("user-{round}-{n}"))))
                .collect();
            for answer in all(calls).await {
                assert!(answer.is_fine(), "{mode}, revocation {round}: {answer:?}");
            }
            assert_eq!(
                gate.control().fetches(),
                round + 2,
                "{mode}, revocation {round}"
            );
        }
        assert_eq!(gate.control().deliveries().len(), 100, "{mode}");
    }
}

/// Pitfall: a token of account A used for B, or A's storm making B wait: state that is not per
/// account.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_on_one_account_does_not_touch_another_one() {
    let gate = with_accounts(setup().account("hosts = [\"shop.internal\"]"), 2, "")
        .start()
        .await;
    for number in 0..2 {
        warm_account(&gate, number).await;
    }
    until(
        gate.control(),
        "the first fetch of each account",
        |control| control.fetches() == 3,
    )
    .await;
    gate.control().clear_record();
    gate.control().revoke(appid(0).as_str());
    let fetch = gate
        .control()
        .fault(Rule::new(STABLE, Fault::Pass).account(appid(0)).hold());
    let url =
        |account: usize, n: usize| gate.url(&format!("/@a{account}/cgi-bin/user/info?openid={n}"));
    let storm: Vec<_> = (0..100)
        .map(|n| spawned(gate.client.get(url(0, n))))
        .collect();
    until(gate.control(), "the storm", |control| {
        control.counters().stale == 100
    })
    .await;
    // The other account is served while the storm waits.
    for n in 0..20 {
        let answer = joined(spawned(gate.client.get(url(1, n)))).await;
        assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
    }
    gate.control().release(fetch);
    assert!(
        all(storm)
            .await
            .iter()
            .all(|answer| answer.is_fine() && answer.attempts == "2")
    );
    assert_eq!(gate.control().fetches(), 1);
    for record in gate.control().requests("/cgi-bin/user/info") {
        // The sandbox finds the account by the token alone.
        let account = record.account.as_deref();
        assert!(
            account == Some(&appid(0)) || account == Some(&appid(1)),
            "{account:?} is not {DEFAULT_APPID}"
        );
    }
    let of_b =
        |record: &&wxgate::sandbox::RecordedRequest| record.account.as_deref() == Some(&appid(1));
    assert_eq!(
        gate.control()
            .requests("/cgi-bin/user/info")
            .iter()
            .filter(of_b)
            .count(),
        20
    );
}

/// Pitfall: one lock is held across the fetch, so readers with a good token wait for a slow token
/// endpoint (golang/oauth2), and the first user after two hours pays for the refresh.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_under_way_delays_nobody_whose_token_is_still_good() {
    let gate = start_with_short_token(setup(), 11).await;
    // Half of the eleven seconds pass, then the proxy asks by itself; that call hangs.
    let fetch = gate.control().fault(Rule::new(STABLE, Fault::Pass).hold());
    until(gate.control(), "the proactive fetch", |control| {
        control.hits(fetch) == 1
    })
    .await;
    for n in 0..20 {
        let call = spawned(
            gate.client
                .get(gate.url(&format!("/cgi-bin/user/info?openid={n}"))),
        );
        let answer = tokio::time::timeout(Duration::from_secs(3), joined(call))
            .await
            .expect("at once");
        assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
    }
    assert_eq!(
        gate.control().fetches(),
        2,
        "nobody needed one of their own"
    );
    gate.control().release(fetch);
}
