//! The clauses, one function each.

use std::sync::Arc;

use wxgate::internals::{
    token::{
        Generation, ProviderKind,
        budget::Forcer,
        store::{Saved, ServerFault, StoreError, TokenRecord, TokenStore},
    },
    wechat::ticket::TicketType,
};

use super::{
    Place,
    places::{sample, ticket_of, token_of},
    within,
};

const NOW_MS: u64 = 1_750_000_000_000;

async fn load(node: &dyn TokenStore, account: &str) -> Option<TokenRecord> {
    within(node.load(&token_of(account)))
        .await
        .expect("the store works")
}

async fn save(node: &dyn TokenStore, account: &str, record: TokenRecord) -> Saved {
    within(node.save(&token_of(account), record))
        .await
        .expect("the store works")
}

pub async fn nothing_is_there_before_something_was_saved(place: impl Place) {
    let node = place.node();
    assert_eq!(load(&*node, "shop").await, None);
    assert_eq!(load(&*node, "shop").await, None, "asking makes nothing");
}

pub async fn a_record_comes_back_as_it_was(mut place: impl Place) {
    let long = "x".repeat(2048);
    let tokens = [
        None,
        Some("81_abc-DEF"),
        Some("a\"b\\c é \u{1f600} \r\n%{}:"),
        Some(long.as_str()),
    ];
    for (generation, token) in (1..).zip(tokens) {
        let record = sample(generation, token);
        assert_eq!(
            save(&*place.node(), "shop", record.clone()).await,
            Saved::Written
        );
        assert_eq!(load(&*place.node(), "shop").await, Some(record.clone()));
        if !place.lasting() {
            continue;
        }
        place.restart().await;
        assert_eq!(
            load(&*place.node(), "shop").await,
            Some(record),
            "after a restart"
        );
    }
}

pub async fn tokens_and_tickets_and_accounts_are_kept_apart(place: impl Place) {
    let node = place.node();
    let longest = "a".repeat(64);
    // Names that a careless spelling of keys would mix up.
    let accounts = [
        "shop",
        "shop-jsapi",
        "shop_jsapi",
        "Shop",
        "jsapi",
        "-",
        "lock",
        &longest,
    ];
    let keys: Vec<_> = accounts
        .iter()
        .flat_map(|account| {
            let tickets = TicketType::ALL
                .into_iter()
                .map(|kind| ticket_of(account, kind));
            std::iter::once(token_of(account)).chain(tickets)
        })
        .collect();
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(within(node.load(key)).await, Ok(None), "{key}");
        let record = sample(7, Some(&format!("value-{number}")));
        assert_eq!(
            within(node.save(key, record)).await,
            Ok(Saved::Written),
            "{key}"
        );
    }
    for (number, key) in keys.iter().enumerate() {
        let record = within(node.load(key)).await.expect("the store works");
        assert_eq!(
            record,
            Some(sample(7, Some(&format!("value-{number}")))),
            "{key}"
        );
    }
}

pub async fn an_older_generation_changes_nothing_and_gets_the_newer_one(place: impl Place) {
    let node = place.node();
    // Numbers of which a comparison as text, or as signed 32 bits, would say otherwise.
    for (older, newer) in [
        (1, 2),
        (9, 10),
        (99, 100),
        (0x7fff_ffff, 0x8000_0000),
        (0xffff_ffff, 1 << 32),
    ] {
        assert_eq!(
            save(&*node, "shop", sample(newer, Some("new"))).await,
            Saved::Written
        );
        let refused = save(&*node, "shop", sample(older, Some("old"))).await;
        assert_eq!(
            refused,
            Saved::Newer(Box::new(sample(newer, Some("new")))),
            "{older} after {newer}"
        );
        assert_eq!(load(&*node, "shop").await, Some(sample(newer, Some("new"))));
    }
}

pub async fn another_token_of_the_same_generation_loses(place: impl Place) {
    let node = place.node();
    assert_eq!(
        save(&*node, "shop", sample(5, Some("first"))).await,
        Saved::Written
    );
    let refused = save(&*node, "shop", sample(5, Some("second"))).await;
    assert_eq!(refused, Saved::Newer(Box::new(sample(5, Some("first")))));
    assert_eq!(load(&*node, "shop").await, Some(sample(5, Some("first"))));
}

pub async fn the_same_record_again_is_taken(place: impl Place) {
    for _ in 0..3 {
        assert_eq!(
            save(&*place.node(), "shop", sample(5, Some("same"))).await,
            Saved::Written
        );
        assert_eq!(
            load(&*place.node(), "shop").await,
            Some(sample(5, Some("same")))
        );
    }
}

