//! An API host: DNS or fixed addresses, egress proxy, TCP, TLS, and the clock by its `Date`.

use std::time::{Duration, SystemTime};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::finding::{Findings, Mark};
use crate::net::{
    address::BaseUrl,
    certificate::CertificateFacts,
    connect_error::{ConnectError, TlsFailure},
    egress::Egress,
    trace::{self, ShownCertificate, Trust},
};

/// Difference of clocks beyond which WeChat's certificates, or signatures made here, go wrong.
const MAX_CLOCK_ERROR: Duration = Duration::from_secs(120);
/// Limit for the head of the host's answer.
const MAX_HEAD: usize = 16 * 1024;
/// Addresses that a line shows.
const MAX_SHOWN: usize = 4;

/// Looks at the way to a host, up to the first step that fails.
pub(super) async fn examine(egress: &Egress, base: &BaseUrl) -> Findings {
    let mut findings = Findings::default();
    if let Err(error) = follow(egress, base, &mut findings).await {
        findings.broken_at(&base.authority(), error);
    }
    findings
}

async fn follow(egress: &Egress, base: &BaseUrl, findings: &mut Findings) -> Result<(), String> {
    let subject = base.authority();
    let stream = connect(egress, base, findings)
        .await
        .map_err(|error| error.to_string())?;
    if !base.tls {
        findings.note(&subject, "plain HTTP to this machine, without TLS");
        return clock(stream, base, findings, egress.connect_timeout).await;
    }
    let shown = ShownCertificate::default();
    let roots = Trust::roots(egress).map_err(|error| error.to_string())?;
    let settings = trace::tls_settings(roots, &shown).map_err(|error| error.to_string())?;
    let session = trace::tls(stream, &base.host, settings, egress.connect_timeout).await;
    let certificate = shown.get().and_then(|der| CertificateFacts::of(&der));
    let about = certificate.map(|facts| describe(&facts));
    match session {
        Ok(session) => {
            let about = about.unwrap_or_else(|| "the certificate is trusted".to_owned());
            findings.fine(&subject, format!("TLS: {about}"));
            clock(session, base, findings, egress.connect_timeout).await
        }
        Err(failure) => {
            let sentence = ConnectError::Tls(failure);
            // Of a certificate alone: with other failures none was looked at.
            let is_of_certificate = matches!(
                failure,
                TlsFailure::Untrusted
                    | TlsFailure::Expired
                    | TlsFailure::NotYetValid
                    | TlsFailure::WrongName
                    | TlsFailure::BadCertificate
            );
            Err(match about.filter(|_| is_of_certificate) {
                Some(about) => format!("{sentence} ({about})"),
                None => sentence.to_string(),
            })
        }
    }
}

/// Connects to the host, through `upstream.proxy` if there is one.
async fn connect(
    egress: &Egress,
    base: &BaseUrl,
    findings: &mut Findings,
) -> Result<TcpStream, ConnectError> {
    let subject = base.authority();
    let proxy = egress.proxy.as_ref().filter(|_| base.tls);
    let (host, port) = proxy.map_or((&base.host, base.port), |proxy| (&proxy.host, proxy.port));
    let failed = |failure| match proxy {
        Some(_) => ConnectError::Proxy(failure),
        None => ConnectError::Host(failure),
    };
    let addresses = trace::lookup(egress, host, port).await.map_err(failed)?;
    let shown: Vec<String> = addresses
        .iter()
        .take(MAX_SHOWN)
        .map(|address| address.ip().to_string())
        .collect();
    let way = if egress.resolve.contains_key(&host.to_ascii_lowercase()) {
        "upstream.resolve"
    } else {
        "DNS"
    };
    findings.fine(&subject, format!("{way}: {host} is {}", shown.join(", ")));
    let began = Instant::now();
    let tcp = trace::tcp(&addresses, egress.local_address, egress.connect_timeout);
    let mut stream = tcp.await.map_err(failed)?;
    let took = began.elapsed().as_millis();
    match proxy {
        None => findings.fine(&subject, format!("TCP: connected in {took} ms")),
        Some(proxy) => {
            trace::tunnel(&mut stream, proxy, base, egress.connect_timeout)
                .await
                .map_err(ConnectError::Tunnel)?;
            let text = format!("upstream.proxy: {host}:{port} opens a tunnel to the host");
            findings.fine(&subject, text);
        }
    }
    Ok(stream)
}

