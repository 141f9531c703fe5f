//! Facts of a certificate that an operator looks for: issuer, names, begin and end.
//!
//! Reads no more of X.509 than that, and judges nothing: verification is rustls's.

use std::time::SystemTime;

/// Facts of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFacts {
    /// Common name of the issuer, or its organization.
    pub(crate) issuer: String,
    pub(crate) begin: SystemTime,
    pub(crate) end: SystemTime,
    /// DNS names that it is valid for.
    pub(crate) names: Vec<String>,
}

/// Element of DER: tag and content.
struct Element<'d> {
    tag: u8,
    content: &'d [u8],
}

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Tag of the version, which stands before the serial number in all but certificates of version 1.
const VERSION: u8 = 0xa0;
/// `id-at-commonName` and `id-at-organizationName`.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
/// Longest text that is shown of an issuer.
const MAX_SHOWN: usize = 64;

impl CertificateFacts {
    /// Facts of a certificate in DER; `None` for bytes that are none.
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        let (certificate, _) = Element::read(der)?;
        let (body, _) = Element::read(certificate.inside(SEQUENCE)?)?;
        let mut rest = body.inside(SEQUENCE)?;
        let (first, after) = Element::read(rest)?;
        if first.tag == VERSION {
            rest = after;
        }
        let (_serial, rest) = Element::read(rest)?;
        let (_algorithm, rest) = Element::read(rest)?;
        let (issuer, rest) = Element::read(rest)?;
        let (validity, _) = Element::read(rest)?;
        let (begin, end) = Element::read(validity.inside(SEQUENCE)?)?;
        let (end, _) = Element::read(end)?;
        let names = webpki::EndEntityCert::try_from(&der.into()).map_or_else(
            |_| Vec::new(),
            |certificate| certificate.valid_dns_names().map(str::to_owned).collect(),
        );
        Some(Self {
            issuer: name(issuer.inside(SEQUENCE)?),
            begin: begin.time()?,
            end: end.time()?,
            names,
        })
    }
}

impl<'d> Element<'d> {
    /// Reads the first element and returns it with what follows.
    fn read(bytes: &'d [u8]) -> Option<(Self, &'d [u8])> {
        let (&tag, rest) = bytes.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.len() > 4 {
                return None;
            }
            let length = digits
                .iter()
                .fold(0_usize, |length, digit| length << 8 | usize::from(*digit));
            (length, rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        Some((Self { tag, content }, rest))
    }

    fn inside(&self, tag: u8) -> Option<&'d [u8]> {
        (self.tag == tag).then_some(self.content)
    }

    /// Reads a time in the forms that certificates may have, both in UTC to the second.
    fn time(&self) -> Option<SystemTime> {
        let text = std::str::from_utf8(self.content).ok()?;
        let text = match self.tag {
            // Years from 50 on are of the last century.
            UTC_TIME if text.as_bytes().first()? >= &b'5' => format!("19{text}"),
            UTC_TIME => format!("20{text}"),
            GENERALIZED_TIME => text.to_owned(),
            _ => return None,
        };
        let digits = text.strip_suffix('Z')?;
        if digits.len() != 14 || !digits.is_ascii() {
            return None;
        }
        let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
        humantime::parse_rfc3339(&format!(
            "{}-{}-{}T{}:{}:{}Z",
            part(0, 4),
            part(4, 6),
            part(6, 8),
            part(8, 10),
            part(10, 12),
            part(12, 14)
        ))
        .ok()
    }
}

/// Common name, or else the organization, of a distinguished name.
fn name(mut sets: &[u8]) -> String {
    let mut organization = None;
    while let Some((set, rest)) = Element::read(sets) {
        sets = rest;
        let Some((pair, _)) = Element::read(set.content) else {
            continue;
        };
        let Some((key, value)) = Element::read(pair.content) else {
            continue;
        };
        let Some((value, _)) = Element::read(value) else {
            continue;
        };
        match key.inside(OBJECT_ID) {
            Some(COMMON_NAME) => return shown(value.content),
            Some(ORGANIZATION) => organization = Some(shown(value.content)),
            _ => {}
        }
    }
    organization.unwrap_or_else(|| "an issuer without a name".to_owned())
}

/// Text of a certificate in a form that fits into a line: whoever made the certificate chose it.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_SHOWN)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn certificate(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Vec<u8> {
        let mut params =
            rcgen::CertificateParams::new(vec!["api.weixin.qq.com".to_owned()]).unwrap();
        change(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn issuer_names_and_times_are_read() {
        let facts = CertificateFacts::of(&certificate(|params| {
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, "Corp\nRoot");
            params.not_before = rcgen::date_time_ymd(1999, 12, 31);
            params.not_after = rcgen::date_time_ymd(2055, 1, 2);
        }))
        .unwrap();
        assert_eq!(facts.issuer, "CorpRoot");
        assert_eq!(facts.names, ["api.weixin.qq.com"]);
        let time = |text: &str| humantime::parse_rfc3339(text).unwrap();
        assert_eq!(facts.begin, time("1999-12-31T00:00:00Z"));
        assert_eq!(facts.end, time("2055-01-02T00:00:00Z"));
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let good = certificate(|_| {});
        for length in 0..good.len() {
            let _ = CertificateFacts::of(&good[..length]);
        }
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0xff;
            let _ = CertificateFacts::of(&bad);
        }
        let facts = CertificateFacts::of(&good).unwrap();
        assert!(facts.end > facts.begin + Duration::from_secs(1));
    }
}
