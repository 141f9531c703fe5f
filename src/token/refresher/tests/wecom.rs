//! Tokens of WeCom agents: the same token until its expiry, and no forced mode.

use super::{nodes::Nodes, *};
use crate::token::{Cause, refresher::Condition};

#[tokio::test(start_paused = true)]
async fn the_same_token_again_that_is_dead_goes_back_and_nothing_is_forced() {
    let bench = Bench::ready(ProviderKind::Wecom).await;
    bench.world.kill_but_keep_giving();
    assert_eq!(bench.call("/a").await, stale("same_token"));
    assert_eq!(
        (
            bench.world.fetches(),
            bench.world.with(|state| state.probes),
            bench.world.forced()
        ),
        (2, 1, 0)
    );
    assert_eq!(bench.refresher.status().condition, Condition::Degraded);
    for _ in 0..50 {
        assert_eq!(bench.call("/a").await, stale("backoff"));
    }
    assert_eq!(bench.world.fetches(), 2, "a refusal is remembered");
    bench.world.with(|state| state.rejects_all = false);
    bench.world.revoke();
    sleep(secs(31)).await;
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    assert_eq!(bench.refresher.status().condition, Condition::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_path_that_lies_is_found_out_by_one_fetch_and_one_probe() {
    let bench = Bench::ready(ProviderKind::Wecom).await;
    assert_eq!(bench.call_liar("/liar").await, stale("same_token"));
    assert_eq!(bench.call_liar("/liar").await, stale("path_lies"));
    assert_eq!(
        (
            bench.world.fetches(),
            bench.world.with(|state| state.probes)
        ),
        (2, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn an_operator_is_told_that_nothing_can_be_forced() {
    let bench = Bench::ready(ProviderKind::Wecom).await;
    let error = bench.refresher.refresh_now(true).await.unwrap_err();
    assert_eq!(*error.cause(), Cause::CannotForce(ProviderKind::Wecom));
    assert_eq!(bench.world.fetches(), 1);
    assert!(!bench.refresher.refresh_now(false).await.unwrap().refreshed);
    assert_eq!(bench.world.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn there_is_no_budget_to_spend_or_to_show() {
    let bench = Bench::ready(ProviderKind::Wecom).await;
    let status = bench.refresher.status();
    assert_eq!((status.classic_left, status.forced_left), (None, None));
    assert_eq!(bench.metric("wxgate_token_budget_remaining"), None);
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_the_same_corp_gets_no_token_out_of_anothers_record() {
    let bench = Bench::ready(ProviderKind::Wecom).await;
    let token = bench.refresher.token().unwrap().fingerprint().to_owned();
    bench.world.revoke();
    let other = bench.restarted_as(|kind| AccountSettings {
        secret: Some(Secret::new("agent2")),
        ..account(kind)
    });
    assert_ne!(
        other.refresher.current().await.unwrap().fingerprint(),
        token
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_given_until_its_very_end_leaves_no_call_without_one() {
    // Several random numbers, since a lucky one could hide a gap.
    let nodes = Nodes::ready(ProviderKind::Wecom, 1).await;
    let start = Instant::now();
    while start.elapsed() < secs(5 * 7200) {
        let outcome = nodes.all[0].call("/a").await;
        assert!(
            matches!(outcome, Outcome::Ok { .. }),
            "after {:?}: {outcome:?}",
            start.elapsed()
        );
        sleep(Duration::from_millis(500)).await;
    }
}