/// Issuer, names and end of a certificate.
pub(super) fn describe(facts: &CertificateFacts) -> String {
    let names = match facts.names.as_slice() {
        [] => "no DNS name".to_owned(),
        names => names.get(..MAX_SHOWN).unwrap_or(names).join(", "),
    };
    format!(
        "issued by {}, for {names}, good until {}",
        facts.issuer,
        humantime::format_rfc3339_seconds(facts.end)
    )
}

/// Makes a call without a token, which is refused, and compares `Date` with the clock here.
async fn clock(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    base: &BaseUrl,
    findings: &mut Findings,
    limit: Duration,
) -> Result<(), String> {
    let subject = base.authority();
    let head = timeout(limit, ask(stream, &subject)).await.ok().flatten();
    let Some(head) = head else {
        return Err(
            "the host takes connections and does not answer; check the account's api and what stands in between"
                .to_owned(),
        );
    };
    let Some(date) = date(&head) else {
        findings.note(
            &subject,
            "clock: not compared, since the host sends no Date",
        );
        return Ok(());
    };
    let now = SystemTime::now();
    let (off, behind) = match now.duration_since(date) {
        Ok(ahead) => (ahead, false),
        Err(error) => (error.duration(), true),
    };
    if off <= MAX_CLOCK_ERROR {
        findings.fine(&subject, "clock: the same as the host's");
    } else {
        let off = humantime::format_duration(Duration::from_secs(off.as_secs()));
        let word = if behind { "behind" } else { "ahead of" };
        findings.wrong_clock(
            &subject,
            format!("clock: this machine is {off} {word} the host; set it by NTP (timedatectl set-ntp true)"),
        );
    }
    Ok(())
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str) -> Option<Vec<u8>> {
    let request = format!(
        "GET /cgi-bin/get_api_domain_ip HTTP/1.1\r\nHost: {host}\r\nUser-Agent: wxgate\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut head = Vec::new();
    let mut part = [0; 2048];
    while memchr::memmem::find(&head, b"\r\n\r\n").is_none() && head.len() < MAX_HEAD {
        let read = stream.read(&mut part).await.ok()?;
        if read == 0 {
            break;
        }
        head.extend_from_slice(part.get(..read)?);
    }
    head.starts_with(b"HTTP/1.").then_some(head)
}

/// Time of the header `Date`, in the form that all servers of today send.
fn date(head: &[u8]) -> Option<SystemTime> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let head = String::from_utf8_lossy(head);
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim())
    })?;
    // "Sun, 29 Nov 2026 03:08:41 GMT"
    let (_, rest) = value.split_once(", ")?;
    let mut words = rest.split(' ');
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.find(month)? / 3 + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

/// Days until a certificate ends; `None` if it has ended.
pub(super) fn days_left(facts: &CertificateFacts) -> Option<u64> {
    let left = facts.end.duration_since(SystemTime::now()).ok()?;
    Some(left.as_secs() / 86_400)
}

/// Mark of a certificate of this machine, by the days that it has left.
pub(super) fn mark_of(days: Option<u64>) -> Mark {
    match days {
        None => Mark::Broken,
        Some(0..14) => Mark::Warning,
        Some(_) => Mark::Fine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read() {
        let head = b"HTTP/1.1 200 OK\r\nServer: x\r\ndate: Sun, 29 Nov 2026 03:08:41 GMT\r\n\r\n";
        let time = humantime::parse_rfc3339("2026-11-29T03:08:41Z").unwrap();
        assert_eq!(date(head), Some(time));
        for odd in [
            "",
            "Date: now",
            "Date: Sun, 29 Foo 2026 03:08:41 GMT",
            "Date: , a b c d",
        ] {
            assert_eq!(date(odd.as_bytes()), None, "{odd}");
        }
    }
}
