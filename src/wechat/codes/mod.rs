//! Error codes of the token endpoints with their consequences.
//!
//! The meanings are those of WeChat's own tables (pages of getAccessToken, getStableAccessToken and
//! "common error codes", the WeCom page 90455, and the enumeration in WxJava); the classes are
//! ours. The codes that make a business answer stale are here too; [`super::verdict`] finds the
//! code in an answer.

mod labels;

#[cfg(test)]
pub(crate) use self::labels::known;
pub(crate) use self::labels::label;
use super::api::Platform;

/// Consequence of a token endpoint's refusal for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalClass {
    /// Temporary overload at WeChat; retry soon.
    Busy,
    /// Limit per minute; retry in the next minute.
    Minute,
    /// Daily quota used up; only an operator or midnight helps.
    Quota,
    /// Calling address refused. Concerns this node only: other nodes may have other addresses.
    Address,
    /// Approval by an administrator of the account is pending or was refused.
    Approval,
    /// Wrong appid or secret.
    Credential,
    /// Account or secret frozen or punished.
    Frozen,
    /// Any other code; handled like a refused address, for lack of better knowledge.
    Other,
}

/// Row of a table of error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenCode {
    /// WeChat's `errcode`.
    pub code: i64,
    /// Consequence for the next attempt.
    pub class: RefusalClass,
    /// Meaning and remedy: one sentence in two parts, without a full stop.
    pub advice: &'static str,
}

/// `errcode` of a call without a token. Says nothing about the account's token, which is neither
/// accepted nor refused.
pub(crate) const TOKEN_MISSING: i64 = 41001;

/// Error codes of the token endpoints of WeChat. Codes outside the table get [`RefusalClass::Other`].
pub(crate) const TOKEN_CODES: &[TokenCode] = &[
    line(
        -1,
        RefusalClass::Busy,
        "WeChat is busy: nothing to do, the next attempt follows by itself",
    ),
    line(
        40001,
        RefusalClass::Credential,
        "the AppSecret is wrong or belongs to another account: correct the account's secret",
    ),
    line(
        40002,
        RefusalClass::Other,
        "WeChat refused the grant type: report this as a bug of wxgate",
    ),
    line(
        40013,
        RefusalClass::Credential,
        "the appid is invalid: correct the account's appid",
    ),
    line(
        40125,
        RefusalClass::Credential,
        "the AppSecret is invalid: correct the account's secret, or reset it in the console if it is lost",
    ),
    line(
        40164,
        RefusalClass::Address,
        "the calling IP is not on the account's IP whitelist (IP白名单): add it, for 公众号 and 服务号 at developers.weixin.qq.com/platform \
         (我的业务, 基础信息, 开发密钥), for 小程序 and 小游戏 at mp.weixin.qq.com (开发管理, 开发设置, 开发者ID)",
    ),
    line(
        40234,
        RefusalClass::Other,
        "WeChat wants this token call signed, which its own list of signed calls does not have: look at API 安全 (开发管理, 开发设置) of this account",
    ),
    line(
        40243,
        RefusalClass::Frozen,
        "the AppSecret is frozen: unfreeze it, for 公众号 and 服务号 at developers.weixin.qq.com/platform (我的业务, 基础信息, 开发密钥), for \
         小程序 and 小游戏 at mp.weixin.qq.com (开发管理, 开发设置); takes effect after about 10 minutes",
    ),
    line(
        41002,
        RefusalClass::Credential,
        "the appid is missing: set the account's appid",
    ),
    line(
        41004,
        RefusalClass::Credential,
        "the AppSecret is missing: set the account's secret",
    ),
    line(
        43002,
        RefusalClass::Other,
        "WeChat wants POST here: report this as a bug of wxgate, or use token = \"classic\" meanwhile",
    ),
    line(
        45009,
        RefusalClass::Quota,
        "the day's quota of the token endpoint is used up: clear the quota at WeChat, or use token = \"stable\"",
    ),
    line(
        45011,
        RefusalClass::Minute,
        "too many calls in this minute: nothing to do, the next attempt follows by itself",
    ),
    line(
        45035,
        RefusalClass::Address,
        "the calling IP is not on the shop's whitelist: add it in the backend of 微信小店 (服务市场, 经营工具, 我的服务, 自研)",
    ),
    line(
        48001,
        RefusalClass::Credential,
        "the account may not use this endpoint: check appid, account type and the account's token kind",
    ),
    line(
        50004,
        RefusalClass::Frozen,
        "the account may not use access tokens (punishment): see the notices in its backend",
    ),
    line(
        50007,
        RefusalClass::Frozen,
        "the account is frozen: see the notices in its backend",
    ),
    line(
        61004,
        RefusalClass::Address,
        "the calling IP is not on the whitelist of the third-party platform or the shop: add it at open.weixin.qq.com (第三方平台, 详情, \
         开发资料, 白名单IP地址列表), or in the backend of 微信小店 (服务市场, 经营工具, 我的服务, 自研)",
    ),
    line(
        61024,
        RefusalClass::Other,
        "this appid belongs to a third-party platform, which has its own token endpoint: use another account",
    ),
    line(
        89501,
        RefusalClass::Approval,
        "the calling IP awaits confirmation: ask the account's administrator to confirm it in WeChat",
    ),
    line(
        89503,
        RefusalClass::Approval,
        "the call awaits confirmation: ask the account's administrator to confirm the message in WeChat",
    ),
    line(
        89506,
        RefusalClass::Approval,
        "the administrator rejected the calling IP twice: it is banned for 24 hours",
    ),
    line(
        89507,
        RefusalClass::Approval,
        "the administrator rejected the calling IP: it is banned for one hour",
    ),
];

