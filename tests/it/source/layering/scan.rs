//! Reads Rust source as far as the layering test needs it: which paths of this crate a file names,
//! and where it reveals a secret. Comments, literals and everything under `#[cfg(test)]` are left
//! out.
//!
//! It is a scanner, not a parser: it expands no macros and follows no aliases. A spelling that
//! would hide an edge, such as `use crate as other` or `use crate::*`, is therefore reported as a
//! path of its own, which no rule allows.

use std::iter::Peekable;

/// The methods that give a secret as text: of `Secret`, and of a token ready for the query.
const REVEALING: &[&str] = &["expose", "query_value"];

/// Types of `std` for data that several threads share, besides `Atomic*`.
const SHARED: &[&str] = &["Mutex", "RwLock", "OnceLock"];

/// A path below the crate's root that a file names, and the line where it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Import {
    pub(super) line: usize,
    /// The segments after `crate`, with `super` and `self` resolved: `["net", "address",
    /// "ListenAddr"]`.
    pub(super) path: Vec<String>,
}

/// What one file names and does.
pub(super) struct Scan {
    pub(super) imports: Vec<Import>,
    /// Lines with a call of one of [`REVEALING`].
    pub(super) reveals: Vec<usize>,
    /// Lines with a lock, an atomic or a `tokio::spawn`, which demands `Send`.
    pub(super) shares: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Colons,
    Mark(char),
}

struct Paths<'a> {
    tokens: Peekable<std::slice::Iter<'a, (usize, Token)>>,
    found: Vec<Import>,
}

/// Scans a file that is the module `module` (`["net", "address"]`; empty for the root).
///
/// With `outside`, the crate is called by its name, as the binary does it.
pub(super) fn scan(source: &str, module: &[String], outside: bool) -> Scan {
    let tokens = without_tests(&tokens(&without_literals(source)));
    let mut imports = Vec::new();
    for (index, (_, token)) in tokens.iter().enumerate() {
        let Token::Word(word) = token else { continue };
        let inside_a_path = index > 0 && tokens[index - 1].1 == Token::Colons;
        let visibility = tokens
            .get(index + 1)
            .is_some_and(|(_, next)| *next == Token::Mark(')'));
        if inside_a_path || visibility {
            continue;
        }
        match word.as_str() {
            "crate" => imports.extend(paths(&tokens[index + 1..], &[])),
            "wxgate" if outside => imports.extend(paths(&tokens[index + 1..], &[])),
            "super" => imports.extend(above(&tokens[index..], module)),
            _ => {}
        }
    }
    Scan {
        imports,
        reveals: reveals(&tokens),
        shares: shares(&tokens),
    }
}

fn shares(tokens: &[(usize, Token)]) -> Vec<usize> {
    let is_shared = |window: &&[(usize, Token)]| match &window[0].1 {
        Token::Word(word) if word == "tokio" => {
            window
                .get(1)
                .is_some_and(|(_, token)| *token == Token::Colons)
                && window
                    .get(2)
                    .is_some_and(|(_, token)| *token == Token::Word("spawn".to_owned()))
        }
        Token::Word(word) => SHARED.contains(&word.as_str()) || word.starts_with("Atomic"),
        _ => false,
    };
    (0..tokens.len())
        .map(|at| &tokens[at..tokens.len().min(at + 3)])
        .filter(is_shared)
        .map(|window| window[0].0)
        .collect()
}

fn reveals(tokens: &[(usize, Token)]) -> Vec<usize> {
    let is_method =
        |token: &Token| matches!(token, Token::Word(word) if REVEALING.contains(&word.as_str()));
    let is_call = |before: &Token| matches!(before, Token::Mark('.') | Token::Colons);
    tokens
        .windows(2)
        .filter(|pair| is_call(&pair[0].1) && is_method(&pair[1].1))
        .map(|pair| pair[1].0)
        .collect()
}

// `super::super::x`: as many levels up as the word stands there, then the rest.
fn above(tokens: &[(usize, Token)], module: &[String]) -> Vec<Import> {
    let is_super = |token: &Token| *token == Token::Word("super".to_owned());
    let ups = tokens.chunks(2).take_while(|pair| {
        is_super(&pair[0].1) && pair.get(1).is_some_and(|p| p.1 == Token::Colons)
    });
    let ups = ups.count();
    let base = &module[..module.len().saturating_sub(ups)];
    paths(&tokens[(2 * ups).saturating_sub(1)..], base)
}

// The paths that begin with the `::` at the head of `tokens`. No `::` means that the bare word was
// named.
fn paths(tokens: &[(usize, Token)], base: &[String]) -> Vec<Import> {
    let mut paths = Paths {
        tokens: tokens.iter().peekable(),
        found: Vec::new(),
    };
    let Some((line, first)) = tokens.first() else {
        return Vec::new();
    };
    if *first == Token::Colons {
        paths.tokens.next();
        paths.tree(base.to_vec(), *line);
    } else {
        paths.found.push(Import {
            line: *line,
            path: base.to_vec(),
        });
    }
    paths.found
}

