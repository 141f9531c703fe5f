//! Probes on the data listener: what meant the admin listener never reaches WeChat, and liveness
//! and readiness are told to callers without a key.

use wxgate::sandbox::{Fault, Rule};

use crate::support::{
    Gate, json as body,
    raw::{Reply, Wire},
    setup,
};

/// A gate that lets in nobody without a key.
const CLIENT: &str = "[[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\n";

async fn ask(gate: &Gate, method: &str, target: &str, fields: &str) -> Reply {
    let mut wire = Wire::connect(gate.proxy).await;
    wire.send(format!(
        "{method} {target} HTTP/1.1\r\nHost: gate\r\n{fields}\r\n"
    ))
    .await;
    wire.reply_to(method).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_of_probes_and_browsers_are_answered_here_whoever_asks() {
    for style in ["auto", "http", "wechat"] {
        let gate = setup()
            .set("server", &format!("error_style = \"{style}\""))
            .more(CLIENT)
            .start()
            .await;
        gate.control().until(|control| control.fetches() == 1).await;
        gate.control().clear_record();
        for path in [
            "/",
            "/livez",
            "/readyz",
            "/healthz",
            "/metrics",
            "/favicon.ico",
            "/robots.txt",
            "/LIVEZ",
            "/Metrics",
            "//healthz",
            "//",
            "/@shop/healthz",
            "/@nobody/metrics",
        ] {
            for query in ["", "?all", "?access_token=T"] {
                for key in ["", "X-Wxgate-Key: crm-key-0123456789\r\n"] {
                    for method in ["GET", "HEAD", "POST", "OPTIONS"] {
                        let target = format!("{path}{query}");
                        let reply = ask(&gate, method, &target, key).await;
                        let seen = (reply.status, reply.slug());
                        assert_eq!(seen, (404, "not_found"), "{style} {method} {target}");
                        assert_eq!(reply.header("x-wxgate-account"), "", "{target}");
                        assert_eq!(reply.header("x-wxgate-sent"), "no", "{target}");
                        if method == "HEAD" {
                            assert!(reply.body.is_empty());
                        } else {
                            assert_eq!(reply.json()["errcode"], 990_404, "{target}");
                        }
                    }
                }
            }
        }
        assert_eq!(gate.control().counters().requests, 0, "none reached WeChat");
        let metrics = gate.client.get(gate.admin_url("/metrics")).send().await;
        let metrics = metrics.expect("an answer").text().await.expect("a text");
        let counted: Vec<&str> = metrics
            .lines()
            .filter(|line| line.starts_with("wxgate_requests_total{"))
            .collect();
        assert_eq!(counted.len(), 1, "{counted:?}");
        for label in ["account=\"-\"", "client=\"-\"", "outcome=\"not_found\""] {
            assert!(counted[0].contains(label), "{counted:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn liveness_and_readiness_need_no_key_and_no_network() {
    for access in [CLIENT, ""] {
        let gate = setup()
            .set("server", "allow = [\"192.0.2.0/24\"]")
            .set("server", "error_style = \"wechat\"")
            .more(access)
            .start()
            .await;
        gate.control().until(|control| control.fetches() == 1).await;
        let refused = ask(&gate, "GET", "/cgi-bin/user/info", "").await;
        assert_eq!(refused.slug(), "client_unknown");
        for (target, admin) in [
            ("/-/livez", "/livez"),
            ("/-/readyz", "/readyz"),
            ("/-/ReadyZ", "/readyz"),
            ("//-/livez", "/livez"),
            ("/-/livez?", "/livez"),
        ] {
            let wanted = gate.client.get(gate.admin_url(admin)).send().await;
            let wanted = wanted.expect("an answer");
            let kind = wanted.headers()["content-type"]
                .to_str()
                .unwrap()
                .to_owned();
            let wanted = (
                wanted.status().as_u16(),
                wanted.text().await.expect("a text"),
            );
            assert_eq!(wanted.0, 200);
            let reply = ask(&gate, "GET", target, "Authorization: Bearer no\r\n").await;
            assert_eq!((reply.status, reply.text()), wanted, "{target}");
            assert_eq!(reply.header("content-type"), kind, "{target}");
            assert_eq!(reply.header("cache-control"), "no-store", "{target}");
            let head = ask(&gate, "HEAD", target, "").await;
            assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
            for query in ["?all", "?account=shop", "?access_token=T"] {
                let target = format!("{}{query}", target.trim_end_matches('?'));
                let reply = ask(&gate, "GET", &target, "").await;
                assert_eq!(
                    (reply.status, reply.slug()),
                    (400, "bad_request"),
                    "{target}"
                );
            }
            for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
                let reply = ask(&gate, method, target, "Content-Length: 0\r\n").await;
                assert_eq!((reply.status, reply.slug()), (404, "not_found"), "{method}");
            }
        }
        let (_, log) = gate.stop().await;
        assert!(log.contains("\"probe\""), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_nobody_and_agrees_with_the_admin_listener() {
    let setup = setup().more(CLIENT);
    let sandbox = setup.start_sandbox().await;
    let refused = sandbox
        .control()
        .fault(Rule::new("/cgi-bin/stable_token", Fault::errcode(40164)).always());
    let gate = setup.start_with(sandbox).await;
    gate.control()
        .until(|control| control.hits(refused) == 1)
        .await;
    let admin = loop {
        let answer = gate.client.get(gate.admin_url("/readyz")).send().await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 503);
        let admin = body(answer).await;
        if admin["lacking"][0]["errcode"] == 40164 {
            break admin;
        }
        tokio::task::yield_now().await;
    };
    let reply = ask(&gate, "GET", "/-/readyz", "").await;
    let told = reply.json();
    assert_eq!((reply.status, &told["error"]), (503, &admin["error"]));
    assert_eq!(told["lacking"][0]["state"], admin["lacking"][0]["state"]);
    for named in ["shop", "203.0.113.9", "40164"] {
        assert!(!reply.text().contains(named), "{}", reply.text());
        assert!(admin.to_string().contains(named));
    }
    // Ready once an account was usable, whichever listener noticed.
    gate.control().remove_fault(refused);
    let refresh = gate.admin_url("/api/accounts/shop/refresh");
    let refresh = gate.client.post(refresh).send().await.expect("an answer");
    assert_eq!(refresh.status(), 200);
    assert_eq!(ask(&gate, "GET", "/-/readyz", "").await.status, 200);
    assert_eq!(ask(&gate, "HEAD", "/-/readyz", "").await.status, 200);
}
