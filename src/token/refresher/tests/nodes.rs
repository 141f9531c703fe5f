//! Several refreshers of one account on one shared store that works.

use futures_util::future::join_all;

use super::{ticket::ticket, *};
use crate::token::{
    refresher::Condition,
    store::{RecordKey, Saved, TokenRecord},
};

/// Nodes on one store, in front of one WeChat.
pub(super) struct Nodes {
    pub(super) world: Arc<World>,
    pub(super) store: Arc<MemoryStore>,
    pub(super) all: Vec<Bench>,
}

pub(super) fn node(world: &Arc<World>, store: Arc<dyn TokenStore>, clock: WallClock) -> Bench {
    let mut registry = Registry::default();
    let account = account(world.kind);
    let metrics = TokenMetrics::register(&mut registry).for_account(&account.name);
    let source = Arc::clone(world) as Arc<dyn TokenSource>;
    let jitter = || f64::from(getrandom::u32().unwrap()) / f64::from(u32::MAX);
    let refresher = TokenRefresher::spawn_from(RefresherParts {
        account,
        settings: TokenSettings::default(),
        source,
        store,
        metrics,
        chance: Chance { clock, jitter },
    });
    Bench {
        world: Arc::clone(world),
        refresher,
        store: Arc::default(),
        clock,
        registry,
    }
}

pub(super) fn key() -> RecordKey {
    RecordKey::token(&AccountName::new("shop").unwrap())
}

impl Nodes {
    /// Nodes before their first request.
    pub(super) fn start(kind: ProviderKind, count: usize) -> Self {
        let (world, store) = (World::new(kind), Arc::new(MemoryStore::shared()));
        let clock = WallClock::starting_at(NOON_MS);
        let all = (0..count)
            .map(|_| node(&world, Arc::clone(&store) as Arc<dyn TokenStore>, clock))
            .collect();
        Self { world, store, all }
    }

    /// Nodes after one successful request each.
    pub(super) async fn ready(kind: ProviderKind, count: usize) -> Self {
        let nodes = Self::start(kind, count);
        nodes.all_fine(1, 1).await;
        nodes
    }

    /// Makes that many requests at once on each node. Each must succeed within so many calls.
    pub(super) async fn all_fine(&self, times: usize, calls: u32) {
        let asked = self.all.iter().flat_map(|node| {
            (0..times).map(move |n| async move { node.call(&format!("/{n}")).await })
        });
        for outcome in join_all(asked).await {
            assert_eq!(outcome, Outcome::Ok { calls });
        }
    }

    pub(super) async fn stored(&self) -> TokenRecord {
        self.store.load(&key()).await.unwrap().unwrap()
    }

