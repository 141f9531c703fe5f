//! API hosts, each one once, however many accounts use it and however often the configuration is
//! loaded.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::dial::{DialSetupError, UpstreamOrigin};
use crate::net::address::BaseUrl;

/// Only ever grows: workers keep their pools by an origin's index.
#[derive(Debug, Default)]
pub(crate) struct UpstreamOrigins(Mutex<HashMap<BaseUrl, Arc<UpstreamOrigin>>>);

impl UpstreamOrigins {
    /// The origins of these base URLs, in their order.
    ///
    /// # Errors
    /// When one cannot be called.
    pub(crate) fn of(&self, bases: &[BaseUrl]) -> Result<Vec<Arc<UpstreamOrigin>>, DialSetupError> {
        bases.iter().map(|base| self.place(base)).collect()
    }

    fn place(&self, base: &BaseUrl) -> Result<Arc<UpstreamOrigin>, DialSetupError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(origin) = known.get(base) {
            return Ok(Arc::clone(origin));
        }
        let origin = Arc::new(UpstreamOrigin::new(known.len(), base.clone())?);
        known.insert(base.clone(), Arc::clone(&origin));
        Ok(origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_keeps_its_place_and_a_new_one_comes_after_it() {
        let origins = UpstreamOrigins::default();
        let urls = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<Vec<BaseUrl>>()
        };
        let places = |texts: &[&str]| {
            origins
                .of(&urls(texts))
                .unwrap()
                .iter()
                .map(|origin| origin.index)
                .collect::<Vec<_>>()
        };
        assert_eq!(places(&["https://a", "https://b"]), [0, 1]);
        assert_eq!(
            places(&["https://b", "https://a:8443", "https://a"]),
            [1, 2, 0]
        );
    }
}
