//! Callers: who may call what for which account, and what no caller gets to see.

mod clients;
mod isolation;
mod masking;
mod own_answers;
mod phantoms;
mod phantoms_wecom;
mod probes;
mod secrets;
mod selection;
mod service_api;
mod trespass;
