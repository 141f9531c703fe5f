//! Metric of degraded accounts, read from the accounts of the configuration in force at each scrape.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::control::AdminControl;
use crate::token::Condition;

/// Gauge `wxgate_account_degraded`.
#[derive(Debug)]
pub(super) struct DegradedAccounts(pub(super) AdminControl);

impl Collector for DegradedAccounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "wxgate_account_degraded",
            "1 while the state of the account is degraded, else 0",
            None,
            MetricType::Gauge,
        )?;
        let accounts = &self.0.state.load().accounts;
        for (name, tokens) in accounts.iter() {
            let is_degraded = tokens.token.status().condition == Condition::Degraded;
            let labels = [("account", name.as_str())];
            let metric = family.encode_family(&labels)?;
            ConstGauge::new(i64::from(is_degraded)).encode(metric)?;
        }
        Ok(())
    }
}
