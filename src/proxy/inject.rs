//! Injection of the token into the query, in place of any value that the caller gave under its name.
//!
//! Works on raw bytes: all other pairs keep their bytes and their order. A name that another parser
//! might take for that of the token is refused, since WeChat's parser is not known.

use std::{borrow::Cow, sync::LazyLock};

use memchr::{memchr, memchr2, memmem};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    path::ApiPath,
    query::{decode, decoded, encoded_name, pairs, split},
};
use crate::{
    service::phantom::{self, Phantom},
    wechat::{
        credential::Parameters,
        look_alike::{TOKEN_PARAMETER as NAME, reads_as_token},
    },
};

/// Reasons why a query is refused.
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

/// Names in a query, as far as they decide which credential the call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueryNames {
    /// Credential parameters, for the class of the call.
    pub parameters: Parameters,
    /// Number of pairs named `access_token`, which have to go when the account's token is added.
    own: usize,
    /// True if a name could be taken for `access_token` and is not spelt so.
    has_look_alike: bool,
}

impl QueryNames {
    /// Returns true if the query has a parameter `access_token`.
    pub(crate) fn brings_token(self) -> bool {
        self.own > 0
    }

    /// Returns the number of pairs named `access_token`.
    ///
    /// # Errors
    /// [`QueryError::LookAlike`].
    pub fn own(self) -> Result<usize, QueryError> {
        if self.has_look_alike {
            Err(QueryError::LookAlike)
        } else {
            Ok(self.own)
        }
    }
}

/// Parameters of a login code exchange that name its account; percent-decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LoginParameters<'q> {
    /// Parameter `appid`, unless empty.
    pub appid: Option<Cow<'q, str>>,
    /// Parameter `secret`, unless empty.
    pub secret: Option<Cow<'q, str>>,
}

/// Returns the phantom token in the query. A phantom has no byte that needs encoding, so an encoded
/// one is not recognised.
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

/// Finds appid and secret in the query of a login code exchange.
///
/// # Errors
/// [`QueryError::SeveralSecrets`], [`QueryError::SeveralAppids`].
pub(crate) fn login(query: Option<&str>) -> Result<LoginParameters<'_>, QueryError> {
    let mut login = LoginParameters::default();
    for (name, value) in pairs(query)
        .map(decoded)
        .filter(|(_, value)| !value.is_empty())
    {
        let (parameter, several) = match &*name {
            "secret" => (&mut login.secret, QueryError::SeveralSecrets),
            "appid" => (&mut login.appid, QueryError::SeveralAppids),
            _ => continue,
        };
        if parameter.as_ref().is_some_and(|first| *first != value) {
            return Err(several);
        }
        *parameter = Some(value);
    }
    Ok(login)
}

/// Parameters of the caller that are removed before a call is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RemovedParameters {
    /// All parameters named `access_token`.
    Token,
    /// Phantom tokens named `access_token`.
    Phantom,
    /// Phantom tokens named `access_token`, and `secret`.
    PhantomAndSecret,
}

