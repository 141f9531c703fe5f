//! Readiness of this node for traffic, from the status of the accounts, the workers and the log:
//! `/readyz` on the admin listener, `/-/readyz` on the data listener.
//!
//! Pure; both listeners gather the states themselves.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use serde::Serialize;

use crate::{
    base::AccountName,
    telemetry::{
        queue::{LogHealth, LogQueue},
        workers::StuckWorkers,
    },
    token::Status,
};

/// Body of the answer, whose status is 200 when ready, else 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Readiness {
    pub(crate) ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<&'static str>,
    /// Worker threads and listeners that do not answer the watchdog.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stuck: Vec<StuckWorker>,
    /// Trouble with the log. The node stays ready: no request waits for the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<LogTrouble>,
    /// Accounts without a usable token; not always empty when the node is ready.
    pub(crate) lacking: Vec<UnusableAccount>,
}

/// Health of the parts of the node that do not belong to an account.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeHealth {
    pub(crate) workers: StuckWorkers,
    pub(crate) log: Option<Arc<LogQueue>>,
    /// Set once an account had a usable token, for the rest of the process.
    pub(crate) was_usable: Arc<AtomicBool>,
}

/// Worker thread or listener that does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StuckWorker {
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    seconds: u64,
}

/// State of a log that loses lines, with the count of lines lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LogTrouble {
    state: &'static str,
    lines_dropped: u64,
    message: String,
}

/// Account without a usable token, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct UnusableAccount {
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errcode: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_in: Option<u64>,
}

/// Accounts that must have a usable token before the node is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Required {
    /// One account, now or at any time since the start: a failing account must not take every node
    /// out of service.
    One,
    /// Every account.
    All,
}

/// Slug of a node whose accounts have no usable token.
const NOT_READY: &str = "not_ready";

/// Returns the readiness of a node with these accounts. A node that is leaving, or has no account,
/// is never ready. `was_usable` tells that an account had a usable token before.
pub(crate) fn judge(
    accounts: &[(AccountName, Status)],
    required: Required,
    was_usable: bool,
    leaving: bool,
) -> Readiness {
    let mut usable = accounts.iter().map(|(_, status)| status.usable);
    let is_served = match required {
        Required::One => was_usable || usable.any(|usable| usable),
        Required::All => usable.all(|usable| usable),
    };
    let trouble = if leaving {
        Some((
            "draining",
            "wxgate is stopping: send requests to another node",
        ))
    } else if accounts.is_empty() {
        Some(("no_account", "no account is configured: add an [[account]]"))
    } else if !is_served {
        Some((
            NOT_READY,
            "accounts have no usable token: see lacking for each one's reason",
        ))
    } else {
        None
    };
    let lacking = accounts
        .iter()
        .filter(|(_, status)| !status.usable)
        .map(|(name, status)| UnusableAccount::new(name, status));
    Readiness {
        ready: trouble.is_none(),
        error: trouble.map(|(slug, _)| slug),
        message: trouble.map(|(_, message)| message),
        stuck: Vec::new(),
        log: None,
        lacking: lacking.collect(),
    }
}

impl NodeHealth {
    /// Judges the accounts, and remembers that one was usable.
    pub(crate) fn judge(
        &self,
        accounts: &[(AccountName, Status)],
        required: Required,
        leaving: bool,
    ) -> Readiness {
        if accounts.iter().any(|(_, status)| status.usable) {
            self.was_usable.store(true, Relaxed);
        }
        let was_usable = self.was_usable.load(Relaxed);
        self.complete(judge(accounts, required, was_usable, leaving))
    }

    /// Adds the health of the node to the readiness of its accounts.
    pub(crate) fn complete(&self, mut readiness: Readiness) -> Readiness {
        let stuck = self.workers.list();
        // A stop takes precedence: the node leaves in any case.
        if readiness.error != Some("draining") && !stuck.is_empty() {
            readiness.ready = false;
            readiness.error = Some("data_path_stuck");
            readiness.message = Some(
                "worker threads do not answer and their calls wait: send requests to another \
                 node; restart wxgate if it stays so",
            );
        }
        readiness.stuck = stuck
            .into_iter()
            .map(|(worker, since)| StuckWorker {
                worker: Some(worker),
                seconds: since.as_secs(),
            })
            .collect();
        let log = self.log.as_ref().map(|log| log.health());
        readiness.log = log.and_then(LogTrouble::new);
        readiness
    }
}

impl Readiness {
    /// Removes names and reasons, for callers without a key: of accounts and workers only their
    /// number and state are left.
    pub(crate) fn anonymous(self) -> Self {
        // Destructured, so that a new field does not compile until it has been decided here.
        let Self {
            ready,
            error,
            message,
            stuck,
            log: _,
            lacking,
        } = self;
        let stuck = stuck
            .into_iter()
            .map(|StuckWorker { seconds, .. }| StuckWorker {
                worker: None,
                seconds,
            });
        let lacking = lacking.into_iter().map(|account| UnusableAccount {
            account: None,
            state: account.state,
            errcode: None,
            message: None,
            next_attempt_in: None,
        });
        Self {
            ready,
            error,
            message: if error == Some(NOT_READY) {
                Some("accounts have no usable token: /readyz on the admin listener tells why")
            } else {
                message
            },
            stuck: stuck.collect(),
            log: None,
            lacking: lacking.collect(),
        }
    }
}

