//! What every database must keep to, one function for each clause; each gets a place of its own.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;
use wxgate::{
    token::{
        Generation, Kind,
        budget::Forcer,
        store::{Kept, Key, Lease, Record, Saved, ServerFault, StoreError, TokenStore},
    },
    wechat::ticket::TicketType,
};

use super::places::{Place, sample, token_of, until};

const NOW_MS: u64 = 1_750_000_000_000;
const LIFE: Duration = Duration::from_secs(30);

async fn load(node: &dyn TokenStore, account: &str) -> Option<Record> {
    node.load(&token_of(account)).await.expect("the store works")
}

async fn save(node: &dyn TokenStore, account: &str, record: Record) -> Saved {
    node.save(&token_of(account), record).await.expect("the store works")
}

/// All of them, on places that `fresh` makes.
pub async fn all(fresh: impl Fn() -> Place) {
    a_record_comes_back_as_it_was(fresh()).await;
    tokens_tickets_and_accounts_are_kept_apart(fresh()).await;
    the_newest_generation_stays(fresh()).await;
    rivals_of_one_generation_do_not_replace_each_other(fresh()).await;
    the_more_spent_budget_stays(fresh()).await;
    of_many_savers_the_newest_wins(fresh()).await;
    one_node_at_a_time_has_the_lease(fresh()).await;
    a_lease_ends_by_itself(fresh()).await;
    of_many_who_ask_one_gets_the_lease(fresh()).await;
    damage_is_no_record_and_is_replaced(fresh()).await;
    a_record_of_another_version_is_left_alone(fresh()).await;
    tables_of_another_version_are_left_alone(fresh()).await;
    any_number_of_nodes_make_the_tables_at_once(fresh()).await;
    tables_that_are_gone_are_made_again(fresh()).await;
    an_operator_sees_everything_but_the_token(fresh()).await;
}

async fn a_record_comes_back_as_it_was(place: Place) {
    assert_eq!(load(&*place.node(), "shop").await, None);
    let long = "x".repeat(2048);
    let tokens = [None, Some("81_abc-DEF"), Some("a\"b\\c é \u{1f600} \r\n%{}:?$1"), Some(long.as_str())];
    for (generation, token) in (1..).zip(tokens) {
        let record = sample(generation, token);
        assert_eq!(save(&*place.node(), "shop", record.clone()).await, Saved::Written);
        assert_eq!(load(&*place.node(), "shop").await, Some(record));
    }
}

async fn tokens_tickets_and_accounts_are_kept_apart(place: Place) {
    let node = place.node();
    let longest = "a".repeat(64);
    let accounts = ["shop", "Shop", "shop-jsapi", "shop_jsapi", "token", "-", &longest];
    let kinds = || std::iter::once(Kept::Token).chain(TicketType::ALL.map(Kept::Ticket));
    let key = |account: &&str, kept| Key { kept, ..token_of(account) };
    let keys: Vec<_> = accounts.iter().flat_map(|account| kinds().map(move |kept| key(account, kept))).collect();
    for (number, key) in keys.iter().enumerate() {
        let record = sample(7, Some(&format!("value-{number}")));
        assert_eq!(node.save(key, record).await, Ok(Saved::Written), "{key}");
    }
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(node.load(key).await, Ok(Some(sample(7, Some(&format!("value-{number}"))))), "{key}");
    }
}

async fn the_newest_generation_stays(place: Place) {
    let (one, other) = (place.node(), place.node());
    for (older, newer) in [(1, 2), (9, 10), (99, 100), (0x7fff_ffff, 0x8000_0000), (0xffff_ffff, 1 << 32)] {
        assert_eq!(save(&*one, "shop", sample(newer, Some("new"))).await, Saved::Written);
        let refused = save(&*other, "shop", sample(older, Some("old"))).await;
        assert_eq!(refused, Saved::Newer(Box::new(sample(newer, Some("new")))), "{older} after {newer}");
        assert_eq!(load(&*other, "shop").await, Some(sample(newer, Some("new"))));
    }
}

