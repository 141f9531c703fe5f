//! Replacement of the process: which of two state machines fetches.

use super::*;

fn machine() -> Machine {
    Machine::new(CredentialType::Token, ProviderKind::Classic, false)
}

/// Machine with an accepted token of generation 1.
fn with_token() -> Machine {
    let machine = machine().then(DEADLINE);
    let sent = machine.at.time.now;
    machine
        .then(fetched("token-1", sent, 7200))
        .then(written())
        .accepted()
}

/// Record of a machine, as the store holds it.
fn record(machine: &Machine) -> Box<TokenRecord> {
    Box::new(machine.life.record().clone())
}

#[test]
fn a_machine_on_standby_reads_the_store_and_starts_nothing() {
    let old = with_token();
    let mut new = machine();
    new.life.begin_on_standby();
    assert_eq!(new.life.deadline(), None);
    new.on(Event::Loaded(None));
    assert_eq!(new.life.deadline(), None, "also without a token");
    let effects = new.on(Event::Replicated(Some(record(&old))));
    assert!(effects.install.is_some() && !effects.save && effects.step.is_none());
    let mut new = new.after(7000);
    assert!(new.on(DEADLINE).step.is_none(), "long past the refresh");
    let effects = new.on(Event::Resumed(Some(record(&old))));
    assert!(effects.install.is_none(), "it has it already");
    assert!(new.on(DEADLINE).step.is_some());
}

#[test]
fn a_pause_lets_a_refresh_end_and_starts_no_other() {
    let mut machine = machine().then(DEADLINE);
    machine.on(Event::Paused);
    assert!(machine.life.is_refreshing());
    let sent = machine.at.time.now;
    machine.on(fetched("token-1", sent, 7200));
    machine.on(written());
    assert!(!machine.life.is_refreshing());
    assert_eq!(machine.life.generation(), Generation(1));
    assert_eq!(machine.life.deadline(), None);
}

#[test]
fn what_the_store_lacks_is_written_back_by_the_process_that_fetches_alone() {
    let mut machine = with_token();
    machine.on(Event::Paused);
    assert!(!machine.on(Event::Replicated(None)).save);
    assert!(machine.on(Event::Resumed(None)).save);
}

#[test]
fn a_rejection_on_standby_waits_for_the_other_process_and_then_fetches_once() {
    let mut old = with_token();
    let mut new = machine();
    new.on(Event::Loaded(Some(record(&old))));
    old.on(Event::Paused);
    for caller in [1, 2] {
        let effects = old.on(rejected(caller, 1, "/a"));
        assert!(effects.step.is_none() && effects.replies.is_empty());
    }
    // The other process has replaced the token.
    let sent = new.at.time.now;
    let new = new
        .accepted()
        .then(rejected(1, 1, "/a"))
        .then(fetched("token-2", sent, 7200))
        .then(written());
    let effects = old.on(Event::Replicated(Some(record(&new))));
    let replayed = |(_, reply): &(CallerId, Refresh)| matches!(reply, Refresh::Replay(token) if token.generation() == Generation(2));
    assert_eq!(
        effects
            .replies
            .iter()
            .filter(|reply| replayed(reply))
            .count(),
        2
    );

    // The other process has not noticed.
    let mut old = with_token();
    old.on(Event::Paused);
    old.on(rejected(1, 1, "/a"));
    assert!(old.on(DEADLINE).step.is_none(), "too early");
    let mut old = old.after(1);
    assert!(matches!(old.on(DEADLINE).step, Some(Step::Fetch { .. })));
}
