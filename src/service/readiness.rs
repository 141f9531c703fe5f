//! Readiness of this node for traffic, from the status of the accounts, the workers and the log:
//! `/readyz` on the admin listener, `/-/readyz` on the data listener.
//!
//! Pure; both listeners gather the states themselves.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use percent_encoding::percent_decode_str;
use serde::Serialize;

use crate::{
    base::AccountName,
    telemetry::{
        queue::{LogHealth, LogQueue},
        workers::StuckWorkers,
    },
    token::{Condition, Status},
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
    pub(crate) lacking: Vec<FailingAccount>,
    /// Accounts with a token that cannot be renewed, or with calls that WeChat refuses. The node
    /// stays ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) degraded: Vec<FailingAccount>,
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

/// Account that is not as it should be, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FailingAccount {
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errcode: Option<i64>,
    /// Source address that WeChat refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
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
    /// Every account, and none of them degraded.
    AllSound,
}

/// Question that a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// Readiness of the node.
    Node(Required),
    /// Readiness of one account, by its name.
    Account(String),
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
    let mut statuses = accounts.iter().map(|(_, status)| status);
    let is_served = match required {
        Required::One => was_usable || statuses.any(|status| status.usable),
        Required::All => statuses.all(|status| status.usable),
        Required::AllSound => statuses.all(|status| status.condition == Condition::Ok),
    };
    let trouble = if leaving {
        Some((
            "draining",
            "wxgate is stopping: send requests to another node",
        ))
    } else if accounts.is_empty() {
        Some(("no_account", "no account is configured: add an [[account]]"))
    } else if !is_served && required == Required::AllSound {
        Some((
            "account_failing",
            "calls of this account fail, or will soon: see lacking and degraded for the reason",
        ))
    } else if !is_served {
        Some((
            NOT_READY,
            "accounts have no usable token: see lacking for each one's reason",
        ))
    } else {
        None
    };
    let failing = |picks: fn(&Status) -> bool| {
        let picked = accounts.iter().filter(move |(_, status)| picks(status));
        picked
            .map(|(name, status)| FailingAccount::new(name, status))
            .collect()
    };
    Readiness {
        ready: trouble.is_none(),
        error: trouble.map(|(slug, _)| slug),
        message: trouble.map(|(_, message)| message),
        stuck: Vec::new(),
        log: None,
        lacking: failing(|status| !status.usable),
        degraded: failing(|status| status.condition == Condition::Degraded),
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
            degraded,
        } = self;
        let stuck = stuck
            .into_iter()
            .map(|StuckWorker { seconds, .. }| StuckWorker {
                worker: None,
                seconds,
            });
        let unnamed = |accounts: Vec<FailingAccount>| {
            let unnamed = |account: FailingAccount| FailingAccount {
                account: None,
                state: account.state,
                errcode: None,
                ip: None,
                message: None,
                next_attempt_in: None,
            };
            accounts.into_iter().map(unnamed).collect()
        };
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
            lacking: unnamed(lacking),
            degraded: unnamed(degraded),
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

impl Question {
    /// Reads a query: `account=NAME`, or `all`, but not `all=0` and `all=false`.
    pub(crate) fn read(query: Option<&str>) -> Self {
        let mut required = Required::One;
        for pair in query.unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "account" => {
                    return Self::Account(percent_decode_str(value).decode_utf8_lossy().into());
                }
                "all" if !matches!(value, "0" | "false") => required = Required::All,
                _ => {}
            }
        }
        Self::Node(required)
    }
}

impl FailingAccount {
    fn new(name: &AccountName, status: &Status) -> Self {
        let error = status.last_error.as_ref();
        let message = match error {
            Some(error) => &error.sentence,
            None if status.usable => {
                "WeChat refuses the token and gives no other: see the log, or refresh the account by hand"
            }
            None => "a token is being fetched: wait a moment",
        };
        Self {
            account: Some(name.to_string()),
            state: status.condition.as_str(),
            errcode: error.and_then(|error| error.errcode),
            ip: error.and_then(|error| error.ip),
            message: Some(message.to_owned()),
            // A token that is good is renewed in time, which says nothing of a refused address.
            next_attempt_in: status.next_attempt_in.filter(|_| !status.usable),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::token::LastError;

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
                ip: Some([47, 94, 148, 108].into()),
                sentence: "WeChat refused the IP 47.94.148.108 with errcode 40164: add it to the whitelist".into(),
                failures: 1,
                words: None,
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
                        "ip": "47.94.148.108",
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
    fn one_account_is_ready_only_without_any_trouble() {
        use Condition::{Degraded, Failing, Fatal, Ok, Waiting};
        assert!(ready(&[Ok], Required::AllSound));
        for condition in [Waiting, Degraded, Failing, Fatal] {
            let judged = judge(&accounts(&[condition]), Required::AllSound, true, false);
            assert_eq!(
                (judged.ready, judged.error),
                (false, Some("account_failing")),
                "{condition:?}"
            );
        }
    }

    #[test]
    fn a_degraded_account_is_named_and_leaves_the_node_ready() {
        let conditions = [Condition::Ok, Condition::Degraded];
        let judged = judge(&accounts(&conditions), Required::One, false, false);
        assert_eq!(
            serde_json::to_value(&judged).unwrap(),
            serde_json::json!({
                "ready": true,
                "lacking": [],
                "degraded": [{
                    "account": "a1",
                    "state": "degraded",
                    "errcode": 40164,
                    "ip": "47.94.148.108",
                    "message": "WeChat refused the IP 47.94.148.108 with errcode 40164: add it to the whitelist",
                }],
            })
        );
    }

    #[test]
    fn a_query_asks_for_the_node_all_accounts_or_one() {
        let asks = |query: &str| Question::read(Some(query));
        for yes in ["all", "all=1", "all=true", "all=", "verbose&all"] {
            assert_eq!(asks(yes), Question::Node(Required::All), "{yes}");
        }
        for no in ["", "all=0", "all=false", "ALL", "wall", "x=all"] {
            assert_eq!(asks(no), Question::Node(Required::One), "{no:?}");
        }
        assert_eq!(Question::read(None), Question::Node(Required::One));
        for (query, name) in [
            ("account=shop", "shop"),
            ("all&account=a%2Db", "a-b"),
            ("account=", ""),
            ("account", ""),
        ] {
            assert_eq!(asks(query), Question::Account(name.to_owned()), "{query}");
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
