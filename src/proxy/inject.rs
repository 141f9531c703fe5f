//! The token goes into the query, whatever the caller put there under that name comes out.
//!
//! Works on raw bytes: all other pairs keep theirs and their order. What another parser might take
//! for the token's name is refused, since nobody knows how WeChat's end reads odd queries. Knows
//! nothing of headers or bodies.

use std::{borrow::Cow, sync::LazyLock};

use bytes::BytesMut;
use hyper::http::uri::PathAndQuery;
use memchr::{memchr, memchr2, memmem};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::path::ApiPath;
use crate::{
    service::phantom::{self, Phantom},
    wechat::{
        api,
        look_alike::{TOKEN_PARAMETER as NAME, reads_as_token},
    },
};

/// Why a query was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// `ACCESS_TOKEN`, `access_token[]`, `x=1;access_token=…` and the like.
    #[error(
        "the query holds a parameter that looks like access_token but is not spelt so; leave it out"
    )]
    LookAlike,
    /// Two phantom tokens that are not the same.
    #[error("the query holds several different tokens of wxgate; send one")]
    SeveralPhantoms,
    /// Two secrets that are not the same.
    #[error("the query holds several different secrets; send one, or none: wxgate fills it in")]
    SeveralSecrets,
    /// Two appids that are not the same.
    #[error("the query holds several different appids; send one")]
    SeveralAppids,
    /// A key of the caller's client in a parameter that would be sent on.
    #[error(
        "the query holds the client's key where WeChat wants a secret that wxgate cannot fill in here; the key is not sent \
         on"
    )]
    ClientKey,
    /// A phantom token in a parameter that would be sent on.
    #[error(
        "the query holds a token of wxgate in another parameter than access_token, or percent-encoded; WeChat cannot use it, \
         so it is not sent on"
    )]
    StrayPhantom,
    /// Bytes that no URL may hold.
    #[error("the query holds bytes that must be percent-encoded")]
    NotAQuery,
}

/// What the caller's query says about tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// The account's token belongs here. `own` pairs named `access_token` have to go.
    TakesToken {
        /// How many pairs the caller brought under the token's name.
        own: usize,
    },
    /// It carries a credential of another kind; the account's token must not be added.
    OwnCredential,
}

/// What the query of a login code exchange says about its account; percent-decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login<'q> {
    /// `appid`, unless empty.
    pub appid: Option<Cow<'q, str>>,
    /// `secret`, unless empty.
    pub secret: Option<Cow<'q, str>>,
}

/// The phantom token that the caller shows, if any. It is never encoded: it holds nothing that
/// would have to be.
///
/// # Errors
/// [`QueryError::SeveralPhantoms`].
pub fn phantom(query: Option<&str>) -> Result<Option<&str>, QueryError> {
    let Some(query) = query.filter(|query| may_hold_phantom(query)) else {
        return Ok(None);
    };
    let mut shown = pairs(Some(query)).filter_map(phantom_in);
    let first = shown.next();
    if shown.all(|other| Some(other) == first) {
        Ok(first)
    } else {
        Err(QueryError::SeveralPhantoms)
    }
}

/// Looks for the account's credential in the query of a login code exchange.
///
/// # Errors
/// [`QueryError::SeveralSecrets`], [`QueryError::SeveralAppids`].
pub fn login(query: Option<&str>) -> Result<Login<'_>, QueryError> {
    let mut login = Login::default();
    for (name, value) in pairs(query)
        .map(decoded)
        .filter(|(_, value)| !value.is_empty())
    {
        let (place, several) = match &*name {
            "secret" => (&mut login.secret, QueryError::SeveralSecrets),
            "appid" => (&mut login.appid, QueryError::SeveralAppids),
            _ => continue,
        };
        if place.as_ref().is_some_and(|first| *first != value) {
            return Err(several);
        }
        *place = Some(value);
    }
    Ok(login)
}

