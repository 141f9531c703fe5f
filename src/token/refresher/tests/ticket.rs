//! Refresher of a ticket beside the refresher of the token.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::{
    token::{
        budget::DailyBudget,
        refresher::Condition,
        store::{CredentialType, RecordKey},
    },
    wechat::ticket::TicketType,
};

/// Ticket endpoint of WeChat: gives the same ticket until its expiry, then another.
pub(super) struct Office {
    refresher: TokenRefresher,
    made_with: Arc<AtomicU64>,
    calls: AtomicU64,
    given: Mutex<(u64, Instant)>,
}

impl TokenSource for Office {
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let token = self
                .refresher
                .current()
                .await
                .map_err(|_| FetchError::NoToken)?;
            self.made_with
                .store(token.generation().0, Ordering::Relaxed);
            self.calls.fetch_add(1, Ordering::Relaxed);
            let mut given = self.given.lock().unwrap();
            if given.1 <= Instant::now() {
                *given = (given.0 + 1, Instant::now() + secs(7200));
            }
            Ok(Fetched {
                token: Secret::new(format!("K{}", given.0)),
                expires_in: given.1 - Instant::now(),
            })
        })
    }

    fn probe<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Probe> {
        unreachable!("nobody asks about a ticket")
    }
}

pub(super) fn ticket(bench: &mut Bench) -> (TokenRefresher, Arc<Office>) {
    let made_with = Arc::new(AtomicU64::new(0));
    let office = Arc::new(Office {
        refresher: bench.refresher.clone(),
        made_with: Arc::clone(&made_with),
        calls: AtomicU64::new(0),
        given: Mutex::new((0, Instant::now())),
    });
    let account = account(bench.world.kind);
    let metrics =
        TokenMetrics::register(&mut bench.registry).for_ticket(&account.name, TicketType::Jsapi);
    let source = Arc::clone(&office) as Arc<dyn TokenSource>;
    let store = Arc::clone(&bench.store) as Arc<dyn TokenStore>;
    let settings = TokenSettings::default();
    let refresher = TokenRefresher::spawn_ticket(
        TicketType::Jsapi,
        RefresherParts {
            account,
            settings,
            source,
            store,
            metrics,
            chance: Chance::system(),
        },
        &bench.refresher,
        made_with,
    );
    refresher.want();
    (refresher, office)
}