impl Paths<'_> {
    fn tree(&mut self, mut path: Vec<String>, mut line: usize) {
        while let Some((at, token)) = self.tokens.peek() {
            line = *at;
            match token {
                Token::Mark('{') => return self.group(&path),
                Token::Mark('*') => path.push("*".to_owned()),
                Token::Word(word) if word == "super" => drop(path.pop()),
                Token::Word(word) if word != "self" => path.push(word.clone()),
                _ => break,
            }
            self.tokens.next();
            if self
                .tokens
                .next_if(|(_, token)| *token == Token::Colons)
                .is_none()
            {
                break;
            }
        }
        self.found.push(Import { line, path });
    }

    fn group(&mut self, path: &[String]) {
        let line = self.tokens.next().map_or(0, |(line, _)| *line);
        loop {
            match self.tokens.peek() {
                None => return,
                Some((_, Token::Mark('}'))) => {
                    self.tokens.next();
                    return;
                }
                Some((_, Token::Mark(','))) => {
                    self.tokens.next();
                }
                Some(_) => {
                    self.tree(path.to_vec(), line);
                    self.skip_to_end_of_branch();
                }
            }
        }
    }

    // Over ` as name`, and whatever else stands before the next comma.
    fn skip_to_end_of_branch(&mut self) {
        while self
            .tokens
            .next_if(|(_, token)| !matches!(token, Token::Mark(',' | '}')))
            .is_some()
        {}
    }
}

fn tokens(source: &str) -> Vec<(usize, Token)> {
    let mut found = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let mut rest = line.chars().peekable();
        while let Some(first) = rest.next() {
            let token = match first {
                _ if first.is_whitespace() => continue,
                ':' if rest.next_if_eq(&':').is_some() => Token::Colons,
                _ if first.is_alphanumeric() || first == '_' => {
                    let mut word = String::from(first);
                    while let Some(next) =
                        rest.next_if(|next| next.is_alphanumeric() || *next == '_')
                    {
                        word.push(next);
                    }
                    Token::Word(word)
                }
                mark => Token::Mark(mark),
            };
            found.push((number + 1, token));
        }
    }
    found
}

// Without every item under `#[cfg(test)]`: up to its semicolon, or to the end of its braces.
fn without_tests(all: &[(usize, Token)]) -> Vec<(usize, Token)> {
    let attribute: Vec<Token> = tokens("#[cfg(test)]")
        .into_iter()
        .map(|(_, token)| token)
        .collect();
    let mut kept = Vec::new();
    let mut index = 0;
    while index < all.len() {
        let here = all[index..]
            .iter()
            .map(|(_, token)| token)
            .take(attribute.len());
        if here.eq(attribute.iter()) {
            index += item_length(&all[index..]);
        } else {
            kept.push(all[index].clone());
            index += 1;
        }
    }
    kept
}

fn item_length(item: &[(usize, Token)]) -> usize {
    let mut depth = 0_usize;
    for (index, (_, token)) in item.iter().enumerate() {
        match token {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') if depth <= 1 => return index + 1,
            Token::Mark('}') => depth -= 1,
            Token::Mark(';') if depth == 0 => return index + 1,
            _ => {}
        }
    }
    item.len()
}

// Comments and literals become blanks, line breaks stay, so that line numbers hold.
fn without_literals(source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let after_a_word = kept
            .chars()
            .next_back()
            .is_some_and(|last| last.is_alphanumeric() || last == '_');
        let length = comment(rest).or_else(|| literal(rest, after_a_word));
        if let Some(length) = length {
            let (blank, tail) = rest.split_at(length);
            kept.push(' ');
            kept.extend(blank.chars().filter(|c| *c == '\n'));
            rest = tail;
        } else {
            kept.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    kept
}

fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    text.strip_prefix("/*")?;
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        match text.as_bytes().get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    Some(text.len())
}

// How long the literal at the head of `text` is. `'a` without a second quote is a lifetime and
// none.
fn literal(text: &str, after_a_word: bool) -> Option<usize> {
    if let Some(body) = text.strip_prefix('"') {
        return Some(1 + quoted(body, '"'));
    }
    if let Some(body) = text.strip_prefix('\'') {
        let mut body_chars = body.chars();
        let character = body_chars.next()?;
        let closed = body_chars.next() == Some('\'');
        return (character == '\\' || closed).then(|| 1 + quoted(body, '\''));
    }
    if after_a_word {
        return None;
    }
    let marker = text.len() - text.trim_start_matches(['b', 'c', 'r']).len();
    let hashes = text[marker..].len() - text[marker..].trim_start_matches('#').len();
    if !text[..marker].ends_with('r') || !text[marker + hashes..].starts_with('"') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = marker + hashes + 1;
    Some(
        text[body..]
            .find(&end)
            .map_or(text.len(), |at| body + at + end.len()),
    )
}

// The length of what follows an opening quote, its closing quote included.
fn quoted(body: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in body.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + character.len_utf8(),
            _ => {}
        }
    }
    body.len()
}
