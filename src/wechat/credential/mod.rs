//! Classification of calls by the credential that they take, from path and query.
//!
//! Most calls take the account's token. `table` lists the calls that take another credential,
//! take none, or return one. The proxy must put the account's token into calls of
//! [`CallClass::Account`] and [`CallClass::Guarded`] only, and must judge the token by their answers only:
//! a refused provider token says nothing about the account's token.
//!
//! Classification has two steps, so that the query is read only once, together with every other
//! search in it: [`of_path`], then [`PathRule::class`] with the [`Parameters`] found. All
//! comparisons ignore case, because the tolerance of WeChat's own parsers is unknown.

mod table;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use self::table::{PLATFORMS, SECRETS, TABLE, TOKENS};
use super::{api::Platform, ticket::TicketType};

/// Classes of calls, in the order in which they are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallClass {
    /// Returns a token or a ticket that wxgate manages.
    Minting(Minting),
    /// Takes the account's token; refused unless the client's `allow` lists the exact path.
    Guarded,
    /// Exchanges a login code for which WeChat wants the AppSecret in the query.
    Login,
    /// Carries a user's token.
    User,
    /// Carries a key that belongs to no account: a group robot's, or a callback's code.
    None,
    /// Carries a secret, or a token of another kind or owner.
    Own(CallCredential),
    /// Takes the account's token.
    Account,
}

/// Calls that wxgate answers itself, from managed tokens and tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Minting {
    /// `cgi-bin/token`.
    Classic,
    /// `cgi-bin/stable_token`.
    Stable,
    /// WeCom's `cgi-bin/gettoken`.
    Wecom,
    /// Ticket of the type in the parameter `type`; see [`Minting::ticket`].
    Ticket(Platform),
    /// WeCom's `cgi-bin/get_jsapi_ticket`.
    JsapiTicket,
}

/// Credential in a call of [`CallClass::Own`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallCredential {
    /// Secret in the query or, by its path, in the body. A wrong secret can get the calling address
    /// banned.
    Secret,
    /// Token in the query.
    Token,
    /// No credential in the query; the body may have one.
    Nothing,
}

/// Rule for a path, to be completed by the query's [`Parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathRule(PathKind);

/// Set of credential parameters in a query: bits, because the set is built on the request path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parameters(u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathKind {
    Minting(Minting),
    /// With a phrase that gives the reason.
    Guarded(&'static str),
    Login,
    User,
    /// [`CallClass::None`] with a `key`.
    Webhook,
    ResponseCode,
    SecretInBody,
    /// Never takes the account's token, whichever parameters the query has.
    Other,
    Account,
    AccountBesideSecret,
    AccountRepeating,
}

#[derive(Debug)]
struct PathRow {
    path: &'static str,
    kind: PathKind,
}

/// Size of the hash index: a power of two, four times the rows, so that nearly every look-up ends
/// at its first slot.
const SLOTS: usize = 256;
/// Hash index of [`TABLE`], built at compile time: every request pays for the look-up, and most
/// paths are not in the table.
static INDEX: [IndexSlot; SLOTS] = index();
/// Bit mask that lower-cases eight ASCII letters at once.
const LOWER_CASE: u64 = u64::from_le_bytes([b' '; 8]);
const CGI_BIN: u64 = u64::from_le_bytes(*b"/cgi-bin") | LOWER_CASE;

/// Finds the rule for a path that has passed the path grammar.
pub fn of_path(path: &str) -> PathRule {
    let path = path.as_bytes();
    let kind = find(path).or_else(|| family(path).and_then(find));
    PathRule(kind.unwrap_or(PathKind::Account))
}

/// Returns the platform of a path that exists on one platform only.
pub(crate) fn platform_of(path: &str) -> Option<Platform> {
    let Some(rest) = strip_prefix(path, "/cgi-bin/") else {
        return Some(Platform::Wechat);
    };
    let is_below = |name: &str| {
        strip_prefix(rest, name).is_some_and(|behind| behind.is_empty() || behind.starts_with('/'))
    };
    // No name of one platform is below a name of the other, so the first hit is the only one.
    PLATFORMS
        .iter()
        .find(|(_, names)| names.iter().any(|name| is_below(name)))
        .map(|(platform, _)| *platform)
}

