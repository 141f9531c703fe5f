//! Secrets: `{ env = "NAME" }`, `{ file = "path" }` or `{ value = "…" }`, looked up when the
//! configuration is read.
//!
//! A secret that cannot be found is a problem. Its value never gets into a message, not even where
//! an operator wrote the secret in the place of a name or path.

use std::{io::Read as _, path::Path};

use super::{
    environment::Environment,
    leaf::Plain,
    problem::{Origin, Place, Report},
    raw::SecretForm,
    read::At,
};
use crate::base::Secret;

/// Context of resolving: the report, the environment, and the folder of the file.
pub(super) struct Context<'c> {
    pub(super) report: &'c mut Report,
    pub(super) environment: &'c dyn Environment,
    /// Folder at which relative paths begin.
    pub(super) base_dir: &'c Path,
}

/// Size limit of a file with a secret: longer than any key, shorter than a file named by mistake.
const MAX_FILE: u64 = 64 << 10;

impl Context<'_> {
    /// Looks a secret up; `None` after a problem was reported.
    pub(super) fn secret(&mut self, form: &At<SecretForm>) -> Option<Secret> {
        let SecretForm { env, file, value } = &form.value;
        let (kind, text) = self.only_one(
            &form.place,
            [("env", env), ("file", file), ("value", value)],
        )?;
        self.look_up(kind, text)
    }

    /// The one form that is set; `None` after a problem was reported.
    pub(super) fn only_one<'f, const N: usize>(
        &mut self,
        place: &Place,
        forms: [(&'static str, &'f Option<At<Plain>>); N],
    ) -> Option<(&'static str, &'f At<Plain>)> {
        let mut given: Vec<_> = forms
            .iter()
            .filter_map(|(kind, text)| Some((*kind, text.as_ref()?)))
            .collect();
        // WXGATE_ADMIN__KEY__FILE replaces any form that the file has.
        if given.iter().any(|(_, text)| text.is_variable()) {
            given.retain(|(_, text)| text.is_variable());
        }
        if let [one] = given.as_slice() {
            return Some(*one);
        }
        if !self.report.concerns(place) {
            let kinds = forms.map(|(kind, _)| kind);
            let (last, others) = kinds.split_last()?;
            self.report.problem(
                place,
                format!("give exactly one of {} and {last}", others.join(", ")),
            );
        }
        None
    }

    /// Looks up the secret behind `env`, `file` or `value`; `None` after a problem was reported.
    pub(super) fn look_up(&mut self, kind: &str, text: &At<Plain>) -> Option<Secret> {
        let found = match kind {
            "env" => self.variable(&text.value.0),
            "file" => self.file(&text.value.0),
            _ => Ok(text.value.0.clone()),
        };
        if kind == "value" && !text.is_variable() {
            self.report.warning(
                &text.place,
                "the secret stands in the file in plain text; { env = \"NAME\" } or { file = \"path\" } keeps it out",
            );
        }
        let checked = found.and_then(|text| match text {
            empty if empty.trim().is_empty() => Err("the secret is empty".to_owned()),
            odd if odd.contains(char::is_control) => {
                Err("the secret holds a line break or control character".to_owned())
            }
            fine => Ok(Secret::new(fine)),
        });
        checked
            .map_err(|message| self.report.problem(&text.place, message))
            .ok()
    }

    fn variable(&self, name: &str) -> Result<String, String> {
        let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !fits || looks_like_a_secret(name) {
            return Err(
                "expected the name of an environment variable, not the secret itself".to_owned(),
            );
        }
        let value = self.environment.get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| format!("environment variable {name} is not set"))
    }

    fn file(&self, path: &str) -> Result<String, String> {
        if path.is_empty() || path.contains(char::is_control) || looks_like_a_secret(path) {
            return Err("expected the path of a file, not the secret itself".to_owned());
        }
        let path = self.base_dir.join(path);
        let mut text = String::new();
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
        match read {
            Err(error) => Err(format!("cannot read {}: {error}", path.display())),
            Ok(length) if length as u64 > MAX_FILE => {
                Err(format!("{} is too long for a secret", path.display()))
            }
            Ok(_) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
        }
    }
}

impl<T> At<T> {
    fn is_variable(&self) -> bool {
        matches!(self.place.origin, Origin::Variable(_))
    }
}

// An AppSecret is 32 hex digits.
fn looks_like_a_secret(text: &str) -> bool {
    text.len() >= 16 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
