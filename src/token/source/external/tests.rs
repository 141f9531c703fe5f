//! Texts that SDKs store, one for each layout, and the token that wxgate reads from them.
//! docs/coexistence.md has the sources.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    base::Secret,
    net::connect_error::{ConnectError, TcpFailure, TlsFailure},
};

const TOKEN: &str = "81_x6W-0mdkvE_Pq2bFnrT9s";

fn found(text: &str, field: Option<&str>) -> Result<value::FoundToken, FetchError> {
    value::find(text, field)
}

fn token(text: &str, field: Option<&str>) -> String {
    let found = found(text, field).unwrap_or_else(|error| panic!("{error}: {text}"));
    found.token.expose().to_owned()
}

fn serialized(text: &str) -> String {
    format!("s:{}:\"{text}\";", text.len())
}

#[test]
fn the_string_of_wxjava_and_of_silenceper_is_the_token() {
    assert_eq!(token(TOKEN, None), TOKEN);
    assert_eq!(
        token(&format!("{TOKEN}\n"), None),
        TOKEN,
        "a line end is none of it"
    );
    let of_others = found(TOKEN, None).unwrap();
    assert_eq!(
        (of_others.written_life, of_others.ends_ms),
        (None, None),
        "the life is that of the key"
    );
}

#[test]
fn the_json_string_of_older_silenceper_is_unquoted() {
    assert_eq!(token(&format!("\"{TOKEN}\""), None), TOKEN);
}

#[test]
fn the_hash_of_older_wxjava_for_mini_programs_says_when_it_ends() {
    let hash = json!({"value": TOKEN, "expire": "1786000000000"});
    let found = value::find_in(hash, Some("value")).unwrap();
    assert_eq!(
        (found.token.expose(), found.ends_ms),
        (TOKEN, Some(1_786_000_000_000))
    );
}

#[test]
fn the_serialised_string_of_easywechat_6_is_unpacked() {
    assert_eq!(token(&serialized(TOKEN), None), TOKEN);
}

#[test]
fn the_serialised_array_of_easywechat_4_and_5_is_unpacked() {
    let array = format!(
        "a:2:{{s:12:\"access_token\";{}s:10:\"expires_in\";i:7200;}}",
        serialized(TOKEN)
    );
    let found = found(&array, None).unwrap();
    assert_eq!(
        (found.token.expose(), found.written_life),
        (TOKEN, Some(Duration::from_secs(7200)))
    );
    assert_eq!(token(&array, Some("access_token")), TOKEN);
}

#[test]
fn the_json_of_powerwechat_and_of_wechat_itself_is_read() {
    let text = json!({"access_token": TOKEN, "expires_in": 7200}).to_string();
    let found = found(&text, None).unwrap();
    assert_eq!(
        (found.token.expose(), found.written_life),
        (TOKEN, Some(Duration::from_secs(7200)))
    );
    assert_eq!(
        token(&serialized(&text), None),
        TOKEN,
        "also when PHP wrapped it up"
    );
}

#[test]
fn the_bag_of_senparc_is_searched_and_its_end_understood() {
    let bag = json!({
        "AppId": "wx0123456789abcdef", "AppSecret": "secret", "Name": "shop", "Key": "wx0123456789abcdef",
        "AccessTokenExpireTime": "2026-08-06T10:03:42.1234567+08:00",
        "AccessTokenResult": {"access_token": TOKEN, "expires_in": 7200, "errcode": 0, "errmsg": null, "P2PData": null},
        "CacheTime": "2026-08-06T08:03:42.1234567+08:00"
    });
    let found = found(&bag.to_string(), None).unwrap();
    assert_eq!(
        (found.token.expose(), found.ends_ms),
        (TOKEN, Some(1_785_981_822_000))
    );
    assert_eq!(
        token(&bag.to_string(), Some("AccessTokenResult.access_token")),
        TOKEN
    );
    // RedisHashSet: the objects of all accounts are fields of one hash.
    let hash = json!({"wx0123456789abcdef": bag.to_string(), "wxother": "{}"});
    assert_eq!(
        value::find_in(hash, Some("wx0123456789abcdef"))
            .unwrap()
            .token
            .expose(),
        TOKEN
    );
}

#[test]
fn home_made_forms_are_found_by_name_or_by_path() {
    for text in [
        json!({"accessToken": TOKEN}),
        json!({"AccessToken": TOKEN, "ticket": "x"}),
        json!({"code": 0, "data": {"access_token": TOKEN}}),
        json!({"code": 0, "result": {"accessToken": TOKEN}}),
    ] {
        assert_eq!(token(&text.to_string(), None), TOKEN, "{text}");
    }
    let nested = json!({"wx": {"shop": {"t": TOKEN}, "a.b": TOKEN}}).to_string();
    assert_eq!(
        (
            token(&nested, Some("wx.shop.t")),
            token(&nested, Some("wx.a.b"))
        ),
        (TOKEN.into(), TOKEN.into())
    );
}

