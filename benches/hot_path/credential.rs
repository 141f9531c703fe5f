//! Look-up of the credential that a call takes.

use std::hint::black_box;

use criterion::Criterion;
use wxgate::internals::wechat::credential::{self, Parameters};

pub(super) fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("credential");
    for (name, path) in [
        ("an ordinary path", "/cgi-bin/user/info"),
        (
            "a long path",
            "/cgi-bin/message/wxopen/template/uniform_send",
        ),
        ("a family", "/cgi-bin/service/get_login_info"),
        ("a path of the table", "/cgi-bin/openapi/rid/get"),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| credential::of_path(black_box(path)).class(black_box(Parameters::default())));
        });
    }
}