/// Error codes of WeCom's `cgi-bin/gettoken`, where some numbers have another meaning (WeCom pages
/// 90454, 90455, 91039).
pub(crate) const WECOM_TOKEN_CODES: &[TokenCode] = &[
    line(
        -1,
        RefusalClass::Busy,
        "WeCom is busy: nothing to do, the next attempt follows by itself",
    ),
    line(
        40001,
        RefusalClass::Credential,
        "the agent's secret is wrong: correct the account's secret soon, since repeated errors can have the IP banned",
    ),
    line(
        40013,
        RefusalClass::Credential,
        "the corpid is invalid: correct the account's appid",
    ),
    line(
        41002,
        RefusalClass::Credential,
        "the corpid is missing: set the account's appid",
    ),
    line(
        41004,
        RefusalClass::Credential,
        "the agent's secret is missing: set the account's secret",
    ),
    line(
        45009,
        RefusalClass::Quota,
        "too many calls of WeCom in this minute or hour: find out who else calls from this IP, or wait",
    ),
    line(
        45033,
        RefusalClass::Minute,
        "too many calls of WeCom at once: nothing to do, the next attempt follows by itself",
    ),
    line(
        48002,
        RefusalClass::Approval,
        "the agent has no right to call the API: grant it in the console of WeCom",
    ),
    line(
        50003,
        RefusalClass::Frozen,
        "the agent is disabled: enable it in the console of WeCom",
    ),
    line(
        60020,
        RefusalClass::Address,
        "the calling IP is not trusted by the WeCom app: add it to the app's trusted IPs (应用管理, the app, 企业可信IP), where only \
         addresses of the company itself are taken",
    ),
    line(
        301_002,
        RefusalClass::Approval,
        "the agent has no privilege for this: check its rights in the console of WeCom",
    ),
];

const UNKNOWN: &str =
    "wxgate does not know this code: look it up in WeChat's table of return codes";

const fn line(code: i64, class: RefusalClass, advice: &'static str) -> TokenCode {
    TokenCode {
        code,
        class,
        advice,
    }
}

/// Looks up a refusal by the platform's token endpoint. Never fails: an unknown code gets
/// [`RefusalClass::Other`].
pub(crate) fn token_code(platform: Platform, code: i64) -> TokenCode {
    let table = match platform {
        Platform::Wechat => TOKEN_CODES,
        Platform::Wecom => WECOM_TOKEN_CODES,
    };
    let unknown = TokenCode {
        code,
        class: RefusalClass::Other,
        advice: UNKNOWN,
    };
    table
        .iter()
        .find(|line| line.code == code)
        .copied()
        .unwrap_or(unknown)
}