pub async fn budgets_are_written_over_the_same_token(place: impl Place) {
    let mut record = sample(5, Some("same"));
    assert_eq!(
        save(&*place.node(), "shop", record.clone()).await,
        Saved::Written
    );
    record
        .budget
        .spend_forced(NOW_MS, Forcer::Operator)
        .expect("the first of the day");
    assert_eq!(
        save(&*place.node(), "shop", record.clone()).await,
        Saved::Written
    );
    assert_eq!(load(&*place.node(), "shop").await, Some(record));
}

pub async fn a_token_may_be_taken_out_of_its_record(place: impl Place) {
    for token in [Some("a"), None, Some("a")] {
        assert_eq!(
            save(&*place.node(), "shop", sample(5, token)).await,
            Saved::Written,
            "{token:?}"
        );
        assert_eq!(load(&*place.node(), "shop").await, Some(sample(5, token)));
    }
}

pub async fn a_record_of_other_credentials_takes_the_place_of_the_same_generation(
    place: impl Place,
) {
    let changes: [fn(&mut TokenRecord); 3] = [
        |record| record.identity.secret_fingerprint = "00000000".into(),
        |record| record.identity.kind = ProviderKind::Classic,
        |record| record.identity.appid = "wxffffffffffffffff".into(),
    ];
    for (generation, change) in (1..).zip(changes) {
        assert_eq!(
            save(&*place.node(), "shop", sample(generation, Some("before"))).await,
            Saved::Written
        );
        let mut other = sample(generation, Some("after"));
        change(&mut other);
        assert_eq!(
            save(&*place.node(), "shop", other.clone()).await,
            Saved::Written
        );
        assert_eq!(load(&*place.node(), "shop").await, Some(other));
    }
}

pub async fn records_and_budgets_survive_a_restart_if_anything_does(mut place: impl Place) {
    let mut record = sample(5, None);
    for _ in 0..7 {
        record
            .budget
            .spend_classic(NOW_MS)
            .expect("far from the limit");
    }
    let ticket = ticket_of("shop", TicketType::Jsapi);
    assert_eq!(
        save(&*place.node(), "shop", record.clone()).await,
        Saved::Written
    );
    assert_eq!(
        within(place.node().save(&ticket, sample(3, Some("ticket")))).await,
        Ok(Saved::Written)
    );
    place.restart().await;
    let lasting = |record| place.lasting().then_some(record);
    assert_eq!(load(&*place.node(), "shop").await, lasting(record));
    assert_eq!(
        within(place.node().load(&ticket)).await,
        Ok(lasting(sample(3, Some("ticket"))))
    );
    // The comparison survives too.
    if place.lasting() {
        let refused = save(&*place.node(), "shop", sample(4, Some("old"))).await;
        assert!(matches!(refused, Saved::Newer(newer) if newer.generation == Generation(5)));
    }
}

pub async fn every_node_sees_what_one_of_them_saved(place: impl Place) {
    let nodes: Vec<_> = (0..3).map(|_| place.node()).collect();
    for generation in 1..=9 {
        let writer = &nodes[generation % 3];
        let record = sample(generation as u64, Some(&format!("token-{generation}")));
        assert_eq!(
            save(&**writer, "shop", record.clone()).await,
            Saved::Written
        );
        for node in &nodes {
            assert_eq!(load(&**node, "shop").await, Some(record.clone()));
        }
    }
}

/// One node after the other falls behind and catches up, in any order; no reader sees a step back
/// or a hole.
pub async fn of_many_savers_the_newest_generation_wins(place: impl Place) {
    const SAVERS: u64 = 4;
    const EACH: u64 = 25;
    let first = place.node();
    assert_eq!(
        save(&*first, "shop", sample(1, Some("token-1"))).await,
        Saved::Written
    );
    let saver = |number: u64| {
        let node: Arc<dyn TokenStore> = place.node();
        tokio::spawn(async move {
            for round in 0..EACH {
                let generation = 2 + round * SAVERS + number;
                match save(
                    &*node,
                    "shop",
                    sample(generation, Some(&format!("token-{generation}"))),
                )
                .await
                {
                    Saved::Written => {}
                    Saved::Newer(newer) => assert!(
                        newer.generation.0 > generation,
                        "{newer:?} for {generation}"
                    ),
                }
                // A write that comes late.
                let late = save(&*node, "shop", sample(generation - 1, Some("late"))).await;
                assert!(matches!(late, Saved::Newer(newer) if newer.generation.0 >= generation));
            }
        })
    };
    let reader = {
        let node = place.node();
        tokio::spawn(async move {
            let mut last = 0;
            for _ in 0..EACH * SAVERS {
                let record = load(&*node, "shop").await.expect("never a hole");
                let generation = record.generation.0;
                assert!(generation >= last, "{generation} after {last}");
                assert_eq!(
                    record,
                    sample(generation, Some(&format!("token-{generation}"))),
                    "a mixture"
                );
                last = generation;
            }
        })
    };
    let savers: Vec<_> = (0..SAVERS).map(saver).collect();
    for task in savers.into_iter().chain([reader]) {
        task.await.expect("no panic");
    }
    let newest = 1 + SAVERS * EACH;
    assert_eq!(
        load(&*first, "shop").await,
        Some(sample(newest, Some(&format!("token-{newest}"))))
    );
}

