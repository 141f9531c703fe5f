//! What is wrong with a configuration, where, and what to write instead.
//!
//! All problems of a file come together. No text here ever holds a value of the file: a secret may
//! stand in any place.

use std::{collections::HashSet, fmt, path::Path, sync::Arc};

/// Everything that keeps a configuration from being used, in the order of the file. Prints one
/// problem per line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

/// One mistake, or one warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key as in `account[0].secret` (counted from zero); empty when it is about the whole
    /// file.
    pub key_path: String,
    /// Where the value came from.
    pub origin: Origin,
    /// What is wrong and what to do next.
    pub message: String,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file; the line, counted from one, is missing where something is absent.
    File {
        /// As the operator named it.
        name: Arc<str>,
        /// Where in it.
        line: Option<usize>,
    },
    /// An environment variable.
    Variable(Arc<str>),
}

/// A key and where its value came from, so that a later check can still point at it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) path: String,
    pub(super) origin: Origin,
}

/// Collects problems and warnings.
#[derive(Debug)]
pub(super) struct Report {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// Paths of all keys that have a problem, and of the tables and lists around them.
    concerned: HashSet<String>,
    whole: Origin,
}

impl Problem {
    /// The line in the file, counted from one.
    pub fn line(&self) -> Option<usize> {
        match &self.origin {
            Origin::File { line, .. } => *line,
            Origin::Variable(_) => None,
        }
    }

    fn rank(&self) -> (bool, usize) {
        (
            matches!(self.origin, Origin::Variable(_)),
            self.line().unwrap_or(usize::MAX),
        )
    }
}

impl Problems {
    /// A static name for metrics and logs.
    pub fn label(&self) -> &'static str {
        "bad_configuration"
    }

    pub(super) fn one(file: &Path, message: String) -> Self {
        let origin = Origin::File {
            name: file.display().to_string().into(),
            line: None,
        };
        Self(vec![Problem {
            key_path: String::new(),
            origin,
            message,
        }])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)?;
        if !self.key_path.is_empty() {
            write!(f, ": {}", self.key_path)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                name,
                line: Some(line),
            } => write!(f, "{name}:{line}"),
            Self::File { name, line: None } => f.write_str(name),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

impl Place {
    pub(super) fn child(&self, key: &str) -> Self {
        let key = quoted(key);
        let path = if self.path.is_empty() {
            key
        } else {
            format!("{}.{key}", self.path)
        };
        Self {
            path,
            origin: self.origin.clone(),
        }
    }

    pub(super) fn element(&self, index: usize) -> Self {
        Self {
            path: format!("{}[{index}]", self.path),
            origin: self.origin.clone(),
        }
    }

    pub(super) fn from(mut self, origin: &Origin) -> Self {
        self.origin = origin.clone();
        self
    }
}

impl Report {
    pub(super) fn new(whole: Origin) -> Self {
        Self {
            problems: Vec::new(),
            warnings: Vec::new(),
            concerned: HashSet::new(),
            whole,
        }
    }

    /// The configuration as a whole, for what stands nowhere.
    pub(super) fn whole(&self) -> Place {
        Place {
            path: String::new(),
            origin: self.whole.clone(),
        }
    }

    pub(super) fn problem(&mut self, place: &Place, message: impl Into<String>) {
        self.problems.push(note(place, message));
        let path = &place.path;
        if self.concerned.insert(path.clone()) {
            let ends = path.match_indices(['.', '[']).map(|(end, _)| end);
            self.concerned
                .extend(ends.map(|end| path[..end].to_owned()));
        }
    }

    /// Whether something at this key or below it has been reported already, so that it is not
    /// merely missing.
    pub(super) fn concerns(&self, place: &Place) -> bool {
        self.concerned.contains(&place.path)
    }

    pub(super) fn warning(&mut self, place: &Place, message: impl Into<String>) {
        self.warnings.push(note(place, message));
    }

    /// The warnings of a good configuration, or the problems of a bad one, in the order of the
    /// file.
    pub(super) fn finish(mut self) -> Result<Vec<Problem>, Problems> {
        self.problems.sort_by_key(Problem::rank);
        self.warnings.sort_by_key(Problem::rank);
        if self.problems.is_empty() {
            Ok(self.warnings)
        } else {
            Err(Problems(self.problems))
        }
    }
}

fn note(place: &Place, message: impl Into<String>) -> Problem {
    Problem {
        key_path: place.path.clone(),
        origin: place.origin.clone(),
        message: message.into(),
    }
}

// A key is written by the operator but may be anything: it must not break the line or flood it.
fn quoted(key: &str) -> String {
    const LONGEST: usize = 64;
    let bare = !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare && key.len() <= LONGEST {
        return key.to_owned();
    }
    let cut = if key.chars().count() > LONGEST {
        "…"
    } else {
        ""
    };
    format!(
        "\"{}{cut}\"",
        key.chars().take(LONGEST).collect::<String>().escape_debug()
    )
}

impl From<Report> for Problems {
    fn from(report: Report) -> Self {
        report.finish().err().unwrap_or(Self(Vec::new()))
    }
}