impl PathRule {
    /// Decides the class. Minting, guarded, login and user calls depend on the path alone; `Own`
    /// follows from the credential in `found`.
    pub fn class(self, found: Parameters) -> CallClass {
        match self.0 {
            PathKind::Minting(minting) => CallClass::Minting(minting),
            PathKind::Guarded(_) => CallClass::Guarded,
            PathKind::Login => CallClass::Login,
            PathKind::User => CallClass::User,
            PathKind::Webhook if found.has(Parameters::KEY) => CallClass::None,
            PathKind::ResponseCode => CallClass::None,
            PathKind::SecretInBody => CallClass::Own(CallCredential::Secret),
            PathKind::Other => CallClass::Own(found.brings()),
            PathKind::AccountBesideSecret if !found.has(Parameters::TOKEN) => CallClass::Account,
            _ if found.has(Parameters::TOKEN | Parameters::SECRET) => {
                CallClass::Own(found.brings())
            }
            PathKind::Webhook
            | PathKind::Account
            | PathKind::AccountBesideSecret
            | PathKind::AccountRepeating => CallClass::Account,
        }
    }

    /// Returns the effect of a guarded call, as a phrase for the sentence that refuses it.
    pub fn guarded_because(self) -> Option<&'static str> {
        match self.0 {
            PathKind::Guarded(does) => Some(does),
            _ => None,
        }
    }

    /// Returns true if the answer repeats the URL and the bodies of another call, which may hold
    /// the account's token.
    pub fn repeats_another_call(self) -> bool {
        self.0 == PathKind::AccountRepeating
    }
}

impl Minting {
    /// Returns the platform that has the call.
    pub(crate) fn platform(self) -> Platform {
        match self {
            Self::Classic | Self::Stable => Platform::Wechat,
            Self::Wecom | Self::JsapiTicket => Platform::Wecom,
            Self::Ticket(platform) => platform,
        }
    }

    /// Returns the type of the managed ticket that the call asks for, given its parameter `type`;
    /// `None` for other types, whose calls count as [`CallClass::Account`].
    pub fn ticket(self, kind: Option<&str>) -> Option<TicketType> {
        match self {
            Self::Ticket(platform) => TicketType::named(platform, kind?)
                // WeCom gives the `jsapi` ticket at another path.
                .filter(|ticket| {
                    ticket
                        .endpoint(platform)
                        .is_some_and(|at| at.kind.is_some())
                }),
            Self::JsapiTicket => Some(TicketType::Jsapi),
            Self::Classic | Self::Stable | Self::Wecom => None,
        }
    }
}

impl Parameters {
    const SECRET: u8 = 1;
    const SECRET_VALUE: u8 = 1 << 1;
    const TOKEN: u8 = 1 << 2;
    const TOKEN_VALUE: u8 = 1 << 3;
    const KEY: u8 = 1 << 4;

    /// Reads a whole query.
    pub fn of_query(query: &str) -> Self {
        let mut found = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            found.add(&decode(name), !value.is_empty());
        }
        found
    }

    /// Adds a parameter by its percent-decoded name. `has_value` must be false for phantoms and for
    /// wxgate's own client keys.
    pub fn add(&mut self, name: &str, has_value: bool) {
        let is_one_of = |list: &[&str]| list.iter().any(|one| one.eq_ignore_ascii_case(name));
        let (kind, value) = if is_one_of(&TOKENS) {
            (Self::TOKEN, Self::TOKEN_VALUE)
        } else if is_one_of(&SECRETS) {
            (Self::SECRET, Self::SECRET_VALUE)
        } else if name.eq_ignore_ascii_case("access_token") {
            // Does not change the class, but counts as a token on paths that take another
            // credential.
            (0, Self::TOKEN_VALUE)
        } else if name.eq_ignore_ascii_case("key") {
            (0, Self::KEY)
        } else {
            return;
        };
        self.0 |= kind | if has_value { value } else { 0 };
    }

    fn has(self, any_of: u8) -> bool {
        self.0 & any_of != 0
    }

    fn brings(self) -> CallCredential {
        if self.has(Self::SECRET_VALUE) {
            CallCredential::Secret
        } else if self.has(Self::TOKEN_VALUE) {
            CallCredential::Token
        } else {
            CallCredential::Nothing
        }
    }
}

