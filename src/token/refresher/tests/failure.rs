//! Failures of fetches.

use super::*;
use crate::token::refresher::Condition;

const FATAL_IP: FetchError = FetchError::Refused {
    platform: Platform::Wechat,
    code: 40164,
    ip: None,
};
const BAD_SECRET: FetchError = FetchError::Refused {
    platform: Platform::Wechat,
    code: 40125,
    ip: None,
};

fn fails(error: FetchError, times: usize) -> impl Iterator<Item = Scripted> {
    (0..times).map(move |_| Scripted::Fails(error.clone()))
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_down_does_no_harm_while_the_token_is_valid() {
    for error in [
        FetchError::REFUSED,
        FetchError::Timeout,
        FetchError::Status(500),
        FetchError::Malformed("no JSON"),
        BAD_SECRET,
    ] {
        let bench = Bench::ready(ProviderKind::Stable).await;
        bench.world.script(fails(error.clone(), 10_000));
        let start = Instant::now();
        while start.elapsed() < secs(7150) {
            assert_eq!(
                bench.call("/a").await,
                Outcome::Ok { calls: 1 },
                "{error:?}"
            );
            sleep(secs(1)).await;
        }
        assert_eq!(
            bench.refresher.status().condition,
            Condition::Degraded,
            "{error:?}"
        );
        let tries = bench.world.fetches() - 1;
        assert!(
            (3..=12).contains(&tries),
            "{error:?}: {tries} tries in five minutes"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn with_the_token_gone_requests_fail_fast_and_recover() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    bench.world.script(fails(FetchError::REFUSED, 12));
    sleep(secs(7201)).await;
    let start = Instant::now();
    let error = bench.refresher.current().await.unwrap_err();
    assert!(
        start.elapsed() < Duration::from_millis(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        (error.label(), bench.refresher.status().condition),
        ("connect", Condition::Failing)
    );
    assert!(error.retry_after() <= secs(60));
    sleep(secs(600)).await;
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
}

#[tokio::test(start_paused = true)]
async fn the_first_requests_wait_for_the_first_token_but_not_for_ever() {
    let bench = Bench::start(World::new(ProviderKind::Stable));
    bench.world.with(|state| state.delay = secs(2));
    assert!(bench.refresher.token().is_none());
    assert_eq!(bench.refresher.status().condition, Condition::Waiting);
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });

    let slow = Bench::start(World::new(ProviderKind::Stable));
    slow.world.with(|state| state.delay = secs(3600));
    let start = Instant::now();
    assert_eq!(
        slow.refresher.current().await.unwrap_err().label(),
        "waiting"
    );
    assert_eq!(start.elapsed(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn busy_is_passing_and_tried_again_within_the_wait() {
    let bench = Bench::start(World::new(ProviderKind::Stable));
    bench.world.script(fails(
        FetchError::Refused {
            platform: Platform::Wechat,
            code: -1,
            ip: None,
        },
        1,
    ));
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
    bench.world.revoke();
    bench.world.script(fails(
        FetchError::Refused {
            platform: Platform::Wechat,
            code: -1,
            ip: None,
        },
        1,
    ));
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
}

#[tokio::test(start_paused = true)]
async fn a_fatal_answer_is_remembered_and_names_what_to_do() {
    let bench = Bench::start(World::new(ProviderKind::Stable));
    let ip = Some("203.0.113.9".parse().unwrap());
    bench.world.script(fails(
        FetchError::Refused {
            platform: Platform::Wechat,
            code: 40164,
            ip,
        },
        10_000,
    ));
    sleep(secs(1)).await;
    let start = Instant::now();
    for _ in 0..1000 {
        let Outcome::NoToken(text) = bench.call("/a").await else {
            panic!("a token")
        };
        assert!(
            text.contains("40164") && text.contains("203.0.113.9"),
            "{text}"
        );
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(
        (bench.world.fetches(), bench.refresher.status().condition),
        (1, Condition::Fatal)
    );
    sleep(secs(3600)).await;
    let tries = bench.world.fetches();
    assert!(
        (12..=30).contains(&tries),
        "doubling to five minutes: {tries}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bad_secret_is_tried_every_ten_minutes_and_never_by_requests() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.script(fails(BAD_SECRET, 10_000));
    bench.world.revoke();
    assert_eq!(bench.call("/a").await, stale("refresh_failed"));
    let before = bench.world.fetches();
    for _ in 0..1000 {
        assert_eq!(bench.call("/a").await, stale("refresh_failed"));
    }
    assert_eq!(bench.world.fetches(), before);
    sleep(secs(36_000)).await;
    let tries = bench.world.fetches() - before;
    assert!((60..=135).contains(&tries), "{tries} in ten hours");
}

#[tokio::test(start_paused = true)]
async fn the_minute_limit_is_waited_out() {
    let bench = Bench::start(World::new(ProviderKind::Stable));
    bench.world.script(fails(
        FetchError::Refused {
            platform: Platform::Wechat,
            code: 45011,
            ip: None,
        },
        1,
    ));
    sleep(secs(59)).await;
    assert_eq!(bench.world.fetches(), 1);
    sleep(secs(10)).await;
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
}

#[tokio::test(start_paused = true)]
async fn an_operator_clears_the_memory_of_a_fatal_answer() {
    let bench = Bench::start(World::new(ProviderKind::Stable));
    bench.world.script(fails(FATAL_IP, 10_000));
    sleep(secs(2000)).await;
    assert!(bench.refresher.status().last_error.unwrap().failures > 5);
    let error = bench.refresher.refresh_now(false).await.unwrap_err();
    assert!(
        error.retry_after() <= secs(5),
        "the pauses start anew: {:?}",
        error.retry_after()
    );
    bench.world.with(|state| state.script.clear());
    assert!(bench.refresher.current().await.is_err());
    let refreshed = bench.refresher.refresh_now(false).await.unwrap();
    assert!(refreshed.refreshed && refreshed.expires_in > secs(7190));
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
}

#[tokio::test(start_paused = true)]
async fn an_operator_hears_what_went_wrong() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    bench.world.script(fails(FATAL_IP, 1));
    let error = bench.refresher.refresh_now(false).await.unwrap_err();
    assert_eq!(error.errcode(), Some(40164));
    assert_eq!(
        bench.call("/a").await,
        Outcome::Ok { calls: 1 },
        "the token that works stays"
    );
}

#[tokio::test(start_paused = true)]
async fn an_operator_may_force_and_gets_the_same_token_without() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    let old = bench.generation();
    assert!(!bench.refresher.refresh_now(false).await.unwrap().refreshed);
    let forced = bench.refresher.refresh_now(true).await.unwrap();
    assert_eq!(
        (forced.refreshed, forced.generation),
        (true, Generation(old.0 + 1))
    );
    let again = bench.refresher.refresh_now(true).await.unwrap_err();
    assert_eq!(again.label(), "budget");
    assert!(again.retry_after() <= secs(30));
    let (plain, forced) = {
        sleep(secs(30)).await;
        tokio::join!(
            bench.refresher.refresh_now(false),
            bench.refresher.refresh_now(true)
        )
    };
    assert!(
        !plain.unwrap().refreshed && forced.unwrap().refreshed,
        "a forced one does not ride on a plain one"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_answer_the_next_rejection_is_taken_at_its_word() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.script([Scripted::Lost]);
    let error = bench.refresher.refresh_now(false).await.unwrap_err();
    assert_eq!(error.label(), "broken");
    // The lost answer held a new token, so the old one is dead, and the pause after the failure
    // still runs.
    let start = Instant::now();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(bench.world.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn answers_that_keep_getting_lost_do_not_make_a_loop() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.script((0..10_000).map(|_| Scripted::Lost));
    bench.world.revoke();
    let start = Instant::now();
    while start.elapsed() < secs(600) {
        bench.call("/a").await;
        sleep(Duration::from_millis(20)).await;
    }
    assert!(bench.world.fetches() <= 25, "{}", bench.world.fetches());
}
