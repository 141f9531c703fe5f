//! Logging without secrets and the metric registry. Knows no domain: metrics stand in the folder that they measure.