/// Refuses a query that would take a key of the caller's client or a phantom to WeChat under any
/// name. `is_key` costs a digest, so it is called only for values that pass `may_be_key`.
///
/// # Errors
/// [`QueryError::ClientKey`], [`QueryError::StrayPhantom`].
pub(crate) fn keep_secrets(
    query: Option<&str>,
    removed: RemovedParameters,
    may_be_key: impl Fn(&str) -> bool,
    is_key: impl Fn(&str) -> bool,
) -> Result<(), QueryError> {
    let is_plain = query.is_none_or(|query| memchr2(b'%', b';', query.as_bytes()).is_none());
    let suspect = |value: &str| value.starts_with(phantom::PREFIX) || may_be_key(value);
    for pair in pairs(query) {
        let (name, value) = split(pair).unwrap_or(("", pair));
        // Nearly all pairs end here.
        if is_plain && !suspect(value) && !suspect(pair) {
            continue;
        }
        let goes = match (&*decode(name), removed) {
            (NAME, RemovedParameters::Token) | ("secret", RemovedParameters::PhantomAndSecret) => {
                true
            }
            (NAME, _) => phantom_in(pair).is_some(),
            _ => false,
        };
        if goes {
            continue;
        }
        // A pair without a name may be a value as a whole; a key may end in `=`.
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

/// Returns a value, and the parts that a parser finds in it that also splits at `;`: values, and
/// pairs that may be values without a name.
fn readings(value: &str) -> impl Iterator<Item = &str> {
    let is_split = memchr(b';', value.as_bytes()).is_some();
    let parts = is_split.then(|| value.split(';')).into_iter().flatten();
    let parts = parts.flat_map(|part| [part, split(part).map_or(part, |(_, value)| value)]);
    std::iter::once(value).chain(parts)
}

/// Builds the target of a login code exchange with the account's own credential: `secret` replaces
/// the parameter of that name, `appid` too when it is given.
///
/// # Errors
/// [`QueryError::NotAQuery`].
pub(crate) fn fill_login(
    path: &ApiPath<'_>,
    query: Option<&str>,
    appid: Option<&str>,
    secret: &str,
) -> Result<String, QueryError> {
    let mut target = format!(
        "{path}?secret={}",
        utf8_percent_encode(secret, NON_ALPHANUMERIC)
    );
    if let Some(appid) = appid {
        target.extend(["&appid=", appid]);
    }
    let is_replaced = |name: &str| name == "secret" || appid.is_some() && name == "appid";
    let stays =
        |pair: &&str| !is_replaced(&decode(encoded_name(pair))) && phantom_in(pair).is_none();
    for pair in pairs(query).filter(stays) {
        target.extend(["&", pair]);
    }
    checked(target)
}

/// Examines the names in the caller's query.
pub fn examine(query: Option<&str>) -> QueryNames {
    let mut names = QueryNames::default();
    let is_plain = query.is_none_or(|query| memchr2(b'%', b';', query.as_bytes()).is_none());
    for pair in pairs(query) {
        // Nearly all names are too short to be a spelling of `access_token`.
        if is_plain && let Some(name) = short_name(pair) {
            names.parameters.add(name, pair.len() > name.len() + 1);
            continue;
        }
        match name_of(pair) {
            NameKind::Token => names.own += 1,
            NameKind::LookAlike => names.has_look_alike = true,
            NameKind::Other => {}
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        names
            .parameters
            .add(&decode(name), !value.is_empty() && !is_phantom(value));
    }
    names
}

/// Returns the values of `access_token` that are neither empty nor a phantom, percent-decoded.
pub(crate) fn real_tokens(query: Option<&str>) -> impl Iterator<Item = Cow<'_, str>> {
    pairs(query).filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = (decode(name) == NAME).then(|| decode(value))?;
        (!value.is_empty() && !is_phantom(&value)).then_some(value)
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
) -> Result<String, QueryError> {
    let path = path.as_str();
    let rest = query.unwrap_or_default();
    let mut target = String::with_capacity(path.len() + NAME.len() + token.len() + rest.len() + 3);
    target.push_str(path);
    target.push_str("?access_token=");
    target.push_str(token);
    if own == 0 {
        if !rest.is_empty() {
            target.push('&');
            target.push_str(rest);
        }
    } else {
        for pair in pairs(query).filter(|pair| !matches!(name_of(pair), NameKind::Token)) {
            target.push('&');
            target.push_str(pair);
        }
    }
    checked(target)
}

/// Returns a target that can stand in a request line. All of it was checked where it came from; a
/// mistake there must not become a second request.
fn checked(target: String) -> Result<String, QueryError> {
    // All are counted, since a search that ends early would take one byte at a time.
    let bad = target
        .bytes()
        .filter(|byte| matches!(byte, 0..=b' ' | 0x7f | b'#'));
    if bad.count() > 0 {
        Err(QueryError::NotAQuery)
    } else {
        Ok(target)
    }
}

/// Builds the request target as the caller wrote it, for calls that take no token; only phantom
/// tokens go.
///
/// # Errors
/// [`QueryError::NotAQuery`].
pub(crate) fn untouched(path: &ApiPath<'_>, query: Option<&str>) -> Result<String, QueryError> {
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
    checked(target)
}

/// Kinds of parameters, by their name.
enum NameKind {
    Token,
    LookAlike,
    Other,
}

/// Returns the name of a pair if it is too short to be a spelling of `access_token`.
fn short_name(pair: &str) -> Option<&str> {
    let end = pair.bytes().take(NAME.len()).position(|byte| byte == b'=');
    let end = end.or_else(|| (pair.len() < NAME.len()).then_some(pair.len()))?;
    pair.get(..end)
}

fn name_of(pair: &str) -> NameKind {
    // A parser that also splits at `;` would find further names behind it.
    if pair.contains(';')
        && pair
            .split(';')
            .skip(1)
            .any(|part| reads_as_token(&decode(encoded_name(part))))
    {
        return NameKind::LookAlike;
    }
    let name = decode(encoded_name(pair));
    if name == NAME {
        NameKind::Token
    } else if reads_as_token(&name) {
        NameKind::LookAlike
    } else {
        NameKind::Other
    }
}

/// Returns true if the query may hold a phantom. Called for every request, so the search is prepared
/// once.
fn may_hold_phantom(query: &str) -> bool {
    static PREFIX: LazyLock<memmem::Finder> =
        LazyLock::new(|| memmem::Finder::new(phantom::PREFIX));
    PREFIX.find(query.as_bytes()).is_some()
}

/// Returns the value of `access_token` if it is a phantom.
fn phantom_in(pair: &str) -> Option<&str> {
    let (name, value) = split(pair)?;
    (is_phantom(value) && decode(name) == NAME).then_some(value)
}

/// Returns true if a value claims to be a phantom.
fn is_phantom(value: &str) -> bool {
    value.starts_with(phantom::PREFIX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::time::Duration;

    use super::{super::path::SplitPath, *};
    use crate::service::phantom::PhantomKey;

    fn rewritten(query: Option<&str>) -> Result<String, QueryError> {
        let path = SplitPath::new("/p").check().unwrap();
        let own = examine(query).own()?;
        inject(&path, query, own, "T")
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
    fn parameters_of_other_credentials_are_found_beside_the_token() {
        for query in [
            "secret=s&appid=a",
            "appsecret=s",
            "component_access_token=c",
            "cloudbase_access_token=c",
            "%73ecret=1",
            "access_token=t&key=k",
            "secret=",
            "a=1",
        ] {
            assert_eq!(
                examine(Some(query)).parameters,
                Parameters::of_query(query),
                "{query}"
            );
        }
        let brings = |query| examine(Some(query)).parameters != Parameters::default();
        assert!(brings("access_token=t") && !brings("access_token=wxg1_x"));
    }

    #[test]
    fn real_tokens_are_neither_phantoms_nor_empty() {
        let found: Vec<_> = real_tokens(Some(
            "access_token=&access_token=wxg1_x&access%5Ftoken=a%62&token=c&access_token",
        ))
        .collect();
        assert_eq!(found, ["ab"]);
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
        let target = |query| untouched(&path, Some(query)).unwrap();
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
        let filled = |query, appid| fill_login(&path, query, appid, "s+e").unwrap();
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
        let all = [
            RemovedParameters::Token,
            RemovedParameters::Phantom,
            RemovedParameters::PhantomAndSecret,
        ];
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
            (format!("access_token={KEY}&a=1"), RemovedParameters::Token),
            (
                format!("access%5Ftoken={encoded_key}"),
                RemovedParameters::Token,
            ),
            (
                format!("access_token={encoded_phantom}"),
                RemovedParameters::Token,
            ),
            (
                format!("a=1&access_token={phantom}"),
                RemovedParameters::Phantom,
            ),
            (
                format!("secret={KEY}&access_token={phantom}"),
                RemovedParameters::PhantomAndSecret,
            ),
            (
                format!("%73ecret={encoded_key}"),
                RemovedParameters::PhantomAndSecret,
            ),
            (
                format!("a=x{KEY}&b={KEY}x&c=wxg1_hello&{KEY}=1"),
                RemovedParameters::Phantom,
            ),
            (
                format!("url=http://h/?access_token={phantom}"),
                RemovedParameters::Token,
            ),
        ] {
            assert_eq!(kept(&query, removed), Ok(()), "{query}");
        }
        for (query, removed, error) in [
            (
                format!("access_token={encoded_phantom}"),
                RemovedParameters::Phantom,
                QueryError::StrayPhantom,
            ),
            (
                format!("access_token={KEY}"),
                RemovedParameters::Phantom,
                QueryError::ClientKey,
            ),
            (
                format!("secret={KEY}"),
                RemovedParameters::Phantom,
                QueryError::ClientKey,
            ),
            (
                format!("secret={phantom}"),
                RemovedParameters::Token,
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
        keep_secrets(
            query,
            RemovedParameters::Token,
            |value| value.len() == 16,
            is_key,
        )
        .unwrap();
        assert_eq!(asked.get(), 1);
    }

    /// The names that a lenient parser could find: split at `&` and `;`, brackets cut, case folded.
    fn lenient_names(query: &str) -> impl Iterator<Item = String> {
        query.split(['&', ';']).map(|pair| {
            let name = decode(encoded_name(pair)).to_lowercase();
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
                let foreign: Vec<_> = pairs(Some(&query)).filter(|p| decode(encoded_name(p)) != NAME).collect();
                prop_assert_eq!(kept, foreign);
            }
        }

        #[test]
        fn no_query_panics(query in "\\PC{0,60}") {
            let _ = rewritten(Some(&query));
        }
    }
}