impl LogTrouble {
    /// `None` for a log that loses no lines.
    fn new(health: LogHealth) -> Option<Self> {
        let (state, lines_dropped, trouble) = match health {
            LogHealth::Flowing => return None,
            LogHealth::Behind { dropped } => (
                "behind",
                dropped,
                "standard error is read more slowly than lines are written".to_owned(),
            ),
            LogHealth::Stalled { since, dropped } => (
                "stalled",
                dropped,
                format!("standard error has not been read for {} s", since.as_secs()),
            ),
            LogHealth::Failing { error, dropped } => (
                "failing",
                dropped,
                format!("standard error cannot be written ({error})"),
            ),
        };
        let message = format!(
            "{trouble}: calls are served, log lines are dropped; look at the program that reads it"
        );
        Some(Self {
            state,
            lines_dropped,
            message,
        })
    }
}

/// Reads the accounts that must be usable from a query: [`Required::All`] for `?all`, but not for
/// `?all=0` and `?all=false`.
pub(crate) fn required(query: Option<&str>) -> Required {
    let asks_for_all = query.unwrap_or_default().split('&').any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        name == "all" && !matches!(value, "0" | "false")
    });
    if asks_for_all {
        Required::All
    } else {
        Required::One
    }
}

impl UnusableAccount {
    fn new(name: &AccountName, status: &Status) -> Self {
        let error = status.last_error.as_ref();
        let message = error.map_or("a token is being fetched: wait a moment", |error| {
            &error.sentence
        });
        Self {
            account: Some(name.to_string()),
            state: status.condition.as_str(),
            errcode: error.and_then(|error| error.errcode),
            message: Some(message.to_owned()),
            next_attempt_in: status.next_attempt_in,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::token::{Condition, LastError};

    const CONDITIONS: [Condition; 5] = [
        Condition::Ok,
        Condition::Waiting,
        Condition::Degraded,
        Condition::Failing,
        Condition::Fatal,
    ];

    fn status(condition: Condition) -> Status {
        let refused = matches!(
            condition,
            Condition::Fatal | Condition::Failing | Condition::Degraded
        );
        Status {
            condition,
            usable: matches!(condition, Condition::Ok | Condition::Degraded),
            generation: 1,
            fingerprint: None,
            expires_in: None,
            age: None,
            last_error: refused.then(|| LastError {
                label: "40164",
                errcode: Some(40164),
                sentence: "WeChat refused the IP 47.94.148.108 with errcode 40164: add it to the whitelist".into(),
                failures: 1,
            }),
            next_attempt_in: Some(5),
            classic_left: None,
            forced_left: None,
            conflicts: 0,
        }
    }

    fn accounts(conditions: &[Condition]) -> Vec<(AccountName, Status)> {
        let name = |index: usize| AccountName::new(&format!("a{index}")).unwrap();
        conditions
            .iter()
            .enumerate()
            .map(|(index, condition)| (name(index), status(*condition)))
            .collect()
    }

    fn ready(conditions: &[Condition], required: Required) -> bool {
        judge(&accounts(conditions), required, false, false).ready
    }

    #[test]
    fn one_usable_account_is_enough_for_the_node() {
        use Condition::{Degraded, Failing, Fatal, Ok, Waiting};
        // Conditions, and readiness where one account and where all accounts are required.
        for (conditions, some, all) in [
            (&[][..], false, false),
            (&[Ok], true, true),
            (&[Degraded], true, true),
            (&[Waiting], false, false),
            (&[Failing], false, false),
            (&[Fatal], false, false),
            (&[Fatal, Fatal], false, false),
            (&[Ok, Fatal], true, false),
            (&[Fatal, Degraded], true, false),
            (&[Ok, Waiting], true, false),
            (&[Ok, Failing], true, false),
            (&[Ok, Fatal, Waiting], true, false),
            (&[Ok, Degraded], true, true),
        ] {
            assert_eq!(
                (
                    ready(conditions, Required::One),
                    ready(conditions, Required::All)
                ),
                (some, all),
                "{conditions:?}"
            );
        }
    }

    #[test]
    fn a_node_that_was_ready_stays_so_whatever_becomes_of_its_accounts() {
        let node = NodeHealth::default();
        let ready = |conditions: &[Condition], required| {
            node.judge(&accounts(conditions), required, false).ready
        };
        assert!(!ready(&[Condition::Waiting], Required::One));
        assert!(ready(&[Condition::Ok, Condition::Waiting], Required::One));
        assert!(ready(
            &[Condition::Failing, Condition::Fatal],
            Required::One
        ));
        assert!(!ready(&[Condition::Failing, Condition::Ok], Required::All));
        assert!(!ready(&[], Required::One), "without an account");
    }

    #[test]
    fn a_node_that_is_leaving_is_not_ready() {
        let judged = judge(&accounts(&[Condition::Ok]), Required::One, true, true);
        assert_eq!((judged.ready, judged.error), (false, Some("draining")));
    }

    #[test]
    fn the_body_names_who_lacks_a_token_and_what_to_do() {
        let judged = judge(
            &accounts(&[Condition::Ok, Condition::Fatal, Condition::Waiting]),
            Required::All,
            false,
            false,
        );
        assert_eq!(
            serde_json::to_value(&judged).unwrap(),
            serde_json::json!({
                "ready": false,
                "error": "not_ready",
                "message": "accounts have no usable token: see lacking for each one's reason",
                "lacking": [
                    {
                        "account": "a1",
                        "state": "fatal",
                        "errcode": 40164,
                        "message": "WeChat refused the IP 47.94.148.108 with errcode 40164: add it to the whitelist",
                        "next_attempt_in": 5,
                    },
                    {
                        "account": "a2",
                        "state": "waiting",
                        "message": "a token is being fetched: wait a moment",
                        "next_attempt_in": 5,
                    },
                ],
            })
        );
    }

    #[test]
    fn callers_without_a_key_are_told_no_name_and_no_reason() {
        let node = NodeHealth::default();
        node.workers.insert("wxgate-1", Instant::now());
        let accounts = accounts(&[Condition::Fatal, Condition::Waiting]);
        let told = |readiness: Readiness| serde_json::to_value(readiness.anonymous()).unwrap();
        assert_eq!(
            told(judge(&accounts, Required::One, false, false)),
            serde_json::json!({
                "ready": false,
                "error": "not_ready",
                "message": "accounts have no usable token: /readyz on the admin listener tells why",
                "lacking": [{ "state": "fatal" }, { "state": "waiting" }],
            })
        );
        let stuck = told(node.judge(&accounts, Required::One, false));
        assert_eq!(stuck["error"], "data_path_stuck");
        assert_eq!(stuck["stuck"], serde_json::json!([{ "seconds": 0 }]));
    }

    #[test]
    fn a_stuck_worker_takes_readiness_away_and_a_stop_stays_a_stop() {
        let node = NodeHealth::default();
        let judged = |leaving| judge(&accounts(&[Condition::Ok]), Required::One, false, leaving);
        assert_eq!(node.complete(judged(false)), judged(false));
        node.workers.insert("wxgate-1", Instant::now());
        let stuck = node.complete(judged(false));
        assert_eq!(
            serde_json::to_value(&stuck).unwrap(),
            serde_json::json!({
                "ready": false,
                "error": "data_path_stuck",
                "message": "worker threads do not answer and their calls wait: send requests to \
                            another node; restart wxgate if it stays so",
                "stuck": [{ "worker": "wxgate-1", "seconds": 0 }],
                "lacking": [],
            })
        );
        let leaving = node.complete(judged(true));
        assert_eq!((leaving.ready, leaving.error), (false, Some("draining")));
        node.workers.remove("wxgate-1");
        assert_eq!(node.complete(judged(false)), judged(false));
    }

    #[test]
    fn trouble_with_the_log_is_told_and_leaves_the_node_ready() {
        let dropped = 7;
        for (health, state) in [
            (LogHealth::Behind { dropped }, "behind"),
            (
                LogHealth::Stalled {
                    since: Duration::from_secs(5),
                    dropped,
                },
                "stalled",
            ),
            (
                LogHealth::Failing {
                    error: "Broken pipe".to_owned(),
                    dropped,
                },
                "failing",
            ),
        ] {
            let trouble = LogTrouble::new(health).expect("trouble");
            assert_eq!((trouble.state, trouble.lines_dropped), (state, 7));
            assert!(trouble.message.contains("standard error"));
        }
        assert_eq!(LogTrouble::new(LogHealth::Flowing), None);
    }

    #[test]
    fn all_is_a_flag() {
        for yes in ["all", "all=1", "all=true", "all=", "verbose&all"] {
            assert_eq!(required(Some(yes)), Required::All, "{yes}");
        }
        for no in [
            None,
            Some(""),
            Some("all=0"),
            Some("all=false"),
            Some("ALL"),
            Some("wall"),
            Some("x=all"),
        ] {
            assert_eq!(required(no), Required::One, "{no:?}");
        }
    }

    proptest! {
        #[test]
        fn asking_for_all_is_never_easier_and_nothing_is_ready_without_a_token(
            picks in prop::collection::vec(0_usize..CONDITIONS.len(), 0..6)
        ) {
            let conditions: Vec<Condition> = picks.into_iter().map(|pick| CONDITIONS[pick]).collect();
            let rows = accounts(&conditions);
            let judged = judge(&rows, Required::One, false, false);
            prop_assert!(judged.ready || !judge(&rows, Required::All, false, false).ready);
            prop_assert!(!judged.ready || rows.iter().any(|(_, status)| status.usable));
            prop_assert_eq!(judged.lacking.len(), rows.iter().filter(|(_, status)| !status.usable).count());
        }
    }
}
