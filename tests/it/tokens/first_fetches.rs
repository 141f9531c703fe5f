//! The start of many accounts: how fast they ask their API host for first tokens, and in which order.

use std::{fmt::Write as _, time::Duration};

use tokio::time::Instant;

use crate::support::{
    fake::{Act, Fake},
    setup,
    token_tools::{all, spawned},
};

/// Only lower bounds of time are asked of a busy machine.
#[tokio::test(flavor = "multi_thread")]
async fn many_accounts_fetch_slowly_and_those_that_are_asked_for_first() {
    const ACCOUNTS: usize = 200;
    let fake = Fake::start(|_| Act::ok("{\"errcode\":0}")).await;
    let mut more = String::new();
    for n in 0..ACCOUNTS {
        let _ = write!(
            more,
            "[[account]]\nname = \"a{n}\"\nappid = \"wx{n:016x}\"\nsecret = {{ value = \"s\" }}\napi = [\"http://{}\"]\n",
            fake.address
        );
    }
    let begun = Instant::now();
    let api = format!("api = [\"http://{}\"]", fake.address);
    let gate = setup().account(&api).more(&more).start().await;
    fake.seen.until(|seen| seen.token_calls() >= 8).await;
    let slow = begun.elapsed();
    assert!(
        slow >= Duration::from_millis(1300),
        "8 calls within {slow:?}"
    );
    // Of accounts whose turn would come much later.
    let (before, asked) = (fake.seen.token_calls(), Instant::now());
    let most = begun.elapsed().as_secs() * 5 + 6;
    assert!(
        before as u64 <= most,
        "{before} calls in {:?}",
        begun.elapsed()
    );
    let calls = (ACCOUNTS - 20..ACCOUNTS)
        .map(|n| {
            spawned(
                gate.client
                    .get(gate.url(&format!("/@a{n}/cgi-bin/menu/get"))),
            )
        })
        .collect();
    for answer in all(calls).await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let took = asked.elapsed();
    assert!(
        took >= Duration::from_millis(950),
        "20 calls within {took:?}"
    );
    let rest = fake.seen.token_calls() - before - 20;
    let most = took.as_secs() * 5 + 6;
    assert!(rest as u64 <= most, "{rest} of the rest in {took:?}");
}