    fn generations(&self) -> Vec<u64> {
        self.all.iter().map(|node| node.generation().0).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_start_together_cost_one_fetch() {
    for kind in [
        ProviderKind::Stable,
        ProviderKind::Classic,
        ProviderKind::Wecom,
    ] {
        let nodes = Nodes::ready(kind, 50).await;
        assert_eq!(nodes.world.fetches(), 1, "{kind:?}");
        assert_eq!(nodes.generations(), [1; 50]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_dies_under_load_on_all_nodes_costs_one_fetch_and_no_request() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        let nodes = Nodes::ready(kind, 3).await;
        for round in 1..=5_u64 {
            nodes.world.revoke();
            nodes.all_fine(100, 2).await;
            nodes.all_fine(1, 1).await;
            assert_eq!(
                (nodes.world.fetches() as u64, nodes.generations()),
                (round + 1, vec![round + 1; 3]),
                "{kind:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_did_not_hear_of_the_new_token_finds_it_before_it_fetches() {
    let nodes = Nodes::ready(ProviderKind::Classic, 1).await;
    nodes.world.revoke();
    let late = node(
        &nodes.world,
        Arc::clone(&nodes.store) as Arc<dyn TokenStore>,
        nodes.all[0].clock,
    );
    late.refresher.current().await.unwrap();
    nodes.all_fine(1, 2).await;
    assert_eq!(
        late.call("/a").await,
        Outcome::Ok { calls: 1 },
        "it heard of it at once"
    );
    assert_eq!(nodes.world.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn losers_wait_for_a_slow_winner() {
    let nodes = Nodes::ready(ProviderKind::Classic, 3).await;
    nodes.world.with(|state| state.delay = secs(4));
    nodes.world.revoke();
    let start = Instant::now();
    nodes.all_fine(10, 2).await;
    assert!(
        start.elapsed() < Duration::from_millis(4100),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(nodes.world.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn when_the_winner_fails_the_next_one_tries_at_once() {
    let nodes = Nodes::ready(ProviderKind::Classic, 3).await;
    nodes.world.script([Scripted::Fails(FetchError::REFUSED)]);
    nodes.world.revoke();
    let start = Instant::now();
    nodes.all_fine(1, 2).await;
    assert!(start.elapsed() < secs(2), "{:?}", start.elapsed());
    assert_eq!(nodes.world.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_day_of_three_nodes_costs_about_what_a_day_of_one_does() {
    for (kind, most) in [(ProviderKind::Classic, 14), (ProviderKind::Stable, 14)] {
        let nodes = Nodes::ready(kind, 3).await;
        let start = Instant::now();
        while start.elapsed() < secs(86_400) {
            nodes.all_fine(1, 1).await;
            sleep(secs(20)).await;
        }
        let fetches = nodes.world.fetches();
        assert!(
            (13..=most).contains(&fetches),
            "{kind:?}: {fetches} in a day"
        );
        for node in &nodes.all {
            assert_eq!(node.refresher.status().condition, Condition::Ok);
            assert_eq!(
                node.metric(r#"wxgate_token_conflicts_total{account="shop"}"#),
                Some(0.0)
            );
        }
    }
}

/// WeCom gives the same token until its expiry, and is asked every half minute in the last five
/// minutes.
#[tokio::test(start_paused = true)]
async fn a_platform_that_rotates_late_is_asked_by_three_nodes_hardly_more_often_than_by_one() {
    let mut fetches = Vec::new();
    for count in [1, 3] {
        let nodes = Nodes::ready(ProviderKind::Wecom, count).await;
        sleep(secs(86_400)).await;
        fetches.push(nodes.world.fetches());
    }
    assert!(
        fetches[0] > 60 && fetches[1] * 2 <= fetches[0] * 3,
        "{fetches:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_died_with_the_lease_delays_the_others_by_no_more_than_the_lease() {
    let nodes = Nodes::ready(ProviderKind::Classic, 2).await;
    for _ in 0..20 {
        nodes.world.revoke();
        nodes.store.seize(&key(), secs(7));
        let (start, before) = (Instant::now(), nodes.world.fetches());
        nodes.all_fine(10, 2).await;
        assert!(
            start.elapsed() < Duration::from_millis(7500),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(nodes.world.fetches() - before, 1);
        nodes.all_fine(1, 1).await;
        sleep(secs(60)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_changes_nothing() {
    let nodes = Nodes::ready(ProviderKind::Classic, 3).await;
    nodes.world.revoke();
    nodes.world.with(|state| state.linger = secs(4));
    let late = nodes.all[0].refresher.clone();
    let waiting = tokio::spawn(async move { late.refresh_past(Generation(1), "/late").await });
    sleep(secs(1)).await;
    nodes.store.outlast(&key());
    assert_eq!(nodes.all[1].call("/a").await, Outcome::Ok { calls: 2 });
    let good = nodes.stored().await;
    let Refresh::Replay(token) = waiting.await.unwrap() else {
        panic!("no replay")
    };
    assert!(
        nodes.world.takes(token.secret().expose()),
        "it does not wait for its own"
    );
    sleep(secs(10)).await;
    assert_eq!(nodes.stored().await.token, good.token);
    assert_eq!(nodes.world.fetches(), 3);
    assert_eq!(
        nodes.all[0]
            .metric(r#"wxgate_token_fetch_total{account="shop",trigger="rejected",result="late"}"#),
        Some(1.0)
    );
    nodes.all_fine(1, 1).await;
    assert_eq!(nodes.world.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_late_write_changes_nothing_and_its_writer_takes_over_what_is_there() {
    let nodes = Nodes::ready(ProviderKind::Classic, 2).await;
    let mut rival = nodes.stored().await;
    nodes.world.revoke();
    nodes.all_fine(1, 2).await;
    let good = nodes.stored().await;
    rival.generation = good.generation;
    assert_eq!(
        nodes.store.save(&key(), rival).await,
        Ok(Saved::Newer(Box::new(good.clone())))
    );
    assert_eq!(nodes.stored().await, good);
}

/// Two nodes fetched at the same time without a lease, and numbered their tokens alike.
#[tokio::test(start_paused = true)]
async fn two_tokens_of_one_number_become_one() {
    let nodes = Nodes::ready(ProviderKind::Classic, 2).await;
    nodes.world.revoke();
    let mut rival = nodes.stored().await;
    rival.token.as_mut().unwrap().value =
        Secret::new(nodes.world.with(|state| state.latest.clone()));
    // Written past the comparison of the store.
    nodes.store.clear();
    nodes.store.save(&key(), rival.clone()).await.unwrap();
    sleep(secs(10)).await;
    assert_eq!(nodes.stored().await.token, rival.token);
    nodes.all_fine(5, 1).await;
    assert!(
        nodes
            .all
            .iter()
            .all(|node| node.generation() > Generation(1)),
        "a request would not see the difference"
    );
}

#[tokio::test(start_paused = true)]
async fn what_one_node_spends_all_have_spent() {
    let nodes = Nodes::ready(ProviderKind::Classic, 3).await;
    for n in 0..9 {
        nodes.all[n % 3].refresher.refresh_now(false).await.unwrap();
    }
    sleep(secs(1)).await;
    for node in &nodes.all {
        assert_eq!(node.refresher.status().classic_left, Some(2000 - 10));
    }
    let nodes = Nodes::ready(ProviderKind::Stable, 3).await;
    nodes.all[0].refresher.refresh_now(true).await.unwrap();
    let error = nodes.all[1].refresher.refresh_now(true).await.unwrap_err();
    assert_eq!(
        (error.label(), nodes.world.forced()),
        ("budget", 1),
        "within 30 s"
    );
    sleep(secs(31)).await;
    nodes.all[2].refresher.refresh_now(true).await.unwrap();
    assert_eq!(nodes.all[0].refresher.status().forced_left, Some(4));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_forced_out_is_forced_once_for_all_nodes() {
    let nodes = Nodes::ready(ProviderKind::Stable, 3).await;
    nodes.world.with(|state| {
        state.rejects_all = true;
        state.probe = Some(Probe::Stale);
    });
    let asked = nodes
        .all
        .iter()
        .map(|node| node.refresher.refresh_past(Generation(1), "/a"));
    let all = join_all(asked).await;
    assert!(all.iter().all(
        |refresh| matches!(refresh, Refresh::Replay(token) if token.generation() == Generation(2))
    ));
    assert_eq!((nodes.world.forced(), nodes.world.fetches()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_ticket_is_fetched_once_for_all_nodes() {
    let mut nodes = Nodes::ready(ProviderKind::Stable, 3).await;
    let mut tickets = Vec::new();
    for bench in &mut nodes.all {
        bench.store = Arc::clone(&nodes.store);
        tickets.push(ticket(bench));
    }
    for (refresher, _) in &tickets {
        assert_eq!(
            refresher.current().await.unwrap().generation(),
            Generation(1)
        );
    }
    assert_eq!(
        tickets
            .iter()
            .map(|(_, office)| office.calls())
            .sum::<u64>(),
        1
    );
}

fn refused(code: i64) -> Scripted {
    Scripted::Fails(FetchError::Refused {
        platform: Platform::Wechat,
        code,
        ip: None,
    })
}

#[tokio::test(start_paused = true)]
async fn a_wrong_secret_is_told_to_all_nodes_and_so_is_its_correction() {
    let nodes = Nodes::start(ProviderKind::Stable, 20);
    nodes.world.script((0..1000).map(|_| refused(40125)));
    sleep(secs(600)).await;
    let fetches = nodes.world.fetches();
    assert!(
        (5..=14).contains(&fetches),
        "{fetches}, about as often as one node would"
    );
    for node in &nodes.all {
        assert_eq!(node.refresher.current().await.unwrap_err().label(), "40125");
        assert_eq!(node.refresher.status().condition, Condition::Fatal);
    }
    nodes.world.with(|state| state.script.clear());
    nodes.all[7].refresher.refresh_now(false).await.unwrap();
    sleep(secs(1)).await;
    nodes.all_fine(1, 1).await;
    assert_eq!(nodes.world.fetches(), fetches + 1);
    assert_eq!(nodes.stored().await.refusal, None);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_over_for_all_nodes_when_one_gets_the_same_token_again() {
    let nodes = Nodes::ready(ProviderKind::Stable, 3).await;
    nodes.world.script([refused(40243)]);
    nodes.all[0].refresher.refresh_now(false).await.unwrap_err();
    sleep(secs(1)).await;
    let conditions = || {
        nodes
            .all
            .iter()
            .map(|node| node.refresher.status().condition)
            .collect::<Vec<_>>()
    };
    assert_eq!(conditions(), [Condition::Degraded; 3]);
    nodes.all[1].refresher.refresh_now(false).await.unwrap();
    sleep(secs(1)).await;
    assert_eq!(conditions(), [Condition::Ok; 3]);
    assert_eq!(nodes.world.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refused_address_is_the_trouble_of_one_node_only() {
    let nodes = Nodes::start(ProviderKind::Stable, 3);
    nodes.world.script([refused(40164)]);
    sleep(secs(1)).await;
    nodes.all_fine(1, 1).await;
    assert_eq!(
        (nodes.world.fetches(), nodes.stored().await.refusal),
        (2, None)
    );
}

#[tokio::test(start_paused = true)]
async fn an_account_whose_tokens_are_always_refused_costs_three_nodes_little_more_than_one() {
    for kind in [ProviderKind::Classic, ProviderKind::Stable] {
        let nodes = Nodes::start(kind, 3);
        nodes.world.with(|state| state.rejects_all = true);
        let start = Instant::now();
        while start.elapsed() < secs(600) {
            for node in &nodes.all {
                let outcome = node.call("/cgi-bin/user/info").await;
                assert!(matches!(outcome, Outcome::Stale { .. }), "{outcome:?}");
            }
            sleep(Duration::from_millis(20)).await;
        }
        assert!(
            nodes.world.fetches() <= 36,
            "{kind:?}: {} fetches",
            nodes.world.fetches()
        );
        assert!(
            nodes.world.forced() <= 6,
            "{kind:?}: {} forced",
            nodes.world.forced()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_store_has_lost_is_written_again() {
    let nodes = Nodes::ready(ProviderKind::Classic, 3).await;
    nodes.world.revoke();
    nodes.all_fine(1, 2).await;
    let before = nodes.stored().await;
    nodes.store.clear();
    sleep(secs(7)).await;
    assert_eq!(nodes.stored().await, before);
    // An older record, as after a fail-over.
    nodes.store.clear();
    let old = TokenRecord {
        generation: Generation(1),
        token: None,
        ..before.clone()
    };
    nodes.store.save(&key(), old).await.unwrap();
    sleep(secs(7)).await;
    assert_eq!((nodes.stored().await, nodes.world.fetches()), (before, 2));
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_secret_is_neither_used_nor_fought_over() {
    let nodes = Nodes::ready(ProviderKind::Stable, 2).await;
    let mut foreign = nodes.stored().await;
    foreign.identity.secret_fingerprint = "00000000".to_owned();
    foreign.generation = Generation(9);
    foreign.token.as_mut().unwrap().value = Secret::new("foreign");
    nodes.store.save(&key(), foreign.clone()).await.unwrap();
    sleep(secs(60)).await;
    nodes.all_fine(1, 1).await;
    assert_eq!(nodes.stored().await, foreign);
    nodes.world.revoke();
    nodes.all_fine(5, 2).await;
    assert_eq!(nodes.generations(), [10, 10]);
}
