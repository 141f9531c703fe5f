//! What databases must keep to besides the contract of all stores; each clause gets a place of its
//! own.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;
use wxgate::internals::token::{
    Generation,
    store::{Lease, Saved, ServerFault, StoreError, TokenRecord, TokenStore},
};

use super::places::{Place, until};
use crate::store_contract::{sample, shared, token_of};

const LIFE: Duration = Duration::from_secs(30);

async fn load(node: &dyn TokenStore, account: &str) -> Option<TokenRecord> {
    node.load(&token_of(account))
        .await
        .expect("the store works")
}

async fn save(node: &dyn TokenStore, account: &str, record: TokenRecord) -> Saved {
    node.save(&token_of(account), record)
        .await
        .expect("the store works")
}

/// All of them, on places that `fresh` makes.
pub async fn all(fresh: impl Fn() -> Place) {
    let place = fresh();
    shared::hold(place.node(), place.node()).await;
    of_many_who_ask_one_gets_the_lease(fresh()).await;
    a_record_of_another_version_is_left_alone(fresh()).await;
    tables_of_another_version_are_left_alone(fresh()).await;
    any_number_of_nodes_make_the_tables_at_once(fresh()).await;
    tables_that_are_gone_are_made_again(fresh()).await;
    an_operator_sees_everything_but_the_token(fresh()).await;
}

async fn of_many_who_ask_one_gets_the_lease(place: Place) {
    let key = token_of("shop");
    let nodes: Vec<_> = (0..4).map(|_| place.node()).collect();
    for round in 0..5 {
        let mut asking = JoinSet::new();
        for number in 0..12 {
            let (node, key) = (Arc::clone(&nodes[number % nodes.len()]), key.clone());
            asking.spawn(async move {
                (
                    number,
                    node.lease(&key, &format!("node-{number}"), LIFE).await,
                )
            });
        }
        let granted: Vec<_> = asking
            .join_all()
            .await
            .into_iter()
            .filter(|(_, lease)| *lease == Ok(Lease::Granted))
            .collect();
        let [(number, _)] = granted.as_slice() else {
            panic!("round {round}: {granted:?}")
        };
        assert_eq!(
            nodes[0].release(&key, &format!("node-{number}")).await,
            Ok(())
        );
    }
}

async fn a_record_of_another_version_is_left_alone(place: Place) {
    let node = place.node();
    save(&*node, "shop", sample(1, Some("t"))).await;
    place
        .run("UPDATE PREFIX_records SET content = '{\"format\":99,\"record\":{}}'")
        .await;
    let unreadable = Err(StoreError::Server(ServerFault::Unreadable));
    assert_eq!(node.load(&token_of("shop")).await, unreadable);
    assert_eq!(
        node.save(&token_of("shop"), sample(2, Some("u")))
            .await
            .map(|_| None),
        unreadable
    );
    assert_eq!(
        place
            .run("SELECT content FROM PREFIX_records")
            .await
            .as_deref(),
        Some("{\"format\":99,\"record\":{}}")
    );
}

async fn tables_of_another_version_are_left_alone(place: Place) {
    let old = place.node();
    save(&*old, "shop", sample(1, Some("t"))).await;
    place
        .run("UPDATE PREFIX_schema_version SET version = 99")
        .await;
    let refused = Err(StoreError::Server(ServerFault::Tables));
    assert_eq!(place.node().load(&token_of("shop")).await, refused);
    until(&*old, |answer| *answer == refused).await;
    place
        .run("UPDATE PREFIX_schema_version SET version = 1")
        .await;
    until(&*old, |answer| *answer == Ok(Some(sample(1, Some("t"))))).await;
}

async fn any_number_of_nodes_make_the_tables_at_once(place: Place) {
    let mut nodes = JoinSet::new();
    for number in 0..10 {
        let node = place.node();
        nodes.spawn(async move {
            node.save(&token_of(&format!("shop-{number}")), sample(1, Some("t")))
                .await
        });
    }
    assert_eq!(nodes.join_all().await, vec![Ok(Saved::Written); 10]);
}

async fn tables_that_are_gone_are_made_again(place: Place) {
    let node = place.node();
    save(&*node, "shop", sample(4, Some("t"))).await;
    place.run("DROP TABLE PREFIX_records").await;
    until(&*node, |answer| *answer == Ok(None)).await;
    assert_eq!(
        save(&*node, "shop", sample(4, Some("t"))).await,
        Saved::Written
    );
}

async fn an_operator_sees_everything_but_the_token(place: Place) {
    let node = place.node();
    save(&*node, "shop", sample(5, Some("81_a-real-token"))).await;
    for (column, shown) in [
        ("account", "shop"),
        ("kept", "token"),
        ("appid", "wx0123456789abcdef"),
        ("kind", "stable"),
        (
            "token_fingerprint",
            &wxgate::internals::base::Secret::new("81_a-real-token").fingerprint(),
        ),
        ("fetched_at", "1970-01-01T02:46:40.000Z"),
        ("expires_at", "1970-01-01T04:46:40.000Z"),
    ] {
        assert_eq!(
            place
                .run(&format!("SELECT {column} FROM PREFIX_records"))
                .await
                .as_deref(),
            Some(shown),
            "{column}"
        );
    }
    let generation = place
        .run("SELECT account FROM PREFIX_records WHERE generation = 5 AND written_at LIKE '20%Z'")
        .await;
    assert!(generation.is_some());
    assert_eq!(
        load(&*node, "shop").await.expect("a record").generation,
        Generation(5)
    );
}
