//! Problems of a configuration: the key, the mistake, and the way to correct it.
//!
//! No text here holds a value of the file: an operator may have written a secret at any key.

use std::{collections::HashSet, fmt, path::Path, sync::Arc};

/// All problems that keep a configuration from being used, in the order of the file. Prints one
/// problem per line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

/// Mistake or warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Key, as in `account[0].secret` (counted from zero); empty for the whole file.
    pub key_path: String,
    /// Source of the value.
    pub origin: ValueOrigin,
    /// Mistake and correction.
    pub message: String,
}

/// Source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueOrigin {
    /// Configuration file.
    File {
        /// Name that the operator gave.
        name: Arc<str>,
        /// Line, counted from one; `None` for a key that is missing.
        line: Option<usize>,
    },
    /// Environment variable, by name.
    Variable(Arc<str>),
}

/// Key and source of a value, for the problems of later checks.
#[derive(Debug, Clone)]
pub(super) struct KeyPlace {
    pub(super) path: String,
    pub(super) origin: ValueOrigin,
}

/// Problems and warnings found so far.
#[derive(Debug)]
pub(super) struct Report {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// Paths of all keys that have a problem, and of the tables and lists around them.
    concerned: HashSet<String>,
    whole: ValueOrigin,
}

impl Problem {
    /// Line in the file, counted from one.
    pub fn line(&self) -> Option<usize> {
        match &self.origin {
            ValueOrigin::File { line, .. } => *line,
            ValueOrigin::Variable(_) => None,
        }
    }

    /// Sort key: the lines of the file, then keys that are missing, then environment variables.
    fn rank(&self) -> (bool, usize) {
        (
            matches!(self.origin, ValueOrigin::Variable(_)),
            self.line().unwrap_or(usize::MAX),
        )
    }
}

impl Problems {
    /// Name of this error in metrics and logs.
    pub fn label(&self) -> &'static str {
        "bad_configuration"
    }

    pub(super) fn one(file: &Path, message: String) -> Self {
        let origin = ValueOrigin::File {
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

impl fmt::Display for ValueOrigin {
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

impl KeyPlace {
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

    pub(super) fn from(mut self, origin: &ValueOrigin) -> Self {
        self.origin = origin.clone();
        self
    }
}

impl Report {
    pub(super) fn new(whole: ValueOrigin) -> Self {
        Self {
            problems: Vec::new(),
            warnings: Vec::new(),
            concerned: HashSet::new(),
            whole,
        }
    }

    /// Returns the place of the whole configuration, for keys that are missing.
    pub(super) fn whole(&self) -> KeyPlace {
        KeyPlace {
            path: String::new(),
            origin: self.whole.clone(),
        }
    }

    pub(super) fn problem(&mut self, place: &KeyPlace, message: impl Into<String>) {
        self.problems.push(note(place, message));
        let path = &place.path;
        // Also the tables and lists around the key, for `concerns`.
        if self.concerned.insert(path.clone()) {
            let ends = path.match_indices(['.', '[']).map(|(end, _)| end);
            self.concerned
                .extend(ends.map(|end| path[..end].to_owned()));
        }
    }

    /// True if a problem at this key or below it was reported: then the key is not merely missing.
    pub(super) fn concerns(&self, place: &KeyPlace) -> bool {
        self.concerned.contains(&place.path)
    }

    pub(super) fn warning(&mut self, place: &KeyPlace, message: impl Into<String>) {
        self.warnings.push(note(place, message));
    }

    /// Returns the warnings of a configuration without problems, or else the problems, in the order
    /// of the file.
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

fn note(place: &KeyPlace, message: impl Into<String>) -> Problem {
    Problem {
        key_path: place.path.clone(),
        origin: place.origin.clone(),
        message: message.into(),
    }
}

/// Returns a key in a form that fits in a line. Keys of the file may be any text.
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
