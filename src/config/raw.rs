//! Tables and keys of the configuration file, with their documentation and JSON Schema.
//!
//! The docstrings of this file become the descriptions of the schema. Keys that are not built yet
//! are here too; `resolve` refuses them. A test compares the defaults in the schema with those of
//! the settings.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use schemars::JsonSchema;

use super::{
    leaf::{
        AppId, BoundedDuration, BoundedInteger, ByteSize, CertName, HOUR, HostName, MILLION,
        MINUTE, Network, PassedHeader, Plain, Portion, SECOND,
    },
    problem::KeyPlace,
    read::{At, FromNode, TreeReader, tables, words},
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
    /// Configuration of wxgate. Every key can be set from the environment too, as in
    /// WXGATE_SERVER__LISTEN, except those of accounts and clients.
    File("a table") {
        /// Name of the account for requests that select none. A sole account is always the default.
        default_account: AccountName,
        /// Listener for services that call WeChat.
        server: Server,
        /// Listener for operators: page, API, probes and metrics.
        admin: Admin,
        /// Connections to WeChat.
        upstream: Upstream,
        /// Times of token fetches.
        token: Token,
        /// Copies of request bodies, kept until WeChat has accepted the token.
        replay: Replay,
        /// Store in which tokens survive a restart.
        store: Store,
        /// Accounts at WeChat, at least one.
        #[schemars(required, length(min = 1))]
        account: Vec<At<Account>>,
        /// Callers and their rights. Without clients, every caller inside server.allow may use
        /// every account.
        client: Vec<At<Client>>,
    }

    /// Listener for services that call WeChat.
    Server("a table [server]") {
        /// Addresses, "host:port" or "unix:/path"; port 0 takes a free port, which is logged.
        #[schemars(length(min = 1), extend("default" = ["127.0.0.1:8080"]))]
        listen: Vec<At<ListenAddr>>,
        /// Number of threads that serve requests; 0 = one per core.
        #[schemars(extend("default" = 0))]
        workers: BoundedInteger<0, 1024>,
        /// Networks of the callers, as long as there is no [[client]]: CIDRs, addresses, "loopback"
        /// (Unix sockets too) and "private".
        #[schemars(extend("default" = ["loopback"]))]
        allow: Vec<At<Network>>,
        /// Networks of the proxies whose X-Forwarded-For is trusted.
        #[schemars(extend("default" = []))]
        trusted_proxies: Vec<At<Network>>,
        /// TLS on the TCP listeners.
        tls: Tls,
        /// Size limit of a request body; larger requests are answered 413.
        #[schemars(extend("default" = "32MiB"))]
        max_body: ByteSize<1>,
        /// Maximum number of open connections.
        #[schemars(extend("default" = 10_000))]
        max_connections: BoundedInteger<1, MILLION>,
        /// Maximum number of connections of one client, and of one peer address: a percentage of
        /// max_connections, or a number.
        #[schemars(extend("default" = "50%"))]
        max_connections_per_client: Portion,
        /// Minimum rate of a body in bytes per second, of requests and of answers, as the mean of
        /// 10 s after the first 10 s; slower ones are cut. 0 = none.
        #[schemars(extend("default" = "1KiB"))]
        min_rate: ByteSize<0>,
        /// Status of error answers of wxgate itself. The body has errcode in all styles.
        #[schemars(extend("default" = "auto"))]
        error_style: ErrorStyle,
    }

    /// Certificate and key of the TCP listeners, in PEM.
    Tls("a table { cert = \"path\", key = \"path\" }") {
        /// Certificate chain, that of the listener first.
        #[schemars(required)]
        cert: PathBuf,
        /// Private key.
        #[schemars(required)]
        key: PathBuf,
        /// Authority, in PEM. If set, every caller must show a certificate of this authority.
        client_ca: PathBuf,
    }

    /// Listener for operators.
    Admin("a table [admin]") {
        /// Address, "host:port" or "unix:/path".
        #[schemars(extend("default" = "127.0.0.1:8081"))]
        listen: ListenAddr,
        /// Key that callers of page and API must show. Must be set if listen is not loopback or
        /// unix.
        key: SecretForm,
        /// Host names under which page and API may be called, besides IP literals and localhost.
        #[schemars(extend("default" = []))]
        hosts: Vec<At<HostName>>,
    }

    /// Connections to WeChat.
    Upstream("a table [upstream]") {
        /// PEM file with roots, trusted in addition to those of the platform. Verification cannot
        /// be switched off.
        ca_file: PathBuf,
        /// Time limit for TCP and TLS together, 1ms to 5m.
        #[schemars(extend("default" = "3s"))]
        connect_timeout: BoundedDuration<1, { 5 * MINUTE }>,
        /// Time limit until the response head, 1ms to 1h.
        #[schemars(extend("default" = "30s"))]
        response_timeout: BoundedDuration<1, HOUR>,
        /// CONNECT proxy towards WeChat.
        proxy: EgressProxy,
        /// Source address of outgoing connections, for a whitelisted egress.
        local_address: IpAddr,
        /// Time for which an unused connection is kept, 0s to 1h. WeChat closes idle connections at
        /// about 20 s.
        #[schemars(extend("default" = "15s"))]
        pool_idle: BoundedDuration<0, HOUR>,
        /// Fixed addresses by host name instead of DNS; needed where local DNS points the name of
        /// WeChat at wxgate.
        resolve: BTreeMap<String, At<Vec<At<IpAddr>>>>,
        /// Maximum number of requests in flight.
        #[schemars(extend("default" = 1024))]
        max_in_flight: BoundedInteger<1, MILLION>,
        /// Maximum share of them for one account, and for one client (without clients: one peer
        /// address), once another one has asked within 60 s: a percentage of max_in_flight, or a
        /// number.
        #[schemars(extend("default" = "75%"))]
        max_share: Portion,
        /// Names of headers of callers that go on to WeChat besides Accept*, Content-*, User-Agent,
        /// Range, If-* and Wechatmp-*. Not those that wxgate writes itself, and not Authorization
        /// and Cookie.
        #[schemars(extend("default" = []))]
        headers: Vec<At<PassedHeader>>,
        /// Keep one connection per API host ready while it was used in the last 30 minutes.
        #[schemars(extend("default" = true))]
        warm: bool,
    }

    /// Times of token fetches.
    Token("a table [token]") {
        /// Time before expiry at which a new token is fetched, 1s to 1h; at most half of the
        /// lifetime in expires_in.
        #[schemars(extend("default" = "5m"))]
        refresh_before: BoundedDuration<SECOND, HOUR>,
        /// Time limit for a call of the token endpoint, 1ms to 5m.
        #[schemars(extend("default" = "5s"))]
        fetch_timeout: BoundedDuration<1, { 5 * MINUTE }>,
        /// Time for which a request may wait for a token, 0s to 5m.
        #[schemars(extend("default" = "3s"))]
        wait: BoundedDuration<0, { 5 * MINUTE }>,
    }

    /// Copies of request bodies.
    Replay("a table [replay]") {
        /// Size up to which a copy stays in memory.
        #[schemars(extend("default" = "1MiB"))]
        memory: ByteSize<0>,
        /// Size up to which a larger copy is spooled to an unlinked temporary file; 0 = never.
        #[schemars(extend("default" = "32MiB"))]
        disk: ByteSize<0>,
        /// Size limit of all copies in memory together.
        #[schemars(extend("default" = "64MiB"))]
        memory_total: ByteSize<0>,
    }

    /// Store in which tokens survive a restart.
    Store("a table [store]") {
        /// Kind of store: memory, file, redis, or sql if wxgate was built with this feature.
        #[schemars(extend("default" = "file"))]
        kind: StoreKind,
        /// For kind = "file": the folder, made with mode 0700; its files have mode 0600.
        #[schemars(extend("default" = "wxgate-state"))]
        path: PathBuf,
        /// For kind = "redis" and "sql", and required there: redis://, rediss:// (TLS),
        /// redis+sentinel:// or unix:; sqlite://, postgres:// or mysql://.
        url: SecretForm,
        /// For kind = "redis": prefix of the keys; at most 64 visible ASCII characters without
        /// braces. For kind = "sql": prefix of the table names; letters and digits stay, other
        /// characters become "_"; at most 40 bytes, a letter first.
        #[schemars(extend("default" = "wxgate:"))]
        prefix: String,
        /// Key that encrypts stored tokens: 32 bytes in base64 or hex. Several keys are separated
        /// by commas: the first encrypts, all of them decrypt.
        encryption_key: SecretForm,
    }

    /// Account at WeChat.
    Account("a table [[account]]") {
        /// Name of the account here: 1 to 64 of A-Z, a-z, 0-9, _ and -; unique.
        #[schemars(required)]
        name: AccountName,
        /// Platform of the account.
        #[schemars(extend("default" = "wechat"))]
        platform: Platform,
        /// Appid; for wecom the corpid.
        #[schemars(required)]
        appid: AppId,
        /// AppSecret; for wecom the secret of the agent. Required, unless token = { from = … }:
        /// then it is needed only for calls that identify themselves by the AppSecret.
        secret: SecretForm,
        /// Token endpoint of WeChat (not for wecom, which has only one); or another central server
        /// that keeps the token.
        #[schemars(extend("default" = "stable"))]
        token: TokenChoice,
        /// Base URLs of WeChat's API; all but the first are for fail-over. http:// only to
        /// loopback. The default depends on the platform.
        #[schemars(length(min = 1), extend("default" = ["https://api.weixin.qq.com"]))]
        api: Vec<At<BaseUrl>>,
        /// Values of the Host header that select this account, unique over all accounts.
        hosts: Vec<At<HostName>>,
        /// Treatment of calls with an access_token that looks real and is not this account's. The
        /// default is "keep" for calls under WeChat's own host name that select no account,
        /// "replace" for the rest.
        foreign_token: ForeignToken,
        /// API signing and encryption (服务端 API 签名与加密) of the calls below paths; not for wecom.
        signing: Signing,
    }

    /// Keys of API signing, from the console of WeChat (开发管理, 开发设置, API 安全), and the paths
    /// whose calls are signed. Only RSA (RSAwithSHA256) with AES256_GCM.
    Signing("a table { key = …, aes_key = …, … }") {
        /// Private key of the account in PEM, whose public key is at WeChat.
        #[schemars(required)]
        key: SecretForm,
        /// Serial number of this key in the console. WeChat does not ask for it: log lines name it.
        serial: String,
        /// Symmetric key in base64, as the console shows it.
        #[schemars(required)]
        aes_key: SecretForm,
        /// Serial number of the symmetric key in the console.
        #[schemars(required)]
        aes_serial: String,
        /// Platform certificates of WeChat: the one in use, and the next one before WeChat changes
        /// to it.
        #[schemars(required, length(min = 1, max = 2))]
        platform_certs: Vec<At<PlatformCert>>,
        /// Paths whose calls are signed, such as "/cgi-bin/express/intracity/**".
        #[schemars(required, length(min = 1))]
        paths: Vec<At<PathPattern>>,
    }

    /// Platform certificate of WeChat.
    PlatformCert("a table { cert = …, serial = \"…\" }") {
        /// Certificate in PEM.
        #[schemars(required)]
        cert: SecretForm,
        /// Serial number of the certificate in the console, which is not that inside the
        /// certificate.
        #[schemars(required)]
        serial: String,
    }

    /// Token that another central server keeps: wxgate reads it there and fetches none from WeChat.
    ExternalToken("a table { from = … }") {
        /// Kind of server.
        #[schemars(required)]
        from: ExternalKind,
        /// For redis: redis://, rediss:// (TLS) or unix:. For http: https://; http:// only to
        /// loopback.
        #[schemars(required)]
        url: SecretForm,
        /// For redis, and required there: the key, read by GET, or HGETALL for a hash.
        #[schemars(length(min = 1))]
        key: String,
        /// For http: headers of the request.
        header: BTreeMap<String, At<SecretForm>>,
        /// Path of the JSON member that holds the token, with dots between nested members; for a
        /// hash, the path begins with the field. The usual names are found without this key.
        #[schemars(length(min = 1))]
        field: String,
    }

    /// Caller and its rights. At least one of key, from and cert must be set; a caller must fit all
    /// that are set.
    Client("a table [[client]]") {
        /// Name in logs and metrics: 1 to 64 of A-Z, a-z, 0-9, _ and -; unique; not "network" and
        /// not "-". Default: client-1, client-2, …
        name: AccountName,
        /// Key that the caller shows in X-Wxgate-Key or Authorization: Bearer; visible ASCII,
        /// different for each client.
        key: KeyForm,
        /// Several keys in place of one, while callers move from one to the next: each of them
        /// names this client.
        #[schemars(extend("minItems" = 1))]
        keys: Vec<At<KeyForm>>,
        /// Networks of the caller: CIDRs, addresses, "loopback" (Unix sockets too) and "private".
        from: Vec<At<Network>>,
        /// DNS or URI name in the certificate of the caller, compared without case; needs
        /// server.tls.client_ca.
        cert: CertName,
        /// Names of the accounts that the client may use; all accounts by default.
        accounts: Vec<At<AccountName>>,
        /// Paths that the client may call, such as "/cgi-bin/menu/get", "/cgi-bin/*/get" or
        /// "/cgi-bin/message/**"; all paths by default.
        allow: Vec<At<PathPattern>>,
        /// Paths that the client may not call, even if allow has them.
        #[schemars(extend("default" = []))]
        deny: Vec<At<PathPattern>>,
        /// Rights beyond proxying; none by default.
        may: Vec<At<Scope>>,
        /// Treatment of calls without a right.
        #[schemars(extend("default" = "enforce"))]
        mode: Mode,
        /// Rate limit of the client; none by default.
        rate: Rate,
    }

    /// Rate limit by a token bucket.
    Rate("a table { per_second = …, burst = … }") {
        /// Requests per second in the long run.
        #[schemars(required)]
        per_second: BoundedInteger<1, { u32::MAX as u64 }>,
        /// Requests at once; per_second by default.
        burst: BoundedInteger<1, { u32::MAX as u64 }>,
    }

    /// Secret: exactly one of env, file and value.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
    SecretForm("a table: { env = \"NAME\" }, { file = \"path\" } or { value = \"…\" }") {
        /// Name of an environment variable.
        env: Plain,
        /// File with the secret alone; the newline at its end is not part of the secret.
        file: Plain,
        /// Secret in plain text, about which `wxgate check` warns.
        value: Plain,
    }

    /// Key of a client: exactly one of env, file, value and sha256.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
    KeyForm("a table: { env = \"NAME\" }, { file = \"path\" }, { value = \"…\" } or { sha256 = \"hex\" }") {
        /// Name of an environment variable.
        env: Plain,
        /// File with the key alone.
        file: Plain,
        /// Key in plain text, about which `wxgate check` warns.
        value: Plain,
        /// SHA-256 of the key in hex.
        sha256: Plain,
    }
}

