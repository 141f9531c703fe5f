//! Trials of another AppSecret.

use super::*;

const WRONG_SECRET: FetchError = FetchError::Refused {
    platform: Platform::Wechat,
    code: 40125,
    ip: None,
};

fn token(generation: u64, text: &str, now: Instant) -> Arc<Token> {
    let value = crate::base::Secret::new(text);
    let end = now + Duration::from_secs(7200);
    Arc::new(Token::new(Generation(generation), value, now, end))
}

/// Machine that tries another AppSecret, beside other nodes.
fn trial() -> Machine {
    let mut machine = Machine::new(CredentialType::Token, ProviderKind::Stable, true);
    let current = token(3, "current", machine.at.time.now);
    machine.life.begin_trial(Some(current));
    machine.then(Event::Loaded(None)).after(1)
}

fn heard() -> Event {
    let preflight = Preflight {
        leased: true,
        heard: true,
        ..Preflight::default()
    };
    Event::StepEnded(StepOutcome::Preflight(preflight))
}

#[test]
fn a_trial_asks_when_it_is_ordered_to_and_leaves_no_trace_when_it_is_refused() {
    let mut machine = trial();
    assert_eq!(machine.life.deadline(), None);
    assert!(machine.on(DEADLINE).step.is_none());
    let mut machine = machine.then(ordered(1, false)).then(heard());
    let sent = machine.at.time.now;
    let effects = machine.on(failed(sent, WRONG_SECRET));
    assert!(
        !effects.save,
        "the record is that of the AppSecret in force"
    );
    assert_eq!(effects.reports.len(), 1);
    assert_eq!(machine.life.deadline(), None);
}

#[test]
fn a_trial_that_is_confirmed_goes_on_with_the_token_it_has() {
    let mut machine = trial().then(ordered(1, false)).then(heard());
    let sent = machine.at.time.now;
    machine.on(failed(sent, FetchError::REFUSED));
    let effects = machine.on(Event::Confirmed);
    assert!(effects.save && machine.life.deadline().is_some());
    let stored = machine.life.record().token.clone().unwrap();
    assert_eq!(stored.value.expose(), "current");

    let mut machine = trial().then(ordered(1, false)).then(heard());
    let sent = machine.at.time.now;
    machine.on(fetched("next", sent, 7200));
    let effects = machine.on(written());
    assert_eq!(effects.install.unwrap().generation(), Generation(4));
    assert!(!machine.on(Event::Confirmed).save, "it is stored already");
}

#[test]
fn after_a_trial_in_vain_the_former_refresher_has_the_token_of_the_trial() {
    let former = || {
        let mut machine = Machine::new(CredentialType::Token, ProviderKind::Classic, false)
            .then(Event::Loaded(None))
            .then(DEADLINE);
        let sent = machine.at.time.now;
        machine.on(fetched("current", sent, 7200));
        machine.then(written()).after(60)
    };
    let mut machine = former();
    let same = token(1, "current", machine.at.time.now);
    let effects = machine.on(Event::Inherited(same));
    assert!(
        effects.install.is_none() && effects.save,
        "its record is written again"
    );
    let mut machine = former();
    let next = token(2, "next", machine.at.time.now);
    let effects = machine.on(Event::Inherited(next));
    assert_eq!(effects.install.unwrap().generation(), Generation(2));
    assert!(effects.save && machine.life.record().generation == Generation(2));
    let mut machine = former();
    let over = token(2, "over", machine.at.time.now);
    machine.pass(Duration::from_secs(7200));
    let effects = machine.on(Event::Inherited(over));
    assert!(effects.install.is_none() && !effects.save);
}
