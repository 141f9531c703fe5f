//! The way to WeChat: DNS, TCP, egress proxy, TLS, clock.

use rcgen::date_time_ymd;

use super::Patient;
use crate::{
    support::{
        fake::{Act, Fake, Greeting},
        program::finish,
    },
    upstream::{
        egress::{BlackHole, refusing},
        upstream_tls::Authority,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_way_is_told_step_by_step() {
    let patient = Patient::new(|setup| setup).await;
    patient.is_well(&[
        "DNS: ",
        "TCP: connected",
        "TLS: issued by",
        "good until ",
        "shop: WeChat gave a token that is good for 7200 s",
        "shop: WeChat accepts the token in a call",
        "server.listen: 127.0.0.1:0 is free",
    ]);
    assert_eq!(patient.sandbox.control().fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_be_reached() {
    let (_socket, refused) = refusing();
    let hole = BlackHole::start();
    let limit = |setup: crate::support::Setup| setup.set("upstream", "connect_timeout = \"400ms\"");
    for (case, api, upstream, parts) in [
        (
            "no such name",
            "https://api.wxgate.invalid".to_owned(),
            "pool_idle = \"15s\"",
            &["api.wxgate.invalid", "DNS", "upstream.resolve"][..],
        ),
        (
            "refused",
            format!("https://{refused}"),
            "pool_idle = \"15s\"",
            &["the host refuses the connection"],
        ),
        (
            "blackhole",
            format!("https://{}", hole.address),
            "pool_idle = \"15s\"",
            &["did not answer within upstream.connect_timeout", "firewall"],
        ),
        (
            "source address of another machine",
            "https://api.wxgate.invalid".to_owned(),
            "local_address = \"192.0.2.1\"\nresolve = { \"api.wxgate.invalid\" = [\"127.0.0.1\"] }",
            &["upstream.local_address is not an address of this machine"],
        ),
    ] {
        let patient = Patient::new(|setup| {
            limit(setup)
                .set("upstream", upstream)
                .account(&format!("api = [\"{api}\"]"))
        })
        .await;
        patient.suffers_from(case, parts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_egress_proxy_that_does_not_let_through() {
    let (_socket, refused) = refusing();
    let hole = BlackHole::start();
    let mut proxies = vec![
        (
            "down",
            refused.to_string(),
            "upstream.proxy refuses the connection",
        ),
        (
            "blackhole",
            hole.address.to_string(),
            "upstream.proxy did not answer",
        ),
        (
            "wrong name",
            "egress.wxgate.invalid:3128".to_owned(),
            "host name of upstream.proxy",
        ),
    ];
    let mut fakes = Vec::new();
    for (case, answer, said) in [
        (
            "407",
            "HTTP/1.1 407 Login\r\nContent-Length: 0\r\n\r\n",
            "user and password (HTTP status 407)",
        ),
        (
            "403",
            "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
            "does not let this machine through to the host (HTTP status 403)",
        ),
        (
            "503",
            "HTTP/1.1 503 DNS\r\nContent-Length: 0\r\n\r\n",
            "cannot reach the host itself (HTTP status 503)",
        ),
        (
            "400",
            "HTTP/1.1 400 What\r\nContent-Length: 0\r\n\r\n",
            "answers CONNECT with HTTP status 400",
        ),
        (
            "no HTTP",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "what answers there is a proxy",
        ),
        ("silent end", "", "ends the connection without an answer"),
    ] {
        let fake = Fake::start_at("127.0.0.1:0", Greeting::Bytes(answer.into()), |_| {
            Act::Silent
        })
        .await;
        proxies.push((case, fake.address.to_string(), said));
        fakes.push(fake);
    }
    for (case, proxy, said) in proxies {
        let patient = Patient::new(|setup| {
            setup
                .set("upstream", "connect_timeout = \"400ms\"")
                .set("upstream", &format!("proxy = \"http://{proxy}\""))
                .account("api = [\"https://api.wxgate.invalid\"]")
        })
        .await;
        patient.suffers_from(case, &["api.wxgate.invalid", said]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_believed() {
    let authority = Authority::new();
    let stranger = Authority::new();
    for (case, greeting, parts) in [
        (
            "foreign authority",
            stranger.greeting(|_| {}),
            &[
                "authority that is not trusted here",
                "upstream.ca_file",
                "issued by",
            ][..],
        ),
        (
            "expired",
            authority.greeting(|leaf| leaf.not_after = date_time_ymd(2001, 1, 1)),
            &["has expired", "good until 2001-01-01T00:00:00Z"],
        ),
        (
            "not yet valid",
            authority.greeting(|leaf| leaf.not_before = date_time_ymd(2090, 1, 1)),
            &["not valid yet", "clock of this machine is behind"],
        ),
        (
            "another name",
            authority.greeting(|leaf| {
                leaf.subject_alt_names = vec![rcgen::SanType::DnsName(
                    "other.example".try_into().expect("a name"),
                )];
            }),
            &["for another name than the host's", "for other.example"],
        ),
        (
            "no TLS",
            Greeting::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".into()),
            &["speaks no TLS"],
        ),
        (
            "ended within the handshake",
            Greeting::Bytes(Vec::new()),
            &["ended within the TLS handshake", "firewall"],
        ),
    ] {
        let fake = Fake::start_at("127.0.0.1:0", greeting, |_| Act::ok("{}")).await;
        let api = format!("api = [\"https://localhost:{}\"]", fake.address.port());
        let patient = Patient::new(|setup| {
            setup
                .set("upstream", "ca_file = \"authority.pem\"")
                .account(&api)
        });
        let patient = patient.await;
        patient.put("authority.pem", &authority.pem);
        patient.suffers_from(case, parts);
        assert_eq!(fake.seen.plaintext(), 0, "{case}: nothing is said to it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_trusted_roots() {
    let patient = Patient::new(|setup| setup.plain()).await;
    let text = std::fs::read_to_string(patient.path().join("wxgate.toml")).expect("it is there");
    patient.put("wxgate.toml", &text.replace("ca_file = \"root.pem\"", ""));
    patient.put("empty.pem", "");
    std::fs::create_dir(patient.path().join("none")).expect("made");
    let mut command = patient.command(&["check", "--live"]);
    command
        .env("SSL_CERT_FILE", patient.path().join("empty.pem"))
        .env("SSL_CERT_DIR", patient.path().join("none"));
    super::assert_broken(
        "no roots",
        &finish(command),
        &["no trusted root certificate", "ca-certificates"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_and_a_host_that_is_silent() {
    let answering = |date: &str| {
        let body = "{\"ip_list\":[\"203.0.113.7\"]}";
        let answer = format!(
            "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Fake::start(move |_| Act::Close(answer.clone().into()))
    };
    let ahead = answering("Mon, 01 Jan 2001 00:00:00 GMT").await;
    let patient = Patient::new(|setup| setup.account(&ahead.api())).await;
    patient.suffers_from(
        "clock ahead",
        &["this machine is", "ahead of the host", "NTP"],
    );
    let behind = answering("Wed, 01 Jan 2098 00:00:00 GMT").await;
    let patient = Patient::new(|setup| setup.account(&behind.api())).await;
    patient.suffers_from("clock behind", &["behind the host", "NTP"]);
    let silent = Fake::start(|_| Act::Silent).await;
    let patient = Patient::new(|setup| {
        setup
            .set("upstream", "connect_timeout = \"400ms\"")
            .account(&silent.api())
    })
    .await;
    patient.suffers_from("silent", &["takes connections and does not answer"]);
}
