//! Refusals of the calling address, and the address that WeChat names in them.
//!
//! Such a refusal says nothing about the token: WeChat sends it for a valid token too, on the token
//! endpoint or on a business call, depending on the kind of account.

use std::net::IpAddr;

use super::api::Platform;

/// Returns true if an answer with this code refuses the calling address.
///
/// 61004 is documented as "API not authorised" but means the address in practice, for third-party
/// platforms and 微信小店; other uses of the number do not mention a `clientip`.
pub(crate) fn is_refused(platform: Platform, code: i64, message: &str) -> bool {
    may_be_refused(platform, code) && (code != 61004 || message.contains("clientip"))
}

/// Returns true if a code can refuse the calling address on any platform, so that the text of the
/// answer matters.
pub(crate) const fn is_refusal_anywhere(code: i64) -> bool {
    may_be_refused(Platform::Wechat, code) || may_be_refused(Platform::Wecom, code)
}

const fn may_be_refused(platform: Platform, code: i64) -> bool {
    match platform {
        Platform::Wechat => matches!(code, 40164 | 45035 | 61004),
        Platform::Wecom => code == 60020,
    }
}

/// Parses the address in `invalid ip 47.94.148.108 ipv6 ::ffff:47.94.148.108, not in whitelist`
/// (40164, all eras since 2018), `requestIP: 47.106.1.2` (61004; often masked, then `None`) and
/// `from ip: 9.30.0.138` (WeCom's 60020, and all of WeCom's other errors).
pub(crate) fn named_in(message: &str) -> Option<IpAddr> {
    ["invalid ip ", "from ip: ", "requestIP: "]
        .iter()
        .find_map(|mark| {
            let (_, rest) = message.split_once(mark)?;
            // The address may be of either family; `parse` below rejects everything else.
            let end = rest
                .find(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':')
                .unwrap_or(rest.len());
            rest.get(..end)?.trim_end_matches(['.', ':']).parse().ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_wechat_saw_is_read_from_every_era() {
        for (message, ip) in [
            (
                "invalid ip 47.94.148.108 ipv6 ::ffff:47.94.148.108, not in whitelist rid: 5fab84d2-09424a07-00bd7fe3",
                "47.94.148.108",
            ),
            (
                "invalid ip 101.45.43.1 ipv6 ::ffff:101.45.43.1, not in whitelist hint: [jotvMa01143580]",
                "101.45.43.1",
            ),
            (
                "invalid ip 118.24.127.95, not in whitelist hint: [92.00884559]",
                "118.24.127.95",
            ),
            ("invalid ip 240e::1, not in whitelist", "240e::1"),
            (
                "not allow to access from your ip, hint: [1576065934_28_x], from ip: 9.30.0.138, more info at https://x",
                "9.30.0.138",
            ),
            (
                "access clientip is not registered requestIP: 47.106.1.2 rid: x",
                "47.106.1.2",
            ),
        ] {
            assert_eq!(named_in(message), Some(ip.parse().unwrap()), "{message}");
        }
        for message in [
            "",
            "invalid ip ",
            "invalid ip <script>",
            "requestIP: 47.106.*.* rid: x",
        ] {
            assert_eq!(named_in(message), None, "{message}");
        }
    }

    #[test]
    fn only_a_refusal_of_the_address_is_taken_for_one() {
        let registered = "access clientip is not registered requestIP: 47.106.*.* rid: x";
        for (platform, code, message, right) in [
            (
                Platform::Wechat,
                40164,
                "invalid ip 1.2.3.4, not in whitelist",
                true,
            ),
            (Platform::Wechat, 45035, "", true),
            (Platform::Wechat, 61004, registered, true),
            (Platform::Wechat, 61004, "api is not authorized", false),
            (
                Platform::Wecom,
                60020,
                "not allow to access from your ip",
                true,
            ),
            (Platform::Wecom, 40164, "", false),
            (
                Platform::Wecom,
                40014,
                "invalid access_token, from ip: 9.30.0.138",
                false,
            ),
            (Platform::Wechat, 60020, "", false),
            (Platform::Wechat, 48001, "", false),
        ] {
            assert_eq!(
                is_refused(platform, code, message),
                right,
                "{code} {message}"
            );
        }
    }
}
