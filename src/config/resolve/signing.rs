//! `signing` of an `[[account]]`: keys and certificates of API signing.
//!
//! Each key is checked by itself, so that all problems are told at once and each at its place.

use std::{collections::HashMap, sync::Arc};

use crate::{
    base::{AccountName, Secret},
    config::{problem::KeyPlace, raw, read::At, secret::ConfigResolver},
    proxy::settings::{PathPattern, SigningSettings},
    wechat::signing::{self, KeyTexts, SigningKeyError, SigningKeys},
};

const CONSOLE: &str = "at WeChat under 开发管理, 开发设置, API 安全";
/// Length limit of a serial number; those of the console have 32 hex digits.
const MAX_SERIAL: usize = 64;

impl ConfigResolver<'_> {
    /// Resolves API signing of all accounts that have it.
    pub(super) fn signing(
        &mut self,
        accounts: Option<&At<Vec<At<raw::Account>>>>,
    ) -> HashMap<AccountName, SigningSettings> {
        let mut found = HashMap::new();
        for At { value: account, .. } in accounts.into_iter().flat_map(|at| &at.value) {
            let Some(raw) = &account.signing else {
                continue;
            };
            let platform = account.platform.as_ref().map(|platform| platform.value);
            if platform == Some(raw::Platform::Wecom) {
                self.report.problem(
                    &raw.place,
                    "is for wechat only, since wecom has no API signing: remove the key",
                );
                continue;
            }
            // The keys are checked even if the account is wrong otherwise.
            let appid = account.appid.as_ref().map_or("", |appid| &appid.value.0);
            let settings = self.account_signing(raw, appid);
            if let (Some(name), Some(settings)) = (&account.name, settings) {
                found.insert(name.value.clone(), settings);
            }
        }
        found
    }

    fn account_signing(
        &mut self,
        At { value: raw, place }: &At<raw::Signing>,
        appid: &str,
    ) -> Option<SigningSettings> {
        let key = self.signing_key(raw, place);
        let aes_key = self.symmetric_key(raw, place);
        // `Err` for a number that is wrong, as opposed to none.
        let serial = raw
            .serial
            .as_ref()
            .map(|serial| self.serial(serial).ok_or(()))
            .transpose();
        let aes_serial = match &raw.aes_serial {
            Some(serial) => self.serial(serial),
            None => {
                let message = format!("must be set: the number of the symmetric key {CONSOLE}");
                self.missing(&place.child("aes_serial"), &message);
                None
            }
        };
        let certs = self.platform_certs(raw, place);
        let paths = self.signed_paths(raw, place);
        let (key, aes_key, aes_serial, certs) = (key?, aes_key?, aes_serial?, certs?);
        let texts = KeyTexts {
            private_key: key.expose().as_bytes(),
            aes_key: aes_key.expose(),
            aes_serial: &aes_serial,
            platform_certs: &certs,
        };
        let keys = SigningKeys::new(appid, texts);
        Some(SigningSettings {
            keys: Arc::new(self.usable(place, keys)?),
            serial: serial.ok()?,
            aes_serial,
            paths: paths?,
        })
    }

    fn signing_key(&mut self, raw: &raw::Signing, place: &KeyPlace) -> Option<Secret> {
        let Some(form) = &raw.key else {
            let message = format!("must be set: the private key, whose public key is {CONSOLE}");
            self.missing(&place.child("key"), &message);
            return None;
        };
        let key = self.private_key(form)?;
        let checked = signing::check_private_key(key.expose().as_bytes());
        self.usable(&form.place, checked).map(|()| key)
    }

    fn symmetric_key(&mut self, raw: &raw::Signing, place: &KeyPlace) -> Option<Secret> {
        let Some(form) = &raw.aes_key else {
            let message = format!("must be set: the symmetric key, in base64, {CONSOLE}");
            self.missing(&place.child("aes_key"), &message);
            return None;
        };
        let key = self.secret(form)?;
        let checked = signing::check_aes_key(key.expose());
        self.usable(&form.place, checked).map(|()| key)
    }

    fn platform_certs(
        &mut self,
        raw: &raw::Signing,
        place: &KeyPlace,
    ) -> Option<Vec<(String, Vec<u8>)>> {
        let Some(certs) = &raw.platform_certs else {
            let message = format!(
                "must be set: the platform certificate (平台证书) and its number, {CONSOLE}"
            );
            self.missing(&place.child("platform_certs"), &message);
            return None;
        };
        if !matches!(certs.value.len(), 1 | 2) {
            let error = SigningKeyError::Certificates;
            self.report.problem(&certs.place, error.to_string());
        }
        let mut serials: Vec<String> = Vec::new();
        let mut found = Vec::new();
        for At { value: raw, place } in &certs.value {
            let serial = self.cert_serial(raw, place);
            let cert = self.platform_cert(raw, place);
            if let (Some(serial), Some(at)) = (&serial, &raw.serial) {
                if serials
                    .iter()
                    .any(|other| other.eq_ignore_ascii_case(serial))
                {
                    let message = "is the number of the other certificate too: each has its own";
                    self.report.problem(&at.place, message);
                }
                serials.push(serial.clone());
            }
            found.extend(serial.zip(cert));
        }
        // A wrong certificate is a problem already; the others alone would not be what was meant.
        (found.len() == certs.value.len()).then_some(found)
    }

    fn cert_serial(&mut self, raw: &raw::PlatformCert, place: &KeyPlace) -> Option<String> {
        let Some(serial) = &raw.serial else {
            let message = format!(
                "must be set: the number of the certificate {CONSOLE}, not that inside of it"
            );
            self.missing(&place.child("serial"), &message);
            return None;
        };
        self.serial(serial)
    }

    fn platform_cert(&mut self, raw: &raw::PlatformCert, place: &KeyPlace) -> Option<Vec<u8>> {
        let Some(form) = &raw.cert else {
            let message = "must be set: { file = \"path\" } or { env = \"NAME\" }";
            self.missing(&place.child("cert"), message);
            return None;
        };
        let cert = self.certificate(form)?;
        let pem = cert.expose().as_bytes();
        let checked = signing::check_platform_cert(pem);
        self.usable(&form.place, checked).map(|()| pem.to_vec())
    }

    /// Checks a serial number, which is compared byte for byte.
    fn serial(&mut self, serial: &At<String>) -> Option<String> {
        let text = serial.value.trim();
        let fits = (1..=MAX_SERIAL).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !fits {
            let message = format!("expected the number of the key {CONSOLE}: letters and digits");
            self.report.problem(&serial.place, message);
        }
        fits.then(|| text.to_owned())
    }

    fn signed_paths(&mut self, raw: &raw::Signing, place: &KeyPlace) -> Option<Vec<PathPattern>> {
        let message = "must name the paths to sign, such as \"/cgi-bin/express/intracity/**\"";
        let Some(paths) = &raw.paths else {
            self.missing(&place.child("paths"), message);
            return None;
        };
        if paths.value.is_empty() {
            self.report.problem(&paths.place, message);
        }
        Some(paths.value.iter().map(|at| at.value.clone()).collect())
    }
}
