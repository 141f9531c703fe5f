//! stub
pub mod settings;
use crate::{
    net::{
        drain::Drain,
        listen::{BoundAddr, Listener},
    },
    telemetry::registry::Metrics,
    token::Accounts,
};
use std::io;
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on admin.listen = {address}: {error}; is another process using it?")]
pub struct BindError {
    address: String,
    error: io::Error,
}
pub struct Bound {
    l: Listener,
}
pub fn bind(s: &settings::Settings, _a: Accounts, _m: Metrics) -> Result<Bound, BindError> {
    Ok(Bound { l: Listener::bind(&s.listen).map_err(|error| BindError { address: s.listen.to_string(), error })? })
}
impl Bound {
    pub fn address(&self) -> &BoundAddr {
        self.l.address()
    }
    pub async fn run(self, mut d: Drain) {
        d.reached(crate::net::drain::Phase::Closing).await;
    }
}
