//! Tickets, with which web pages and cards are signed: types, endpoints, and meanings of refusals.
//!
//! Only tables. Pages of WeChat: api_getticket (jsapi, wx_card); of WeCom: 96909 (jsapi) and 90506
//! (agent_config).

use super::{
    api::Platform,
    codes::{self, RefusalClass},
};

/// Type of ticket. Each account has one ticket of each type at a time, valid for two hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TicketType {
    /// For `wx.config` in a web page.
    Jsapi,
    /// For cards and coupons. WeChat only.
    WxCard,
    /// For `wx.agentConfig`, of one WeCom app. WeCom only.
    AgentConfig,
}

/// Endpoint that returns a ticket; it takes the account's token in the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketEndpoint {
    /// Path of the endpoint.
    pub path: &'static str,
    /// Value of the parameter `type`; `None` if the endpoint has none.
    pub kind: Option<&'static str>,
}

impl TicketType {
    /// All types, of both platforms.
    pub const ALL: [Self; 3] = [Self::Jsapi, Self::WxCard, Self::AgentConfig];

    /// Returns WeChat's name of the type, also used in paths and store keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jsapi => "jsapi",
            Self::WxCard => "wx_card",
            Self::AgentConfig => "agent_config",
        }
    }

    /// Returns the type of this name; `None` if the platform has no such type.
    pub fn named(platform: Platform, name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name && kind.endpoint(platform).is_some())
    }

    /// Returns the endpoint on this platform; `None` if the platform has no such type.
    pub fn endpoint(self, platform: Platform) -> Option<TicketEndpoint> {
        let (path, kind) = match (platform, self) {
            (Platform::Wechat, Self::Jsapi | Self::WxCard) => {
                ("/cgi-bin/ticket/getticket", Some(self.as_str()))
            }
            (Platform::Wecom, Self::Jsapi) => ("/cgi-bin/get_jsapi_ticket", None),
            (Platform::Wecom, Self::AgentConfig) => ("/cgi-bin/ticket/get", Some(self.as_str())),
            (Platform::Wechat, Self::AgentConfig) | (Platform::Wecom, Self::WxCard) => return None,
        };
        Some(TicketEndpoint { path, kind })
    }
}

/// Explains the refusal of a ticket: class and remedy. The codes are those of a business call;
/// codes that mean the same at the token endpoint are looked up there.
pub(crate) fn refusal(platform: Platform, code: i64) -> (RefusalClass, &'static str) {
    match code {
        40001 | 40014 | 42001 => (
            RefusalClass::Other,
            "WeChat rejects the access token, also after a refresh: see the account's own errors",
        ),
        45009 => (
            RefusalClass::Quota,
            "the day's quota of tickets is used up: find out who else fetches tickets for this account, or clear the \
             quota at WeChat",
        ),
        48001 | 48002 => (
            RefusalClass::Other,
            "the account may not use tickets: see the interface permissions in its backend at WeChat",
        ),
        _ => {
            let known = codes::token_code(platform, code);
            (known.class, known.advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_platform_has_its_own_types_and_endpoints() {
        let of = |platform, name| {
            TicketType::named(platform, name).and_then(|kind| kind.endpoint(platform))
        };
        let getticket = |kind| {
            Some(TicketEndpoint {
                path: "/cgi-bin/ticket/getticket",
                kind: Some(kind),
            })
        };
        assert_eq!(of(Platform::Wechat, "jsapi"), getticket("jsapi"));
        assert_eq!(of(Platform::Wechat, "wx_card"), getticket("wx_card"));
        assert_eq!(
            of(Platform::Wecom, "jsapi"),
            Some(TicketEndpoint {
                path: "/cgi-bin/get_jsapi_ticket",
                kind: None
            })
        );
        let agent = TicketEndpoint {
            path: "/cgi-bin/ticket/get",
            kind: Some("agent_config"),
        };
        assert_eq!(of(Platform::Wecom, "agent_config"), Some(agent));
        for (platform, name) in [
            (Platform::Wechat, "agent_config"),
            (Platform::Wecom, "wx_card"),
            (Platform::Wechat, "JSAPI"),
        ] {
            assert_eq!(of(platform, name), None, "{name}");
        }
    }

    #[test]
    fn a_refused_token_is_not_mistaken_for_a_wrong_secret() {
        assert!(!refusal(Platform::Wechat, 40001).1.contains("AppSecret"));
        assert_eq!(refusal(Platform::Wechat, 45009).0, RefusalClass::Quota);
        assert_eq!(
            refusal(Platform::Wechat, 40164),
            (
                RefusalClass::Address,
                codes::token_code(Platform::Wechat, 40164).advice
            )
        );
    }
}
