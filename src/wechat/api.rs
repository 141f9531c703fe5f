//! The platforms of WeChat.

/// A family of accounts that shares token endpoint, error codes and hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// 公众号, 服务号, 小程序, 小游戏, 微信小店.
    Wechat,
    /// 企业微信.
    Wecom,
}

impl Platform {
    /// Returns the platform's name for log lines and error texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wechat => "WeChat",
            Self::Wecom => "WeCom",
        }
    }

    /// Returns the value of `platform` in an `[[account]]` section.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Wechat => "wechat",
            Self::Wecom => "wecom",
        }
    }
}
