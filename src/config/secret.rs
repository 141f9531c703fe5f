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
    /// AppSecret, copied from WeChat's pages: what editors and pages put around it is removed.
    AppSecret,
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

    /// Looks an AppSecret up, without what a copy may have around it; `None` after a problem was
    /// reported.
    pub(super) fn app_secret(&mut self, form: &At<SecretForm>) -> Option<Secret> {
        self.text(form, TextForm::AppSecret)
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
        let found = match found {
            Ok(found) if text_form == TextForm::AppSecret => Ok(self.cleaned(found, &text.place)),
            other => other,
        };
        let checked = found.and_then(|text| match text {
            empty if empty.trim().is_empty() => Err("the secret is empty".to_owned()),
            odd if matches!(text_form, TextForm::Secret | TextForm::AppSecret)
                && odd.contains(char::is_control) =>
            {
                Err("the secret holds a line break or control character".to_owned())
            }
            fine => Ok(Secret::new(fine)),
        });
        checked
            .map_err(|message| self.report.problem(&text.place, message))
            .ok()
    }

    /// Removes blanks, invisible characters and one pair of quotes around an AppSecret, with a
    /// warning.
    fn cleaned(&mut self, text: String, place: &KeyPlace) -> String {
        let (clean, removed) = clean(&text);
        if removed.is_empty() {
            return text;
        }
        let message = format!(
            "{} around the AppSecret was removed: write the secret alone",
            removed.join(" and ")
        );
        self.report.warning(place, message);
        clean.to_owned()
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

/// Returns the text without what stands around it, and the names of what was removed.
fn clean(text: &str) -> (&str, Vec<&'static str>) {
    const PAIRS: [(char, char); 4] = [
        ('"', '"'),
        ('\'', '\''),
        ('\u{201c}', '\u{201d}'),
        ('\u{2018}', '\u{2019}'),
    ];
    let is_invisible = |c: char| {
        matches!(
            c,
            '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{ad}' | '\u{feff}'
        )
    };
    let around = |c: char| c.is_whitespace() || is_invisible(c);
    let bare = text.trim_matches(around);
    let unquoted = PAIRS
        .into_iter()
        .find_map(|(open, close)| bare.strip_prefix(open)?.strip_suffix(close));
    let inner = unquoted.map_or(bare, |inner| inner.trim_matches(around));
    let mut removed = Vec::new();
    let outside = || {
        let begin = inner.as_ptr().addr() - text.as_ptr().addr();
        let (before, rest) = text.split_at(begin);
        before.chars().chain(rest[inner.len()..].chars())
    };
    if text.starts_with('\u{feff}') {
        removed.push("a byte order mark");
    } else if outside().any(is_invisible) {
        removed.push("an invisible character (such as U+200B)");
    }
    if outside().any(char::is_whitespace) {
        removed.push("a blank");
    }
    if unquoted.is_some() {
        removed.push("a pair of quotes");
    }
    (inner, removed)
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

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn what_a_copy_has_around_it_is_removed_and_named() {
        for (text, inner, removed) in [
            ("abc", "abc", &[][..]),
            ("\u{feff}abc", "abc", &["a byte order mark"]),
            (" abc\t", "abc", &["a blank"]),
            ("abc\u{a0}", "abc", &["a blank"]),
            ("\u{3000}abc", "abc", &["a blank"]),
            (
                "abc\u{200b}",
                "abc",
                &["an invisible character (such as U+200B)"],
            ),
            ("\"abc\"", "abc", &["a pair of quotes"]),
            ("'abc'", "abc", &["a pair of quotes"]),
            ("\u{201c}abc\u{201d}", "abc", &["a pair of quotes"]),
            (
                "\u{feff} \"abc \"",
                "abc",
                &["a byte order mark", "a blank", "a pair of quotes"],
            ),
            ("\"\"abc\"\"", "\"abc\"", &["a pair of quotes"]),
            ("\"abc", "\"abc", &[]),
            ("\"", "\"", &[]),
            ("a b", "a b", &[]),
        ] {
            assert_eq!(clean(text), (inner, removed.to_vec()), "{text:?}");
        }
    }
}
