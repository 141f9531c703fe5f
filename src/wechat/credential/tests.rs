use std::collections::{HashMap, HashSet};

use super::*;

const TSV: &str = include_str!("../../../tests/data/wechat/credential-paths.tsv");

struct Documented {
    platform: Platform,
    path: &'static str,
    kind: &'static str,
    parameter: &'static str,
}

fn documented() -> Vec<Documented> {
    let rows = TSV.lines().skip(1).map(|line| {
        let columns: Vec<&str> = line.split('\t').collect();
        let [platform, path, _, kind, parameter] = columns[..] else {
            panic!("{line}")
        };
        let platform = match platform {
            "wechat" => Platform::Wechat,
            "wecom" => Platform::Wecom,
            _ => panic!("{line}"),
        };
        Documented {
            platform,
            path,
            kind,
            parameter,
        }
    });
    rows.collect()
}

fn class(path: &str, query: &str) -> CallClass {
    of_path(path).class(Parameters::of_query(query))
}

/// Queries of a row: each of its alternatives, with every other parameter.
fn queries(parameter: &str) -> Vec<String> {
    if parameter.starts_with("body:") {
        return vec![String::new()];
    }
    let in_query = parameter.split(",body:").next().unwrap();
    let names = in_query.replace("[,agency_token]", ",agency_token");
    names
        .split('|')
        .map(|alternative| alternative.split(',').map(|name| format!("{name}=v")))
        .map(|pairs| pairs.collect::<Vec<_>>().join("&"))
        .collect()
}

/// Class of a row, decided from its columns and the sentences of the specification alone.
fn expected(row: &Documented, has_two_kinds: bool, query: &str) -> CallClass {
    const GUARDED: [&str; 10] = [
        "/cgi-bin/clear_quota",
        "/cgi-bin/clear_quota/v2",
        "/cgi-bin/openapi/quota/clear",
        "/cgi-bin/component/clear_quota/v2",
        "/cgi-bin/component/api_start_push_ticket",
        "/cgi-bin/corpgroup/corp/gettoken",
        "/tcb/getqcloudtoken",
        "/tcb/getcodesecret",
        "/retail/B2b/getappkey",
        "/cgi-bin/exmail/publicmail/get_auth_code_list",
    ];
    let brings_other_token = query.contains("_access_token=");
    match (row.path, row.kind) {
        ("/cgi-bin/token", _) => CallClass::Minting(Minting::Classic),
        ("/cgi-bin/stable_token", _) => CallClass::Minting(Minting::Stable),
        ("/cgi-bin/gettoken", _) => CallClass::Minting(Minting::Wecom),
        ("/cgi-bin/ticket/getticket" | "/cgi-bin/ticket/get", _) => {
            CallClass::Minting(Minting::Ticket(row.platform))
        }
        ("/cgi-bin/get_jsapi_ticket", _) => CallClass::Minting(Minting::JsapiTicket),
        (path, _) if GUARDED.contains(&path) => CallClass::Guarded,
        ("/sns/jscode2session" | "/sns/oauth2/access_token", _) => CallClass::Login,
        (path, _) if path.starts_with("/sns/") => CallClass::User,
        (_, "webhook_key" | "response_code") => CallClass::None,
        ("/donut/code2verifyinfo", _) | (_, "account" | "corp") => CallClass::Account,
        (_, "component") if has_two_kinds && !brings_other_token => CallClass::Account,
        (_, "component" | "provider" | "suite" | "device" | "model" | "downstream_corp") => {
            CallClass::Own(CallCredential::Token)
        }
        (_, "component_secret" | "provider_secret" | "suite_secret" | "model_secret") => {
            CallClass::Own(CallCredential::Secret)
        }
        (path, kind) => panic!("no rule for {kind} at {path}"),
    }
}