async fn rivals_of_one_generation_do_not_replace_each_other(place: Place) {
    let node = place.node();
    let mut savers = JoinSet::new();
    for number in 0..8 {
        let node = place.node();
        savers.spawn(async move { save(&*node, "shop", sample(3, Some(&format!("rival-{number}")))).await });
    }
    let saved = savers.join_all().await;
    let stored = load(&*node, "shop").await.expect("one of them");
    assert_eq!(saved.iter().filter(|saved| **saved == Saved::Written).count(), 1);
    let others = saved.iter().filter(|saved| **saved != Saved::Written);
    assert!(others.eq([Saved::Newer(Box::new(stored.clone()))].iter().cycle().take(7)), "{saved:?}");
    // Without its token, or of other credentials, it may be replaced.
    assert_eq!(save(&*node, "shop", sample(3, None)).await, Saved::Written);
    let mut other = sample(3, Some("other"));
    other.identity.kind = Kind::Classic;
    assert_eq!(save(&*node, "shop", other.clone()).await, Saved::Written);
    assert_eq!(load(&*node, "shop").await, Some(other));
}

async fn the_more_spent_budget_stays(place: Place) {
    let (one, other) = (place.node(), place.node());
    let mut spent = sample(1, Some("t"));
    assert_eq!(save(&*one, "shop", spent.clone()).await, Saved::Written);
    spent.budget.spend_forced(NOW_MS, Forcer::Keeper).expect("the first of the day");
    assert_eq!(save(&*one, "shop", spent.clone()).await, Saved::Written);
    assert_eq!(save(&*other, "shop", sample(2, Some("u"))).await, Saved::Written);
    assert_eq!(load(&*one, "shop").await.expect("a record").budget, spent.budget);
}

async fn of_many_savers_the_newest_wins(place: Place) {
    let nodes: Vec<_> = (0..5).map(|_| place.node()).collect();
    let mut savers = JoinSet::new();
    for generation in 1..=20_u64 {
        let node = Arc::clone(&nodes[generation as usize % nodes.len()]);
        savers.spawn(async move {
            let value = format!("token-{generation}");
            save(&*node, "shop", sample(generation, Some(&value))).await
        });
    }
    for saved in savers.join_all().await {
        assert!(matches!(saved, Saved::Written | Saved::Newer(_)));
    }
    for node in nodes {
        assert_eq!(load(&*node, "shop").await, Some(sample(20, Some("token-20"))));
    }
}

async fn one_node_at_a_time_has_the_lease(place: Place) {
    let (one, other, key) = (place.node(), place.node(), token_of("shop"));
    assert_eq!(one.lease(&key, "one", LIFE).await, Ok(Lease::Granted));
    assert_eq!(one.lease(&key, "one", LIFE).await, Ok(Lease::Granted), "its owner gets it again");
    let Ok(Lease::Held { left }) = other.lease(&key, "other", LIFE).await else { panic!("granted twice") };
    assert!(left <= LIFE && left > LIFE / 2, "{left:?}");
    assert_eq!(other.lease(&token_of("shop-2"), "other", LIFE).await, Ok(Lease::Granted), "another account");
    assert_eq!(other.release(&key, "other").await, Ok(()));
    assert!(matches!(other.lease(&key, "other", LIFE).await, Ok(Lease::Held { .. })), "only its owner gives it back");
    assert_eq!(one.release(&key, "one").await, Ok(()));
    assert_eq!(other.lease(&key, "other", LIFE).await, Ok(Lease::Granted));
}

async fn a_lease_ends_by_itself(place: Place) {
    let (one, other, key) = (place.node(), place.node(), token_of("shop"));
    let life = Duration::from_secs(1);
    let _ = load(&*other, "shop").await;
    assert_eq!(one.lease(&key, "one", life).await, Ok(Lease::Granted));
    // By the clock of the database: nothing but waiting lets it pass.
    let mut refused = 0;
    while let Ok(Lease::Held { left }) = other.lease(&key, "other", LIFE).await {
        assert!(left <= life, "{left:?}");
        refused += 1;
        tokio::time::sleep(left).await;
    }
    assert!(refused > 0);
    assert_eq!(one.release(&key, "one").await, Ok(()));
    assert!(matches!(one.lease(&key, "one", LIFE).await, Ok(Lease::Held { .. })), "it is the other's now");
}

