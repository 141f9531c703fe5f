//! The bytes of a stored record: JSON with a format number and a checksum, of which no byte may
//! differ.
//!
//! Pure. Format 1 holds the token as it is; format 2 holds it sealed and bound to everything that
//! stands beside it and to its place. Bytes that [`Codec::encode`] would not make exactly so are
//! refused; nothing is repaired.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{
    RecordKey,
    record::{AccountIdentity, StoredRefusal, StoredToken, TokenRecord},
    seal::{self, Keyring, Locked},
};
use crate::{
    base::Secret,
    token::{Generation, ProviderKind, budget::DailyBudget},
};

/// Encoder and decoder of records, for every store that outlives the process.
#[derive(Debug, Clone, Default)]
pub(super) struct Codec {
    keys: Option<Keyring>,
}

/// Record read from bytes.
#[derive(Debug, PartialEq)]
pub(super) struct Decoded {
    pub(super) record: TokenRecord,
    /// The record would be written in another form now: its token is in plain text although there
    /// is a key, or another key than the first one sealed it.
    pub(super) outdated: bool,
}

/// Reason why stored bytes are not used. Repeats nothing of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("it was written by another version of wxgate")]
    Version,
    #[error("it is truncated, was changed, or is no record of wxgate")]
    Content,
    #[error("{0}")]
    Sealed(#[from] Locked),
}

const HEAD: &[u8] = br#"{"format":1,"sha256":""#;
const SEALED_HEAD: &[u8] = br#"{"format":2,"sha256":""#;
const SEAL: &[u8] = br#"","sealed":""#;
const MIDDLE: &[u8] = br#"","record":"#;
const TAIL: &[u8] = b"}\n";
const ANY_VERSION: &[u8] = br#"{"format":"#;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordJson<'r> {
    #[serde(borrow)]
    appid: Cow<'r, str>,
    kind: &'r str,
    secret: &'r str,
    generation: u64,
    #[serde(borrow)]
    token: Option<TokenJson<'r>>,
    budget: DailyBudget,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refusal: Option<StoredRefusal>,
    #[serde(default, skip_serializing_if = "is_zero")]
    asked_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenJson<'r> {
    /// Missing where it is sealed.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'r, str>>,
    fetched_ms: u64,
    expires_ms: u64,
}

impl Codec {
    /// With keys, tokens are sealed.
    pub(super) fn new(keys: Option<Keyring>) -> Self {
        Self { keys }
    }

    /// The record as bytes. One of the few places that reveal a token: it goes into the store and
    /// nowhere else.
    pub(super) fn encode(&self, key: &RecordKey, record: &TokenRecord) -> Vec<u8> {
        let (Some(keys), Some(token)) = (&self.keys, &record.token) else {
            return plain(&RecordJson::of(record, true));
        };
        let body = json(&RecordJson::of(record, false));
        let Some(sealed) = keys.seal(token.value.expose(), &bound(key, &body)) else {
            // Better a record without its token than one that shows it.
            return plain(&RecordJson {
                token: None,
                ..RecordJson::of(record, false)
            });
        };
        let covered = [sealed.as_bytes(), MIDDLE, &body].concat();
        [
            SEALED_HEAD,
            checksum(&covered).as_bytes(),
            SEAL,
            &covered,
            TAIL,
        ]
        .concat()
    }

    /// The record that [`Codec::encode`] made these bytes of, for the same key.
    pub(super) fn decode(&self, key: &RecordKey, bytes: &[u8]) -> Result<Decoded, Damage> {
        if let Some(rest) = bytes.strip_prefix(HEAD) {
            let mut form = RecordJson::read(covered(rest, MIDDLE)?)?;
            let value = form
                .token
                .as_mut()
                .map(|token| token.value.take().ok_or(Damage::Content))
                .transpose()?;
            let outdated = value.is_some() && self.keys.is_some();
            return Ok(Decoded {
                record: form.into_record(value.map(Secret::new))?,
                outdated,
            });
        }
        let rest = bytes
            .strip_prefix(SEALED_HEAD)
            .ok_or_else(|| other_format(bytes))?;
        let (sealed, body) = parts(covered(rest, SEAL)?).ok_or(Damage::Content)?;
        let form = RecordJson::read(body)?;
        if form
            .token
            .as_ref()
            .is_none_or(|token| token.value.is_some())
        {
            return Err(Damage::Content);
        }
        let keys = self.keys.as_ref().ok_or_else(|| seal::refused(sealed))?;
        let (value, by_first) = keys.open(sealed, &bound(key, body))?;
        Ok(Decoded {
            record: form.into_record(Some(value))?,
            outdated: !by_first,
        })
    }
}

