//! HTML page at `/`: a table of the accounts and links, without script or style. A stand-in for the
//! console.
//!
//! Pure. All text that is not a constant of this file is escaped.

use std::fmt::{self, Write as _};

use super::accounts::AccountRow;

/// Returns the whole page.
pub(super) fn render(rows: &[AccountRow], ready: bool) -> String {
    let mut page = String::with_capacity(2048);
    // Writing to a string cannot fail.
    let _ = write_page(&mut page, rows, ready);
    page
}

/// Text with the characters escaped that are markup inside an element or a quoted attribute.
struct Escaped<'t>(&'t str);

const HEAD: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width\"><title>wxgate</title></head><body>\n";

const TABLE: &str = "<table><thead><tr><th>Account</th><th>State</th><th>Token</th><th>Generation</th>\
<th>Good for</th><th>Next attempt</th><th>Budget left</th><th>What to do</th></tr></thead><tbody>\n";

const LINKS: &str = "<p><a href=\"/api/accounts\">Accounts as JSON</a> · <a href=\"/readyz?all\">Readiness</a> · \
<a href=\"/livez\">Liveness</a> · <a href=\"/metrics\">Metrics</a></p>\n\
<p>Refresh an account: <code>curl -X POST ADDRESS/api/accounts/NAME/refresh</code></p>\n</body></html>\n";

fn write_page(page: &mut String, rows: &[AccountRow], ready: bool) -> fmt::Result {
    let readiness = if ready { "ready" } else { "not ready" };
    page.push_str(HEAD);
    writeln!(
        page,
        "<h1>wxgate {}</h1>\n<p>This node is {readiness}.</p>",
        env!("CARGO_PKG_VERSION")
    )?;
    page.push_str(TABLE);
    rows.iter().try_for_each(|row| write_row(page, row))?;
    page.push_str("</tbody></table>\n");
    page.push_str(LINKS);
    Ok(())
}

fn write_row(page: &mut String, row: &AccountRow) -> fmt::Result {
    let budgets = [
        ("classic", row.budgets.classic),
        ("forced", row.budgets.forced),
    ];
    let budgets = budgets
        .iter()
        .filter_map(|(kind, left)| left.map(|left| format!("{left} {kind}")));
    let cells = [
        row.name.clone(),
        row.state.to_owned(),
        row.fingerprint.clone().unwrap_or_default(),
        row.generation.to_string(),
        row.expires_in.map(span).unwrap_or_default(),
        row.next_attempt_in.map(span).unwrap_or_default(),
        budgets.collect::<Vec<_>>().join(", "),
        advice(row),
    ];
    page.push_str("<tr>");
    for cell in &cells {
        write!(page, "<td>{}</td>", Escaped(cell))?;
    }
    page.push_str("</tr>\n");
    Ok(())
}

fn advice(row: &AccountRow) -> String {
    let mut advice = row
        .last_error
        .as_ref()
        .map(|error| error.sentence.clone())
        .unwrap_or_default();
    if row.conflicts > 0 {
        let gap = if advice.is_empty() { "" } else { " · " };
        let _ = write!(
            advice,
            "{gap}somebody else fetches tokens for this account (seen {} times): let that program ask wxgate",
            row.conflicts
        );
    }
    advice
}

/// Formats a duration in seconds, or in whole minutes from two minutes on.
fn span(seconds: u64) -> String {
    if seconds < 120 {
        format!("{seconds} s")
    } else {
        format!("{} min", seconds / 60)
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            _ => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::accounts::{Budgets, LastFailure},
        *,
    };

    fn row(name: &str, sentence: &str) -> AccountRow {
        AccountRow {
            name: name.into(),
            state: "fatal",
            usable: false,
            generation: 7,
            fingerprint: Some("ba7816bf".into()),
            expires_in: Some(7140),
            age: Some(60),
            next_attempt_in: Some(5),
            budgets: Budgets {
                classic: Some(1999),
                forced: None,
            },
            conflicts: 3,
            last_error: Some(LastFailure {
                label: "other",
                errcode: Some(1),
                ip: None,
                sentence: sentence.into(),
                failures: 1,
            }),
            tickets: Vec::new(),
            warning: None,
        }
    }

    #[test]
    fn the_page_says_how_each_account_stands_and_what_to_do() {
        let page = render(&[row("shop", "add the IP"), row("crm", "wait")], true);
        for part in [
            env!("CARGO_PKG_VERSION"),
            "This node is ready.",
            "<td>shop</td><td>fatal</td><td>ba7816bf</td><td>7</td><td>119 min</td><td>5 s</td><td>1999 classic</td>",
            "<td>add the IP · somebody else fetches",
            "<td>crm</td>",
            "href=\"/api/accounts\"",
            "href=\"/readyz?all\"",
            "href=\"/metrics\"",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(render(&[], false).contains("This node is not ready."));
    }

    #[test]
    fn what_others_wrote_stays_text() {
        let plain = render(&[row("a", "b")], true);
        for payload in [
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "\"><svg onload=alert(1)>",
            "' onmouseover='alert(1)",
            "</td></tr></table><iframe srcdoc='<script>alert(1)</script>'>",
            "<!--",
            "&lt;script&gt;",
            "</title><script>",
            "<ScRiPt/x>",
            "<\u{0}script>",
        ] {
            let page = render(&[row(payload, payload)], true);
            assert!(!page.contains(payload), "{payload} came through");
            let tags = |page: &str| page.matches('<').count();
            assert_eq!(tags(&page), tags(&plain), "{payload} made a tag");
        }
    }

    proptest! {
        #[test]
        fn no_text_adds_markup(text in any::<String>()) {
            let shown = Escaped(&text).to_string();
            prop_assert!(!shown.contains(['<', '>', '"', '\'']));
            let back = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
            prop_assert_eq!(back.replace("&amp;", "&"), text);
        }
    }
}
