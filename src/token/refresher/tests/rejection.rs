//! Rejections of a token by WeChat.

use super::*;
use crate::token::refresher::{Condition, RefresherCommand};

#[tokio::test(start_paused = true)]
async fn a_thousand_rejections_at_once_cost_one_fetch() {
    for kind in [ProviderKind::Classic, ProviderKind::Stable] {
        let bench = Bench::ready(kind).await;
        bench.world.revoke();
        let before = bench.world.fetches();
        let outcomes = futures_util::future::join_all((0..1000).map(|n| {
            let bench = &bench;
            async move { bench.call(&format!("/{n}")).await }
        }));
        assert!(
            outcomes
                .await
                .iter()
                .all(|outcome| *outcome == Outcome::Ok { calls: 2 }),
            "{kind:?}"
        );
        assert_eq!(bench.world.fetches() - before, 1, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_rejection_of_an_old_generation_replays_without_a_fetch() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    let old = bench.generation();
    bench.world.revoke();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    let before = bench.world.fetches();
    for n in 0..50 {
        let Refresh::Replay(token) = bench.refresher.refresh_past(old, &format!("/{n}")).await
        else {
            panic!("no replay")
        };
        assert_eq!(token.generation(), bench.generation());
    }
    assert_eq!(bench.world.fetches(), before);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_that_was_posted_just_before_the_new_token_came_is_answered_with_it() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    let (old, before) = (bench.generation(), bench.world.fetches() + 1);
    bench.world.revoke();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    let (reply, answer) = tokio::sync::oneshot::channel();
    let late = RefresherCommand::Rejected {
        generation: old,
        path: "/b".into(),
        reply,
    };
    assert!(bench.refresher.mailbox.send(late).is_ok());
    assert!(matches!(answer.await, Ok(Refresh::Replay(_))));
    assert_eq!(bench.world.fetches(), before);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_goes_away_cancels_nothing() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.revoke();
    let old = bench.generation();
    let leader = tokio::time::timeout(
        Duration::from_millis(10),
        bench.refresher.refresh_past(old, "/leader"),
    );
    assert!(leader.await.is_err(), "the leader left before the answer");
    assert_eq!(bench.call("/follower").await, Outcome::Ok { calls: 2 });
    assert_eq!(bench.world.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_leaves_nobody_waiting_and_is_asked_again() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.revoke();
    bench.world.script([Scripted::Panics]);
    let start = Instant::now();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    assert!(start.elapsed() < secs(3));
    bench.world.revoke();
    bench.world.script([Scripted::Panics, Scripted::Panics]);
    assert_eq!(bench.call("/a").await, stale("refresh_failed"));
    sleep(secs(3)).await;
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
}

#[tokio::test(start_paused = true)]
async fn an_account_whose_tokens_are_always_refused_costs_next_to_nothing() {
    for kind in [ProviderKind::Classic, ProviderKind::Stable] {
        let bench = Bench::start(World::new(kind));
        bench.world.with(|state| state.rejects_all = true);
        let (start, mut calls) = (Instant::now(), 0);
        while start.elapsed() < secs(600) {
            let outcome = bench.call("/cgi-bin/user/info").await;
            let Outcome::Stale {
                calls: upstream, ..
            } = outcome
            else {
                panic!("{outcome:?}")
            };
            calls += upstream;
            sleep(Duration::from_millis(5)).await;
        }
        assert!(
            bench.world.fetches() <= 22,
            "{kind:?}: {} fetches",
            bench.world.fetches()
        );
        assert!(
            bench.world.fetches() >= 4,
            "{kind:?}: it never gives up for good"
        );
        assert!(
            bench.world.forced() <= 6,
            "{kind:?}: {} forced",
            bench.world.forced()
        );
        assert!(
            calls > 10_000,
            "{kind:?}: waiting slowed requests down to {calls}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn forced_refreshes_stay_within_six_a_day() {
    let bench = Bench::start(World::new(ProviderKind::Stable));
    bench.world.with(|state| state.rejects_all = true);
    let start = Instant::now();
    // Noon to shortly before midnight.
    while start.elapsed() < secs(42_000) {
        bench.call("/a").await;
        sleep(secs(3)).await;
    }
    assert_eq!(bench.world.forced(), 6);
    let forced: Vec<_> = bench.world.with(|state| {
        state
            .fetches
            .iter()
            .filter(|(_, mode)| *mode == FetchMode::Forced)
            .map(|(at, _)| *at)
            .collect::<Vec<_>>()
    });
    assert!(
        forced.windows(2).all(|pair| pair[1] - pair[0] >= secs(60)),
        "less than a minute apart"
    );
    assert_eq!(
        bench.metric(r#"wxgate_token_budget_remaining{account="shop",kind="forced"}"#),
        Some(0.0)
    );
}

#[tokio::test(start_paused = true)]
async fn five_honest_revocations_in_two_seconds_cost_five_fetches() {
    for kind in [ProviderKind::Classic, ProviderKind::Stable] {
        let bench = Bench::ready(kind).await;
        for _ in 0..5 {
            bench.world.revoke();
            assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 }, "{kind:?}");
            assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 }, "{kind:?}");
            sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(bench.world.fetches(), 6, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rogue_that_revokes_every_second_is_noticed_and_not_followed_for_ever() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    let before = bench.world.fetches();
    for _ in 0..600 {
        bench.world.revoke();
        bench.call("/a").await;
        bench.call("/a").await;
        sleep(Duration::from_millis(900)).await;
    }
    let spent = bench.world.fetches() - before;
    assert!(
        (15..=21).contains(&spent),
        "ten at once and one a minute: {spent}"
    );
    let conflicts = bench
        .metric(r#"wxgate_token_conflicts_total{account="shop"}"#)
        .unwrap();
    assert!(conflicts >= 10.0, "{conflicts}");
    assert!(bench.refresher.status().conflicts >= 10);
}

#[tokio::test(start_paused = true)]
async fn one_early_death_is_no_conflict() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.revoke();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    sleep(secs(8000)).await;
    assert_eq!(bench.refresher.status().conflicts, 0);
}

#[tokio::test(start_paused = true)]
async fn the_same_token_that_is_accepted_elsewhere_needs_no_probe() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    let token = bench.refresher.token().unwrap();
    let (outcome, ()) = tokio::join!(bench.call_liar("/liar"), async {
        sleep(Duration::from_millis(50)).await;
        bench.refresher.accepted(token.generation());
    });
    assert_eq!(outcome, stale("same_token"));
    assert_eq!(
        (
            bench.world.fetches(),
            bench.world.with(|state| state.probes),
            bench.world.forced()
        ),
        (2, 0, 0)
    );
    assert_eq!(bench.generation(), token.generation());
}

#[tokio::test(start_paused = true)]
async fn acceptance_from_before_the_rejection_is_no_evidence() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    bench.world.kill_but_keep_giving();
    bench.world.with(|state| state.probe = Some(Probe::Unknown));
    assert_eq!(bench.call("/a").await, stale("same_token"));
    assert_eq!(
        bench.world.with(|state| state.probes),
        1,
        "without evidence there is a probe"
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_token_that_a_probe_finds_good_is_left_alone_and_the_path_not_believed() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    let outcomes = futures_util::future::join_all((0..100).map(|_| bench.call_liar("/liar"))).await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| *outcome == stale("same_token"))
    );
    assert_eq!(
        (
            bench.world.fetches(),
            bench.world.with(|state| state.probes),
            bench.world.forced()
        ),
        (2, 1, 0)
    );
    assert_eq!(bench.call_liar("/liar").await, stale("path_lies"));
    assert_eq!(bench.world.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_same_token_that_a_probe_finds_dead_is_forced_out() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    bench.world.with(|state| state.probe = Some(Probe::Stale));
    let old = bench.generation();
    let Refresh::Replay(token) = bench.refresher.refresh_past(old, "/a").await else {
        panic!("no replay")
    };
    assert_eq!(token.generation(), Generation(old.0 + 1));
    assert_eq!((bench.world.fetches(), bench.world.forced()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_second_forced_refresh_within_a_minute_is_not_made() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    bench.world.with(|state| state.probe = Some(Probe::Stale));
    assert!(matches!(
        bench.refresher.refresh_past(bench.generation(), "/a").await,
        Refresh::Replay(_)
    ));
    bench.refresher.accepted(bench.generation());
    assert_eq!(bench.call_liar("/a").await, stale("budget"));
    assert_eq!(
        (bench.world.forced(), bench.refresher.status().condition),
        (1, Condition::Degraded)
    );
}

#[tokio::test(start_paused = true)]
async fn a_path_that_lies_costs_one_fetch_in_ten_minutes() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    let start = Instant::now();
    while start.elapsed() < secs(590) {
        bench.call_liar("/liar").await;
        assert_eq!(bench.call("/ok").await, Outcome::Ok { calls: 1 });
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bench.world.fetches(), 2);
    assert_eq!(bench.call_liar("/liar").await, stale("path_lies"));
    sleep(secs(20)).await;
    assert!(
        matches!(
            bench.call_liar("/liar").await,
            Outcome::Stale { calls: 2, .. }
        ),
        "the memory ends"
    );
    assert_eq!(
        bench.refresher.status().conflicts,
        0,
        "a path that lies is no rival"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stale_replay_convicts_no_path_while_the_token_is_accepted_nowhere() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.kill_but_keep_giving();
    assert_eq!(
        bench.call("/only").await,
        Outcome::Stale {
            calls: 2,
            reason: "replay"
        }
    );
    assert_eq!(bench.call("/only").await, stale("backoff"));
    sleep(secs(31)).await;
    bench.world.with(|state| state.rejects_all = false);
    bench.world.revoke();
    assert_eq!(bench.call("/only").await, Outcome::Ok { calls: 2 });
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_accepted_and_died_before_the_replay_convicts_no_path() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.revoke();
    let Refresh::Replay(fresh) = bench.refresher.refresh_past(Generation(1), "/only").await else {
        panic!("no replay")
    };
    bench.refresher.accepted(fresh.generation());
    bench.world.revoke();
    bench
        .refresher
        .replay_was_stale(fresh.generation(), "/only");
    assert_eq!(bench.call("/only").await, Outcome::Ok { calls: 2 });
}

#[tokio::test(start_paused = true)]
async fn a_rejection_during_a_timed_refresh_joins_it() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    let old = bench.generation();
    bench.world.with(|state| state.delay = secs(3));
    let due = secs(bench.refresher.status().next_attempt_in.unwrap() + 1);
    sleep(due).await;
    assert!(matches!(
        bench.refresher.refresh_past(old, "/a").await,
        Refresh::Replay(_)
    ));
    assert_eq!(bench.world.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_takes_too_long_gives_the_answer_back_in_time() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.revoke();
    bench.world.with(|state| state.delay = secs(3600));
    let start = Instant::now();
    assert!(matches!(
        bench.call("/a").await,
        Outcome::Stale { calls: 1, .. }
    ));
    assert!(start.elapsed() <= secs(8), "{:?}", start.elapsed());
}
