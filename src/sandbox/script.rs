//! Rules in force: matching, counting hits, holding answers.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use serde::Serialize;
use tokio::sync::Semaphore;

use super::{
    endpoints::token::is_token_endpoint,
    faults::{Fault, Rule},
    request::RequestHead,
};

/// Rules in force, shared by all connections.
#[derive(Debug, Default)]
pub(super) struct FaultScript {
    rules: Mutex<RuleList>,
    /// True if there are rules. Read without the lock, so that calls without faults take no lock.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct RuleList {
    list: Vec<ActiveRule>,
    last_id: u64,
}

#[derive(Debug)]
struct ActiveRule {
    id: u64,
    rule: Arc<Rule>,
    seen: u64,
    hits: u64,
    gate: Arc<Semaphore>,
}

/// Rule with its statistics.
#[derive(Debug, Clone, Serialize)]
pub struct RuleView {
    /// Number for releasing and removing the rule.
    pub id: u64,
    /// Number of calls that the rule has hit.
    pub hits: u64,
    /// Rule as it was added.
    pub rule: Rule,
}

/// Hit of a rule on a call.
#[derive(Debug, Clone)]
pub(super) struct RuleHit {
    pub(super) rule: Arc<Rule>,
    gate: Arc<Semaphore>,
}

/// Facts about a call that rules match against.
#[derive(Debug, Clone, Copy)]
pub(super) struct RuleInput<'c> {
    pub(super) head: &'c RequestHead,
    pub(super) account: Option<&'c str>,
    pub(super) token: Option<&'c str>,
    /// True before the body is read.
    pub(super) early: bool,
}

impl FaultScript {
    pub(super) fn add(&self, rule: Rule) -> u64 {
        let mut rules = self.rules();
        rules.last_id += 1;
        let id = rules.last_id;
        let gate = Arc::new(Semaphore::new(0));
        rules.list.push(ActiveRule {
            id,
            rule: Arc::new(rule),
            seen: 0,
            hits: 0,
            gate,
        });
        self.any.store(true, Ordering::Release);
        id
    }

    /// Releases the answers that the rule holds now or would hold later; `None` releases all rules.
    /// Returns false if there is no such rule.
    pub(super) fn release(&self, id: Option<u64>) -> bool {
        let rules = self.rules();
        let mut found = false;
        for active in rules.list.iter().filter(|a| id.is_none_or(|id| id == a.id)) {
            // Closing wakes all waiters, and later hits do not wait at all.
            active.gate.close();
            found = true;
        }
        found
    }

    /// Releases and removes a rule; `None` removes all. Returns false if there is no such rule.
    pub(super) fn remove(&self, id: Option<u64>) -> bool {
        let found = self.release(id);
        let mut rules = self.rules();
        rules
            .list
            .retain(|active| id.is_some_and(|id| id != active.id));
        // Stored under the lock, so that a concurrent `add` is not overwritten.
        self.any.store(!rules.list.is_empty(), Ordering::Release);
        found
    }

    pub(super) fn list(&self) -> Vec<RuleView> {
        let view = |a: &ActiveRule| RuleView {
            id: a.id,
            hits: a.hits,
            rule: Rule::clone(&a.rule),
        };
        self.rules().list.iter().map(view).collect()
    }

    pub(super) fn hits(&self, id: u64) -> u64 {
        self.rules()
            .list
            .iter()
            .find(|a| a.id == id)
            .map_or(0, |a| a.hits)
    }

    /// Applies the first rule that matches the call and is not used up.
    pub(super) fn take(&self, target: RuleInput<'_>) -> Option<RuleHit> {
        // Acquire pairs with the Release in `add` and `remove`: a rule added before a call began is
        // seen.
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        for active in &mut self.rules().list {
            let spent = active.rule.times.is_some_and(|times| active.hits >= times);
            if spent
                || active.rule.fault.is_early() != target.early
                || !matches(&active.rule, target)
            {
                continue;
            }
            active.seen += 1;
            if active.seen > active.rule.skip {
                active.hits += 1;
                return Some(RuleHit {
                    rule: Arc::clone(&active.rule),
                    gate: Arc::clone(&active.gate),
                });
            }
        }
        None
    }