/// Context that a sealed token is bound to: the format, the key of the record, and all its other
/// members.
fn bound(key: &RecordKey, body: &[u8]) -> Vec<u8> {
    [b"wxgate record 2 ", key.to_string().as_bytes(), b" ", body].concat()
}

fn plain(form: &RecordJson<'_>) -> Vec<u8> {
    let body = json(form);
    [HEAD, checksum(&body).as_bytes(), MIDDLE, &body, TAIL].concat()
}

fn json(form: &RecordJson<'_>) -> Vec<u8> {
    // Plain strings and numbers always have a JSON form.
    serde_json::to_vec(form).unwrap_or_default()
}

/// Bytes covered by the checksum at the start, which must fit; `before` parts the two.
fn covered<'b>(bytes: &'b [u8], before: &[u8]) -> Result<&'b [u8], Damage> {
    let (sum, rest) = bytes.split_at_checked(64).ok_or(Damage::Content)?;
    let rest = rest
        .strip_prefix(before)
        .and_then(|rest| rest.strip_suffix(TAIL))
        .ok_or(Damage::Content)?;
    if checksum(rest).as_bytes() == sum {
        Ok(rest)
    } else {
        Err(Damage::Content)
    }
}

fn parts(covered: &[u8]) -> Option<(&str, &[u8])> {
    let (sealed, rest) = covered.split_at(covered.iter().position(|byte| *byte == b'"')?);
    Some((
        std::str::from_utf8(sealed).ok()?,
        rest.strip_prefix(MIDDLE)?,
    ))
}

fn other_format(bytes: &[u8]) -> Damage {
    let number = bytes
        .strip_prefix(ANY_VERSION)
        .and_then(|rest| rest.split(|byte| *byte == b',').next());
    if number.is_some_and(|number| number != b"1" && number != b"2") {
        Damage::Version
    } else {
        Damage::Content
    }
}

impl<'r> RecordJson<'r> {
    fn of(record: &'r TokenRecord, with_value: bool) -> Self {
        Self {
            appid: record.identity.appid.as_str().into(),
            kind: record.identity.kind.as_str(),
            secret: &record.identity.secret_fingerprint,
            generation: record.generation.0,
            token: record.token.as_ref().map(|token| TokenJson {
                value: with_value.then(|| token.value.expose().into()),
                fetched_ms: token.fetched_ms,
                expires_ms: token.expires_ms,
            }),
            budget: record.budget,
            refusal: record.refusal,
            asked_ms: record.asked_ms,
        }
    }

    fn read(body: &'r [u8]) -> Result<Self, Damage> {
        serde_json::from_slice(body).map_err(|_| Damage::Content)
    }

    fn into_record(self, value: Option<Secret>) -> Result<TokenRecord, Damage> {
        let kind = ProviderKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == self.kind)
            .ok_or(Damage::Content)?;
        let token = self.token.zip(value).map(|(token, value)| StoredToken {
            value,
            fetched_ms: token.fetched_ms,
            expires_ms: token.expires_ms,
        });
        Ok(TokenRecord {
            identity: AccountIdentity {
                appid: self.appid.into(),
                kind,
                secret_fingerprint: self.secret.into(),
            },
            generation: Generation(self.generation),
            token,
            budget: self.budget,
            refusal: self.refusal,
            asked_ms: self.asked_ms,
        })
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn checksum(body: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
    digest
        .as_ref()
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::{
            record::tests::sample,
            seal::tests::{KEY, OTHER, ring},
        },
        *,
    };
    use crate::{base::AccountName, token::store::CredentialType, wechat::ticket::TicketType};