/// Returns true if a query brings a token or a secret, of any kind and any value.
pub(crate) fn is_brought(query: &str) -> bool {
    query.split('&').any(|pair| {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let name = decode(name);
        let mut found = Parameters::default();
        found.add(&name, false);
        name == "access_token" || found.has(Parameters::TOKEN | Parameters::SECRET)
    })
}

fn decode(name: &str) -> Cow<'_, str> {
    percent_decode_str(name).decode_utf8_lossy()
}

fn strip_prefix<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    let (head, rest) = path.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Returns the prefix under which the table lists a path's family: `/sns/`, `/cgi-bin/service/`.
fn family(path: &[u8]) -> Option<&[u8]> {
    let first_slash = |from: usize| {
        let rest = path.get(from..)?;
        Some(from + rest.iter().position(|byte| *byte == b'/')?)
    };
    // Compares eight bytes at once; the ninth is the slash that ends the segment.
    let is_cgi_bin = path
        .first_chunk::<8>()
        .is_some_and(|head| u64::from_le_bytes(*head) | LOWER_CASE == CGI_BIN)
        && path.get(8) == Some(&b'/');
    let end = first_slash(if is_cgi_bin { 9 } else { 1 })?;
    path.get(..=end)
}

/// Looks up exactly this path or family.
fn find(path: &[u8]) -> Option<PathKind> {
    let hash = hash(path);
    let mut slot = hash as usize % SLOTS;
    loop {
        let entry = INDEX.get(slot)?;
        if entry.row == 0 {
            return None;
        }
        // Compares the whole path only where the hashes are the same.
        if entry.hash == hash {
            let row = TABLE.get(usize::from(entry.row) - 1)?;
            if row.path.as_bytes().eq_ignore_ascii_case(path) {
                return Some(row.kind);
            }
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// Slot of the hash index.
#[derive(Clone, Copy)]
struct IndexSlot {
    hash: u32,
    /// Row number in [`TABLE`], counted from 1; 0 marks an empty slot.
    row: u8,
}

const fn index() -> [IndexSlot; SLOTS] {
    assert!(TABLE.len() < SLOTS / 2, "a full index is a slow one");
    let mut index = [IndexSlot { hash: 0, row: 0 }; SLOTS];
    let mut row = 0;
    while row < TABLE.len() {
        let hash = hash(TABLE[row].path.as_bytes());
        let mut slot = hash as usize % SLOTS;
        while index[slot].row != 0 {
            slot = (slot + 1) % SLOTS;
        }
        row += 1;
        #[allow(clippy::cast_possible_truncation, reason = "below SLOTS / 2")]
        let number = row as u8;
        index[slot] = IndexSlot { hash, row: number };
    }
    index
}

/// Hashes a path without regard to case, eight bytes at a time. A collision costs one comparison.
const fn hash(path: &[u8]) -> u32 {
    let mut state = path.len() as u64;
    let mut rest = path;
    while let Some((chunk, behind)) = rest.split_first_chunk::<8>() {
        state = mix(state, u64::from_le_bytes(*chunk));
        rest = behind;
    }
    // Hashes the last eight bytes, some of them twice, instead of looping over the rest.
    let tail = match path.last_chunk::<8>() {
        Some(tail) => u64::from_le_bytes(*tail),
        None => short(path),
    };
    (mix(state, tail) >> 32) as u32
}

const fn short(path: &[u8]) -> u64 {
    let mut packed = 0;
    let mut rest = path;
    while let Some((byte, behind)) = rest.split_first() {
        packed = (packed << 8) | *byte as u64;
        rest = behind;
    }
    packed
}

const fn mix(state: u64, chunk: u64) -> u64 {
    let product = (state ^ (chunk | LOWER_CASE)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 29)
}
