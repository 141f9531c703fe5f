//! The bytes of a stored record: JSON with a format number and a checksum, of which no byte may differ.
//!
//! Pure. Whatever is not exactly what [`encode`] makes is refused; nothing is repaired.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::record::{Identity, Record, Refusal, StoredToken};
use crate::{
    base::Secret,
    token::{Generation, Kind, budget::Budget},
};

/// Why stored bytes are not used. Says nothing of what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("it was written by another version of wxgate")]
    Version,
    #[error("it is truncated, was changed, or is no record of wxgate")]
    Content,
}

const HEAD: &[u8] = br#"{"format":1,"sha256":""#;
const MIDDLE: &[u8] = br#"","record":"#;
const TAIL: &[u8] = b"}\n";
const ANY_VERSION: &[u8] = br#"{"format":"#;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form<'r> {
    #[serde(borrow)]
    appid: Cow<'r, str>,
    kind: &'r str,
    secret: &'r str,
    generation: u64,
    #[serde(borrow)]
    token: Option<TokenForm<'r>>,
    budget: Budget,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenForm<'r> {
    #[serde(borrow)]
    value: Cow<'r, str>,
    fetched_ms: u64,
    expires_ms: u64,
}

/// The record as bytes. One of the few places that reveal a token: it goes into the file and nowhere else.
pub(super) fn encode(record: &Record) -> Vec<u8> {
    let form = Form {
        appid: record.identity.appid.as_str().into(),
        kind: record.identity.kind.as_str(),
        secret: &record.identity.secret_fingerprint,
        generation: record.generation.0,
        token: record.token.as_ref().map(|token| TokenForm {
            value: token.value.expose().into(),
            fetched_ms: token.fetched_ms,
            expires_ms: token.expires_ms,
        }),
        budget: record.budget,
        refusal: record.refusal,
    };
    // Plain strings and numbers always have a JSON form.
    let body = serde_json::to_vec(&form).unwrap_or_default();
    [HEAD, checksum(&body).as_bytes(), MIDDLE, &body, TAIL].concat()
}

/// The record that [`encode`] made these bytes of.
pub(super) fn decode(bytes: &[u8]) -> Result<Record, Damage> {
    let other = if bytes.starts_with(ANY_VERSION) && !bytes.starts_with(b"{\"format\":1,") {
        Damage::Version
    } else {
        Damage::Content
    };
    let rest = bytes.strip_prefix(HEAD).ok_or(other)?;
    let (sum, rest) = rest.split_at_checked(64).ok_or(Damage::Content)?;
    let body = rest.strip_prefix(MIDDLE).and_then(|rest| rest.strip_suffix(TAIL)).ok_or(Damage::Content)?;
    if checksum(body).as_bytes() != sum {
        return Err(Damage::Content);
    }
    let form: Form<'_> = serde_json::from_slice(body).map_err(|_| Damage::Content)?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == form.kind).ok_or(Damage::Content)?;
    Ok(Record {
        identity: Identity { appid: form.appid.into(), kind, secret_fingerprint: form.secret.into() },
        generation: Generation(form.generation),
        token: form.token.map(|token| StoredToken {
            value: Secret::new(token.value),
            fetched_ms: token.fetched_ms,
            expires_ms: token.expires_ms,
        }),
        budget: form.budget,
        refusal: form.refusal,
    })
}

fn checksum(body: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::sample, *};

    #[test]
    fn what_is_encoded_reads_back_and_is_json() {
        for token in [None, Some("81_abc-DEF"), Some("a\"b\\c é")] {
            let record = sample(9, token);
            let bytes = encode(&record);
            assert_eq!(decode(&bytes), Ok(record));
            assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = encode(&sample(9, Some("81_abc")));
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn every_changed_bit_is_refused() {
        let bytes = encode(&sample(9, Some("81_abc")));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(decode(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
        assert!(decode(&[&bytes[..], b" "].concat()).is_err(), "something appended");
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        assert_eq!(decode(br#"{"format":2,"record":{}}"#), Err(Damage::Version));
        assert_eq!(decode(b"hello"), Err(Damage::Content));
    }
}
