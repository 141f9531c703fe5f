//! The configuration file, key by key: its shape, its documentation and its JSON Schema.
//!
//! A mirror of the file and nothing more. Keys that are not built yet are here in full; `resolve`
//! refuses them. The defaults in the documentation are those of the settings structs; a test
//! compares them.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use schemars::JsonSchema;

use super::{
    leaf::{
        AppId, CertName, Count, HOUR, HostName, MILLION, MINUTE, Network, Plain, Portion, SECOND,
        Size, Time,
    },
    problem::Place,
    read::{At, Read, Reader, tables, words},
    tree::{Node, Value},
};
use crate::{
    base::AccountName,
    net::{
        address::{BaseUrl, ListenAddr},
        egress::EgressProxy,
    },
    proxy::settings::PathPattern,
};

tables! {
    /// The configuration of wxgate. Every key can be set from the environment too, as in
    /// WXGATE_SERVER__LISTEN, except those of accounts and clients.
    File("a table") {
        /// The account that is used when nothing else selects one. The sole account needs no
        /// mention.
        default_account: AccountName,
        /// The listener for services that call WeChat.
        server: Server,
        /// The listener for operators: console, API, probes and metrics.
        admin: Admin,
        /// The way to WeChat.
        upstream: Upstream,
        /// When tokens are fetched.
        token: Token,
        /// Copies of request bodies, kept until it is clear that WeChat accepted the token.
        replay: Replay,
        /// Where tokens survive a restart.
        store: Store,
        /// The accounts at WeChat, at least one.
        #[schemars(required, length(min = 1))]
        account: Vec<At<Account>>,
        /// Callers and their rights. Without any, everybody inside server.allow may use every
        /// account.
        client: Vec<At<Client>>,
    }

    /// The listener for services that call WeChat.
    Server("a table [server]") {
        /// "host:port" or "unix:/path"; several allowed; port 0 takes a free one, which is logged.
        #[schemars(length(min = 1), extend("default" = ["127.0.0.1:8080"]))]
        listen: Vec<At<ListenAddr>>,
        /// Threads that serve requests; 0 = one per core.
        #[schemars(extend("default" = 0))]
        workers: Count<0, 1024>,
        /// While there is no [[client]]: callers from these networks may call. CIDRs, addresses,
        /// "loopback" (Unix sockets too) and "private".
        #[schemars(extend("default" = ["loopback"]))]
        allow: Vec<At<Network>>,
        /// The networks of proxies whose X-Forwarded-For is believed.
        #[schemars(extend("default" = []))]
        trusted_proxies: Vec<At<Network>>,
        /// Speak TLS on the TCP listeners.
        tls: Tls,
        /// The largest request body; above it 413.
        #[schemars(extend("default" = "32MiB"))]
        max_body: Size<1>,
        /// The most connections open at a time.
        #[schemars(extend("default" = 10_000))]
        max_connections: Count<1, MILLION>,
        /// The most connections of one client, and of one peer address: a percentage of
        /// max_connections, or a number.
        #[schemars(extend("default" = "50%"))]
        max_connections_per_client: Portion,
        /// The least bytes per second of a body, of requests and of answers, as the mean of 10 s
        /// after the first 10 s; slower ones are cut. 0 = none.
        #[schemars(extend("default" = "1KiB"))]
        min_rate: Size<0>,
        /// The status of answers that wxgate makes itself. The body has errcode in both.
        #[schemars(extend("default" = "http"))]
        error_style: ErrorStyle,
    }

    /// Certificate and key of the TCP listeners, in PEM.
    Tls("a table { cert = \"path\", key = \"path\" }") {
        /// The certificate chain, the listener's own first.
        #[schemars(required)]
        cert: PathBuf,
        /// The private key.
        #[schemars(required)]
        key: PathBuf,
        /// With it, every caller must show a certificate of this authority.
        client_ca: PathBuf,
    }

    /// The listener for operators.
    Admin("a table [admin]") {
        /// "host:port" or "unix:/path".
        #[schemars(extend("default" = "127.0.0.1:8081"))]
        listen: ListenAddr,
        /// What callers of the API must show. Must be set when listen is not loopback or unix.
        key: SecretForm,
        /// Host names besides IP literals and localhost under which console and API may be reached.
        #[schemars(extend("default" = []))]
        hosts: Vec<At<HostName>>,
    }

    /// The way to WeChat.
    Upstream("a table [upstream]") {
        /// A PEM file with roots in addition to the platform's. Verification cannot be switched
        /// off.
        ca_file: PathBuf,
        /// The longest time for TCP and TLS together, 1ms to 5m.
        #[schemars(extend("default" = "3s"))]
        connect_timeout: Time<1, { 5 * MINUTE }>,
        /// The longest time until the response head, 1ms to 1h.
        #[schemars(extend("default" = "30s"))]
        response_timeout: Time<1, HOUR>,
        /// A CONNECT proxy towards WeChat.
        proxy: EgressProxy,
        /// The source address of outgoing connections, for a whitelisted egress.
        local_address: IpAddr,
        /// How long an unused connection is kept, 0s to 1h. WeChat closes idle ones at about 20 s.
        #[schemars(extend("default" = "15s"))]
        pool_idle: Time<0, HOUR>,
        /// Fixed addresses by host name instead of DNS; needed where local DNS points the name at
        /// wxgate.
        resolve: BTreeMap<String, At<Vec<At<IpAddr>>>>,
        /// The most requests under way at a time.
        #[schemars(extend("default" = 1024))]
        max_in_flight: Count<1, MILLION>,
        /// The most of them for one account, and for one client (without clients: one peer
        /// address), once another one has asked within 60 s: a percentage of max_in_flight, or a
        /// number.
        #[schemars(extend("default" = "75%"))]
        max_share: Portion,
    }

    /// When tokens are fetched.
    Token("a table [token]") {
        /// Ask for a new token this long before expiry, 1s to 1h; at most half of what expires_in
        /// said.
        #[schemars(extend("default" = "5m"))]
        refresh_before: Time<SECOND, HOUR>,
        /// The longest time for one call of the token endpoint, 1ms to 5m.
        #[schemars(extend("default" = "5s"))]
        fetch_timeout: Time<1, { 5 * MINUTE }>,
        /// How long a request may wait for a token that is not there yet, 0s to 5m.
        #[schemars(extend("default" = "3s"))]
        wait: Time<0, { 5 * MINUTE }>,
    }

    /// Copies of request bodies.
    Replay("a table [replay]") {
        /// A copy up to here stays in memory.
        #[schemars(extend("default" = "1MiB"))]
        memory: Size<0>,
        /// Beyond that it is spooled to an unlinked temporary file up to here; 0 = never.
        #[schemars(extend("default" = "32MiB"))]
        disk: Size<0>,
        /// All copies in memory together.
        #[schemars(extend("default" = "64MiB"))]
        memory_total: Size<0>,
    }

    /// Where tokens survive a restart.
    Store("a table [store]") {
        /// memory, file, redis, or sql where wxgate was built with it.
        #[schemars(extend("default" = "file"))]
        kind: StoreKind,
        /// For kind = "file": a folder, made with mode 0700, files 0600.
        #[schemars(extend("default" = "wxgate-state"))]
        path: PathBuf,
        /// For kind = "redis" and "sql", where it is compulsory: redis://, rediss:// (TLS),
        /// redis+sentinel:// or unix:; sqlite://, postgres:// or mysql://.
        url: SecretForm,
        /// For kind = "redis": what keys there begin with; at most 64 visible ASCII characters
        /// without braces. For kind = "sql": what names of tables begin with, made of its letters
        /// and digits, all else as "_"; at most 40 bytes, a letter first.
        #[schemars(extend("default" = "wxgate:"))]
        prefix: String,
        /// 32 bytes in base64 or hex: tokens are sealed at rest. Several with commas between them:
        /// the first one seals, all of them open.
        encryption_key: SecretForm,
    }

    /// An account at WeChat.
    Account("a table [[account]]") {
        /// 1 to 64 of A-Z, a-z, 0-9, _ and -; unique.
        #[schemars(required)]
        name: AccountName,
        /// The family of the account.
        #[schemars(extend("default" = "wechat"))]
        platform: Platform,
        /// The appid; for wecom the corpid.
        #[schemars(required)]
        appid: AppId,
        /// The AppSecret; for wecom the agent's secret. Compulsory, unless token = { from = … };
        /// then it is needed only for what is answered in the name of the AppSecret.
        secret: SecretForm,
        /// Which token endpoint of WeChat (not for wecom, which has one only); or where another
        /// central server keeps the token.
        #[schemars(extend("default" = "stable"))]
        token: TokenForm,
        /// Base URLs of WeChat's API; all but the first are for fail-over. http:// only to
        /// loopback. The default is that of the platform.
        #[schemars(length(min = 1), extend("default" = ["https://api.weixin.qq.com"]))]
        api: Vec<At<BaseUrl>>,
        /// Values of the Host header that select this account, unique over all accounts.
        hosts: Vec<At<HostName>>,
    }

    /// Where another central server keeps the token, which wxgate reads there and does not fetch
    /// from WeChat.
    Elsewhere("a table { from = … }") {
        /// The kind of server.
        #[schemars(required)]
        from: ElsewhereKind,
        /// For redis: redis://, rediss:// (TLS) or unix:. For http: https://; http:// only to
        /// loopback.
        #[schemars(required)]
        url: SecretForm,
        /// For redis, where it is compulsory: the key. GET, or HGETALL for a hash.
        #[schemars(length(min = 1))]
        key: String,
        /// For http: headers of the request.
        header: BTreeMap<String, At<SecretForm>>,
        /// The member that holds the token, with dots between nested ones; for a hash it begins
        /// with the field. The usual names are found without it.
        #[schemars(length(min = 1))]
        field: String,
    }

    /// A caller and its rights. All that is set of key, from and cert must fit; at least one must
    /// be set.
    Client("a table [[client]]") {
        /// 1 to 64 of A-Z, a-z, 0-9, _ and -; unique; not "network" and not "-". Without one,
        /// client-1, client-2, …
        name: AccountName,
        /// What the caller shows in X-Wxgate-Key or Authorization: Bearer; visible ASCII, no two
        /// clients have the same.
        key: KeyForm,
        /// The networks it calls from. CIDRs, addresses, "loopback" (Unix sockets too) and
        /// "private".
        from: Vec<At<Network>>,
        /// A DNS or URI name of its certificate, compared without case; needs server.tls.client_ca.
        cert: CertName,
        /// The accounts it may use, by name; all of them by default.
        accounts: Vec<At<AccountName>>,
        /// The paths it may call, such as "/cgi-bin/menu/get", "/cgi-bin/*/get" or
        /// "/cgi-bin/message/**"; all by default.
        allow: Vec<At<PathPattern>>,
        /// The paths it may not call, whatever allow says.
        #[schemars(extend("default" = []))]
        deny: Vec<At<PathPattern>>,
        /// Extras beyond proxying; none by default.
        may: Vec<At<Scope>>,
        /// What happens to calls without a right.
        #[schemars(extend("default" = "enforce"))]
        mode: Mode,
        /// How fast it may call; without it, as fast as it likes.
        rate: Rate,
    }

    /// A rate limit, a token bucket.
    Rate("a table { per_second = …, burst = … }") {
        /// Requests per second in the long run.
        #[schemars(required)]
        per_second: Count<1, { u32::MAX as u64 }>,
        /// Requests at once; as many as per_second by default.
        burst: Count<1, { u32::MAX as u64 }>,
    }

    /// A secret: exactly one of env, file and value.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
    SecretForm("a table: { env = \"NAME\" }, { file = \"path\" } or { value = \"…\" }") {
        /// The name of an environment variable.
        env: Plain,
        /// A file that holds nothing else; the newline at its end is not part of the secret.
        file: Plain,
        /// The secret itself. `wxgate check` warns about it.
        value: Plain,
    }

    /// The key of a client: exactly one of env, file, value and sha256.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
    KeyForm("a table: { env = \"NAME\" }, { file = \"path\" }, { value = \"…\" } or { sha256 = \"hex\" }") {
        /// The name of an environment variable.
        env: Plain,
        /// A file that holds nothing else.
        file: Plain,
        /// The key itself. `wxgate check` warns about it.
        value: Plain,
        /// The SHA-256 of the key in hex.
        sha256: Plain,
    }
}