#[test]
fn ends_are_read_in_every_unit_and_small_numbers_are_no_dates() {
    for (end, ms) in [
        (json!(1_786_000_000), Some(1_786_000_000_000)),
        (json!("1786000000"), Some(1_786_000_000_000)),
        (json!(1_786_000_000_123_u64), Some(1_786_000_000_123)),
        (json!(1_786_000_000.0), Some(1_786_000_000_000)),
        (json!("2026-08-06T02:03:42Z"), Some(1_785_981_822_000)),
        (json!("2026-08-05T18:03:42-08:00"), Some(1_785_981_822_000)),
        (json!(7200), None),
        (json!(-1), None),
        (json!("tomorrow"), None),
        (json!("2026-08-06T02:03:42"), None),
        (json!(null), None),
    ] {
        let text = json!({"access_token": TOKEN, "expires_at": end}).to_string();
        assert_eq!(found(&text, None).unwrap().ends_ms, ms, "{text}");
    }
}

#[test]
fn what_is_no_token_is_not_taken_for_one() {
    for (text, field) in [
        ("", None),
        ("{}", None),
        ("[]", None),
        ("{\"errcode\":40001,\"errmsg\":\"x\"}", None),
        ("{\"access_token\":7}", None),
        ("{\"access_token\":\"\"}", None),
        ("{\"access_token\":\"a b\"}", None),
        ("{\"access_token\":\"x\"", None),
        ("<html><body>Sign in</body></html>", None),
        ("no token here", None),
        ("a:1:{i:0;i:1;}", None),
        (TOKEN, Some("access_token")),
        ("{\"access_token\":\"x\"}", Some("token")),
        ("{\"a\":\"x\"}", Some("a.b")),
    ] {
        let error = found(text, field).unwrap_err();
        assert!(
            matches!(error, FetchError::External(ExternalError::Shape(_))),
            "{text}: {error:?}"
        );
    }
    assert!(found(&"x".repeat(2049), None).is_err());
    assert_eq!(found("wxg1_abc", None).unwrap_err(), FetchError::Phantom);
    assert_eq!(
        found("{\"access_token\":\"wxg1_abc\"}", None).unwrap_err(),
        FetchError::Phantom
    );
}

#[test]
fn the_shortest_life_counts_and_none_is_ten_minutes() {
    let secs = Duration::from_secs;
    assert_eq!(life([None, None]), Ok(secs(600)));
    assert_eq!(life([Some(secs(100)), Some(secs(90))]), Ok(secs(90)));
    assert_eq!(life([None, Some(secs(1_000_000))]), Ok(secs(7200)));
    assert_eq!(
        life([Some(secs(100)), Some(Duration::ZERO)]),
        Err(ExternalError::Ended)
    );
}

#[test]
fn every_reason_says_what_to_do_and_shows_nothing() {
    for absent in [
        ExternalError::Unreachable(ConnectError::Host(TcpFailure::UnknownName)),
        ExternalError::Unreachable(ConnectError::Tls(TlsFailure::Untrusted)),
        ExternalError::Database,
        ExternalError::Timeout,
        ExternalError::Broken,
        ExternalError::Denied,
        ExternalError::Missing,
        ExternalError::Ended,
        ExternalError::Status(502),
        ExternalError::Shape("x"),
    ] {
        let text = absent.to_string();
        assert!(text.contains(": ") && !text.contains("://"), "{text}");
    }
    let redis =
        ExternalRedisSettings::new(Secret::new("redis://:hunter2@cache/0"), "k".into(), None)
            .unwrap();
    let header = Header::new("X-Key", Secret::new("hunter2")).unwrap();
    let http =
        ExternalHttpSettings::new(Secret::new("https://u:hunter2@tokens/"), vec![header], None)
            .unwrap();
    let shown = format!(
        "{:?} {:?}",
        ExternalSettings::Redis(redis),
        ExternalSettings::Http(http)
    );
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn addresses_of_redis_are_taken_in_every_form_and_never_unverified() {
    let settings = |url: &str| ExternalRedisSettings::new(Secret::new(url), "k".into(), None);
    for url in [
        "redis://cache",
        "redis://:p%40ss@cache:6380/3",
        "rediss://user:pass@cache",
        "unix:/run/redis.sock",
        "unix:///run/redis.sock?db=2",
        "redis://[::1]:6379",
    ] {
        let in_the_clear = ["redis://cache", "redis://:p%40ss@cache:6380/3"].contains(&url);
        assert_eq!(
            settings(url).map(|settings| settings.is_in_the_clear()),
            Ok(in_the_clear),
            "{url}"
        );
    }
    for url in [
        "",
        "cache:6379",
        "http://cache",
        "redis://",
        "redis://cache/x",
        "rediss://cache/#insecure",
    ] {
        assert!(settings(url).is_err(), "{url}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "[\\PC]{0,60}", field in prop::option::of("[a-z.]{1,8}")) {
        let _ = found(&text, field.as_deref());
    }

    #[test]
    fn no_json_panics(name in "(access_token|expires_at|expires_in|AccessTokenExpireTime)", text in "[-0-9T:.Z+é]{0,30}") {
        let _ = found(&json!({name: text, "access_token": TOKEN}).to_string(), None);
    }
}
