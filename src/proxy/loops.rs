//! Detection of requests that come back: `CDN-Loop` (RFC 8586) is added to outgoing requests and
//! checked in incoming ones.
//!
//! `app` refuses configurations that would start a loop; the pipeline decides when to check.

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};
use memchr::memmem;

const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// More proxies in a row than any deployment has on purpose. Catches loops through a proxy that
/// rewrites the mark.
const MAX_HOPS: usize = 8;

/// Longest sum of all `CDN-Loop` lines, in bytes; eight honest hops need a third.
const MAX_BYTES: usize = 1024;

/// Entry of this process in `CDN-Loop`, unlike that of any other process.
#[derive(Debug)]
pub(super) struct LoopMark {
    value: HeaderValue,
    id: String,
}

impl LoopMark {
    /// Makes the mark, for the life of the process.
    pub(super) fn random() -> Self {
        let mut random = [0; 16];
        let _ = getrandom::fill(&mut random);
        let id = format!("{:032x}", u128::from_ne_bytes(random));
        let value = HeaderValue::try_from(format!("wxgate; id={id}"));
        Self {
            value: value.unwrap_or_else(|_| HeaderValue::from_static("wxgate")),
            id,
        }
    }

    /// Returns advice for the operator if a request has been here before, or passed too many
    /// proxies.
    pub(super) fn trouble(&self, headers: &HeaderMap) -> Option<&'static str> {
        let (mut hops, mut length) = (0, 0);
        for line in headers.get_all(CDN_LOOP) {
            let line = line.as_bytes();
            if memmem::find(line, self.id.as_bytes()).is_some() {
                return Some(
                    "the address of the API host leads back to wxgate itself; set upstream.resolve to WeChat's own addresses \
                     and restart wxgate",
                );
            }
            hops += line.split(|byte| *byte == b',').count();
            length += line.len();
        }
        (hops > MAX_HOPS || length > MAX_BYTES).then_some(
            "the request has passed too many proxies, as CDN-Loop tells, and seems to go in circles; check \
             upstream.resolve and upstream.proxy of each",
        )
    }

    /// Value that an outgoing request gets, behind those of other proxies.
    pub(super) fn value(&self) -> &HeaderValue {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines
            .iter()
            .map(|line| (CDN_LOOP, HeaderValue::from_str(line).unwrap()))
            .collect()
    }

    #[test]
    fn a_request_is_known_again_by_the_process_that_sent_it_and_by_no_other() {
        let (one, other) = (LoopMark::random(), LoopMark::random());
        let mut sent = headers(&["cdn.example; v=1"]);
        sent.append(CDN_LOOP, one.value().clone());
        let lines: Vec<_> = sent
            .get_all(CDN_LOOP)
            .iter()
            .map(|line| line.to_str().unwrap())
            .collect();
        assert_eq!(
            lines,
            [
                "cdn.example; v=1".to_owned(),
                format!("wxgate; id={}", one.id)
            ]
        );
        assert_eq!(one.id.len(), 32);
        assert!(one.trouble(&sent).unwrap().contains("upstream.resolve"));
        assert_eq!(other.trouble(&sent), None);
        let joined = headers(&[&lines.join(", ").replace("; id", " ; ID")]);
        assert!(
            one.trouble(&joined).is_some(),
            "as another proxy may write it"
        );
    }

    #[test]
    fn too_many_hops_are_a_loop_however_they_are_written() {
        let mark = LoopMark::random();
        let hops = |count: usize| vec!["wxgate; id=0"; count];
        assert_eq!(mark.trouble(&headers(&[])), None);
        assert_eq!(mark.trouble(&headers(&hops(8))), None);
        assert!(mark.trouble(&headers(&hops(9))).is_some());
        assert!(mark.trouble(&headers(&[&hops(9).join(",")])).is_some());
        assert_eq!(mark.trouble(&headers(&[&"x".repeat(1024)])), None);
        assert!(mark.trouble(&headers(&[&"x".repeat(1025)])).is_some());
    }
}
