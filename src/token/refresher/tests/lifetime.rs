//! Scheduled renewal, restarts, budgets and stores.

use super::*;
use crate::token::{
    budget::CLASSIC_PER_DAY,
    refresher::Condition,
    store::{FileStore, RecordKey, Saved, StoreError, TokenRecord},
};

#[tokio::test(start_paused = true)]
async fn a_stable_token_is_renewed_in_its_last_five_minutes_and_the_same_one_before_is_no_failure()
{
    let bench = Bench::ready(ProviderKind::Stable).await;
    let start = Instant::now();
    while start.elapsed() < secs(86_400) {
        assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
        sleep(secs(5)).await;
    }
    let fetches = bench.world.fetches();
    assert!((13..=40).contains(&fetches), "{fetches} in a day");
    assert_eq!(bench.refresher.status().condition, Condition::Ok);
    assert_eq!(
        bench.metric(r#"wxgate_token_conflicts_total{account="shop"}"#),
        Some(0.0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_platform_that_rotates_late_is_asked_again_every_half_minute() {
    let world = World::new(ProviderKind::Stable);
    world.with(|state| state.lifetime = 400);
    let bench = Bench::start(world);
    sleep(secs(1)).await;
    // A fetch that finds more than five minutes left gets the same token.
    assert!(!bench.refresher.refresh_now(false).await.unwrap().refreshed);
    assert!(bench.refresher.status().last_error.is_none());
    let start = Instant::now();
    while start.elapsed() < secs(4000) {
        assert!(bench.refresher.token().is_some());
        sleep(secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_lifetime_makes_a_hot_loop() {
    for lifetime in [1, 2, 5, 60, 299, 7200] {
        let world = World::new(ProviderKind::Classic);
        world.with(|state| state.lifetime = lifetime);
        let bench = Bench::start(world);
        sleep(secs(600)).await;
        let fetches = bench.world.fetches();
        assert!(
            fetches <= 122 && (fetches > 1 || lifetime == 7200),
            "{lifetime}: {fetches}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_never_handed_out() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.with(|state| state.delay = secs(100_000));
    sleep(secs(7199)).await;
    assert!(bench.refresher.token().is_some());
    sleep(secs(2)).await;
    assert!(bench.refresher.token().is_none());
}

#[tokio::test(start_paused = true)]
async fn expiry_counts_from_when_the_fetch_was_sent() {
    let world = World::new(ProviderKind::Classic);
    world.with(|state| state.delay = secs(2));
    let (bench, start) = (Bench::start(world), Instant::now());
    let token = bench.refresher.current().await.unwrap();
    assert_eq!(token.expires() - start, secs(7200));
}

#[tokio::test(start_paused = true)]
async fn a_restart_costs_no_fetch_and_keeps_the_generation() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    bench.world.revoke();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    let (generation, fetches) = (bench.generation(), bench.world.fetches());
    sleep(secs(100)).await;
    let bench = bench.restarted();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
    assert_eq!(
        (bench.generation(), bench.world.fetches()),
        (generation, fetches)
    );
    assert!(bench.refresher.token().unwrap().expires_in() <= secs(7100));
    bench.world.revoke();
    assert_eq!(
        bench.call("/a").await,
        Outcome::Ok { calls: 2 },
        "what came from a store counts as accepted"
    );
}

#[tokio::test(start_paused = true)]
async fn another_secret_or_kind_takes_no_old_token_and_another_appid_no_old_budget() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    let left = bench.refresher.status().classic_left;
    let bench = bench.restarted_as(|kind| AccountSettings {
        secret: Some(Secret::new("other")),
        ..account(kind)
    });
    let token = bench.refresher.current().await.unwrap();
    assert_eq!(
        (token.generation(), bench.world.fetches()),
        (Generation(2), 2)
    );
    assert_eq!(
        bench.refresher.status().classic_left,
        left.map(|left| left - 1)
    );
    let bench = bench.restarted_as(|kind| AccountSettings {
        appid: "wxother".into(),
        ..account(kind)
    });
    assert_eq!(
        bench.refresher.current().await.unwrap().generation(),
        Generation(3)
    );
    assert_eq!(
        bench.refresher.status().classic_left,
        Some(CLASSIC_PER_DAY - 1)
    );
}

#[tokio::test(start_paused = true)]
async fn budgets_survive_a_restart_even_before_the_answer_came() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    bench.world.with(|state| state.delay = secs(1));
    let refresher = bench.refresher.clone();
    let asking = tokio::spawn(async move { refresher.refresh_now(true).await });
    sleep(Duration::from_millis(500)).await;
    let stored = bench
        .store
        .load(&RecordKey::token(&AccountName::new("shop").unwrap()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        stored.budget.forced_left(bench.clock.now_ms()),
        5,
        "spent before the call is sent"
    );
    asking.await.unwrap().unwrap();
    let bench = bench.restarted();
    bench.call("/a").await;
    assert_eq!(bench.refresher.status().forced_left, Some(5));
    assert_eq!(
        bench.refresher.refresh_now(true).await.unwrap_err().label(),
        "budget",
        "still within 30 s"
    );
}

#[tokio::test(start_paused = true)]
async fn the_classic_budget_of_a_day_ends_and_begins_anew_at_midnight() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    for n in 1..CLASSIC_PER_DAY {
        assert!(bench.refresher.refresh_now(false).await.is_ok(), "{n}");
    }
    let error = bench.refresher.refresh_now(false).await.unwrap_err();
    assert_eq!((error.label(), bench.world.fetches()), ("budget", 2000));
    bench.world.revoke();
    assert_eq!(bench.call("/a").await, stale("budget"));
    let bench = bench.restarted();
    assert!(bench.refresher.refresh_now(false).await.is_err());
    sleep(secs(12 * 3600)).await;
    assert!(bench.refresher.refresh_now(false).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_record_from_the_future_is_not_believed() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    drop(bench.refresher);
    let behind = WallClock::starting_at(NOON_MS - 3_600_000);
    let bench = Bench::start_with(bench.world, bench.store, behind, account);
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
    assert_eq!(bench.world.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_ends_the_task_after_the_fetch_under_way() {
    let bench = Bench::ready(ProviderKind::Classic).await;
    let refresher = bench.refresher.clone();
    bench.world.revoke();
    let asking = tokio::spawn(async move { refresher.refresh_now(false).await.map(|_| ()) });
    sleep(Duration::from_millis(10)).await;
    asking.abort();
    drop(bench.refresher);
    sleep(secs(1)).await;
    let stored = bench
        .store
        .load(&RecordKey::token(&AccountName::new("shop").unwrap()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        stored.generation,
        Generation(2),
        "the token that was under way is kept"
    );
    let fetches = bench.world.fetches();
    sleep(secs(10_000)).await;
    assert_eq!(bench.world.fetches(), fetches, "nobody fetches any more");
}

#[tokio::test(start_paused = true)]
async fn what_another_refresher_stored_first_is_taken_over() {
    let first = Bench::ready(ProviderKind::Stable).await;
    let second = Bench::start_with(
        World::new(ProviderKind::Stable),
        Arc::clone(&first.store),
        first.clock,
        account,
    );
    second.refresher.current().await.unwrap();
    assert_eq!(
        (second.generation(), second.world.fetches()),
        (first.generation(), 0),
        "found at the start"
    );
    first.world.revoke();
    assert_eq!(first.call("/a").await, Outcome::Ok { calls: 2 });
    second.world.with(|state| state.minted = 10);
    let Refresh::Replay(token) = second.refresher.refresh_past(Generation(1), "/a").await else {
        panic!("no replay")
    };
    assert_eq!(
        token.secret(),
        first.refresher.token().unwrap().secret(),
        "not the one it fetched itself, which came later"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stable_token_that_others_force_out_again_and_again_is_a_conflict() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    for _ in 0..3 {
        bench.world.script([Scripted::Rotates]);
        assert!(matches!(
            bench.refresher.refresh_past(bench.generation(), "/a").await,
            Refresh::Replay(_)
        ));
        assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
        sleep(secs(60)).await;
    }
    assert_eq!(
        bench.metric(r#"wxgate_token_conflicts_total{account="shop"}"#),
        Some(2.0)
    );
}

#[tokio::test]
async fn a_token_is_on_disk_before_a_request_sees_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let world = World::new(ProviderKind::Classic);
    world.with(|state| state.delay = Duration::from_millis(1));
    let start = |store: FileStore| {
        let metrics = TokenMetrics::default().for_account(&AccountName::new("shop").unwrap());
        let source = Arc::clone(&world) as Arc<dyn TokenSource>;
        TokenRefresher::spawn(
            account(ProviderKind::Classic),
            TokenSettings::default(),
            source,
            Arc::new(store),
            metrics,
        )
    };
    let refresher = start(FileStore::open(&path, None).unwrap());
    let token = refresher.current().await.unwrap();
    // State after a kill: all writes after this moment are lost.
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(path.join("shop.json"), copy.join("shop.json")).unwrap();
    let again = start(FileStore::open(&copy, None).unwrap())
        .current()
        .await
        .unwrap();
    assert_eq!(
        (again.secret(), again.generation(), world.fetches()),
        (token.secret(), token.generation(), 1)
    );
}

/// Store that fails until `works` is set, or never answers.
#[derive(Default)]
struct Broken {
    hangs: bool,
    inner: MemoryStore,
    works: std::sync::atomic::AtomicBool,
}

impl Broken {
    fn works(&self) -> bool {
        self.works.load(std::sync::atomic::Ordering::Relaxed)
    }

    async fn fail<T>(&self) -> Result<T, StoreError> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Err(StoreError::Io {
            operation: "write",
            path: "/full".into(),
            reason: "no space".into(),
        })
    }
}

impl TokenStore for Broken {
    fn load<'a>(
        &'a self,
        key: &'a RecordKey,
    ) -> BoxFuture<'a, Result<Option<TokenRecord>, StoreError>> {
        if self.works() {
            self.inner.load(key)
        } else {
            Box::pin(self.fail())
        }
    }

    fn save<'a>(
        &'a self,
        key: &'a RecordKey,
        record: TokenRecord,
    ) -> BoxFuture<'a, Result<Saved, StoreError>> {
        if self.works() {
            self.inner.save(key, record)
        } else {
            Box::pin(self.fail())
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_or_hangs_stops_nobody_and_is_written_when_it_works_again() {
    for hangs in [false, true] {
        let store = Arc::new(Broken {
            hangs,
            ..Broken::default()
        });
        let world = World::new(ProviderKind::Classic);
        let mut registry = Registry::default();
        let refresher = TokenRefresher::spawn_from(RefresherParts {
            account: account(ProviderKind::Classic),
            settings: TokenSettings::default(),
            source: Arc::clone(&world) as Arc<dyn TokenSource>,
            store: Arc::clone(&store) as Arc<dyn TokenStore>,
            metrics: TokenMetrics::register(&mut registry)
                .for_account(&AccountName::new("shop").unwrap()),
            chance: Chance {
                clock: WallClock::starting_at(NOON_MS),
                jitter: || 0.5,
            },
        });
        let bench = Bench {
            world,
            refresher,
            store: Arc::default(),
            clock: WallClock::system(),
            registry,
        };
        sleep(secs(10)).await;
        assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
        bench.world.revoke();
        let start = Instant::now();
        assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
        assert!(start.elapsed() < secs(3), "{:?}", start.elapsed());
        assert!(bench.metric(r#"wxgate_store_errors_total{operation="load"}"#) >= Some(1.0));
        sleep(secs(200)).await;
        assert!(bench.metric(r#"wxgate_store_errors_total{operation="save"}"#) >= Some(2.0));
        store
            .works
            .store(true, std::sync::atomic::Ordering::Relaxed);
        sleep(secs(70)).await;
        let stored = store
            .inner
            .load(&RecordKey::token(&AccountName::new("shop").unwrap()))
            .await
            .unwrap();
        assert_eq!(stored.unwrap().generation, bench.generation());
    }
}

#[tokio::test(start_paused = true)]
async fn a_retired_refresher_asks_for_nothing_but_what_a_request_in_flight_needs() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        let bench = Bench::ready(kind).await;
        bench.refresher.retire();
        assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
        bench.world.revoke();
        assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
        let fetches = bench.world.fetches();
        sleep(secs(20_000)).await;
        assert_eq!(bench.world.fetches(), fetches, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresher_that_is_retired_while_it_fetches_still_serves_who_waits() {
    let bench = Bench::start(World::new(ProviderKind::Stable));
    let waiting = tokio::spawn({
        let refresher = bench.refresher.clone();
        async move { refresher.current().await.is_ok() }
    });
    sleep(Duration::from_millis(50)).await;
    bench.refresher.retire();
    assert!(waiting.await.unwrap());
}