/// Returns true if a business answer with this code means that the access token is dead: 40001,
/// 40014 and 42001; on WeCom, where 40001 means a bad secret, only 40014 and 42001 (WeCom page
/// 90455).
pub(crate) const fn is_stale(platform: Platform, code: i64) -> bool {
    match platform {
        Platform::Wechat => matches!(code, 40001 | 40014 | 42001),
        Platform::Wecom => matches!(code, 40014 | 42001),
    }
}

/// Returns the code that reports a dead phantom token, so that an SDK fetches a new one. SDKs of
/// each platform handle these two codes best: those of WeCom treat 40001 as a wrong secret and give
/// up.
pub(crate) const fn stale_code(platform: Platform) -> u32 {
    match platform {
        Platform::Wechat => 40001,
        Platform::Wecom => 40014,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_code_stands_once_has_a_label_and_says_what_to_do() {
        for table in [TOKEN_CODES, WECOM_TOKEN_CODES] {
            for (at, line) in table.iter().enumerate() {
                assert!(
                    table[..at].iter().all(|other| other.code != line.code),
                    "{} twice",
                    line.code
                );
                assert!(known(line.code).is_some(), "{} has no label", line.code);
                assert!(
                    line.advice.contains(": ") && !line.advice.ends_with('.'),
                    "{}",
                    line.advice
                );
            }
        }
    }

    #[test]
    fn a_bad_secret_is_never_taken_for_a_stale_token_on_wecom() {
        assert!(is_stale(Platform::Wechat, 40001) && !is_stale(Platform::Wecom, 40001));
        for code in [40014, 42001] {
            assert!(is_stale(Platform::Wechat, code) && is_stale(Platform::Wecom, code));
        }
        for platform in [Platform::Wechat, Platform::Wecom] {
            assert!(is_stale(platform, i64::from(stale_code(platform))));
        }
        for code in [0, -1, 41001, 42002, 42007, 48001] {
            assert!(
                !is_stale(Platform::Wechat, code) && !is_stale(Platform::Wecom, code),
                "{code}"
            );
        }
    }

    /// The consoles moved in 2025: 公众号 and 服务号 have AppSecret and IP list on
    /// developers.weixin.qq.com, 小程序 still on mp.weixin.qq.com.
    #[test]
    fn advice_on_addresses_and_frozen_secrets_names_the_console_of_each_kind_of_account() {
        for (platform, code, parts) in [
            (
                Platform::Wechat,
                40164,
                &[
                    "公众号 and 服务号 at developers.weixin.qq.com/platform",
                    "小程序 and 小游戏 at mp.weixin.qq.com",
                ][..],
            ),
            (
                Platform::Wechat,
                40243,
                &["developers.weixin.qq.com/platform", "mp.weixin.qq.com"],
            ),
            (Platform::Wechat, 45035, &["微信小店", "自研"]),
            (Platform::Wechat, 61004, &["open.weixin.qq.com", "微信小店"]),
            (Platform::Wecom, 60020, &["应用管理", "企业可信IP"]),
        ] {
            let advice = token_code(platform, code).advice;
            for part in parts {
                assert!(advice.contains(part), "{part} is not in {advice}");
            }
        }
    }

    #[test]
    fn an_unknown_refusal_is_remembered_like_a_fatal_one() {
        for platform in [Platform::Wechat, Platform::Wecom] {
            assert_eq!(token_code(platform, 77_777).class, RefusalClass::Other);
            assert_eq!(token_code(platform, -1).class, RefusalClass::Busy);
        }
        assert_eq!(
            token_code(Platform::Wechat, 40164).class,
            RefusalClass::Address
        );
        assert_eq!(
            token_code(Platform::Wecom, 60020).class,
            RefusalClass::Address
        );
    }
}