/// Which of the caller's parameters stay here when a call is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// All that are named `access_token`.
    Token,
    /// Phantoms under that name.
    Phantom,
    /// The same, and `secret`.
    PhantomAndSecret,
}

/// Refuses a query that would take a key of the caller's client or a phantom to WeChat, under
/// whatever name. `is_key` costs a digest, so it is asked only of values that pass `may_be_key`.
///
/// # Errors
/// [`QueryError::ClientKey`], [`QueryError::StrayPhantom`].
pub fn keep_secrets(
    query: Option<&str>,
    removed: Removed,
    may_be_key: impl Fn(&str) -> bool,
    is_key: impl Fn(&str) -> bool,
) -> Result<(), QueryError> {
    let is_plain = query.is_none_or(|query| memchr2(b'%', b';', query.as_bytes()).is_none());
    let suspect = |value: &str| value.starts_with(phantom::PREFIX) || may_be_key(value);
    for pair in pairs(query) {
        let (name, value) = pair.split_once('=').unwrap_or(("", pair));
        // The only look at nearly all pairs.
        if is_plain && !suspect(value) && !suspect(pair) {
            continue;
        }
        let goes = match (&*decode(name), removed) {
            (NAME, Removed::Token) | ("secret", Removed::PhantomAndSecret) => true,
            (NAME, _) => phantom_in(pair).is_some(),
            _ => false,
        };
        if goes {
            continue;
        }
        // The whole pair is a value to those who forgot the name; a key may end in `=`.
        let (value, whole) = (decode(value), decode(pair));
        for part in readings(&value).chain(readings(&whole)) {
            if Phantom::parse(part).is_some() {
                return Err(QueryError::StrayPhantom);
            }
            if may_be_key(part) && is_key(part) {
                return Err(QueryError::ClientKey);
            }
        }
    }
    Ok(())
}

/// A value, and what a parser finds in it that also splits at `;`: values, and pairs that may be
/// values without a name.
fn readings(value: &str) -> impl Iterator<Item = &str> {
    let is_split = memchr(b';', value.as_bytes()).is_some();
    let parts = is_split.then(|| value.split(';')).into_iter().flatten();
    let parts =
        parts.flat_map(|part| [part, part.split_once('=').map_or(part, |(_, value)| value)]);
    std::iter::once(value).chain(parts)
}

/// Builds the target of a login code exchange with the account's own credential: `secret` takes the
/// place of whatever stood there, `appid` is added when it is given.
///
/// # Errors
/// [`QueryError::NotAQuery`].
pub fn fill_login(
    path: &ApiPath<'_>,
    query: Option<&str>,
    appid: Option<&str>,
    secret: &str,
) -> Result<PathAndQuery, QueryError> {
    let mut target = format!(
        "{path}?secret={}",
        utf8_percent_encode(secret, NON_ALPHANUMERIC)
    );
    if let Some(appid) = appid {
        target.extend(["&appid=", appid]);
    }
    let is_replaced = |name: &str| name == "secret" || appid.is_some() && name == "appid";
    let stays = |pair: &&str| !is_replaced(&decode(raw_name(pair))) && phantom_in(pair).is_none();
    for pair in pairs(query).filter(stays) {
        target.extend(["&", pair]);
    }
    PathAndQuery::from_maybe_shared(bytes::Bytes::from(target)).map_err(|_| QueryError::NotAQuery)
}

/// Looks through the caller's query.
///
/// # Errors
/// [`QueryError::LookAlike`].
pub fn examine(query: Option<&str>) -> Result<Query, QueryError> {
    let mut own = 0;
    let mut own_credential = false;
    let is_plain = query.is_none_or(|query| memchr2(b'%', b';', query.as_bytes()).is_none());
    for pair in pairs(query) {
        let name = if is_plain { plain_name_of(pair) } else { None };
        match name.unwrap_or_else(|| name_of(pair)) {
            Name::Token => own += 1,
            Name::LookAlike => return Err(QueryError::LookAlike),
            Name::Credential => own_credential = true,
            Name::Other => {}
        }
    }
    Ok(if own_credential {
        Query::OwnCredential
    } else {
        Query::TakesToken { own }
    })
}

