//! Several refreshers of one account on a shared store that fails, hangs or is slow.

use super::{
    nodes::{key, node},
    *,
};
use crate::token::store::{Lease, RecordKey, Saved, ServerFault, StoreError, TokenRecord};

/// Connection of one node to the store.
struct Road {
    store: Arc<MemoryStore>,
    trouble: Mutex<Trouble>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    None,
    Fails,
    Hangs,
    Slow(u64),
    /// Requests arrive, and answers are lost.
    OneWay,
    /// Refuses writes, as a replica does.
    ReadOnly,
}

impl Road {
    fn set(&self, trouble: Trouble) {
        *self.trouble.lock().unwrap() = trouble;
    }

    fn travel<'a, T: Send>(
        &'a self,
        writes: bool,
        act: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        let trouble = *self.trouble.lock().unwrap();
        Box::pin(async move {
            match trouble {
                Trouble::ReadOnly if writes => Err(ServerFault::ReadOnly.into()),
                Trouble::None | Trouble::ReadOnly => act.await,
                Trouble::Slow(ms) => {
                    sleep(Duration::from_millis(ms)).await;
                    act.await
                }
                Trouble::Fails => Err(ServerFault::Unreachable.into()),
                Trouble::Hangs => std::future::pending().await,
                Trouble::OneWay => {
                    let _ = act.await;
                    std::future::pending().await
                }
            }
        })
    }
}

impl TokenStore for Road {
    fn load<'a>(
        &'a self,
        key: &'a RecordKey,
    ) -> BoxFuture<'a, Result<Option<TokenRecord>, StoreError>> {
        self.travel(false, async move { self.store.load(key).await })
    }

    fn save<'a>(
        &'a self,
        key: &'a RecordKey,
        record: TokenRecord,
    ) -> BoxFuture<'a, Result<Saved, StoreError>> {
        self.travel(true, async move { self.store.save(key, record).await })
    }

    fn changes(&self, key: &RecordKey) -> Option<tokio::sync::watch::Receiver<u64>> {
        self.store.changes(key)
    }

    fn lease<'a>(
        &'a self,
        key: &'a RecordKey,
        owner: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<Lease, StoreError>> {
        self.travel(
            true,
            async move { self.store.lease(key, owner, life).await },
        )
    }

    fn release<'a>(
        &'a self,
        key: &'a RecordKey,
        owner: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.travel(true, async move { self.store.release(key, owner).await })
    }
}

struct Cluster {
    world: Arc<World>,
    store: Arc<MemoryStore>,
    roads: Vec<Arc<Road>>,
    nodes: Vec<Bench>,
}

impl Cluster {
    async fn ready(kind: ProviderKind, trouble: Trouble) -> Self {
        let cluster = Self::start(kind, trouble);
        for node in &cluster.nodes {
            assert_eq!(node.call("/a").await, Outcome::Ok { calls: 1 });
        }
        cluster
    }

    fn start(kind: ProviderKind, trouble: Trouble) -> Self {
        let (world, store, clock) = (
            World::new(kind),
            Arc::new(MemoryStore::shared()),
            WallClock::starting_at(NOON_MS),
        );
        let road = || {
            Arc::new(Road {
                store: Arc::clone(&store),
                trouble: Mutex::new(trouble),
            })
        };
        let roads: Vec<_> = (0..3).map(|_| road()).collect();
        let nodes = roads
            .iter()
            .map(|road| node(&world, Arc::clone(road) as Arc<dyn TokenStore>, clock))
            .collect();
        Self {
            world,
            store,
            roads,
            nodes,
        }
    }

    fn set(&self, trouble: Trouble) {
        self.roads.iter().for_each(|road| road.set(trouble));
    }

    /// Longest time of a call, after several calls on each node.
    async fn heal(&self) -> Duration {
        let mut longest = Duration::ZERO;
        for _ in 0..3 {
            for node in &self.nodes {
                let start = Instant::now();
                let outcome = node.call("/a").await;
                assert!(matches!(outcome, Outcome::Ok { .. }), "{outcome:?}");
                longest = longest.max(start.elapsed());
            }
        }
        longest
    }

    /// Number of forced fetches while WeChat rejects every token and all nodes are called.
    async fn forced_in_three_hours(&self) -> usize {
        sleep(secs(10)).await;
        let before = self.world.forced();
        for _ in 0..18 {
            for node in &self.nodes {
                let _ = node.call("/a").await;
            }
            sleep(secs(600)).await;
        }
        self.world.forced() - before
    }
}

/// Limits for each trouble: fetches that one dead token may cost three nodes, and milliseconds of a
/// call.
const BEARABLE: [(Trouble, usize, u64); 7] = [
    (Trouble::None, 1, 150),
    (Trouble::Fails, 3, 150),
    (Trouble::ReadOnly, 3, 150),
    (Trouble::Slow(200), 1, 1500),
    (Trouble::Slow(5000), 3, 1700),
    (Trouble::Hangs, 3, 1700),
    (Trouble::OneWay, 3, 1700),
];

