//! Findings: one line each, with a mark that says how much it matters.

use std::fmt;

/// Weight of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Fine,
    /// Something that was not looked at, and why.
    Note,
    /// Will break, or may be meant.
    Warning,
    /// Keeps calls from working.
    Broken,
}

/// One line of the report.
#[derive(Debug)]
struct Finding {
    mark: Mark,
    /// Account, host, store or listener.
    subject: String,
    text: String,
}

/// Findings in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Findings {
    all: Vec<Finding>,
    clock: usize,
}

impl Findings {
    pub(super) fn add(&mut self, mark: Mark, subject: impl Into<String>, text: impl Into<String>) {
        self.all.push(Finding {
            mark,
            subject: subject.into(),
            text: text.into(),
        });
    }

    pub(super) fn fine(&mut self, subject: &str, text: impl Into<String>) {
        self.add(Mark::Fine, subject, text);
    }

    pub(super) fn note(&mut self, subject: &str, text: impl Into<String>) {
        self.add(Mark::Note, subject, text);
    }

    pub(super) fn broken_at(&mut self, subject: &str, text: impl Into<String>) {
        self.add(Mark::Broken, subject, text);
    }

    /// Adds a clock that is wrong, which keeps no call from being sent.
    pub(super) fn wrong_clock(&mut self, subject: &str, text: impl Into<String>) {
        self.clock += 1;
        self.broken_at(subject, text);
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.all.extend(other.all);
        self.clock += other.clock;
    }

    pub(super) fn has(&self, mark: Mark) -> bool {
        self.all.iter().any(|finding| finding.mark == mark)
    }

    pub(super) fn broken(&self) -> usize {
        self.all
            .iter()
            .filter(|finding| finding.mark == Mark::Broken)
            .count()
    }

    /// True if nothing is broken but the clock.
    pub(super) fn only_clock(&self) -> bool {
        self.broken() == self.clock
    }
}

impl Mark {
    fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Broken => "BROKEN",
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding {
            mark,
            subject,
            text,
        } in &self.all
        {
            writeln!(f, "{:<7}  {subject}: {text}", mark.as_str())?;
        }
        Ok(())
    }
}