pub async fn of_rivals_with_one_generation_a_single_one_wins(place: impl Place) {
    for generation in 1..=5 {
        let rival = |number: u64| {
            let node: Arc<dyn TokenStore> = place.node();
            tokio::spawn(async move {
                save(
                    &*node,
                    "shop",
                    sample(generation, Some(&format!("of-{number}"))),
                )
                .await
            })
        };
        let rivals: Vec<_> = (0..8).map(rival).collect();
        let mut winners = Vec::new();
        let mut told = Vec::new();
        for (number, rival) in rivals.into_iter().enumerate() {
            match rival.await.expect("no panic") {
                Saved::Written => winners.push(sample(generation, Some(&format!("of-{number}")))),
                Saved::Newer(newer) => told.push(*newer),
            }
        }
        assert_eq!(winners.len(), 1, "generation {generation}");
        assert!(
            told.iter().all(|newer| *newer == winners[0]),
            "the others learn whose it is"
        );
        assert_eq!(load(&*place.node(), "shop").await, winners.pop());
    }
}

pub async fn foreign_content_is_never_taken_for_a_record(mut place: impl Place) {
    let mut noise = crate::support::token_tools::noise(100_000);
    noise.push(0);
    let contents: [&[u8]; 9] = [
        b"",
        b"\0",
        b"{",
        b"null",
        b"[]",
        b"{\"errcode\":40001,\"errmsg\":\"invalid credential\"}",
        b"{\"format\":9,\"record\":{}}\n",
        b"81_a-bare-token",
        &noise,
    ];
    for (generation, content) in (1..).step_by(2).zip(contents) {
        assert_eq!(
            save(&*place.node(), "shop", sample(generation, Some("good"))).await,
            Saved::Written
        );
        if !place.poison(&token_of("shop"), content).await {
            return;
        }
        place.restart().await;
        // An error is as good as nothing.
        let read = within(place.node().load(&token_of("shop")))
            .await
            .unwrap_or(None);
        assert_eq!(read, None, "{:?}", content.get(..40));
        let next = sample(generation + 1, Some("next"));
        let saved = within(place.node().save(&token_of("shop"), next.clone())).await;
        match saved {
            // Nodes of a later version may live by it.
            Err(StoreError::Server(ServerFault::Unreadable))
                if content.starts_with(b"{\"format\":9") =>
            {
                assert!(place.poison(&token_of("shop"), b"").await);
            }
            saved => {
                assert_eq!(saved, Ok(Saved::Written), "{:?}", content.get(..40));
                place.restart().await;
                assert_eq!(load(&*place.node(), "shop").await, Some(next));
            }
        }
    }
}

/// What befalls one record befalls no other.
pub async fn damage_stays_where_it_is(mut place: impl Place) {
    let ticket = ticket_of("shop", TicketType::Jsapi);
    assert_eq!(
        save(&*place.node(), "shop", sample(3, Some("token"))).await,
        Saved::Written
    );
    assert_eq!(
        save(&*place.node(), "mall", sample(1, Some("of-mall"))).await,
        Saved::Written
    );
    assert_eq!(
        within(place.node().save(&ticket, sample(2, Some("ticket")))).await,
        Ok(Saved::Written)
    );
    if !place.poison(&token_of("shop"), b"{\"format\":1}").await {
        return;
    }
    place.restart().await;
    assert_eq!(
        within(place.node().load(&token_of("shop")))
            .await
            .unwrap_or(None),
        None
    );
    assert_eq!(
        load(&*place.node(), "mall").await,
        Some(sample(1, Some("of-mall")))
    );
    assert_eq!(
        within(place.node().load(&ticket)).await,
        Ok(Some(sample(2, Some("ticket"))))
    );
}
