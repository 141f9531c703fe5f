//! Look-up of secrets: `{ env = "NAME" }`, `{ file = "path" }` or `{ value = "…" }`.
//!
//! A secret that cannot be found is a problem. No message holds the value, not even if an operator
//! wrote the secret instead of a name or path.

use std::{io::Read as _, path::Path};

use super::{
    environment::Environment,
    leaf::Plain,
    problem::{KeyPlace, Report, ValueOrigin},
    raw::SecretForm,
    read::At,
};
use crate::base::Secret;

/// Context of resolving: the report, the environment, and the folder of the file.
pub(super) struct ConfigResolver<'c> {
    pub(super) report: &'c mut Report,
    pub(super) environment: &'c dyn Environment,
    /// Folder at which relative paths begin.
    pub(super) base_dir: &'c Path,
}

/// Form of a looked-up text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextForm {
    /// Secret in one line.
    Secret,
    /// Private key in PEM, which has several lines.
    PrivateKey,
    /// Certificate in PEM, which is public.
    Certificate,
}

/// Size limit of a file with a secret. A longer file is named by mistake.
const MAX_SECRET_FILE: u64 = 64 << 10;

impl ConfigResolver<'_> {
    /// Looks a secret up; `None` after a problem was reported.
    pub(super) fn secret(&mut self, form: &At<SecretForm>) -> Option<Secret> {
        self.text(form, TextForm::Secret)
    }

    /// Looks up a private key in PEM; `None` after a problem was reported.
    pub(super) fn private_key(&mut self, form: &At<SecretForm>) -> Option<Secret> {
        self.text(form, TextForm::PrivateKey)
    }

    /// Looks up a certificate in PEM; `None` after a problem was reported.
    pub(super) fn certificate(&mut self, form: &At<SecretForm>) -> Option<Secret> {
        self.text(form, TextForm::Certificate)
    }

    fn text(&mut self, form: &At<SecretForm>, text_form: TextForm) -> Option<Secret> {
        let SecretForm { env, file, value } = &form.value;
        let (kind, text) = self.only_one(
            &form.place,
            [("env", env), ("file", file), ("value", value)],
        )?;
        self.look_up_as(kind, text, text_form)
    }

    /// Returns the form that is set; `None` after a problem was reported.
    pub(super) fn only_one<'f, const N: usize>(
        &mut self,
        place: &KeyPlace,
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
        self.look_up_as(kind, text, TextForm::Secret)
    }

    fn look_up_as(&mut self, kind: &str, text: &At<Plain>, text_form: TextForm) -> Option<Secret> {
        let found = match kind {
            "env" => self.variable(&text.value.0),
            "file" => self.file(&text.value.0),
            _ => Ok(text.value.0.clone()),
        };
        if kind == "value" && !text.is_variable() && text_form != TextForm::Certificate {
            self.report.warning(
                &text.place,
                "the secret stands in the file in plain text; { env = \"NAME\" } or { file = \"path\" } keeps it out",
            );
        }
        let checked = found.and_then(|text| match text {
            empty if empty.trim().is_empty() => Err("the secret is empty".to_owned()),
            odd if text_form == TextForm::Secret && odd.contains(char::is_control) => {
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
        // An empty variable is most likely a mistake in a shell or unit file.
        let value = self.environment.get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| format!("environment variable {name} is not set"))
    }

    fn file(&self, path: &str) -> Result<String, String> {
        if path.is_empty() || path.contains(char::is_control) || looks_like_a_secret(path) {
            return Err("expected the path of a file, not the secret itself".to_owned());
        }
        let path = self.base_dir.join(path);
        let mut text = String::new();
        // One byte more than the limit tells a longer file from one of exactly this size.
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_SECRET_FILE + 1).read_to_string(&mut text));
        match read {
            Err(error) => Err(format!("cannot read {}: {error}", path.display())),
            Ok(length) if length as u64 > MAX_SECRET_FILE => {
                Err(format!("{} is too long for a secret", path.display()))
            }
            // Editors and `echo` add a line break, which is not part of the secret.
            Ok(_) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
        }
    }
}

impl<T> At<T> {
    fn is_variable(&self) -> bool {
        matches!(self.place.origin, ValueOrigin::Variable(_))
    }
}

/// True for text that looks like an AppSecret, which has 32 hex digits, or like a part of one.
fn looks_like_a_secret(text: &str) -> bool {
    text.len() >= 16 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
