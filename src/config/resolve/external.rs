//! `token = { from = … }`: tokens that another central server keeps.

use std::collections::BTreeMap;

use crate::{
    config::{problem::KeyPlace, raw, read::At, secret::ConfigResolver},
    token::source::external::{
        ExternalHttpSettings, ExternalRedisSettings, ExternalSettings, Header,
    },
};

impl ConfigResolver<'_> {
    /// Resolves the settings of the other server; `None` after a problem was reported.
    pub(super) fn external_token(
        &mut self,
        raw: raw::ExternalToken,
        place: &KeyPlace,
    ) -> Option<ExternalSettings> {
        let raw::ExternalToken {
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
        let url_place = url.as_ref().map_or(place, |at| &at.place).clone();
        let url = url.and_then(|form| self.secret(&form));
        // Keys of the other kind of server are problems: the operator may have meant that one.
        match from?.value {
            raw::ExternalKind::Redis => {
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
                let settings = ExternalRedisSettings::new(url?, key?.value, field);
                let settings = self.usable(&url_place, settings)?;
                if settings.is_in_the_clear() {
                    let message =
                        "the token crosses the network in the clear; rediss:// has it encrypted";
                    self.report.warning(&url_place, message);
                }
                Some(ExternalSettings::Redis(settings))
            }
            raw::ExternalKind::Http => {
                if let Some(key) = key {
                    self.report
                        .problem(&key.place, "is for from = \"redis\" only: remove it");
                }
                let headers = self.headers(header);
                let settings = ExternalHttpSettings::new(url?, headers, field);
                self.usable(&url_place, settings)
                    .map(ExternalSettings::Http)
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
                Err(error) => self.report.problem(&form.place, error.to_string()),
            }
        }
        headers
    }

    /// Reports an empty text.
    fn not_empty(&mut self, text: Option<At<String>>) -> Option<At<String>> {
        if let Some(at) = text.as_ref().filter(|at| at.value.is_empty()) {
            self.report.problem(&at.place, "must not be empty");
        }
        text
    }
}
