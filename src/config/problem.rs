//! Problems of a configuration: the place, the mistake, and what to write instead.
//!
//! All problems of a file come together. No text here ever holds a value of the file: a secret may
//! stand in any place.

use std::{collections::HashSet, fmt, path::Path, sync::Arc};

/// All problems that keep a configuration from being used, in the order of the file. Prints one
/// problem per line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

/// Mistake or warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Key, as in `account[0].secret` (counted from zero); empty when the whole file is meant.
    pub key_path: String,
    /// Source of the value.
    pub origin: Origin,
    /// The mistake, and what to do next.
    pub message: String,
}

/// Source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file; the line, counted from one, is missing where something is absent.
    File {
        /// Name that the operator gave.
        name: Arc<str>,
        /// Line, counted from one.
        line: Option<usize>,
    },
    /// An environment variable.
    Variable(Arc<str>),
}

/// Key and source of a value, so that a later check can still point at it.
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

    /// Place of the whole configuration, for keys that are absent.
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

// An operator's key may be any text: it must not break the line or flood it.
fn quoted(key: &str) -> String {
    const MAX_SHOWN: usize = 64;
    let bare = !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare && key.len() <= MAX_SHOWN {
        return key.to_owned();
    }
    let cut = if key.chars().count() > MAX_SHOWN {
        "…"
    } else {
        ""
    };
    format!(
        "\"{}{cut}\"",
        key.chars()
            .take(MAX_SHOWN)
            .collect::<String>()
            .escape_debug()
    )
}

impl From<Report> for Problems {
    fn from(report: Report) -> Self {
        report.finish().err().unwrap_or(Self(Vec::new()))
    }
}