words! {
    /// The status of answers that wxgate makes itself.
    ErrorStyle {
        /// A real status.
        Http = "http",
        /// Status 200, as WeChat does it.
        Wechat = "wechat",
    }

    /// Where tokens survive.
    StoreKind {
        /// Nowhere.
        Memory = "memory",
        /// In small files.
        File = "file",
        /// In Redis or Valkey, which several nodes may share.
        Redis = "redis",
        /// In SQLite, PostgreSQL, MySQL or MariaDB, where wxgate was built with it.
        Sql = "sql",
    }

    /// A family of accounts.
    Platform {
        /// 公众号, 服务号, 小程序, 小游戏, 微信小店.
        Wechat = "wechat",
        /// 企业微信: one account per agent.
        Wecom = "wecom",
        /// 第三方平台. Not yet built.
        Component = "component",
    }

    /// A token endpoint of WeChat.
    TokenKind {
        /// POST /cgi-bin/stable_token.
        Stable = "stable",
        /// GET /cgi-bin/token.
        Classic = "classic",
    }

    /// A kind of central token server.
    ElsewhereKind {
        /// Redis or Valkey.
        Redis = "redis",
        /// An HTTP endpoint.
        Http = "http",
    }

    /// What a client may do beyond proxying.
    Scope {
        /// Read the real token.
        Token = "token",
        /// Ask for a refresh.
        Refresh = "refresh",
        /// Read tickets.
        Ticket = "ticket",
    }

    /// What happens to calls without a right.
    Mode {
        /// They are denied.
        Enforce = "enforce",
        /// They are logged and counted.
        Report = "report",
    }
}

/// Which token endpoint, or where else the token is kept.
#[derive(Debug, JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum TokenForm {
    /// An endpoint of WeChat.
    Kind(TokenKind),
    /// Another central server.
    Elsewhere(Box<Elsewhere>),
}

impl Read for TokenForm {
    fn read(node: &Node, place: &Place, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value {
            Value::Table(_) => {
                Elsewhere::read(node, place, reader).map(|table| Self::Elsewhere(Box::new(table)))
            }
            Value::String(_) => TokenKind::read(node, place, reader).map(Self::Kind),
            _ => {
                reader.mismatch(
                    node,
                    place,
                    "\"stable\", \"classic\" or a table { from = … }",
                );
                None
            }
        }
    }
}