/// Builds the request target with the token as the first pair. `own` is what [`examine`] counted.
///
/// # Errors
/// [`QueryError::NotAQuery`] when the caller's bytes cannot stand in a request line.
pub fn inject(
    path: &ApiPath<'_>,
    query: Option<&str>,
    own: usize,
    token: &str,
) -> Result<PathAndQuery, QueryError> {
    let path = path.as_str();
    let rest = query.unwrap_or_default();
    let mut target =
        BytesMut::with_capacity(path.len() + NAME.len() + token.len() + rest.len() + 3);
    target.extend_from_slice(path.as_bytes());
    target.extend_from_slice(b"?access_token=");
    target.extend_from_slice(token.as_bytes());
    if own == 0 {
        if !rest.is_empty() {
            target.extend_from_slice(b"&");
            target.extend_from_slice(rest.as_bytes());
        }
    } else {
        for pair in pairs(query).filter(|pair| !matches!(name_of(pair), Name::Token)) {
            target.extend_from_slice(b"&");
            target.extend_from_slice(pair.as_bytes());
        }
    }
    PathAndQuery::from_maybe_shared(target.freeze()).map_err(|_| QueryError::NotAQuery)
}

/// Builds the request target as the caller wrote it, for calls that take no token; only phantom
/// tokens go.
///
/// # Errors
/// [`QueryError::NotAQuery`].
pub fn untouched(path: &ApiPath<'_>, query: Option<&str>) -> Result<PathAndQuery, QueryError> {
    let path = path.as_str();
    let target = match query {
        None => path.to_owned(),
        Some(query) if !may_hold_phantom(query) => {
            format!("{path}?{query}")
        }
        Some(_) => {
            let kept: Vec<&str> = pairs(query)
                .filter(|pair| phantom_in(pair).is_none())
                .collect();
            format!("{path}?{}", kept.join("&"))
        }
    };
    PathAndQuery::from_maybe_shared(bytes::Bytes::from(target)).map_err(|_| QueryError::NotAQuery)
}

enum Name {
    Token,
    LookAlike,
    Credential,
    Other,
}

fn pairs(query: Option<&str>) -> impl Iterator<Item = &str> {
    let mut rest = query.filter(|query| !query.is_empty());
    std::iter::from_fn(move || {
        let query = rest?;
        let (pair, behind) = match memchr(b'&', query.as_bytes()) {
            Some(end) => (&query[..end], Some(&query[end + 1..])),
            None => (query, None),
        };
        rest = behind;
        Some(pair)
    })
}

/// What a short name says in which nothing is encoded, as nearly all are: too short to be a
/// spelling of the token's.
fn plain_name_of(pair: &str) -> Option<Name> {
    let end = pair.bytes().take(NAME.len()).position(|byte| byte == b'=');
    let end = end.or_else(|| (pair.len() < NAME.len()).then_some(pair.len()))?;
    Some(if api::replaces_token(&pair[..end]) {
        Name::Credential
    } else {
        Name::Other
    })
}

fn name_of(pair: &str) -> Name {
    // A parser that also splits at `;` would find further names behind one.
    if pair.contains(';')
        && pair
            .split(';')
            .skip(1)
            .any(|part| reads_as_token(&decode(raw_name(part))))
    {
        return Name::LookAlike;
    }
    let name = decode(raw_name(pair));
    if name == NAME {
        Name::Token
    } else if reads_as_token(&name) {
        Name::LookAlike
    } else if api::replaces_token(&name) {
        Name::Credential
    } else {
        Name::Other
    }
}

