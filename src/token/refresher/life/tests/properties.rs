//! Invariants over random sequences of events: generations never go back, at most one refresh is
//! under way, a failure costs no token, budgets hold, a process on standby starts nothing by itself,
//! and every waiting request is answered.

use std::collections::{HashMap, HashSet};

use proptest::{prelude::*, sample::select};

use super::*;
use crate::{
    base::Secret,
    token::{
        budget::{CLASSIC_PER_DAY, FORCED_PER_DAY, FORCED_PER_DAY_OPERATOR},
        store::StoredRefusal,
    },
    wechat::ticket::TicketType,
};

/// Random event.
#[derive(Debug, Clone)]
enum Act {
    Pass(u64),
    Deadline {
        unused: bool,
    },
    Accept,
    Reject {
        old: bool,
        path: u8,
    },
    RejectReplay {
        accepted: bool,
    },
    Order {
        force: bool,
    },
    Retire,
    Pause,
    /// The store has the current record, or none.
    Resume {
        kept: bool,
    },
    Want,
    ReplaceToken,
    /// Record of another node: generations ahead, token, refused or not.
    Replicate {
        ahead: i8,
        token: u8,
        refused: bool,
    },
    LoseRecord,
    End(End),
}

/// End of the step under way; only the field of its kind counts.
#[derive(Debug, Clone)]
struct End {
    fetched: Result<(bool, u64), FetchError>,
    probe: Probe,
    peers: Option<(i8, u8)>,
    leased: bool,
    heard: bool,
    panics: bool,
}

/// Machine with a book of what it owes and has spent.
struct Run {
    machine: Machine,
    kind: ProviderKind,
    step: Option<Step>,
    /// Waiting requests with the generation that was rejected.
    callers: HashMap<CallerId, Generation>,
    operators: HashSet<OperatorId>,
    ids: u64,
    minted: u64,
    spent: HashMap<u64, Spent>,
}

/// Fetches of one day.
#[derive(Default)]
struct Spent {
    classic: u32,
    forced: u32,
    forced_alone: u32,
}

const ERRORS: [FetchError; 7] = [
    FetchError::REFUSED,
    FetchError::Broken,
    FetchError::NoToken,
    FetchError::Panicked,
    refusal(-1),
    refusal(40125),
    refusal(45009),
];

const fn refusal(code: i64) -> FetchError {
    FetchError::Refused {
        platform: Platform::Wechat,
        code,
        ip: None,
    }
}

