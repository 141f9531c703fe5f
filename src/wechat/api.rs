//! Platforms, their hosts, and which endpoints take the account's token.

/// A family of accounts that shares token endpoint, error codes and hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// 公众号, 服务号, 小程序, 小游戏, 微信小店.
    Wechat,
    /// 企业微信.
    Wecom,
}