#[test]
fn every_documented_path_has_its_class() {
    let rows = documented();
    assert_eq!(rows.len(), 2397, "the table of paths is complete");
    let mut kinds: HashMap<(Platform, &str), HashSet<&str>> = HashMap::new();
    for row in &rows {
        kinds
            .entry((row.platform, row.path))
            .or_default()
            .insert(row.kind);
    }
    assert_eq!(kinds.values().filter(|kinds| kinds.len() > 1).count(), 15);
    for row in &rows {
        let has_two_kinds = kinds[&(row.platform, row.path)].len() > 1;
        for query in queries(row.parameter) {
            let right = expected(row, has_two_kinds, &query);
            for path in [
                row.path.to_owned(),
                row.path.to_uppercase(),
                row.path.to_lowercase(),
            ] {
                assert_eq!(class(&path, &query), right, "{path}?{query} ({})", row.kind);
                // The account's token does not belong there either where the parameter is missing.
                if matches!(right, CallClass::Own(_)) && !has_two_kinds {
                    assert!(matches!(class(&path, ""), CallClass::Own(_)), "{path}");
                }
            }
        }
    }
}

#[test]
fn every_documented_path_says_its_platform_if_only_one_has_it() {
    let rows = documented();
    let of = |platform| -> HashSet<&str> {
        rows.iter()
            .filter(|row| row.platform == platform)
            .map(|row| row.path)
            .collect()
    };
    let (wechat, wecom) = (of(Platform::Wechat), of(Platform::Wecom));
    let both: HashSet<_> = wechat.intersection(&wecom).collect();
    assert_eq!(both.len(), 9);
    for row in &rows {
        let right = (!both.contains(&row.path)).then_some(row.platform);
        assert_eq!(platform_of(row.path), right, "{}", row.path);
        assert_eq!(platform_of(&row.path.to_uppercase()), right, "{}", row.path);
    }
    assert_eq!(platform_of("/cgi-bin/unheard_of"), None);
    assert_eq!(platform_of("/cgi-bin/message/unheard_of"), None);
    assert_eq!(
        platform_of("/cgi-bin/service/unheard_of"),
        Some(Platform::Wecom)
    );
}

#[test]
fn no_row_of_the_table_is_idle() {
    let rows = documented();
    for row in TABLE {
        // Undocumented, but refused as the twin of the call with `v2`.
        let is_known = row.path == "/cgi-bin/component/clear_quota"
            || rows.iter().any(|known| {
                if row.path.ends_with('/') {
                    known.path.starts_with(row.path)
                } else {
                    known.path == row.path
                }
            });
        assert!(is_known, "{} is in no list of paths", row.path);
        assert_eq!(find(row.path.as_bytes()), Some(row.kind), "{}", row.path);
        if let Some(family_name) = row.path.strip_suffix('/') {
            let below = format!("{family_name}/x/y");
            assert_eq!(
                family(below.as_bytes()),
                Some(row.path.as_bytes()),
                "{below}"
            );
        }
    }
}

#[test]
fn a_parameter_makes_a_call_own_wherever_the_account_would_be_used() {
    for (query, right) in [
        ("", CallClass::Account),
        ("access_token=t&openid=o", CallClass::Account),
        ("my_secret=1&secrets=2&component=3", CallClass::Account),
        ("url=http://x/?secret=1", CallClass::Account),
        ("appid=a&secret=s", CallClass::Own(CallCredential::Secret)),
        ("appsecret=s", CallClass::Own(CallCredential::Secret)),
        ("corpsecret=s", CallClass::Own(CallCredential::Secret)),
        ("%73ecret=s", CallClass::Own(CallCredential::Secret)),
        ("Secret=s", CallClass::Own(CallCredential::Secret)),
        (
            "component_access_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "authorizer_access_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "suite_access_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "provider_access_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "device_access_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "model_access_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "cloudbase_access_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "suite%5faccess_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "component_access_token=t&secret=s",
            CallClass::Own(CallCredential::Secret),
        ),
        // A name alone keeps the account's token out, but is no token.
        (
            "suite_access_token=",
            CallClass::Own(CallCredential::Nothing),
        ),
        ("secret", CallClass::Own(CallCredential::Nothing)),
    ] {
        for path in [
            "/cgi-bin/user/info",
            "/cgi-bin/openapi/rid/get",
            "/cgi-bin/a/b/c/d",
        ] {
            assert_eq!(class(path, query), right, "{path}?{query}");
        }
    }
}

