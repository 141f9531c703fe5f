//! The API hosts of one call, in the order to try them: as configured, with those that are down
//! behind the others.

use std::{collections::VecDeque, slice, sync::Arc};

use super::{Upstream, dial::UpstreamOrigin};

/// Iterator over the hosts of a call.
pub(crate) struct Candidates<'c> {
    upstream: &'c Upstream,
    hosts: slice::Iter<'c, Arc<UpstreamOrigin>>,
    /// Empty, and without memory of its own, while no host is down.
    passed_over: VecDeque<&'c Arc<UpstreamOrigin>>,
}

/// A host to try.
pub(crate) struct Candidate<'c> {
    pub(super) origin: &'c Arc<UpstreamOrigin>,
    /// No other host is left for this call: it waits for this one as long as it may.
    pub(super) is_last: bool,
}

impl<'c> Candidates<'c> {
    pub(super) fn new(upstream: &'c Upstream, hosts: &'c [Arc<UpstreamOrigin>]) -> Self {
        Self {
            upstream,
            hosts: hosts.iter(),
            passed_over: VecDeque::new(),
        }
    }

    fn is_exhausted(&self) -> bool {
        self.hosts.len() == 0 && self.passed_over.is_empty()
    }
}

impl<'c> Iterator for Candidates<'c> {
    type Item = Candidate<'c>;

    fn next(&mut self) -> Option<Candidate<'c>> {
        while let Some(origin) = self.hosts.next() {
            // The only host is called in any case, which is probe enough.
            if self.is_exhausted() {
                return Some(Candidate {
                    origin,
                    is_last: true,
                });
            }
            if !origin.health.is_down() {
                return Some(Candidate {
                    origin,
                    is_last: false,
                });
            }
            self.upstream.probe(origin);
            self.passed_over.push_back(origin);
        }
        let origin = self.passed_over.pop_front()?;
        Some(Candidate {
            origin,
            is_last: self.is_exhausted(),
        })
    }
}
