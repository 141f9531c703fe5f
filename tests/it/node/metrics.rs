//! What `/metrics` shows after something happened: the names of the contract, and no label that a
//! caller could choose.

use std::{collections::BTreeMap, time::SystemTime};

use tokio::time::timeout;
use wxgate::sandbox::{self, DEFAULT_APPID, Fault, Rule, TokenFilter, TokenKind};

use super::listeners::{certificates, start_in};
use crate::support::{Gate, program::LIMIT, setup, start, wire::Caller};

/// Series → value.
type Page = BTreeMap<String, f64>;

async fn page(gate: &Gate) -> Page {
    let answer = gate
        .client
        .get(gate.admin_url("/metrics"))
        .send()
        .await
        .expect("an answer");
    let text = answer.text().await.expect("text");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        (series.to_owned(), value.parse().expect("a number"))
    };
    samples.map(sample).collect()
}

#[track_caller]
fn value(page: &Page, series: &str) -> f64 {
    *page
        .get(series)
        .unwrap_or_else(|| panic!("{series} is not in {page:#?}"))
}

/// How much a series has grown; one that was not there stood at zero.
fn grown(before: &Page, after: &Page, series: &str) -> f64 {
    value(after, series) - before.get(series).copied().unwrap_or_default()
}

async fn outcome(gate: &Gate, target: &str) -> u16 {
    gate.get(target).await.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_name_of_the_contract_appears_and_says_the_truth() {
    let gate = setup()
        .set("store", "kind = \"file\"")
        .set("store", "path = \"state\"")
        .start()
        .await;
    gate.warm().await;
    gate.send_message("o1").send().await.expect("an answer");
    let first = page(&gate).await;
    let build = format!(
        "wxgate_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    for (series, expected) in [
        (
            "wxgate_requests_total{account=\"shop\",client=\"network\",outcome=\"ok\"}",
            2.0,
        ),
        ("wxgate_request_duration_seconds_count", 2.0),
        (
            "wxgate_upstream_errcode_total{account=\"shop\",errcode=\"0\"}",
            1.0,
        ),
        (
            "wxgate_token_fetch_total{account=\"shop\",trigger=\"start\",result=\"new\"}",
            1.0,
        ),
        ("wxgate_token_generation{account=\"shop\"}", 1.0),
        (
            "wxgate_token_budget_remaining{account=\"shop\",kind=\"forced\"}",
            6.0,
        ),
        ("wxgate_token_conflicts_total{account=\"shop\"}", 0.0),
        ("wxgate_inflight_requests", 0.0),
        (&build, 1.0),
    ] {
        assert_eq!(value(&first, series), expected, "{series}");
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let left = value(
        &first,
        "wxgate_token_expiry_timestamp_seconds{account=\"shop\"}",
    ) - now;
    assert!((7100.0..=7201.0).contains(&left), "{left} s are left");

    // The folder of the store goes away, and so does the token: both are seen, and the call
    // succeeds.
    std::fs::remove_dir_all(gate.folder.path().join("state")).expect("it was there");
    gate.control().revoke(TokenFilter::default());
    assert_eq!(outcome(&gate, "/cgi-bin/user/get").await, 200);
    let second = page(&gate).await;
    for series in [
        "wxgate_stale_total{account=\"shop\",errcode=\"40001\"}",
        "wxgate_upstream_errcode_total{account=\"shop\",errcode=\"40001\"}",
        "wxgate_replay_total{account=\"shop\",result=\"cured\"}",
        "wxgate_token_fetch_total{account=\"shop\",trigger=\"rejected\",result=\"new\"}",
        "wxgate_token_generation{account=\"shop\"}",
        "wxgate_requests_total{account=\"shop\",client=\"network\",outcome=\"ok\"}",
    ] {
        assert_eq!(grown(&first, &second, series), 1.0, "{series}");
    }
    assert!(value(&second, "wxgate_store_errors_total{operation=\"save\"}") >= 1.0);
    assert_eq!(value(&first, "wxgate_store_up"), 1.0);
    assert_eq!(value(&second, "wxgate_store_up"), 0.0);
    // The folder is made anew by the next attempt, or by hand.
    let _ = std::fs::create_dir(gate.folder.path().join("state"));
    until(async || value(&page(&gate).await, "wxgate_store_up") == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_shows_what_it_uses() {
    let gate = start().await;
    gate.warm().await;
    let page = page(&gate).await;
    let now = unix_time();
    let started = value(&page, "process_start_time_seconds");
    assert!((now - 600.0..=now).contains(&started), "{started}");
    for (series, least, most) in [
        ("process_resident_memory_bytes", 1e6, 1e11),
        ("process_open_fds", 5.0, 1e6),
        ("process_max_fds", 5.0, 1e20),
        ("process_cpu_seconds_total", 0.0, 1e4),
    ] {
        let value = value(&page, series);
        assert!((least..=most).contains(&value), "{series} {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_that_wechat_takes_is_counted_by_account() {
    let gate = start().await;
    gate.warm().await;
    let count = "wxgate_upstream_duration_seconds_count{account=\"shop\"}";
    let slow = "wxgate_upstream_duration_seconds_bucket{le=\"0.25\",account=\"shop\"}";
    let before = page(&gate).await;
    assert_eq!(value(&before, count), 1.0);
    // An answer of wxgate's own is none of WeChat's, and nor is one that never came.
    assert_eq!(outcome(&gate, "/cgi-bin/clear_quota").await, 403);
    gate.control()
        .fault(Rule::new("/cgi-bin/menu/get", Fault::Reset { executed: false }).times(2));
    assert_eq!(outcome(&gate, "/cgi-bin/menu/get").await, 502);
    assert_eq!(value(&page(&gate).await, count), 1.0);
    let delay = std::time::Duration::from_millis(300);
    gate.control()
        .fault(Rule::new("/cgi-bin/tags/get", Fault::Pass).delay(delay));
    assert_eq!(outcome(&gate, "/cgi-bin/tags/get").await, 200);
    let after = page(&gate).await;
    assert_eq!(grown(&before, &after, count), 1.0);
    assert_eq!(grown(&before, &after, slow), 0.0, "it took 0.3 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_and_the_end_of_the_certificate_are_told() {
    let gate = start_in(
        setup().set(
            "server",
            "tls = { cert = \"server.pem\", key = \"server.key\" }",
        ),
        certificates(),
    )
    .await;
    const END: &str = "wxgate_tls_certificate_expiry_timestamp_seconds";
    const RELOADED: &str = "wxgate_config_last_reload_success_timestamp_seconds";
    let first = page(&gate).await;
    // What rcgen writes when nothing is said.
    assert_eq!(value(&first, END), 67_090_118_400.0);
    assert_eq!(value(&first, "wxgate_config_last_reload_successful"), 1.0);
    assert!(value(&first, RELOADED) >= unix_time() - 600.0);
    let text = gate.file();
    assert_eq!(gate.reload("[server]\nno = 1\n").await.status(), 422);
    let second = page(&gate).await;
    assert_eq!(value(&second, "wxgate_config_last_reload_successful"), 0.0);
    assert_eq!(value(&second, RELOADED), value(&first, RELOADED));
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2033, 5, 18);
    let key = rcgen::KeyPair::generate().unwrap();
    let write = |name: &str, text: String| {
        std::fs::write(gate.folder.path().join(name), text).expect("written");
    };
    write("server.pem", params.self_signed(&key).unwrap().pem());
    write("server.key", key.serialize_pem());
    assert_eq!(gate.reload(&text).await.status(), 200);
    let third = page(&gate).await;
    assert_eq!(value(&third, "wxgate_config_last_reload_successful"), 1.0);
    assert_eq!(value(&third, END), 1_999_987_200.0);
    // Without TLS there is no end that could set off an alarm.
    assert!(!page(&start().await).await.contains_key(END));
}

fn unix_time() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_outcome_is_counted_once() {
    let gate = setup()
        .set("server", "max_body = \"1KiB\"")
        .set("upstream", "response_timeout = \"1s\"")
        .start()
        .await;
    gate.warm().await;
    // Twice, because a GET on a kept connection that dies moves to a fresh one.
    let fault = |fault| {
        gate.control()
            .fault(Rule::new("/cgi-bin/menu/get", fault).times(2))
    };
    for (target, rigged, expected, status) in [
        ("/cgi-bin/user/get", None, "ok", 200),
        ("/cgi-bin/menu/get", Some(Fault::errcode(45009)), "ok", 200),
        (
            "/cgi-bin/menu/get",
            Some(Fault::respond(500, "text/html", "<html>")),
            "ok",
            500,
        ),
        (
            "/cgi-bin/menu/get",
            Some(Fault::Reset { executed: false }),
            "upstream_failed",
            502,
        ),
        (
            "/cgi-bin/menu/get",
            Some(Fault::Hang { executed: false }),
            "upstream_timeout",
            504,
        ),
        ("/cgi-bin/%41", None, "bad_request", 400),
        ("/cgi-bin/clear_quota", None, "endpoint_blocked", 403),
    ] {
        gate.control().clear_faults();
        if let Some(rigged) = rigged {
            fault(rigged);
        }
        let series = format!(
            "wxgate_requests_total{{account=\"shop\",client=\"network\",outcome=\"{expected}\"}}"
        );
        let before = page(&gate).await;
        assert_eq!(outcome(&gate, target).await, status, "{target}");
        let after = page(&gate).await;
        assert_eq!(grown(&before, &after, &series), 1.0, "{target} {expected}");
        assert_eq!(
            grown(&before, &after, "wxgate_request_duration_seconds_count"),
            1.0,
            "{target}"
        );
        let total = |page: &Page| sum(page, "wxgate_requests_total");
        assert_eq!(total(&after) - total(&before), 1.0, "{target} counts once");
    }
    let before = page(&gate).await;
    let large = gate
        .post("/cgi-bin/menu/create")
        .body(vec![b' '; 4096])
        .send()
        .await
        .expect("an answer");
    assert_eq!(large.status(), 413);
    assert_eq!(outcome(&gate, "/-/nothing").await, 404);
    assert_eq!(outcome(&gate, "/@nobody/cgi-bin/user/get").await, 400);
    let after = page(&gate).await;
    for (account, slug) in [
        ("shop", "body_too_large"),
        ("-", "not_found"),
        ("-", "account_unknown"),
    ] {
        let series = format!(
            "wxgate_requests_total{{account=\"{account}\",client=\"network\",outcome=\"{slug}\"}}"
        );
        assert_eq!(grown(&before, &after, &series), 1.0, "{series}");
    }
    assert_eq!(
        value(
            &after,
            "wxgate_upstream_errcode_total{account=\"shop\",errcode=\"45009\"}"
        ),
        1.0
    );
}

fn sum(page: &Page, name: &str) -> f64 {
    page.iter()
        .filter(|(series, _)| series.starts_with(name))
        .map(|(_, value)| value)
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_are_counted_and_the_count_returns_to_zero() {
    let gate = start().await;
    gate.warm().await;
    let inflight = async || value(&page(&gate).await, "wxgate_inflight_requests");
    let rule = gate
        .control()
        .fault(Rule::new("/cgi-bin/user/get", Fault::Pass).always().hold());
    let mut leaving = Vec::new();
    for _ in 0..2 {
        let mut caller = Caller::connect(gate.proxy).await;
        caller
            .write("GET /cgi-bin/user/get HTTP/1.1\r\nHost: gate\r\n\r\n")
            .await;
        leaving.push(caller);
    }
    let requests: Vec<_> = (0..3)
        .map(|_| {
            let request = gate.client.get(gate.url("/cgi-bin/user/get")).send();
            tokio::spawn(async move {
                request
                    .await
                    .expect("an answer")
                    .bytes()
                    .await
                    .expect("a body")
            })
        })
        .collect();
    timeout(
        LIMIT,
        gate.control().until(|control| control.hits(rule) == 5),
    )
    .await
    .expect("all arrive");
    assert_eq!(inflight().await, 5.0);
    // Callers that hang up count no longer either.
    for caller in leaving {
        caller.reset();
    }
    until(async || inflight().await == 3.0).await;
    gate.control().release(rule);
    for request in requests {
        request.await.expect("no panic");
    }
    until(async || inflight().await == 0.0).await;
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !holds().await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, asking).await.expect("it comes true");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_die_early_again_and_again_are_a_conflict_and_classic_fetches_spend_the_budget()
{
    let gate = setup().account("token = \"classic\"").start().await;
    gate.warm().await;
    let budget = "wxgate_token_budget_remaining{account=\"shop\",kind=\"classic\"}";
    assert_eq!(value(&page(&gate).await, budget), 1999.0);
    for _ in 0..3 {
        gate.control().revoke(TokenFilter::default());
        assert_eq!(outcome(&gate, "/cgi-bin/user/get").await, 200);
    }
    let page = page(&gate).await;
    assert_eq!(value(&page, budget), 1996.0);
    assert!(
        value(&page, "wxgate_token_conflicts_total{account=\"shop\"}") >= 1.0,
        "{page:#?}"
    );
    assert_eq!(
        value(&page, "wxgate_token_generation{account=\"shop\"}"),
        4.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_cured_and_what_the_token_endpoint_refused_is_counted() {
    let gate = start().await;
    gate.warm().await;
    gate.control()
        .fault(Rule::new("/cgi-bin/stable_token", Fault::errcode(40243)).always());
    gate.control().revoke(TokenFilter::default());
    assert_eq!(outcome(&gate, "/cgi-bin/user/get").await, 200);
    let page = page(&gate).await;
    let fetched =
        "wxgate_token_fetch_total{account=\"shop\",trigger=\"rejected\",result=\"40243\"}";
    assert_eq!(value(&page, fetched), 1.0, "{page:#?}");
    assert_eq!(
        value(
            &page,
            "wxgate_replay_total{account=\"shop\",result=\"refresh_failed\"}"
        ),
        1.0,
        "{page:#?}"
    );
    assert_eq!(
        value(
            &page,
            "wxgate_stale_total{account=\"shop\",errcode=\"40001\"}"
        ),
        1.0
    );

    let gate = start().await;
    gate.warm().await;
    gate.control()
        .fault(Rule::new("/cgi-bin/tags/get", Fault::stale()).always());
    assert_eq!(outcome(&gate, "/cgi-bin/tags/get").await, 200);
    let page = self::page(&gate).await;
    assert_eq!(
        value(
            &page,
            "wxgate_replay_total{account=\"shop\",result=\"same_token\"}"
        ),
        1.0,
        "{page:#?}"
    );
    let fetched = "wxgate_token_fetch_total{account=\"shop\",trigger=\"rejected\",result=\"same\"}";
    assert_eq!(value(&page, fetched), 1.0, "{page:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_caller_or_wechat_makes_up_becomes_a_label() {
    let gate = start().await;
    gate.warm().await;
    let garbage = async |round: usize| {
        gate.get(&format!("/@garbage{round}/cgi-bin/user/get"))
            .await;
        gate.get(&format!("/cgi-bin/garbage{round}/get?garbage{round}=1"))
            .await;
        gate.get(&format!("/garbage{round}%41")).await;
        gate.get(&format!("/-/garbage{round}")).await;
        let name = format!("garbage{round}");
        gate.client
            .get(gate.url("/cgi-bin/user/get"))
            .header("x-wxgate-account", &name)
            .send()
            .await
            .expect("an answer");
        gate.client
            .get(gate.url("/cgi-bin/user/get"))
            .header("x-wxgate-key", &name)
            .send()
            .await
            .expect("an answer");
        gate.client
            .get(gate.url("/cgi-bin/user/get"))
            .header("host", &name)
            .send()
            .await
            .expect("an answer");
        gate.raw(
            format!("GARBAGE{round} / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        gate.control().fault(Rule::new(
            "/cgi-bin/menu/get",
            Fault::errcode(9_000_000 + round as i64),
        ));
        gate.get("/cgi-bin/menu/get").await;
        gate.control().fault(Rule::new(
            "/cgi-bin/menu/get",
            Fault::errcode(-1_000_000_000_000 - round as i64),
        ));
        gate.get("/cgi-bin/menu/get").await;
        let refresh = gate
            .client
            .post(gate.admin_url(&format!("/api/accounts/garbage{round}/refresh")));
        refresh.send().await.expect("an answer");
    };
    garbage(0).await;
    let before = page(&gate).await;
    for round in 1..30 {
        garbage(round).await;
    }
    let after = page(&gate).await;
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>(),
        "no series was added"
    );
    assert!(
        !after
            .keys()
            .any(|series| series.to_ascii_lowercase().contains("garbage")),
        "{after:#?}"
    );
    assert_eq!(
        value(
            &after,
            "wxgate_upstream_errcode_total{account=\"shop\",errcode=\"other\"}"
        ),
        60.0
    );
    let token = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("one is there");
    assert!(!after.keys().any(|series| series.contains(&token)));
}

/// Advertising and data interfaces tell their codes as `ret`, at the top level or in `base_resp`.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_is_called_ret_is_counted_too() {
    let gate = setup().start().await;
    gate.warm().await;
    for body in [
        r#"{"base_resp":{"ret":45009,"err_msg":"reach limit"}}"#,
        r#"{"ret":2009,"err_msg":"no permission"}"#,
    ] {
        let answer = sandbox::Response {
            body: body.to_owned(),
            ..sandbox::Response::default()
        };
        gate.control()
            .fault(Rule::new("/publisher/stat", Fault::Respond(answer)));
        let target = "/publisher/stat?action=publisher_adpos_general";
        assert_eq!(outcome(&gate, target).await, 200);
    }
    let page = page(&gate).await;
    for code in ["45009", "2009"] {
        let series =
            format!("wxgate_upstream_errcode_total{{account=\"shop\",errcode=\"{code}\"}}");
        assert_eq!(value(&page, &series), 1.0, "{series}");
    }
    assert_eq!(
        gate.control().fetches(),
        1,
        "none of them is about the token"
    );
}