fn end() -> impl Strategy<Value = End> {
    let fetched = prop_oneof![
        3 => (any::<bool>(), 1_u64..7200).prop_map(Ok),
        2 => select(ERRORS.to_vec()).prop_map(Err),
    ];
    let probe = select(vec![
        Probe::Fine,
        Probe::Stale,
        Probe::Stale,
        Probe::Unknown,
    ]);
    let peers = proptest::option::of((-1_i8..3, 0_u8..4));
    let rare = prop::bool::weighted(0.05);
    (fetched, probe, peers, any::<bool>(), any::<bool>(), rare).prop_map(
        |(fetched, probe, peers, leased, heard, panics)| End {
            fetched,
            probe,
            peers,
            leased: leased && heard,
            heard,
            panics,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => end().prop_map(Act::End),
        4 => (any::<bool>(), 0_u8..3).prop_map(|(old, path)| Act::Reject { old, path }),
        3 => select(vec![1, 100, 1000, 20_000, 60_000, 300_000, 3_600_000]).prop_map(Act::Pass),
        3 => prop::bool::weighted(0.1).prop_map(|unused| Act::Deadline { unused }),
        2 => Just(Act::Accept),
        1 => any::<bool>().prop_map(|accepted| Act::RejectReplay { accepted }),
        1 => any::<bool>().prop_map(|force| Act::Order { force }),
        1 => Just(Act::Pause),
        1 => any::<bool>().prop_map(|kept| Act::Resume { kept }),
        1 => Just(Act::Want),
        1 => Just(Act::ReplaceToken),
        1 => (-1_i8..3, 0_u8..4, prop::bool::weighted(0.2))
            .prop_map(|(ahead, token, refused)| Act::Replicate { ahead, token, refused }),
        1 => Just(Act::LoseRecord),
    ]
}

fn credential() -> impl Strategy<Value = (CredentialType, ProviderKind, bool)> {
    let credential = select(vec![
        CredentialType::Token,
        CredentialType::Token,
        CredentialType::Token,
        CredentialType::Ticket(TicketType::Jsapi),
    ]);
    (credential, select(&ProviderKind::ALL[..]), any::<bool>())
}

impl Run {
    /// Run that begins with these calls of the day spent.
    fn new(
        (credential, kind, shared): (CredentialType, ProviderKind, bool),
        spent: (u32, u32),
    ) -> Self {
        let shared = shared && Policy::of(credential, kind).stored;
        let mut run = Self {
            machine: Machine::new(credential, kind, shared),
            kind,
            step: None,
            callers: HashMap::new(),
            operators: HashSet::new(),
            ids: 0,
            minted: 0,
            spent: HashMap::new(),
        };
        let mut record = run.record(0, 0);
        let today = run.spent.entry(run.day()).or_default();
        for _ in 0..spent.0 {
            record.budget.spend_classic(NOON_MS - 1).unwrap();
            today.classic += 1;
        }
        for n in 0..spent.1 {
            let then = NOON_MS - 600_000 + u64::from(n) * 60_000;
            record.budget.spend_forced(then, Forcer::Refresher).unwrap();
            today.forced += 1;
        }
        run.on(Event::Loaded(Some(Box::new(record))));
        run
    }

    fn day(&self) -> u64 {
        (self.machine.at.time.wall_ms + 8 * 3_600_000) / 86_400_000
    }

    /// Record of another node that is that many generations ahead.
    fn record(&self, ahead: i8, token: u8) -> TokenRecord {
        let wall = self.machine.at.time.wall_ms;
        let life = &self.machine.life;
        let generation = life.record.generation.0.saturating_add_signed(ahead.into());
        let value = match token {
            0 => None,
            1 => life.token.as_ref().map(|token| token.secret().clone()),
            n => Some(Secret::new(format!("peer-{n}-{generation}"))),
        };
        TokenRecord {
            generation: Generation(generation),
            token: value
                .filter(|_| life.policy.stored)
                .map(|value| StoredToken {
                    value,
                    fetched_ms: wall - 1000,
                    expires_ms: wall + 3_600_000,
                }),
            refusal: None,
            asked_ms: wall,
            ..life.record.clone()
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Pass(ms) => self.machine.pass(Duration::from_millis(ms)),
            Act::Deadline { unused } => self.on(Event::Deadline {
                unused_for: Duration::from_secs(if unused { 5 * 3600 } else { 0 }),
            }),
            Act::Accept => self.machine.at.accepted = self.machine.life.generation(),
            Act::Reject { old, path } => {
                let generation = self.machine.life.generation().0.saturating_sub(old.into());
                self.ids += 1;
                self.callers
                    .insert(CallerId(self.ids), Generation(generation));
                self.on(rejected(self.ids, generation, &format!("/{path}")));
            }
            Act::RejectReplay { accepted } => self.on(Event::ReplayRejected {
                generation: self.machine.life.generation(),
                path: "/0".into(),
                accepted,
            }),
            Act::Order { force } => {
                self.ids += 1;
                self.operators.insert(OperatorId(self.ids));
                self.on(ordered(self.ids, force));
            }
            Act::Retire => self.on(Event::Retired),
            Act::Pause => self.on(Event::Paused),
            Act::Resume { kept } => {
                let record = kept.then(|| Box::new(self.record(0, 1)));
                self.on(Event::Resumed(record));
            }
            Act::Want => self.on(Event::Wanted),
            Act::ReplaceToken => self.on(Event::TokenReplaced),
            Act::LoseRecord => self.on(Event::Replicated(None)),
            Act::Replicate {
                ahead,
                token,
                refused,
            } => {
                let mut record = self.record(ahead, token);
                record.refusal = refused.then_some(StoredRefusal {
                    code: 40125,
                    failures: 1,
                    until_ms: self.machine.at.time.wall_ms + 5000,
                });
                self.on(Event::Replicated(Some(Box::new(record))));
            }
            Act::End(end) => self.end(&end),
        }
    }

    fn end(&mut self, end: &End) {
        let Some(step) = self.step.take() else { return };
        if end.panics {
            return self.on(Event::StepEnded(StepOutcome::Panicked));
        }
        let sent = self.machine.at.time.now;
        let outcome = match step {
            Step::Preflight(known) => {
                let record = end.peers.map(|(ahead, token)| self.record(ahead, token));
                let is_settled = |r: &TokenRecord| known.is_settled_by(r, self.machine.at.time);
                StepOutcome::Preflight(Preflight {
                    settled: record.as_ref().is_some_and(is_settled),
                    record: record.map(Box::new),
                    leased: end.leased,
                    heard: end.heard,
                })
            }
            Step::Fetch { .. } => StepOutcome::Fetched {
                sent,
                result: end
                    .fetched
                    .clone()
                    .map(|(same, life)| self.mint(same, life)),
            },
            Step::Probe(_) => StepOutcome::Probed(end.probe),
            Step::Write => StepOutcome::Written { newer: None },
        };
        let failure = !matches!(
            outcome,
            StepOutcome::Fetched { result: Ok(_), .. }
                | StepOutcome::Preflight(_)
                | StepOutcome::Written { .. }
        );
        let before = self.machine.life.token.clone();
        self.on(Event::StepEnded(outcome));
        if failure {
            let after = &self.machine.life.token;
            let value = |token: &Option<Arc<Token>>| token.as_ref().map(|t| t.secret().clone());
            assert_eq!(value(&before), value(after), "a failure cost the token");
        }
    }

    fn mint(&mut self, same: bool, life: u64) -> Fetched {
        let current = self.machine.life.token.as_ref().filter(|_| same);
        self.minted += 1;
        Fetched {
            token: match current {
                Some(token) => token.secret().clone(),
                None => Secret::new(format!("T{}", self.minted)),
            },
            expires_in: Duration::from_secs(life),
        }
    }

    /// Handles the event, and checks the effects against the book.
    fn on(&mut self, event: Event) {
        let before = self.machine.life.generation();
        let had_token = self.machine.life.token.is_some();
        // A refresh under way goes on, and with requests that wait, a process on standby fetches in
        // the end.
        let leaves_fetches = self.machine.life.is_on_standby()
            && !self.machine.life.is_refreshing()
            && self.callers.is_empty()
            && self.operators.is_empty();
        let effects = self.machine.on(event);
        let life = &self.machine.life;
        assert!(life.generation() >= before, "the generation went back");
        assert!(life.token.is_some() || !had_token, "the token was dropped");
        assert!(
            !(leaves_fetches && life.is_on_standby() && effects.step.is_some()),
            "two processes fetch"
        );
        for (caller, refresh) in effects.replies {
            let known = self.callers.remove(&caller);
            assert!(known.is_some(), "answered twice");
            if let Refresh::Replay(token) = refresh {
                assert!(
                    known < Some(token.generation()),
                    "a replay with an old token"
                );
            }
        }
        for (operator, _) in effects.reports {
            assert!(
                self.operators.remove(&operator),
                "an operator answered twice"
            );
        }
        if let Some(step) = effects.step {
            assert!(self.step.is_none(), "two refreshes at a time");
            self.pay(&step);
            self.step = Some(step);
        }
        let life = &self.machine.life;
        assert_eq!(life.is_refreshing(), self.step.is_some());
        let waits = life.callers.len() + life.operators.len();
        assert_eq!(
            waits,
            self.callers.len() + self.operators.len(),
            "forgotten"
        );
        assert!(
            self.callers.is_empty() || self.step.is_some() || life.deadline().is_some(),
            "callers wait for nothing"
        );
        assert!(
            self.operators.is_empty() || self.step.is_some(),
            "operators wait for nothing"
        );
    }

    fn pay(&mut self, step: &Step) {
        let Step::Fetch { mode, .. } = step else {
            return;
        };
        let life = &self.machine.life;
        let Some(in_flight) = &life.in_flight else {
            return;
        };
        let by_operator = in_flight.attempt.trigger.is_operator();
        let unreachable = life.peers.as_ref().is_some_and(|peers| peers.unreachable);
        let budget = life.policy.budget;
        let day = self.day();
        let spent = self.spent.entry(day).or_default();
        match (budget, mode) {
            (Some(BudgetKind::Classic), _) => {
                spent.classic += 1;
                assert!(spent.classic <= CLASSIC_PER_DAY, "classic budget");
            }
            (Some(BudgetKind::Forced), FetchMode::Forced) => {
                spent.forced += 1;
                spent.forced_alone += u32::from(unreachable && !by_operator);
                let limit = if by_operator {
                    FORCED_PER_DAY_OPERATOR
                } else {
                    FORCED_PER_DAY
                };
                assert!(spent.forced <= limit, "forced budget");
                assert!(spent.forced_alone <= 1, "forced budget of a lonely node");
            }
            (None, FetchMode::Forced) => panic!("{:?} cannot force", self.kind),
            _ => {}
        }
    }

    /// Lets every step fail until no request waits.
    fn drain(&mut self) {
        let fails = End {
            fetched: Err(FetchError::REFUSED),
            probe: Probe::Unknown,
            peers: None,
            leased: false,
            heard: false,
            panics: false,
        };
        for _ in 0..20 {
            if self.step.is_some() {
                self.end(&fails);
            } else if let Some(due) = self
                .machine
                .life
                .deadline()
                .filter(|_| !self.callers.is_empty())
            {
                let wait = due.saturating_duration_since(self.machine.at.time.now);
                self.machine.pass(wait);
                self.on(DEADLINE);
            }
        }
        assert!(
            self.callers.is_empty() && self.operators.is_empty(),
            "somebody still waits"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happens_the_invariants_hold(
        credential in credential(),
        classic in 1990_u32..=2000,
        forced in 0_u32..=6,
        acts in prop::collection::vec(act(), 1..120),
        retires in prop::bool::weighted(0.2),
        more in prop::collection::vec(act(), 0..30),
    ) {
        let mut run = Run::new(credential, (classic, forced));
        for act in acts {
            run.act(act);
        }
        if retires {
            run.act(Act::Retire);
        }
        for act in more {
            run.act(act);
        }
        run.drain();
    }
}
