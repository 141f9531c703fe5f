//! Tokens that another server keeps: read there at an interval, never fetched from WeChat.

use super::*;
use crate::{
    net::connect_error::{ConnectError, TcpFailure},
    token::{
        Cause,
        refresher::Condition,
        source::external::ExternalError,
        store::{RecordKey, TokenRecord, TokenStore as _},
    },
};

const MISSING: FetchError = FetchError::External(ExternalError::Missing);

async fn stored(bench: &Bench) -> Option<TokenRecord> {
    bench
        .store
        .load(&RecordKey::token(bench.refresher.name()))
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_rotated_elsewhere_is_found_within_a_minute() {
    let bench = Bench::ready(ProviderKind::External).await;
    let old = bench.generation();
    bench.world.revoke();
    sleep(secs(61)).await;
    assert_eq!(bench.generation(), Generation(old.0 + 1));
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
    assert_eq!(
        bench.refresher.status().conflicts,
        0,
        "others are meant to rotate it"
    );
    assert!(
        bench
            .metric(r#"wxgate_token_fetch_total{account="shop",trigger="poll",result="new"}"#)
            .is_some()
    );
    assert_eq!(
        bench.metric(r#"wxgate_token_fetch_total{account="shop",trigger="timer",result="new"}"#),
        None
    );
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_looked_up_at_once_for_all_who_wait() {
    let bench = Bench::ready(ProviderKind::External).await;
    for round in 1..20 {
        bench.world.revoke();
        let calls = (0..100).map(|n| {
            let bench = &bench;
            async move { bench.call(&format!("/{n}")).await }
        });
        let outcomes = futures_util::future::join_all(calls).await;
        assert!(
            outcomes
                .iter()
                .all(|outcome| *outcome == Outcome::Ok { calls: 2 })
        );
        assert_eq!(
            bench.world.fetches(),
            1 + round,
            "no budget and no back-off stands in the way of news"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_without_news_costs_a_look_every_three_seconds_and_no_probe() {
    let bench = Bench::ready(ProviderKind::External).await;
    bench.world.kill_but_keep_giving();
    assert_eq!(bench.call("/a").await, stale("same_token"));
    let start = Instant::now();
    while start.elapsed() < secs(30) {
        assert!(matches!(
            bench.call("/a").await,
            Outcome::Stale { calls: 1, .. }
        ));
        sleep(Duration::from_millis(10)).await;
    }
    assert!(
        (8..=13).contains(&bench.world.fetches()),
        "{}",
        bench.world.fetches()
    );
    assert_eq!(
        (bench.world.with(|state| state.probes), bench.world.forced()),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_look_that_began_before_the_rejection_is_followed_by_another() {
    let bench = Bench::ready(ProviderKind::External).await;
    let old = bench.generation();
    bench.world.with(|state| state.delay = secs(3));
    sleep(secs(bench.refresher.status().next_attempt_in.unwrap() + 1)).await;
    // The read ends before the server has the other token.
    let (outcome, ()) = tokio::join!(bench.refresher.refresh_past(old, "/a"), async {
        sleep(Duration::from_millis(3500)).await;
        bench.world.revoke();
    });
    assert!(matches!(outcome, Refresh::Replay(_)), "{outcome:?}");
    assert_eq!(bench.world.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_died_takes_no_good_token_away_and_is_found_again() {
    let bench = Bench::ready(ProviderKind::External).await;
    let gone = ExternalError::Unreachable(ConnectError::Host(TcpFailure::UnknownName));
    bench
        .world
        .script((0..10_000).map(|_| Scripted::Fails(FetchError::External(gone))));
    for _ in 0..100 {
        sleep(secs(60)).await;
        assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
    }
    assert!(bench.world.fetches() < 150, "{}", bench.world.fetches());
    assert_eq!(bench.refresher.status().condition, Condition::Degraded);
    sleep(secs(1200)).await;
    let Outcome::NoToken(why) = bench.call("/a").await else {
        panic!("the token is over")
    };
    assert!(why.contains("token.url"), "{why}");
    bench.world.with(|state| state.script.clear());
    sleep(secs(61)).await;
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
}

#[tokio::test(start_paused = true)]
async fn a_place_without_a_token_is_said_at_once_and_looked_at_again_within_a_minute() {
    let world = World::new(ProviderKind::External);
    world.script((0..20).map(|_| Scripted::Fails(MISSING)));
    let bench = Bench::start(Arc::clone(&world));
    sleep(secs(1)).await;
    let start = Instant::now();
    assert!(matches!(bench.call("/a").await, Outcome::NoToken(_)));
    assert!(start.elapsed() < secs(1), "nobody waits in vain");
    assert_eq!(
        bench.refresher.status().condition,
        Condition::Fatal,
        "somebody has to do something"
    );
    sleep(secs(120)).await;
    world.with(|state| state.script.clear());
    sleep(secs(61)).await;
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
}

#[tokio::test(start_paused = true)]
async fn the_store_keeps_the_count_and_not_the_token() {
    let bench = Bench::ready(ProviderKind::External).await;
    let generation = bench.generation();
    let record = stored(&bench).await.unwrap();
    assert_eq!((record.generation, record.token), (generation, None));
    sleep(secs(600)).await;
    let bench = bench.restarted();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
    assert_eq!(
        bench.generation(),
        Generation(generation.0 + 1),
        "a number is never given twice"
    );
}

#[tokio::test(start_paused = true)]
async fn an_operator_can_have_it_looked_up_and_cannot_force_it() {
    let bench = Bench::ready(ProviderKind::External).await;
    let error = bench.refresher.refresh_now(true).await.unwrap_err();
    assert_eq!(*error.cause(), Cause::CannotForce(ProviderKind::External));
    bench.world.revoke();
    assert!(bench.refresher.refresh_now(false).await.unwrap().refreshed);
}
