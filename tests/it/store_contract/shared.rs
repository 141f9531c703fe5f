//! What a store that several nodes share must do besides: leases, bells, and spending that is never
//! given back.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use wxgate::internals::{
    base::{AccountName, Secret},
    token::{
        Generation, ProviderKind,
        budget::{DailyBudget, Forcer},
        store::{
            AccountIdentity, CredentialType, Lease, MemoryStore, RecordKey, Saved, StoredRefusal,
            StoredToken, TokenRecord, TokenStore,
        },
    },
    wechat::ticket::TicketType,
};

use crate::support::token_tools::{DEADLINE, eventually};

pub const NOON_MS: u64 = 20_000 * 86_400_000 + 4 * 3_600_000;

pub fn key(account: &str) -> RecordKey {
    RecordKey::token(&AccountName::new(account).unwrap())
}

pub fn record(generation: u64, token: &str) -> TokenRecord {
    TokenRecord {
        identity: AccountIdentity {
            appid: "wx0123456789abcdef".into(),
            kind: ProviderKind::Stable,
            secret_fingerprint: "ba7816bf".into(),
        },
        generation: Generation(generation),
        token: Some(StoredToken {
            value: Secret::new(token),
            fetched_ms: NOON_MS,
            expires_ms: NOON_MS + 7_200_000,
        }),
        budget: DailyBudget::default(),
        refusal: None,
        asked_ms: NOON_MS,
    }
}

fn newer(record: TokenRecord) -> Saved {
    Saved::Newer(Box::new(record))
}

/// Two nodes' ways to the same store.
pub async fn hold(one: Arc<dyn TokenStore>, other: Arc<dyn TokenStore>) {
    generations(&*one, &*other).await;
    spending(&*one, &*other).await;
    names(&*one, &*other).await;
    leases(&*one, &*other).await;
    bells(&*one, &*other).await;
    races(one, other).await;
}

async fn generations(one: &dyn TokenStore, other: &dyn TokenStore) {
    let key = key("generations");
    assert_eq!(one.load(&key).await, Ok(None));
    assert_eq!(one.save(&key, record(5, "five")).await, Ok(Saved::Written));
    assert_eq!(other.load(&key).await, Ok(Some(record(5, "five"))));
    assert_eq!(
        other.save(&key, record(4, "four")).await,
        Ok(newer(record(5, "five"))),
        "older"
    );
    assert_eq!(
        other.save(&key, record(5, "rival")).await,
        Ok(newer(record(5, "five"))),
        "of the same number"
    );
    assert_eq!(
        one.load(&key).await,
        Ok(Some(record(5, "five"))),
        "nothing changed"
    );
    let refusal = Some(StoredRefusal {
        code: 40125,
        failures: 3,
        until_ms: NOON_MS,
    });
    let with_refusal = TokenRecord {
        refusal,
        ..record(5, "five")
    };
    assert_eq!(
        other.save(&key, with_refusal.clone()).await,
        Ok(Saved::Written),
        "more of the same"
    );
    assert_eq!(one.load(&key).await, Ok(Some(with_refusal)));
    assert_eq!(one.save(&key, record(9, "nine")).await, Ok(Saved::Written));
    assert_eq!(other.load(&key).await, Ok(Some(record(9, "nine"))));
}

async fn spending(one: &dyn TokenStore, other: &dyn TokenStore) {
    let key = key("spending");
    let spent = |times: u64| {
        let mut record = record(1, "t");
        for n in 0..times {
            record
                .budget
                .spend_forced(NOON_MS + n * 60_000, Forcer::Refresher)
                .unwrap();
        }
        record
    };
    one.save(&key, spent(3)).await.unwrap();
    other.save(&key, spent(1)).await.unwrap();
    assert_eq!(
        one.load(&key).await,
        Ok(Some(spent(3))),
        "a node that knows less gives nothing back"
    );
}

async fn names(one: &dyn TokenStore, other: &dyn TokenStore) {
    let (token, account) = (key("names"), AccountName::new("names").unwrap());
    let ticket = RecordKey {
        account,
        credential: CredentialType::Ticket(TicketType::Jsapi),
    };
    one.save(&token, record(1, "token")).await.unwrap();
    one.save(&ticket, record(7, "ticket")).await.unwrap();
    assert_eq!(other.load(&token).await, Ok(Some(record(1, "token"))));
    assert_eq!(other.load(&ticket).await, Ok(Some(record(7, "ticket"))));
    assert_eq!(other.load(&key("name")).await, Ok(None));
}

async fn leases(one: &dyn TokenStore, other: &dyn TokenStore) {
    let (key, second, long) = (key("leases"), key("second"), Duration::from_secs(60));
    assert_eq!(one.lease(&key, "a", long).await, Ok(Lease::Granted));
    let Ok(Lease::Held { left }) = other.lease(&key, "b", long).await else {
        panic!("two have it")
    };
    assert!(left <= long && left > long / 2, "{left:?}");
    assert_eq!(
        one.lease(&key, "a", long).await,
        Ok(Lease::Granted),
        "it has it already"
    );
    assert_eq!(
        other.lease(&second, "b", long).await,
        Ok(Lease::Granted),
        "another account's"
    );
    other.release(&key, "b").await.unwrap();
    assert!(
        matches!(other.lease(&key, "b", long).await, Ok(Lease::Held { .. })),
        "not his to give back"
    );
    one.release(&key, "a").await.unwrap();
    assert_eq!(
        other.lease(&key, "b", Duration::from_millis(100)).await,
        Ok(Lease::Granted)
    );
    let waited = eventually("the end of the lease", async || {
        one.lease(&key, "a", long).await == Ok(Lease::Granted)
    });
    assert!(waited.await < Duration::from_secs(5));
    other.release(&key, "b").await.unwrap();
    assert!(
        matches!(other.lease(&key, "c", long).await, Ok(Lease::Held { .. })),
        "a late release ends nothing"
    );
}

async fn bells(one: &dyn TokenStore, other: &dyn TokenStore) {
    let key = key("bells");
    let mut changes = other
        .changes(&key)
        .expect("a shared store tells of changes");
    changes.borrow_and_update();
    one.save(&key, record(1, "t")).await.unwrap();
    timeout(DEADLINE, changes.changed())
        .await
        .expect("told in time")
        .expect("the store lives");
}

async fn races(one: Arc<dyn TokenStore>, other: Arc<dyn TokenStore>) {
    let key = key("races");
    let tasks: Vec<_> = (1..=20_u64)
        .map(|n| {
            let (store, key) = (
                Arc::clone(if n % 2 == 0 { &one } else { &other }),
                key.clone(),
            );
            // Two for each number, of which one has to lose.
            tokio::spawn(async move {
                store
                    .save(&key, record(n / 2, &format!("t{n}")))
                    .await
                    .unwrap()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let last = one.load(&key).await.unwrap().unwrap();
    assert_eq!(last.generation, Generation(10));
    let winners: Vec<_> = (0..20)
        .map(|_| one.lease(&key, "w", Duration::from_secs(9)))
        .collect();
    for winner in winners {
        assert_eq!(winner.await, Ok(Lease::Granted));
    }
}

#[tokio::test]
async fn memory_that_is_shared_keeps_the_contract() {
    let store = Arc::new(MemoryStore::shared());
    hold(Arc::clone(&store) as Arc<dyn TokenStore>, store).await;
}
