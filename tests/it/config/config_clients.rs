//! What `[[client]]` sections mean. Their mistakes stand in `tests/data/config`, each with its
//! message.

use std::{collections::BTreeMap, fs, path::Path};

use wxgate::{
    config::{self, Config, Problems},
    internals::{
        net::address::Peer,
        proxy::settings::{KeyDigest, Mode, Scopes},
        service::Scope,
    },
};

const ACCOUNT: &str = "[[account]]\nname = \"shop\"\nappid = \"wx00000000000000a1\"\nsecret = { env = \"SHOP_SECRET\" }\n";

type Variables = BTreeMap<String, String>;

fn parse(text: &str, more: &[(&str, &str)]) -> Result<Config, Problems> {
    let mut environment: Variables = more
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    environment.insert(
        "SHOP_SECRET".to_owned(),
        "0123456789abcdef0123456789abcdef".to_owned(),
    );
    config::parse(text, Path::new("."), "wxgate.toml", &environment)
}

#[test]
fn clients_get_what_they_say() {
    let file = ACCOUNT.to_owned()
        + "[[client]]\nname = \"crm\"\nkey = { env = \"CRM_KEY\" }\nfrom = [\"10.1.0.0/16\", \"loopback\"]\n\
           accounts = [\"shop\"]\nallow = [\"/cgi-bin/message/**\"]\ndeny = [\"/cgi-bin/message/mass/*\"]\n\
           may = [\"refresh\", \"ticket\"]\nrate = { per_second = 50, burst = 100 }\n\
           [[client]]\nname = \"erp\"\nfrom = [\"10.2.0.1\"]\naccounts = []\nmode = \"report\"\nrate = { per_second = 7 }\n";
    let clients = parse(&file, &[("CRM_KEY", "a-key-of-the-crm")])
        .unwrap()
        .proxy
        .clients;
    let [crm, erp] = clients.as_slice() else {
        panic!("{clients:?}")
    };
    assert_eq!((crm.name.as_str(), crm.mode), ("crm", Mode::Enforce));
    let [key] = crm.keys.as_slice() else {
        panic!("{crm:?}")
    };
    assert!(key.digest.matches(&KeyDigest::of("a-key-of-the-crm")));
    let from = crm.from.as_ref().unwrap();
    assert!(from.contains(&Peer::Unix) && from.contains(&Peer::Ip([10, 1, 2, 3].into())));
    assert!(!from.contains(&Peer::Ip([10, 2, 0, 1].into())));
    assert_eq!(crm.accounts.as_ref().unwrap()[0].as_str(), "shop");
    assert!(crm.allow.as_ref().unwrap()[0].allows("/cgi-bin/message/custom/send"));
    assert!(crm.deny[0].denies("/cgi-bin/message/mass/send"));
    assert!(
        crm.may.contains(Scope::Refresh)
            && crm.may.contains(Scope::Ticket)
            && !crm.may.contains(Scope::Token)
    );
    assert_eq!(
        crm.rate
            .map(|rate| (rate.per_second.get(), rate.burst.get())),
        Some((50, 100))
    );
    assert_eq!(
        (erp.keys.len(), erp.mode, erp.accounts.as_deref()),
        (0, Mode::Report, Some(&[][..]))
    );
    assert_eq!(
        erp.rate
            .map(|rate| (rate.per_second.get(), rate.burst.get())),
        Some((7, 7))
    );
    assert_eq!(
        (&erp.allow, erp.deny.len(), erp.may),
        (&None, 0, Scopes::default())
    );
}

#[test]
fn a_key_is_the_same_whether_it_stands_there_or_its_digest_does() {
    let digest = "2C26B46B68FFC68FF99B453C1D30413413422D706483BFA0F98A5E886266E7AE";
    let file = format!(
        "{}[[client]]\nname = \"crm\"\nkey = {{ sha256 = \"{digest}\" }}\n",
        ACCOUNT
    );
    let config = parse(&file, &[]).unwrap();
    assert!(
        config.proxy.clients[0].keys[0]
            .digest
            .matches(&KeyDigest::of("foo"))
    );
    assert!(!format!("{config:?}").contains("2c26"));
}

#[test]
fn with_a_client_the_listeners_may_be_open_to_others() {
    let file = |client: &str| format!("[server]\nlisten = [\"0.0.0.0:80\"]\n{}{client}", ACCOUNT);
    assert!(
        parse(&file(""), &[])
            .unwrap_err()
            .to_string()
            .contains("server.allow: must be set")
    );
    let client = "[[client]]\nname = \"crm\"\nfrom = [\"10.1.0.0/16\"]\naccounts = [\"shop\"]\n";
    assert_eq!(parse(&file(client), &[]).unwrap().warnings, []);
    assert_eq!(
        parse(&file(""), &[("WXGATE_SERVER__ALLOW", "private")])
            .unwrap()
            .warnings,
        []
    );
}

#[test]
fn clients_with_certificates_are_told_apart_by_the_first_that_fits() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(
        folder.path().join("key.pem"),
        made.signing_key.serialize_pem(),
    )
    .unwrap();
    let client = |name: &str, more: &str| {
        format!("[[client]]\nname = \"{name}\"\naccounts = [\"shop\"]\n{more}\n")
    };
    let environment = Variables::from([(
        "SHOP_SECRET".to_owned(),
        "0123456789abcdef0123456789abcdef".to_owned(),
    )]);
    let load = |clients: &[String]| {
        let tls =
            "[server.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\nclient_ca = \"cert.pem\"\n";
        let file = format!("{}{tls}{}", ACCOUNT, clients.concat());
        let config = config::parse(&file, folder.path(), "wxgate.toml", &environment)
            .unwrap_or_else(|p| panic!("{p}"));
        let names: Vec<_> = config
            .proxy
            .clients
            .into_iter()
            .filter_map(|client| client.cert)
            .collect();
        (
            names,
            config
                .warnings
                .into_iter()
                .map(|w| w.key_path)
                .collect::<Vec<_>>(),
        )
    };
    let narrow = client(
        "narrow",
        "cert = \"CRM.internal\"\nfrom = [\"10.1.0.0/16\"]",
    );
    let wide = client("wide", "cert = \"crm.internal\"");
    let other = client("other", "cert = \"spiffe://Internal/crm\"");
    let network = client("network-only", "from = [\"10.0.0.0/8\"]");
    let (names, warnings) = load(&[network, narrow.clone(), wide.clone(), other]);
    assert_eq!(
        names,
        ["crm.internal", "crm.internal", "spiffe://internal/crm"]
    );
    assert_eq!(
        warnings, [""; 0],
        "a certificate goes before networks, and the narrower one stands first"
    );
    assert_eq!(load(&[wide, narrow]).1, ["client[1].cert"]);
}