/// Whether the text of a phantom is in it at all. Every request is asked, so the search is prepared
/// once.
fn may_hold_phantom(query: &str) -> bool {
    static PREFIX: LazyLock<memmem::Finder> =
        LazyLock::new(|| memmem::Finder::new(phantom::PREFIX));
    PREFIX.find(query.as_bytes()).is_some()
}

/// The value of `access_token`, if it is a phantom.
fn phantom_in(pair: &str) -> Option<&str> {
    let (name, value) = pair.split_once('=')?;
    (value.starts_with(phantom::PREFIX) && decode(name) == NAME).then_some(value)
}

fn decoded(pair: &str) -> (Cow<'_, str>, Cow<'_, str>) {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    (decode(name), decode(value))
}

fn raw_name(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

fn decode(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte == b'%') {
        percent_decode_str(name).decode_utf8_lossy()
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::time::Duration;

    use super::{super::path::SplitPath, *};
    use crate::service::phantom::PhantomKey;

    fn rewritten(query: Option<&str>) -> Result<String, QueryError> {
        let path = SplitPath::new("/p").check().unwrap();
        match examine(query)? {
            Query::TakesToken { own } => inject(&path, query, own, "T").map(|t| t.to_string()),
            Query::OwnCredential => untouched(&path, query).map(|t| t.to_string()),
        }
    }

    #[test]
    fn the_token_comes_first_and_all_else_stays() {
        for (query, target) in [
            (None, "/p?access_token=T"),
            (Some(""), "/p?access_token=T"),
            (Some("a=1&b=%2F+'"), "/p?access_token=T&a=1&b=%2F+'"),
            (Some("access_token=x&a=1"), "/p?access_token=T&a=1"),
            (
                Some("a=1&access_token&access_token=&b"),
                "/p?access_token=T&a=1&b",
            ),
            (
                Some("access%5Ftoken=x&%61ccess_token=y&z=1"),
                "/p?access_token=T&z=1",
            ),
            (Some("a=1&&b=2&"), "/p?access_token=T&a=1&&b=2&"),
            (
                Some("my_access_token=1&access_tokens=2"),
                "/p?access_token=T&my_access_token=1&access_tokens=2",
            ),
            (
                Some("url=http://x/?access_token=1"),
                "/p?access_token=T&url=http://x/?access_token=1",
            ),
        ] {
            assert_eq!(rewritten(query).as_deref(), Ok(target), "{query:?}");
        }
    }

    #[test]
    fn look_alikes_are_refused() {
        for query in [
            "ACCESS_TOKEN=1",
            "Access_Token=1",
            "access_token[]=1",
            "access_token%5B%5D=1",
            "access_token%20=1",
            "+access_token=1",
            "access%00_token=1&access_token%00=1",
            "access[token=1",
            "a=1&ACCESS%5Btoken[]=1",
            "x%3Baccess_token=1",
            "access.token=1",
            "access+token=1",
            "access%20token=1",
            "x=1;access_token=A",
            "x;ACCESS_TOKEN=A",
            "%ef%bd%81ccess_token=1",
        ] {
            assert_eq!(
                rewritten(Some(query)),
                Err(QueryError::LookAlike),
                "{query}"
            );
        }
    }

    #[test]
    fn credentials_of_another_kind_keep_the_token_out() {
        for query in [
            "secret=s&appid=a",
            "appsecret=s",
            "component_access_token=c",
            "cloudbase_access_token=c",
            "%73ecret=1",
        ] {
            assert_eq!(rewritten(Some(query)).unwrap(), format!("/p?{query}"));
        }
    }

    #[test]
    fn a_phantom_is_found_where_the_token_stands_and_nowhere_else() {
        assert_eq!(
            phantom(Some("a=1&access_token=wxg1_x&b=2")),
            Ok(Some("wxg1_x"))
        );
        assert_eq!(
            phantom(Some("access%5Ftoken=wxg1_x&access_token=wxg1_x")),
            Ok(Some("wxg1_x"))
        );
        assert_eq!(
            phantom(Some("access_token=wxg1_x&access_token=wxg1_y")),
            Err(QueryError::SeveralPhantoms)
        );
        for other in [
            "access_token=x",
            "token=wxg1_x",
            "access_token=xwxg1_",
            "a=access_token=wxg1_x",
            "wxg1_",
        ] {
            assert_eq!(phantom(Some(other)), Ok(None), "{other}");
        }
    }

    #[test]
    fn a_phantom_does_not_pass_where_no_token_is_injected_and_a_users_own_token_does() {
        let path = SplitPath::new("/sns/userinfo").check().unwrap();
        let target = |query| untouched(&path, Some(query)).unwrap().to_string();
        assert_eq!(
            target("access_token=wxg1_x&openid=o"),
            "/sns/userinfo?openid=o"
        );
        assert_eq!(
            target("access_token=user&openid=o"),
            "/sns/userinfo?access_token=user&openid=o"
        );
    }

    #[test]
    fn a_login_gets_the_credential_of_its_account() {
        let path = SplitPath::new("/sns/jscode2session").check().unwrap();
        let filled = |query, appid| fill_login(&path, query, appid, "s+e").unwrap().to_string();
        assert_eq!(
            filled(Some("appid=a&secret=k&js_code=c"), None),
            "/sns/jscode2session?secret=s%2Be&appid=a&js_code=c"
        );
        assert_eq!(
            filled(Some("js_code=c&appid="), Some("wx1")),
            "/sns/jscode2session?secret=s%2Be&appid=wx1&js_code=c"
        );
        assert_eq!(
            filled(Some("%73ecret=&access_token=wxg1_x"), None),
            "/sns/jscode2session?secret=s%2Be"
        );
        assert_eq!(filled(None, None), "/sns/jscode2session?secret=s%2Be");
        let login = login(Some("appid=w%78&secret=&secret=k%31&js_code=c")).unwrap();
        assert_eq!(
            (login.appid.as_deref(), login.secret.as_deref()),
            (Some("wx"), Some("k1"))
        );
        assert_eq!(
            super::login(Some("secret=a&secret=b")),
            Err(QueryError::SeveralSecrets)
        );
        assert_eq!(
            super::login(Some("appid=a&x&%61ppid=b")),
            Err(QueryError::SeveralAppids)
        );
        assert!(super::login(Some("appid=a&appid=&appid=%61")).is_ok());
    }

    #[test]
    fn neither_keys_nor_phantoms_are_sent_on_under_any_name() {
        const KEY: &str = "key-of-crm+0123=";
        let phantom = PhantomKey::new("shop", None, "crm", None).mint(Duration::from_secs(1));
        let encoded_key = utf8_percent_encode(KEY, NON_ALPHANUMERIC).to_string();
        let encoded_phantom = phantom.replacen('_', "%5F", 1);
        let kept = |query: &str, removed| {
            keep_secrets(Some(query), removed, |v| v.len() == KEY.len(), |v| v == KEY)
        };
        let all = [Removed::Token, Removed::Phantom, Removed::PhantomAndSecret];
        for value in [
            KEY,
            &encoded_key,
            &format!("1;x={KEY}"),
            &format!("{KEY};x"),
        ] {
            for name in ["corpsecret=", "a=1&%73ecre=", "x&y=", "&&token=", ""] {
                let query = format!("{name}{value}&b=2");
                for removed in all {
                    let refused = kept(&query, removed);
                    assert_eq!(refused, Err(QueryError::ClientKey), "{query} {removed:?}");
                }
            }
        }
        for value in [&phantom, &encoded_phantom, &format!("1;x={phantom}")] {
            for name in ["token=", "a=1&corpsecret=", "", "secret2="] {
                let query = format!("{name}{value}&b=2");
                for removed in all {
                    let refused = kept(&query, removed);
                    assert_eq!(
                        refused,
                        Err(QueryError::StrayPhantom),
                        "{query} {removed:?}"
                    );
                }
            }
        }
        for (query, removed) in [
            (format!("access_token={KEY}&a=1"), Removed::Token),
            (format!("access%5Ftoken={encoded_key}"), Removed::Token),
            (format!("access_token={encoded_phantom}"), Removed::Token),
            (format!("a=1&access_token={phantom}"), Removed::Phantom),
            (
                format!("secret={KEY}&access_token={phantom}"),
                Removed::PhantomAndSecret,
            ),
            (format!("%73ecret={encoded_key}"), Removed::PhantomAndSecret),
            (
                format!("a=x{KEY}&b={KEY}x&c=wxg1_hello&{KEY}=1"),
                Removed::Phantom,
            ),
            (
                format!("url=http://h/?access_token={phantom}"),
                Removed::Token,
            ),
        ] {
            assert_eq!(kept(&query, removed), Ok(()), "{query}");
        }
        for (query, removed, error) in [
            (
                format!("access_token={encoded_phantom}"),
                Removed::Phantom,
                QueryError::StrayPhantom,
            ),
            (
                format!("access_token={KEY}"),
                Removed::Phantom,
                QueryError::ClientKey,
            ),
            (
                format!("secret={KEY}"),
                Removed::Phantom,
                QueryError::ClientKey,
            ),
            (
                format!("secret={phantom}"),
                Removed::Token,
                QueryError::StrayPhantom,
            ),
        ] {
            assert_eq!(kept(&query, removed), Err(error), "{query}");
        }
    }

    /// The digest of a value is worth some hundred instructions.
    #[test]
    fn a_value_that_cannot_be_a_key_is_not_compared() {
        let asked = std::cell::Cell::new(0);
        let is_key = |_: &str| {
            asked.set(asked.get() + 1);
            false
        };
        let query =
            Some("openid=o6_bmjrPTlm6_2sgVt7hMZOPfL2M&lang=zh_CN&a=%E4%B8%AD&b=0123456789abcdef");
        keep_secrets(query, Removed::Token, |value| value.len() == 16, is_key).unwrap();
        assert_eq!(asked.get(), 1);
    }

    /// The names that a lenient parser could find: split at `&` and `;`, brackets cut, case folded.
    fn lenient_names(query: &str) -> impl Iterator<Item = String> {
        query.split(['&', ';']).map(|pair| {
            let name = decode(raw_name(pair)).to_lowercase();
            name.split('[').next().unwrap_or_default().trim().to_owned()
        })
    }

    proptest! {
        #[test]
        fn every_reading_finds_exactly_one_token(
            query in prop::collection::vec(
                prop_oneof![
                    Just("access_token"), Just("access%5Ftoken"), Just("ACCESS_TOKEN"), Just("access_token[]"), Just("a"), Just("openid"),
                    Just(";access_token"), Just("access_token%20"), Just("x;y"), Just("%"), Just("%zz"), Just("")
                ].prop_flat_map(|name| prop_oneof![
                    Just(name.to_owned()), "[a-z%;=+]{0,6}".prop_map(move |value| format!("{name}={value}"))
                ]),
                0..6,
            ).prop_map(|pairs| pairs.join("&"))
        ) {
            if let Ok(target) = rewritten(Some(&query)) {
                let (_, sent) = target.split_once('?').unwrap();
                prop_assert_eq!(lenient_names(sent).filter(|name| name == NAME).count(), 1, "{}", sent);
                let kept: Vec<_> = sent.split('&').skip(1).collect();
                let foreign: Vec<_> = pairs(Some(&query)).filter(|p| decode(raw_name(p)) != NAME).collect();
                prop_assert_eq!(kept, foreign);
            }
        }

        #[test]
        fn no_query_panics(query in "\\PC{0,60}") {
            let _ = rewritten(Some(&query));
        }
    }
}
