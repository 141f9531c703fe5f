//! `token = { from = … }`: where another central server keeps an account's token.

use std::collections::BTreeMap;

use crate::{
    config::{problem::Place, raw, read::At, secret::Context},
    token::source::external::{Header, HttpSettings, RedisSettings, Settings},
};

impl Context<'_> {
    /// The place, or nothing when something about it is wrong.
    pub(super) fn elsewhere(&mut self, raw: raw::Elsewhere, place: &Place) -> Option<Settings> {
        let raw::Elsewhere {
            from,
            url,
            key,
            header,
            field,
        } = raw;
        if from.is_none() {
            self.missing(&place.child("from"), "must be set: \"redis\" or \"http\"");
        }
        if url.is_none() {
            self.missing(
                &place.child("url"),
                "must be set: { env = \"NAME\" } or { file = \"path\" }",
            );
        }
        let key = self.not_empty(key);
        let field = self.not_empty(field).map(|at| at.value);
        let url_place = url.as_ref().map(|at| at.place.clone());
        let url = url.and_then(|form| self.secret(&form));
        let fault = |context: &mut Self, message: &str| {
            context
                .report
                .problem(url_place.as_ref().unwrap_or(place), message);
        };
        match from?.value {
            raw::ElsewhereKind::Redis => {
                if let Some(header) = header {
                    self.report
                        .problem(&header.place, "is for from = \"http\" only: remove it");
                }
                if key.is_none() {
                    self.missing(
                        &place.child("key"),
                        "must be set: the key in Redis, such as \"wx:access_token:wx…\"",
                    );
                }
                let (url, key) = (url?, key?.value);
                let settings = RedisSettings::new(url, key, field)
                    .map_err(|message| fault(self, message))
                    .ok()?;
                if settings.is_in_the_clear() {
                    let message =
                        "the token crosses the network in the clear; rediss:// has it encrypted";
                    self.report
                        .warning(url_place.as_ref().unwrap_or(place), message);
                }
                Some(Settings::Redis(settings))
            }
            raw::ElsewhereKind::Http => {
                if let Some(key) = key {
                    self.report
                        .problem(&key.place, "is for from = \"redis\" only: remove it");
                }
                let headers = self.headers(header);
                HttpSettings::new(url?, headers, field)
                    .map(Settings::Http)
                    .map_err(|message| fault(self, message))
                    .ok()
            }
        }
    }

    fn headers(&mut self, raw: Option<At<BTreeMap<String, At<raw::SecretForm>>>>) -> Vec<Header> {
        let mut headers = Vec::new();
        for (name, form) in raw.into_iter().flat_map(|at| at.value) {
            let Some(value) = self.secret(&form) else {
                continue;
            };
            match Header::new(&name, value) {
                Ok(header) => headers.push(header),
                Err(message) => self.report.problem(&form.place, message),
            }
        }
        headers
    }

    fn not_empty(&mut self, text: Option<At<String>>) -> Option<At<String>> {
        if let Some(at) = text.as_ref().filter(|at| at.value.is_empty()) {
            self.report.problem(&at.place, "must not be empty");
        }
        text
    }
}