    /// Record of version 0.1, which every later version must read.
    const OLD: &str = include_str!("../../../tests/data/store/format-1.json");
    /// Record of version 0.1, sealed with [`KEY`] by another implementation of AES-256-GCM.
    const SEALED: &str = include_str!("../../../tests/data/store/format-2.json");

    fn shop() -> RecordKey {
        RecordKey::token(&AccountName::new("shop").unwrap())
    }

    fn sealing(keys: &str) -> Codec {
        Codec::new(Some(ring(keys)))
    }

    /// Record with a checksum that fits, as an attacker without the key can make.
    fn mended(bytes: &[u8]) -> Vec<u8> {
        let start = SEALED_HEAD.len() + 64 + SEAL.len();
        let covered = &bytes[start..bytes.len() - TAIL.len()];
        [
            SEALED_HEAD,
            checksum(covered).as_bytes(),
            SEAL,
            covered,
            TAIL,
        ]
        .concat()
    }

    fn replaced(bytes: &[u8], old: &str, new: &str) -> Vec<u8> {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.contains(old), "{text}");
        mended(text.replacen(old, new, 1).as_bytes())
    }

    #[test]
    fn what_is_encoded_reads_back_and_is_json() {
        for codec in [Codec::default(), sealing(KEY)] {
            for token in [None, Some("81_abc-DEF"), Some("a\"b\\c é"), Some("")] {
                let record = sample(9, token);
                let bytes = codec.encode(&shop(), &record);
                assert_eq!(
                    codec.decode(&shop(), &bytes),
                    Ok(Decoded {
                        record,
                        outdated: false
                    })
                );
                assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
            }
        }
    }

    #[test]
    fn only_the_token_is_sealed() {
        let record = sample(9, Some("81_abc-DEF"));
        let text = |codec: Codec| String::from_utf8(codec.encode(&shop(), &record)).unwrap();
        assert!(text(Codec::default()).contains("81_abc-DEF"));
        let sealed = text(sealing(KEY));
        assert!(
            !sealed.contains("81_abc-DEF") && !sealed.contains("value"),
            "{sealed}"
        );
        for part in [
            "\"generation\":9",
            "wx0123456789abcdef",
            "\"expires_ms\":17200000",
            "\"budget\"",
        ] {
            assert!(sealed.contains(part), "{part} is not in {sealed}");
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for codec in [Codec::default(), sealing(KEY)] {
            let bytes = codec.encode(&shop(), &sample(9, Some("81_abc")));
            for end in 0..bytes.len() {
                assert!(
                    codec.decode(&shop(), &bytes[..end]).is_err(),
                    "cut at {end}"
                );
            }
        }
    }

    #[test]
    fn every_changed_bit_is_refused() {
        for codec in [Codec::default(), sealing(KEY)] {
            let bytes = codec.encode(&shop(), &sample(9, Some("81_abc")));
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << bit;
                    assert!(
                        codec.decode(&shop(), &changed).is_err(),
                        "bit {bit} of byte {at}"
                    );
                }
            }
            assert!(
                codec.decode(&shop(), &[&bytes[..], b" "].concat()).is_err(),
                "something appended"
            );
        }
    }

    /// An attacker can compute the checksum of a changed record, but not its seal.
    #[test]
    fn every_changed_bit_of_a_sealed_record_is_refused_with_a_checksum_that_fits() {
        let codec = sealing(KEY);
        let bytes = codec.encode(&shop(), &sample(9, Some("81_abc")));
        let start = SEALED_HEAD.len() + 64 + SEAL.len();
        for at in start..bytes.len() - TAIL.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(
                    codec.decode(&shop(), &mended(&changed)).is_err(),
                    "bit {bit} of byte {at}"
                );
            }
        }
        assert_eq!(
            codec.decode(&shop(), &mended(&bytes)).unwrap().record,
            sample(9, Some("81_abc")),
            "nothing changed"
        );
    }

    #[test]
    fn what_is_said_of_a_sealed_token_cannot_be_changed() {
        let codec = sealing(KEY);
        let bytes = codec.encode(&shop(), &sample(9, Some("81_abc")));
        for (old, new) in [
            ("\"generation\":9", "\"generation\":10"),
            ("17200000", "99200000"),
            ("10000000", "10000001"),
            ("wx0123456789abcdef", "wx0123456789abcdee"),
            ("stable", "classic"),
            ("ba7816bf", "00000000"),
            ("\"forced\":0", "\"forced\":1"),
        ] {
            let refused = codec.decode(&shop(), &replaced(&bytes, old, new));
            assert_eq!(refused, Err(Damage::Sealed(Locked::Forged)), "{new}");
        }
    }

    #[test]
    fn a_sealed_record_is_good_in_its_own_place_only() {
        let codec = sealing(KEY);
        let record = sample(9, Some("81_abc"));
        let account = |name| AccountName::new(name).unwrap();
        let ticket = RecordKey {
            account: account("shop"),
            credential: CredentialType::Ticket(TicketType::Jsapi),
        };
        let places = [shop(), RecordKey::token(&account("mall")), ticket];
        for from in &places {
            let bytes = codec.encode(from, &record);
            for to in &places {
                let read = codec.decode(to, &bytes);
                assert_eq!(read.is_ok(), from == to, "from {from} to {to}");
                assert!(from == to || read == Err(Damage::Sealed(Locked::Forged)));
            }
        }
        // The seal of one generation in the record of another.
        let [nine, ten] = [9, 10].map(|n| codec.encode(&shop(), &sample(n, Some("81_abc"))));
        let sealed = |bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            text.split('"')
                .nth(9)
                .map(str::to_owned)
                .filter(|part| part.contains(':'))
                .unwrap_or_else(|| panic!("{text}"))
        };
        let swapped = replaced(&ten, &sealed(&ten), &sealed(&nine));
        assert_eq!(
            codec.decode(&shop(), &swapped),
            Err(Damage::Sealed(Locked::Forged))
        );
    }

    #[test]
    fn records_in_an_older_form_are_read_and_called_outdated() {
        let record = sample(9, Some("81_abc"));
        let read = |codec: &Codec, by: Codec| {
            codec
                .decode(&shop(), &by.encode(&shop(), &record))
                .map(|read| read.outdated)
        };
        let rotating = sealing(&format!("{KEY},{OTHER}"));
        assert_eq!(read(&rotating, Codec::default()), Ok(true), "plain");
        assert_eq!(read(&rotating, sealing(OTHER)), Ok(true), "an older key");
        assert_eq!(read(&rotating, sealing(KEY)), Ok(false));
        assert_eq!(read(&Codec::default(), Codec::default()), Ok(false));
        assert!(matches!(
            read(&sealing(OTHER), sealing(KEY)),
            Err(Damage::Sealed(Locked::OtherKey(_)))
        ));
        assert!(matches!(
            read(&Codec::default(), sealing(KEY)),
            Err(Damage::Sealed(Locked::NoKey(_)))
        ));
        let without = Codec::default().encode(&shop(), &sample(9, None));
        assert!(
            !rotating.decode(&shop(), &without).unwrap().outdated,
            "there is nothing to seal"
        );
    }

    #[test]
    fn records_of_earlier_versions_are_read_for_ever() {
        let record = sample(9, Some("81_abc-DEF"));
        for codec in [Codec::default(), sealing(KEY)] {
            assert_eq!(
                codec.decode(&shop(), OLD.as_bytes()).unwrap().record,
                record
            );
        }
        assert_eq!(
            sealing(KEY).decode(&shop(), SEALED.as_bytes()),
            Ok(Decoded {
                record,
                outdated: false
            })
        );
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let read = |bytes: &[u8]| sealing(KEY).decode(&shop(), bytes);
        assert_eq!(read(br#"{"format":3,"record":{}}"#), Err(Damage::Version));
        assert_eq!(read(br#"{"format":12,"sha256":"#), Err(Damage::Version));
        for damaged in [
            &b"hello"[..],
            br#"{"format":1,"sha"#,
            br#"{"format":2,"sha"#,
            b"",
        ] {
            assert_eq!(read(damaged), Err(Damage::Content));
        }
    }
}