#[test]
fn the_first_class_that_fits_decides() {
    for (path, query, right) in [
        // The order: minting, guarded, login, user, none, own, account.
        (
            "/cgi-bin/token",
            "component_access_token=t",
            CallClass::Minting(Minting::Classic),
        ),
        ("/cgi-bin/clear_quota", "appsecret=s", CallClass::Guarded),
        (
            "/cgi-bin/corpgroup/corp/gettoken",
            "suite_access_token=t",
            CallClass::Guarded,
        ),
        ("/sns/jscode2session", "secret=s", CallClass::Login),
        ("/sns/userinfo", "secret=s", CallClass::User),
        ("/sns/unheard/of", "", CallClass::User),
        (
            "/cgi-bin/webhook/send",
            "key=k&suite_access_token=t",
            CallClass::None,
        ),
        (
            "/cgi-bin/webhook/unheard_of",
            "debug=1&%6bey=k",
            CallClass::None,
        ),
        ("/cgi-bin/webhook/send", "", CallClass::Account),
        ("/cgi-bin/webhook/send", "key=", CallClass::Account),
        ("/cgi-bin/user/info", "key=k", CallClass::Account),
        ("/cgi-bin/aibot/response", "", CallClass::None),
        // A path of another credential stays so with the account's parameter, or with none.
        (
            "/wxa/gettemplatelist",
            "access_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "/wxa/gettemplatelist",
            "",
            CallClass::Own(CallCredential::Nothing),
        ),
        (
            "/cgi-bin/service/unheard_of",
            "",
            CallClass::Own(CallCredential::Nothing),
        ),
        (
            "/cgi-bin/service/get_provider_token",
            "",
            CallClass::Own(CallCredential::Secret),
        ),
        // Two kinds at one path: the parameter decides.
        (
            "/cgi-bin/getcallbackip",
            "access_token=t",
            CallClass::Account,
        ),
        (
            "/cgi-bin/getcallbackip",
            "component_access_token=t",
            CallClass::Own(CallCredential::Token),
        ),
        (
            "/donut/code2verifyinfo",
            "appid=a&appsecret=s&code=c",
            CallClass::Account,
        ),
        (
            "/donut/code2verifyinfo",
            "component_access_token=t&appsecret=s",
            CallClass::Own(CallCredential::Secret),
        ),
        // Look-alikes take the account's token.
        ("/cgi-bin/tokens", "", CallClass::Account),
        ("/snsx/a", "", CallClass::Account),
        ("/sns", "", CallClass::Account),
        ("/cgi-bin/advanced_feature/a", "", CallClass::Account),
        ("/cgi-bin/services/a", "", CallClass::Account),
        (
            "/cgi-bin/component/setprivacysetting",
            "access_token=t",
            CallClass::Account,
        ),
        ("/cgi-bin", "", CallClass::Account),
        ("/", "", CallClass::Account),
        ("", "", CallClass::Account),
    ] {
        assert_eq!(class(path, query), right, "{path}?{query}");
    }
}

#[test]
fn tickets_of_the_kept_types_are_minted() {
    let ticket = |path: &str, kind| match of_path(path).class(Parameters::default()) {
        CallClass::Minting(minting) => minting.ticket(kind),
        class => panic!("{path}: {class:?}"),
    };
    let getticket = "/cgi-bin/ticket/getticket";
    assert_eq!(ticket(getticket, Some("jsapi")), Some(TicketType::Jsapi));
    assert_eq!(ticket(getticket, Some("wx_card")), Some(TicketType::WxCard));
    assert_eq!(ticket(getticket, Some("sdk")), None);
    assert_eq!(ticket(getticket, Some("agent_config")), None);
    assert_eq!(ticket(getticket, None), None);
    let wecom = "/cgi-bin/ticket/get";
    assert_eq!(
        ticket(wecom, Some("agent_config")),
        Some(TicketType::AgentConfig)
    );
    assert_eq!(ticket(wecom, Some("jsapi")), None);
    assert_eq!(
        ticket("/cgi-bin/get_jsapi_ticket", None),
        Some(TicketType::Jsapi)
    );
    assert_eq!(ticket("/cgi-bin/token", Some("jsapi")), None);
}

#[test]
fn an_answer_that_repeats_another_call_is_named() {
    let repeats = |path| of_path(path).repeats_another_call();
    assert!(repeats("/cgi-bin/openapi/rid/get") && repeats("/cgi-bin/OpenAPI/rid/get"));
    assert!(!repeats("/cgi-bin/openapi/quota/get"));
    let because = of_path("/cgi-bin/corpgroup/corp/getToken").guarded_because();
    assert_eq!(because, Some("hands out the access token of another corp"));
}