async fn of_many_who_ask_one_gets_the_lease(place: Place) {
    let key = token_of("shop");
    let nodes: Vec<_> = (0..4).map(|_| place.node()).collect();
    for round in 0..5 {
        let mut asking = JoinSet::new();
        for number in 0..12 {
            let (node, key) = (Arc::clone(&nodes[number % nodes.len()]), key.clone());
            asking.spawn(async move { (number, node.lease(&key, &format!("node-{number}"), LIFE).await) });
        }
        let granted: Vec<_> =
            asking.join_all().await.into_iter().filter(|(_, lease)| *lease == Ok(Lease::Granted)).collect();
        let [(number, _)] = granted.as_slice() else { panic!("round {round}: {granted:?}") };
        assert_eq!(nodes[0].release(&key, &format!("node-{number}")).await, Ok(()));
    }
}

async fn damage_is_no_record_and_is_replaced(place: Place) {
    let node = place.node();
    for damage in ["''", "'hello'", "substr(content, 1, 40)", "replace(content, 'generation', 'Generation')"] {
        let _ = save(&*node, "shop", sample(9, Some("before"))).await;
        place.run(&format!("UPDATE PREFIX_records SET content = {damage}")).await;
        assert_eq!(load(&*node, "shop").await, None, "{damage}");
        assert_eq!(save(&*node, "shop", sample(2, Some("after"))).await, Saved::Written, "{damage}");
        assert_eq!(load(&*node, "shop").await, Some(sample(2, Some("after"))), "{damage}");
    }
    place.run("DELETE FROM PREFIX_records").await;
    assert_eq!(load(&*node, "shop").await, None, "deleted");
}

async fn a_record_of_another_version_is_left_alone(place: Place) {
    let node = place.node();
    save(&*node, "shop", sample(1, Some("t"))).await;
    place.run("UPDATE PREFIX_records SET content = '{\"format\":99,\"record\":{}}'").await;
    let unreadable = Err(StoreError::Server(ServerFault::Unreadable));
    assert_eq!(node.load(&token_of("shop")).await, unreadable);
    assert_eq!(node.save(&token_of("shop"), sample(2, Some("u"))).await.map(|_| None), unreadable);
    assert_eq!(place.run("SELECT content FROM PREFIX_records").await.as_deref(), Some("{\"format\":99,\"record\":{}}"));
}

async fn tables_of_another_version_are_left_alone(place: Place) {
    let old = place.node();
    save(&*old, "shop", sample(1, Some("t"))).await;
    place.run("UPDATE PREFIX_schema_version SET version = 99").await;
    let refused = Err(StoreError::Server(ServerFault::Tables));
    assert_eq!(place.node().load(&token_of("shop")).await, refused);
    until(&*old, |answer| *answer == refused).await;
    place.run("UPDATE PREFIX_schema_version SET version = 1").await;
    until(&*old, |answer| *answer == Ok(Some(sample(1, Some("t"))))).await;
}

async fn any_number_of_nodes_make_the_tables_at_once(place: Place) {
    let mut nodes = JoinSet::new();
    for number in 0..10 {
        let node = place.node();
        nodes.spawn(async move { node.save(&token_of(&format!("shop-{number}")), sample(1, Some("t"))).await });
    }
    assert_eq!(nodes.join_all().await, vec![Ok(Saved::Written); 10]);
}

async fn tables_that_are_gone_are_made_again(place: Place) {
    let node = place.node();
    save(&*node, "shop", sample(4, Some("t"))).await;
    place.run("DROP TABLE PREFIX_records").await;
    until(&*node, |answer| *answer == Ok(None)).await;
    assert_eq!(save(&*node, "shop", sample(4, Some("t"))).await, Saved::Written);
}

async fn an_operator_sees_everything_but_the_token(place: Place) {
    let node = place.node();
    save(&*node, "shop", sample(5, Some("81_a-real-token"))).await;
    for (column, shown) in [
        ("account", "shop"),
        ("kept", "token"),
        ("appid", "wx0123456789abcdef"),
        ("kind", "stable"),
        ("token_fingerprint", &wxgate::base::Secret::new("81_a-real-token").fingerprint()),
        ("fetched_at", "1970-01-01T02:46:40.000Z"),
        ("expires_at", "1970-01-01T04:46:40.000Z"),
    ] {
        assert_eq!(
            place.run(&format!("SELECT {column} FROM PREFIX_records")).await.as_deref(),
            Some(shown),
            "{column}"
        );
    }
    let generation =
        place.run("SELECT account FROM PREFIX_records WHERE generation = 5 AND written_at LIKE '20%Z'").await;
    assert!(generation.is_some());
    assert_eq!(load(&*node, "shop").await.expect("a record").generation, Generation(5));
}
