//! A strict parser of logfmt, after the rules of `go-logfmt`, which Loki and others are built on.

use std::collections::BTreeMap;

/// The pairs of a line; words without a value are left out. Fails where `go-logfmt` fails: an equals
/// sign or a quote in a bare word, anything but a blank behind a quoted value, and a key given twice.
pub fn parse(line: &str) -> Result<BTreeMap<String, String>, String> {
    let mut pairs = BTreeMap::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches(|c: char| c <= ' ');
        if rest.is_empty() {
            return Ok(pairs);
        }
        let end = rest
            .find(|c: char| c <= ' ' || c == '=' || c == '"')
            .unwrap_or(rest.len());
        let (key, behind) = rest.split_at(end);
        rest = behind;
        if rest.starts_with('"') || key.is_empty() {
            return Err(format!("a key is expected at {rest:?}"));
        }
        let Some(value) = rest.strip_prefix('=') else {
            continue;
        };
        let (value, behind) = match value.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted)?,
            None => bare_value(value)?,
        };
        rest = behind;
        if !(rest.is_empty() || rest.starts_with(|c: char| c <= ' ')) {
            return Err(format!("a blank is expected at {rest:?}"));
        }
        if pairs.insert(key.to_owned(), value).is_some() {
            return Err(format!("{key} stands there twice"));
        }
    }
}

fn bare_value(text: &str) -> Result<(String, &str), String> {
    let end = text.find(|c: char| c <= ' ').unwrap_or(text.len());
    let (value, rest) = text.split_at(end);
    if value.contains(['=', '"']) {
        return Err(format!("{value:?} has to be quoted"));
    }
    Ok((value.to_owned(), rest))
}

fn quoted_value(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('t') => value.push('\t'),
                Some(c @ ('"' | '\\')) => value.push(c),
                Some('u') => {
                    let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                    let code = u32::from_str_radix(&digits, 16)
                        .map_err(|_| format!("{digits:?} is no code"))?;
                    value.push(char::from_u32(code).ok_or("half of a character")?);
                }
                other => return Err(format!("unknown escape {other:?}")),
            },
            c if c.is_control() => return Err(format!("{c:?} in a value")),
            c => value.push(c),
        }
    }
    Err("a quote is not closed".to_owned())
}
