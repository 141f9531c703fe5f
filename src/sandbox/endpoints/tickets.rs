//! Tickets for web pages and cards, kept per account and type until they expire.

use serde_json::json;

use super::ApiCall;
use crate::sandbox::{answer::SandboxAnswer, recorder::Total};

/// Answers `GET cgi-bin/ticket/getticket?type=jsapi|wx_card`.
pub(super) fn getticket(call: ApiCall<'_>) -> SandboxAnswer {
    match call.head.param("type").as_deref() {
        Some(kind @ ("jsapi" | "wx_card")) => ticket(call, kind),
        _ => call.error(40097),
    }
}

/// Answers WeCom's `cgi-bin/get_jsapi_ticket` and `cgi-bin/ticket/get?type=agent_config`.
pub(super) fn wecom(call: ApiCall<'_>, kind: &str) -> SandboxAnswer {
    if kind == "agent_config" && call.head.param("type").as_deref() != Some(kind) {
        return call.error(40097);
    }
    ticket(call, kind)
}

fn ticket(call: ApiCall<'_>, kind: &str) -> SandboxAnswer {
    let Some((ticket, expires_in)) = call.shared.state.ticket(call.account(), kind) else {
        return call.error(40013);
    };
    call.shared.recorder.count(Total::Tickets);
    call.ok(&json!({"errcode": 0, "errmsg": "ok", "ticket": ticket, "expires_in": expires_in}))
}
