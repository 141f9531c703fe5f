//! Parts that the crate's own tests and benchmarks reach from outside. Not part of the library's
//! interface: names here change without notice.

pub mod base {
    pub use crate::base::{AccountName, Secret};
}

pub mod net {
    pub mod address {
        pub use crate::net::address::{NetworkSet, Peer};
    }
    pub mod connection {
        pub use crate::net::connection::{Connections, serve};
    }
    pub mod egress {
        pub use crate::net::egress::{Egress, read_certificates};
    }
    pub mod tls {
        pub use crate::net::tls::ServerTls;
    }
}

pub mod proxy {
    pub use crate::proxy::{AccessBench, AccessLogSettings, PoolBench, read_answer_head};

    pub mod headers {
        pub use crate::proxy::headers::{PresentHeaders, RequestHeaders};
    }
    pub mod inject {
        pub use crate::proxy::inject::{examine, inject, phantom};
    }
    pub mod path {
        pub use crate::proxy::path::SplitPath;
    }
    pub mod route {
        pub use crate::proxy::route::SelectionBench;
    }
    pub mod settings {
        pub use crate::proxy::settings::{
            ClientKey, ClientSettings, ErrorStyle, KeyDigest, Mode, PathPattern, Scopes,
        };
    }
}

pub mod service {
    pub use crate::service::Scope;

    pub mod phantom {
        pub use crate::service::phantom::{Phantom, PhantomKey};
    }
}

pub mod telemetry {
    pub mod format {
        pub use crate::telemetry::format::Format;
    }
    pub mod output {
        pub use crate::telemetry::output::Output;
    }
}

pub mod token {
    pub use crate::token::{
        AccountSettings, Generation, ProviderKind, TokenProvider, TokenRefresher, TokenSettings,
    };

    pub mod budget {
        pub use crate::token::budget::{DailyBudget, Forcer};
    }
    pub mod metrics {
        pub use crate::token::metrics::TokenMetrics;
    }
    pub mod source {
        pub use crate::token::source::{
            BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenSource,
        };

        pub mod external {
            pub use crate::token::source::external::{ExternalHttpSettings, ExternalSettings};
        }
    }
    pub mod store {
        pub use crate::token::store::{
            AccountIdentity, CredentialType, FileStore, Keyring, Lease, MemoryStore, OpenError,
            RecordKey, RedisSettings, RedisStore, Saved, ServerFault, StoreError, StoreLocation,
            StoreSettings, StoredRefusal, StoredToken, TokenRecord, TokenStore,
        };
        #[cfg(feature = "sql")]
        pub use crate::token::store::{SqlSettings, SqlStore};
    }
}

pub mod wechat {
    pub mod api {
        pub use crate::wechat::api::Platform;
    }
    pub mod credential {
        pub use crate::wechat::credential::{Parameters, of_path};
    }
    pub mod signing {
        pub use crate::wechat::signing::{AnswerHeaders, KeyTexts, Opened, Signed, SigningKeys};
    }
    pub mod ticket {
        pub use crate::wechat::ticket::TicketType;
    }
    pub mod verdict {
        pub use crate::wechat::verdict::errcode;
    }
}