impl Office {
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

async fn shown(refresher: &TokenRefresher) -> String {
    refresher.want();
    refresher
        .current()
        .await
        .unwrap()
        .secret()
        .expose()
        .to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_ticket_that_is_asked_for_is_always_there_and_costs_few_calls_and_no_budget() {
    let mut bench = Bench::ready(ProviderKind::Classic).await;
    let left = bench.refresher.status().classic_left;
    let (refresher, office) = ticket(&mut bench);
    // Ten hours, with a new budget at midnight.
    for _ in 0..10 * 60 + 7 {
        assert!(shown(&refresher).await.starts_with('K'));
        sleep(secs(60)).await;
    }
    assert!(
        (5..=30).contains(&office.calls()),
        "{} calls in ten hours",
        office.calls()
    );
    let spent = bench.world.fetches() - 1;
    let status = bench.refresher.status();
    assert_eq!(
        status.classic_left,
        left.map(|left| left - u32::try_from(spent).unwrap()),
        "{spent} tokens"
    );
    let key = RecordKey {
        account: refresher.name().clone(),
        credential: CredentialType::Ticket(TicketType::Jsapi),
    };
    assert_eq!(
        bench.store.load(&key).await.unwrap().unwrap().budget,
        DailyBudget::default()
    );
    assert_eq!(
        (
            refresher.status().classic_left,
            refresher.status().forced_left
        ),
        (None, None)
    );
    assert_eq!(
        (
            refresher.status().condition,
            status.condition,
            status.conflicts
        ),
        (Condition::Ok, Condition::Ok, 0)
    );
    assert_eq!(
        bench.metric(r#"wxgate_token_conflicts_total{account="shop"}"#),
        Some(0.0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_ticket_that_nobody_asks_for_is_left_to_expire_and_comes_back_on_demand() {
    let mut bench = Bench::ready(ProviderKind::Stable).await;
    let (refresher, office) = ticket(&mut bench);
    assert_eq!(shown(&refresher).await, "K1");
    sleep(secs(86_400)).await;
    let calls = office.calls();
    assert!(refresher.token().is_none() && calls <= 16, "{calls} calls");
    sleep(secs(7 * 86_400)).await;
    assert_eq!(office.calls(), calls);
    assert!(shown(&refresher).await.starts_with('K'));
    sleep(secs(3 * 3600)).await;
    assert!(refresher.token().is_some(), "kept again");
}

#[tokio::test(start_paused = true)]
async fn only_a_refused_token_renews_its_ticket_and_only_once() {
    let mut bench = Bench::ready(ProviderKind::Classic).await;
    let (refresher, office) = ticket(&mut bench);
    assert_eq!(shown(&refresher).await, "K1");
    // Replaced, but not rejected.
    bench.refresher.refresh_now(false).await.unwrap();
    sleep(secs(30)).await;
    assert_eq!((bench.generation(), office.calls()), (Generation(2), 1));
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 1 });
    bench.world.revoke();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    sleep(secs(30)).await;
    assert_eq!(
        (office.calls(), shown(&refresher).await.as_str()),
        (2, "K1"),
        "the same one is fine"
    );
    // The next token dies too, and this ticket was made with it.
    bench.world.revoke();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    sleep(secs(30)).await;
    assert_eq!(office.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_waits_for_the_token_and_no_longer() {
    let mut bench = Bench::start(World::new(ProviderKind::Stable));
    bench
        .world
        .script((0..12).map(|_| Scripted::Fails(FetchError::REFUSED)));
    let (refresher, office) = ticket(&mut bench);
    sleep(secs(30)).await;
    assert_eq!(refresher.status().last_error.unwrap().label, "no_token");
    assert!(
        refresher
            .current()
            .await
            .unwrap_err()
            .to_string()
            .starts_with("no jsapi ticket for account shop")
    );
    while bench.refresher.token().is_none() {
        sleep(secs(1)).await;
    }
    sleep(secs(1)).await;
    assert_eq!(
        (refresher.current().await.is_ok(), office.calls()),
        (true, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_retired_account_fetches_no_tickets() {
    let mut bench = Bench::ready(ProviderKind::Stable).await;
    let (refresher, office) = ticket(&mut bench);
    assert_eq!(shown(&refresher).await, "K1");
    refresher.retire();
    sleep(secs(7000)).await;
    refresher.want();
    sleep(secs(3600)).await;
    assert_eq!(office.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_newer_token_gets_it_at_once_and_gives_up_in_time() {
    let bench = Bench::ready(ProviderKind::Stable).await;
    let start = Instant::now();
    assert!(
        bench
            .refresher
            .wait_past(Generation(1), start + secs(60))
            .await
            .is_none()
    );
    assert_eq!(start.elapsed(), secs(60));
    assert_eq!(
        bench
            .refresher
            .wait_past(Generation(0), Instant::now())
            .await
            .unwrap()
            .generation(),
        Generation(1)
    );
    let refresher = bench.refresher.clone();
    let waiting = tokio::spawn(async move {
        refresher
            .wait_past(Generation(1), Instant::now() + secs(60))
            .await
    });
    bench.world.revoke();
    let start = Instant::now();
    assert_eq!(bench.call("/a").await, Outcome::Ok { calls: 2 });
    assert_eq!(waiting.await.unwrap().unwrap().generation(), Generation(2));
    assert!(
        start.elapsed() < secs(2) && bench.world.fetches() == 2,
        "waiting asks for nothing"
    );
}
