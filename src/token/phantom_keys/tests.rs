//! Roots of former AppSecrets: how long they stay good, across reloads, restarts and nodes.

use super::{record::StoredRoots, *};
use crate::{
    base::AccountName,
    token::{
        TokenProvider,
        store::{CredentialType, MemoryStore, RecordKey},
    },
    wechat::api::Platform,
};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

fn account(secret: &str) -> AccountSettings {
    AccountSettings {
        name: AccountName::new("shop").unwrap(),
        platform: Platform::Wechat,
        appid: "wx0123456789abcdef".to_owned(),
        secret: (!secret.is_empty()).then(|| Secret::new(secret)),
        provider: TokenProvider::Stable,
        api: Vec::new(),
        hosts: Vec::new(),
        foreign_token: None,
    }
}

/// World of one store and one clock.
struct World {
    store: Arc<MemoryStore>,
    clock: WallClock,
}

impl World {
    fn new(store: MemoryStore) -> Self {
        Self {
            store: Arc::new(store),
            clock: WallClock::starting_at(1_000_000_000_000),
        }
    }

    fn begin(&self, secret: &str, before: Option<&PhantomKeys>) -> Arc<PhantomKeys> {
        PhantomKeys::start_at(
            &account(secret),
            Arc::clone(&self.store) as Arc<dyn TokenStore>,
            before,
            self.clock,
        )
    }

    /// Starts and waits for the store, as a process does.
    async fn start(&self, secret: &str) -> Arc<PhantomKeys> {
        let keys = self.begin(secret, None);
        keys.loaded().await;
        keys
    }

    fn accepts(&self, keys: &PhantomKeys, secret: &str) -> bool {
        let root = root_of(&account(secret)).unwrap();
        let now = Duration::from_millis(self.clock.now_ms());
        keys.root() == Some(&root) || keys.any_other(now, |other| *other == root)
    }
}

#[tokio::test(start_paused = true)]
async fn a_former_secret_is_good_for_two_hours_after_a_restart_with_another() {
    let world = World::new(MemoryStore::default());
    drop(world.start("one").await);
    tokio::time::sleep(24 * HOUR).await;
    let next = world.start("two").await;
    assert!(world.accepts(&next, "one") && world.accepts(&next, "two"));
    drop(next);
    tokio::time::sleep(HOUR).await;
    let again = world.start("two").await;
    tokio::time::sleep(Duration::from_secs(3599)).await;
    assert!(world.accepts(&again, "one"), "over another restart");
    tokio::time::sleep(SECOND).await;
    assert!(!world.accepts(&again, "one") && world.accepts(&again, "two"));
}

#[tokio::test(start_paused = true)]
async fn a_reload_knows_the_former_secret_before_the_store_is_asked() {
    let world = World::new(MemoryStore::default());
    let one = world.begin("one", None);
    let two = world.begin("two", Some(&one));
    assert!(world.accepts(&two, "one"));
    let three = world.begin("three", Some(&two));
    for secret in ["one", "two", "three"] {
        assert!(world.accepts(&three, secret), "{secret}");
    }
    three.loaded().await;
    let back = world.begin("two", Some(&three));
    back.loaded().await;
    assert!(world.accepts(&back, "three") && world.accepts(&back, "one"));
    tokio::time::sleep(2 * HOUR).await;
    assert!(world.accepts(&back, "two") && !world.accepts(&back, "three"));
}

#[tokio::test(start_paused = true)]
async fn another_appid_and_a_missing_secret_have_no_former_ones() {
    let world = World::new(MemoryStore::default());
    let one = world.start("one").await;
    let other = AccountSettings {
        appid: "wx9999999999999999".to_owned(),
        ..account("two")
    };
    let store = Arc::clone(&world.store) as Arc<dyn TokenStore>;
    let keys = PhantomKeys::start_at(&other, store, Some(&one), world.clock);
    assert!(!world.accepts(&keys, "one"));
    keys.loaded().await;
    assert!(!world.accepts(&keys, "one"));
    let without = world.start("").await;
    assert!(without.root().is_none() && !world.accepts(&without, "one"));
}

#[tokio::test(start_paused = true)]
async fn a_revocation_holds_on_every_node_and_is_not_undone_by_a_later_one() {
    let world = World::new(MemoryStore::shared());
    let (a, b) = (world.start("one").await, world.start("one").await);
    let a = world.begin("two", Some(&a));
    a.loaded().await;
    tokio::time::sleep(SECOND).await;
    assert!(world.accepts(&a, "one"));
    assert!(
        world.accepts(&b, "two"),
        "before the second node is told of the change itself"
    );
    let c = world.start("two").await;
    assert!(world.accepts(&c, "one"), "a node that joins");
    a.revoke().await;
    tokio::time::sleep(SECOND).await;
    assert!(!world.accepts(&a, "one") && !world.accepts(&c, "one"));
    let b = world.begin("two", Some(&b));
    b.loaded().await;
    assert!(!world.accepts(&b, "one") && world.accepts(&b, "two"));
    drop((a, b, c));
    assert!(!world.accepts(&*world.start("two").await, "one"));
}

#[tokio::test(start_paused = true)]
async fn an_account_that_is_removed_and_comes_back_begins_anew() {
    let world = World::new(MemoryStore::default());
    let one = world.start("one").await;
    one.forget();
    tokio::time::sleep(SECOND).await;
    assert!(!world.accepts(&*world.start("two").await, "one"));
}

#[tokio::test(start_paused = true)]
async fn nodes_with_different_secrets_leave_each_others_record_alone() {
    let world = World::new(MemoryStore::shared());
    let nodes = (world.start("one").await, world.start("two").await);
    let key = RecordKey {
        account: account("").name,
        credential: CredentialType::PhantomKeys,
    };
    let generation = async || world.store.load(&key).await.unwrap().unwrap().generation;
    let before = generation().await;
    tokio::time::sleep(6 * HOUR).await;
    assert!(
        generation().await.0 <= before.0 + 3,
        "every two hours by the node whose it is"
    );
    assert!(
        world.accepts(&nodes.0, "two"),
        "as long as it is in force there"
    );
    let record = world.store.load(&key).await.unwrap().unwrap();
    let stored = StoredRoots::of(&record, &account("").appid).unwrap();
    assert!(Some(&stored.current) == nodes.1.root());
    let text = record.token.unwrap().value;
    assert!(!text.expose().contains("two"), "never the AppSecret");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_the_store_has_lost_is_written_again() {
    let world = World::new(MemoryStore::shared());
    let one = world.start("one").await;
    let two = world.begin("two", Some(&one));
    two.loaded().await;
    world.store.clear();
    tokio::time::sleep(HOUR).await;
    let joined = world.start("two").await;
    assert!(world.accepts(&joined, "one"));
}
