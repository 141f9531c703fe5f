use hyper::header::{HeaderName, HeaderValue};

use super::{client::tests::client, *};
use crate::proxy::settings::{ClientKey, Mode};

fn networks(entries: &[&str]) -> NetworkSet {
    let mut set = NetworkSet::default();
    for entry in entries {
        set.add(entry).unwrap();
    }
    set
}

fn access(clients: Vec<settings::ClientSettings>) -> Access {
    Access::new(
        NetworkSet::loopback().into(),
        networks(&["10.0.0.0/8"]),
        clients,
        None,
    )
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&'static str, &str)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        )
    };
    let mut headers = HeaderMap::new();
    for (name, value) in lines.iter().map(line) {
        headers.append(name, value);
    }
    headers
}

fn caller(peer: &str, lines: &[&str]) -> String {
    let lines: Vec<_> = lines
        .iter()
        .map(|line| ("x-forwarded-for", *line))
        .collect();
    access(Vec::new())
        .caller(Peer::Ip(peer.parse().unwrap()), &headers(&lines))
        .to_string()
}

#[test]
fn forwarding_headers_count_only_from_trusted_proxies() {
    assert_eq!(caller("192.0.2.1", &["127.0.0.1"]), "192.0.2.1");
    assert_eq!(caller("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
    assert_eq!(
        caller("10.0.0.1", &["127.0.0.1, 203.0.113.9, 10.9.9.9"]),
        "203.0.113.9",
        "a spoofed leftmost hop"
    );
    assert_eq!(
        caller("10.0.0.1", &["127.0.0.1", "203.0.113.9:4711"]),
        "203.0.113.9",
        "two lines are one list"
    );
    assert_eq!(caller("10.0.0.1", &["[2001:db8::1]:80"]), "2001:db8::1");
    assert_eq!(
        caller("::ffff:10.0.0.1", &["203.0.113.9"]),
        "203.0.113.9",
        "mapped addresses are the same proxy"
    );
    for junk in [
        "unknown",
        "",
        "203.0.113.9, nonsense",
        "203.0.113.9,,",
        &"203.0.113.9,".repeat(25),
    ] {
        assert_eq!(caller("10.0.0.1", &[junk]), "10.0.0.1", "{junk:?}");
    }
    assert_eq!(caller("10.0.0.1", &[]), "10.0.0.1");
    let said = headers(&[("x-forwarded-for", "203.0.113.9")]);
    let trusting = |entry| {
        Access::new(
            NetworkSet::default().into(),
            networks(&[entry]),
            Vec::new(),
            None,
        )
    };
    let over_a_socket = |entry| trusting(entry).caller(Peer::Unix, &said).to_string();
    assert_eq!(
        (over_a_socket("loopback"), over_a_socket("127.0.0.0/8")),
        ("203.0.113.9".into(), "unix".into())
    );
}

/// Else an unknown caller behind the proxy could pass for the proxy, which may well be let in.
#[test]
fn what_a_caller_writes_before_its_own_address_does_not_hide_it() {
    for written in [
        "127.0.0.1, ".repeat(40),
        "junk, ".to_owned(),
        "\u{e9}, ".to_owned(),
        ",,,".to_owned(),
    ] {
        assert_eq!(
            caller("10.0.0.1", &[&format!("{written}203.0.113.9")]),
            "203.0.113.9",
            "{written}"
        );
        assert_eq!(
            caller("10.0.0.1", &[&written, "203.0.113.9, 10.0.0.2"]),
            "203.0.113.9",
            "{written}"
        );
    }
    assert_eq!(caller("10.0.0.1", &[&"10.0.0.2, ".repeat(40)]), "10.0.0.1");
    assert_eq!(
        caller(
            "10.0.0.1",
            &[&format!("203.0.113.9{}", ", 10.0.0.2".repeat(40))]
        ),
        "10.0.0.1"
    );
}

/// Returns the name of the client, or the error.
fn identified(
    access: &Access,
    lines: &[(&'static str, &str)],
    peer: &str,
    names: &[&str],
) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let address = peer.parse().map_or(Peer::Unix, Peer::Ip);
    let caller = Caller {
        address,
        cert_names: &names,
        last_key: &LastKey::default(),
        headers: Some(&headers(lines)),
        to_proxy: false,
        key: None,
    };
    match access.identify(&caller, None) {
        Ok(client) => client.name().to_string(),
        Err(error) => format!("{error:?}"),
    }
}

fn house() -> Access {
    access(vec![
        settings::ClientSettings {
            keys: vec![ClientKey::of("crm-key"), ClientKey::of("crm-next")],
            ..client("crm")
        },
        settings::ClientSettings {
            keys: vec![ClientKey::of("erp-key")],
            from: Some(networks(&["10.1.0.0/16"])),
            ..client("erp")
        },
        settings::ClientSettings {
            from: Some(networks(&["10.2.0.0/16"])),
            ..client("floor")
        },
        settings::ClientSettings {
            from: Some(networks(&["10.0.0.0/8", "loopback"])),
            ..client("house")
        },
        settings::ClientSettings {
            cert: Some("pay.internal".to_owned()),
            ..client("pay")
        },
    ])
}

#[test]
fn callers_go_by_key_then_certificate_then_the_first_network_that_fits() {
    let house = house();
    for (lines, peer, names, expected) in [
        (
            &[("x-wxgate-key", "crm-key")][..],
            "192.0.2.1",
            &[][..],
            "crm",
        ),
        (
            &[("authorization", "Bearer crm-key")],
            "192.0.2.1",
            &[],
            "crm",
        ),
        (
            &[
                ("x-wxgate-key", "crm-next"),
                ("authorization", "Bearer crm-key"),
            ],
            "192.0.2.1",
            &[],
            "crm",
        ),
        (
            &[("authorization", "bearer  crm-key")],
            "192.0.2.1",
            &[],
            "crm",
        ),
        (
            &[("authorization", "Basic crm-key")],
            "192.0.2.1",
            &[],
            "NoKey",
        ),
        (&[("x-wxgate-key", "erp-key")], "10.1.2.3", &[], "erp"),
        (
            &[("x-wxgate-key", "erp-key")],
            "10.2.0.1",
            &[],
            "WrongOrigin",
        ),
        (
            &[("x-wxgate-key", "nonsense")],
            "10.2.0.1",
            &[],
            "UnknownKey",
        ),
        (&[("x-wxgate-key", "")], "10.2.0.1", &[], "UnknownKey"),
        (
            &[("x-wxgate-key", "crm-key"), ("x-wxgate-key", "crm-key")],
            "192.0.2.1",
            &[],
            "crm",
        ),
        (
            &[
                ("x-wxgate-key", "crm-key"),
                ("authorization", "Bearer erp-key"),
            ],
            "10.1.0.1",
            &[],
            "SeveralKeys",
        ),
        (
            &[("x-wxgate-key", "crm-key"), ("x-wxgate-key", "no")],
            "192.0.2.1",
            &[],
            "UnknownKey",
        ),
        (&[], "10.2.0.1", &[], "floor"),
        (&[], "10.9.0.1", &[], "house"),
        (&[], "unix", &[], "house"),
        (&[], "10.2.0.1", &["pay.internal"], "pay"),
        (&[], "192.0.2.1", &["other.internal"], "NoKey"),
        (
            &[("x-wxgate-key", "crm-key")],
            "10.2.0.1",
            &["pay.internal"],
            "crm",
        ),
    ] {
        assert_eq!(
            identified(&house, lines, peer, names),
            expected,
            "{lines:?} {peer} {names:?}"
        );
    }
}

#[test]
fn a_text_in_authorization_is_a_key_or_passed_over() {
    let house = house();
    for (lines, peer, names, expected) in [
        (
            &[("authorization", "Basic Y3JtOmNybS1rZXk=")][..],
            "192.0.2.1",
            &[][..],
            "crm",
        ),
        // A text in Authorization that is no key is meant for others.
        (&[("authorization", "Bearer no")], "10.2.0.1", &[], "floor"),
        (
            &[("authorization", "Bearer no")],
            "192.0.2.1",
            &["pay.internal"],
            "pay",
        ),
        (
            &[("authorization", "Bearer no"), ("x-wxgate-key", "crm-key")],
            "192.0.2.1",
            &[],
            "crm",
        ),
        (
            &[("authorization", "Bearer no")],
            "192.0.2.1",
            &[],
            "UnknownKey",
        ),
        (
            &[("authorization", "Basic Y3JtOm5v")],
            "192.0.2.1",
            &[],
            "UnknownKey",
        ),
        (
            &[
                ("authorization", "Basic Y3JtOmNybS1rZXk="),
                ("authorization", "Bearer erp-key"),
            ],
            "10.1.0.1",
            &[],
            "SeveralKeys",
        ),
        (
            &[("proxy-authorization", "Bearer crm-key")],
            "192.0.2.1",
            &[],
            "NoKey",
        ),
    ] {
        assert_eq!(
            identified(&house, lines, peer, names),
            expected,
            "{lines:?} {peer} {names:?}"
        );
    }
}

#[test]
fn of_several_clients_with_a_certificate_the_first_that_fits_is_taken_before_any_network() {
    let with = |cert: &str, from: Option<&[&str]>, name| settings::ClientSettings {
        cert: Some(cert.to_owned()),
        from: from.map(networks),
        ..client(name)
    };
    let house = access(vec![
        settings::ClientSettings {
            from: Some(networks(&["10.0.0.0/8"])),
            ..client("net")
        },
        with("b.internal", Some(&["10.1.0.0/16"]), "b-inside"),
        with("a.internal", None, "a"),
        with("b.internal", None, "b"),
    ]);
    for (peer, names, expected) in [
        ("10.1.0.1", &["b.internal"][..], "b-inside"),
        ("10.2.0.1", &["b.internal"], "b"),
        ("10.2.0.1", &["b.internal", "a.internal"], "a"),
        ("10.1.0.1", &["a.internal", "b.internal"], "b-inside"),
        ("10.1.0.1", &["c.internal"], "net"),
        ("192.0.2.1", &["c.internal"], "NoKey"),
    ] {
        assert_eq!(
            identified(&house, &[], peer, names),
            expected,
            "{peer} {names:?}"
        );
    }
}

#[test]
fn without_clients_the_network_decides_and_keys_say_nothing() {
    let open = access(Vec::new());
    assert_eq!(
        identified(
            &open,
            &[("authorization", "Bearer of something else")],
            "127.0.0.1",
            &[]
        ),
        NETWORK
    );
    assert_eq!(identified(&open, &[], "192.0.2.1", &[]), "Network");
}

#[test]
fn a_bearer_token_for_another_service_is_no_wrong_key_where_there_are_no_keys() {
    let access = access(vec![settings::ClientSettings {
        from: Some(networks(&["loopback"])),
        ..client("here")
    }]);
    assert_eq!(
        identified(&access, &[("authorization", "Bearer x")], "::1", &[]),
        "here"
    );
}

#[test]
fn an_unchanged_client_outlives_a_reload_and_a_changed_one_does_not() {
    let before = house();
    let mut clients: Vec<_> = before
        .clients
        .iter()
        .map(|client| client.settings().clone())
        .collect();
    clients[0].mode = Mode::Report;
    let after = Access::new(
        NetworkSet::default().into(),
        NetworkSet::default(),
        clients,
        Some(&before),
    );
    assert!(!Arc::ptr_eq(&before.clients[0], &after.clients[0]));
    assert!(Arc::ptr_eq(&before.clients[1], &after.clients[1]));
}