words! {
    /// Status of error answers of wxgate itself.
    ErrorStyle {
        /// Status 200 for calls that bring a token or a secret, as SDKs do; the HTTP status of the
        /// error for all others.
        Auto = "auto",
        /// HTTP status of the error.
        Http = "http",
        /// Status 200, as WeChat answers errors.
        Wechat = "wechat",
    }

    /// Kind of store.
    StoreKind {
        /// Memory alone: tokens do not survive a restart.
        Memory = "memory",
        /// Small files.
        File = "file",
        /// Redis or Valkey, which several nodes may share.
        Redis = "redis",
        /// SQLite, PostgreSQL, MySQL or MariaDB, if wxgate was built with this feature.
        Sql = "sql",
    }

    /// Platform of an account.
    Platform {
        /// 公众号, 服务号, 小程序, 小游戏, 微信小店.
        Wechat = "wechat",
        /// 企业微信: one account per agent.
        Wecom = "wecom",
        /// 第三方平台. Not yet built.
        Component = "component",
    }

    /// Treatment of an access_token that looks real and is not the account's.
    ForeignToken {
        /// The account's token replaces it.
        Replace = "replace",
        /// The call is forwarded as it came.
        Keep = "keep",
        /// The call is refused.
        Refuse = "refuse",
    }

    /// Token endpoint of WeChat.
    TokenKind {
        /// POST /cgi-bin/stable_token.
        Stable = "stable",
        /// GET /cgi-bin/token.
        Classic = "classic",
    }

    /// Kind of central token server.
    ExternalKind {
        /// Redis or Valkey.
        Redis = "redis",
        /// HTTP endpoint.
        Http = "http",
    }

    /// Right of a client beyond proxying.
    Scope {
        /// Read the real token.
        Token = "token",
        /// Ask for a refresh.
        Refresh = "refresh",
        /// Read tickets.
        Ticket = "ticket",
    }

    /// Treatment of calls without a right.
    Mode {
        /// Deny the call.
        Enforce = "enforce",
        /// Log and count the call, and let it pass.
        Report = "report",
    }
}

/// Token endpoint, or another server that keeps the token.
#[derive(Debug, JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum TokenChoice {
    /// Endpoint of WeChat.
    Kind(TokenKind),
    /// Another central server.
    External(Box<ExternalToken>),
}

impl FromNode for TokenChoice {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        match node.value {
            Value::Table(_) => ExternalToken::from_node(node, place, reader)
                .map(|table| Self::External(Box::new(table))),
            Value::String(_) => TokenKind::from_node(node, place, reader).map(Self::Kind),
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