#[tokio::test(start_paused = true)]
async fn no_trouble_of_the_store_costs_a_request_its_answer() {
    for (trouble, fetches, ms) in BEARABLE {
        let cluster = Cluster::ready(ProviderKind::Stable, Trouble::None).await;
        sleep(secs(20)).await;
        cluster.set(trouble);
        for round in 0..3 {
            let before = cluster.world.fetches();
            cluster.world.revoke();
            let longest = cluster.heal().await;
            assert!(
                longest <= Duration::from_millis(ms),
                "{trouble:?}, round {round}: {longest:?}"
            );
            let spent = cluster.world.fetches() - before;
            assert!(
                (1..=fetches).contains(&spent),
                "{trouble:?}, round {round}: {spent} fetches"
            );
            sleep(secs(61)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_start_without_a_store() {
    for trouble in [
        Trouble::Fails,
        Trouble::Hangs,
        Trouble::OneWay,
        Trouble::Slow(5000),
    ] {
        let cluster = Cluster::start(ProviderKind::Stable, trouble);
        // The start waits once for a store that hangs.
        sleep(secs(6)).await;
        cluster.heal().await;
        assert!(cluster.world.fetches() <= 3, "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_returns_is_written_and_used_within_two_seconds() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        let cluster = Cluster::ready(kind, Trouble::None).await;
        cluster.set(Trouble::Fails);
        cluster.world.revoke();
        assert_eq!(cluster.nodes[0].call("/a").await, Outcome::Ok { calls: 2 });
        let newest = cluster.nodes[0].refresher.token().unwrap();
        sleep(secs(60)).await;
        cluster.set(Trouble::None);
        sleep(secs(2)).await;
        let stored = cluster.store.load(&key()).await.unwrap().unwrap();
        assert_eq!(&stored.token.unwrap().value, newest.secret(), "{kind:?}");
        for node in &cluster.nodes {
            assert_eq!(
                node.call("/a").await,
                Outcome::Ok { calls: 1 },
                "{kind:?}: they heard of it"
            );
        }
        assert_eq!(cluster.world.fetches(), 2, "{kind:?}");
    }
}

/// In classic mode each fetch kills the token before: nodes that are cut off from each other kill
/// each other's tokens, but only until they are connected again.
#[tokio::test(start_paused = true)]
async fn one_node_that_is_cut_off_finds_back() {
    let cluster = Cluster::ready(ProviderKind::Classic, Trouble::None).await;
    cluster.roads[2].set(Trouble::OneWay);
    for _ in 0..4 {
        cluster.world.revoke();
        cluster.heal().await;
        sleep(secs(61)).await;
    }
    cluster.roads[2].set(Trouble::None);
    sleep(secs(10)).await;
    cluster.heal().await;
    sleep(secs(10)).await;
    let before = cluster.world.fetches();
    for node in &cluster.nodes {
        assert_eq!(node.call("/a").await, Outcome::Ok { calls: 1 });
    }
    cluster.world.revoke();
    cluster.heal().await;
    assert_eq!(cluster.world.fetches(), before + 1);
    let generations: Vec<_> = cluster.nodes.iter().map(Bench::generation).collect();
    assert!(
        generations
            .iter()
            .all(|generation| *generation == generations[0]),
        "{generations:?}"
    );
}

/// A node that is cut off may be one of many. None knows of the forced refreshes of the others, and
/// WeChat allows twenty a day in all.
#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_tell_the_others_forces_once_a_day() {
    for trouble in [
        Trouble::Fails,
        Trouble::Hangs,
        Trouble::OneWay,
        Trouble::ReadOnly,
    ] {
        let cluster = Cluster::ready(ProviderKind::Stable, Trouble::None).await;
        cluster.world.kill_but_keep_giving();
        cluster.set(trouble);
        assert_eq!(
            cluster.forced_in_three_hours().await,
            3,
            "{trouble:?}: one for each node"
        );
        cluster.set(Trouble::None);
        assert_eq!(
            cluster.forced_in_three_hours().await,
            5,
            "{trouble:?}: what all can count goes on"
        );
        cluster.set(trouble);
        assert_eq!(
            cluster.forced_in_three_hours().await,
            0,
            "{trouble:?}: once a day, not once each time"
        );
        sleep(secs(5 * 3600)).await;
        assert_eq!(
            cluster.forced_in_three_hours().await,
            3,
            "{trouble:?}: the next day"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_found_a_short_token_in_the_store_renews_it_in_time() {
    let cluster = Cluster::start(ProviderKind::Stable, Trouble::None);
    cluster.world.with(|state| state.lifetime = 12);
    for node in &cluster.nodes {
        assert_eq!(node.call("/a").await, Outcome::Ok { calls: 1 });
    }
    cluster.world.with(|state| state.lifetime = 7200);
    assert_eq!(cluster.world.fetches(), 1);
    let late = node(
        &cluster.world,
        Arc::clone(&cluster.roads[0]) as Arc<dyn TokenStore>,
        cluster.nodes[0].clock,
    );
    assert_eq!(late.call("/a").await, Outcome::Ok { calls: 1 });
    sleep(secs(1)).await;
    cluster.set(Trouble::Hangs);
    let first = cluster.nodes[0].refresher.token().unwrap().secret().clone();
    sleep(secs(9)).await;
    for node in cluster.nodes.iter().chain([&late]) {
        assert_ne!(
            *node.refresher.token().unwrap().secret(),
            first,
            "before its end"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_store_are_counted_by_operation() {
    let cluster = Cluster::ready(ProviderKind::Stable, Trouble::None).await;
    cluster.set(Trouble::Fails);
    cluster.world.revoke();
    cluster.heal().await;
    sleep(secs(10)).await;
    for operation in ["load", "lease", "save"] {
        let line = format!(r#"wxgate_store_errors_total{{operation="{operation}"}}"#);
        assert!(cluster.nodes[0].metric(&line) >= Some(1.0), "{operation}");
    }
}