    fn rules(&self) -> MutexGuard<'_, RuleList> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RuleHit {
    /// Waits until the rule is released and its delay is over.
    pub(super) async fn wait(&self) {
        if self.rule.hold {
            // The semaphore has no permits: `acquire` returns only when it is closed.
            let _ = self.gate.acquire().await;
        }
        if let Some(delay) = self.rule.delay {
            tokio::time::sleep(delay).await;
        }
    }
}

fn matches(rule: &Rule, target: RuleInput<'_>) -> bool {
    let wanted = |want: &Option<String>, have: Option<&str>| {
        want.as_deref().is_none_or(|want| have == Some(want))
    };
    let waits = target.head.expects_continue();
    (waits || !matches!(rule.fault, Fault::Expect { .. }))
        && rule
            .method
            .as_deref()
            .is_none_or(|method| method.eq_ignore_ascii_case(target.head.method()))
        && !(rule.business && is_token_endpoint(target.head.path()))
        && wanted(&rule.account, target.account)
        && wanted(&rule.token, target.token)
        && path_matches(&rule.path, target.head.path())
}

/// Matches a path against a pattern: `*` stands for any text within a segment, `**` for any number
/// of segments.
pub(super) fn path_matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    segments_match(&pattern, &path)
}

fn segments_match(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) => {
            // Recursion is bounded by the number of segments; patterns come from tests only.
            (0..=path.len()).any(|skip| segments_match(rest, &path[skip..]))
        }
        (Some((want, pattern)), Some((have, path))) => {
            segment_matches(want, have) && segments_match(pattern, path)
        }
        _ => false,
    }
}

fn segment_matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => {
            let Some(rest) = text.strip_prefix(head) else {
                return false;
            };
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| segment_matches(tail, &rest[at..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(path: &str) -> RequestHead {
        RequestHead::parse(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes())
            .unwrap()
            .unwrap()
            .0
    }

    fn hit(script: &FaultScript, path: &str) -> Option<&'static str> {
        let head = head(path);
        let target = RuleInput {
            head: &head,
            account: Some("wx1"),
            token: None,
            early: false,
        };
        script.take(target).map(|hit| hit.rule.fault.label())
    }

    #[test]
    fn patterns_match_segments() {
        for (pattern, path, expected) in [
            ("/**", "/a/b", true),
            ("/cgi-bin/**", "/cgi-bin", true),
            ("/cgi-bin/**", "/cgi-bin/message/custom/send", true),
            ("/cgi-bin/*", "/cgi-bin/message/custom/send", false),
            ("/cgi-bin/*token", "/cgi-bin/stable_token", true),
            ("/cgi-bin/*token", "/cgi-bin/tokens", false),
            ("/**/send", "/cgi-bin/message/custom/send", true),
            ("/a", "/a/", false),
        ] {
            assert_eq!(path_matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn rules_are_skipped_then_used_up_in_order() {
        let script = FaultScript::default();
        assert_eq!(hit(&script, "/a"), None);
        let first = script.add(Rule::new("/a", Fault::stale()).skip(1).times(2));
        script.add(Rule::new("/**", Fault::Switch).always());
        let seen: Vec<_> = (0..4).map(|_| hit(&script, "/a").unwrap()).collect();
        assert_eq!(seen, ["switch", "errcode", "errcode", "switch"]);
        assert_eq!(script.hits(first), 2);
        assert!(script.remove(None));
        assert_eq!(hit(&script, "/a"), None);
    }

    #[test]
    fn a_rule_for_one_account_leaves_others_alone() {
        let script = FaultScript::default();
        script.add(Rule::new("/a", Fault::stale()).account("wx2").always());
        assert_eq!(hit(&script, "/a"), None);
        script.add(Rule::new("/a", Fault::stale()).account("wx1").always());
        assert_eq!(hit(&script, "/a"), Some("errcode"));
    }

    #[tokio::test]
    async fn what_is_held_goes_on_when_it_is_released() {
        let script = Arc::new(FaultScript::default());
        let id = script.add(Rule::new("/a", Fault::Pass).hold());
        let head = head("/a");
        let hit = script
            .take(RuleInput {
                head: &head,
                account: None,
                token: None,
                early: false,
            })
            .unwrap();
        let waiting = tokio::spawn(async move { hit.wait().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert!(script.release(Some(id)));
        waiting.await.unwrap();
    }
}
