//! Durations and sizes in text form: `"15s"`, `"1MiB"`. The unit is compulsory.

use std::time::Duration;

/// Reason why a duration or size was refused. `Display` tells the right form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    /// No digits at the start.
    #[error("expected a whole number followed by a unit, such as {example}")]
    NotANumber {
        /// Value of the right form.
        example: &'static str,
    },
    /// `15` instead of `15s`.
    #[error("the unit is missing: write {example}")]
    MissingUnit {
        /// Value of the right form.
        example: &'static str,
    },
    /// Unknown unit.
    #[error("unknown unit; use one of {units}")]
    UnknownUnit {
        /// Known units.
        units: &'static str,
    },
    /// The value does not fit.
    #[error("the value is too large")]
    TooLarge,
}

/// Reads `500ms`, `15s`, `5m`, `2h` or `1d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text, "\"15s\"")?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(UnitError::UnknownUnit {
                units: "ms, s, m, h, d",
            });
        }
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or(UnitError::TooLarge)
}

/// Reads `0`, `512B`, `64KiB`, `1MiB` or `2GiB`; decimal `KB`, `MB`, `GB` as well. Zero needs no
/// unit.
pub(crate) fn parse_size(text: &str) -> Result<u64, UnitError> {
    if text.trim() == "0" {
        return Ok(0);
    }
    let (number, unit) = split(text, "\"1MiB\"")?;
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => {
            return Err(UnitError::UnknownUnit {
                units: "B, KiB, MiB, GiB, KB, MB, GB",
            });
        }
    };
    number.checked_mul(factor).ok_or(UnitError::TooLarge)
}

/// Formats a duration, in whole milliseconds, in the largest unit that needs no fraction.
/// [`parse_duration`] reads the same duration back.
pub(crate) fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (factor, unit) in [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
    ] {
        if millis >= factor && millis.is_multiple_of(factor) {
            return format!("{}{unit}", millis / factor);
        }
    }
    format!("{millis}ms")
}

/// Splits a text into number and unit. `example` is for the error.
fn split<'t>(text: &'t str, example: &'static str) -> Result<(u64, &'t str), UnitError> {
    let text = text.trim();
    let end = text
        .bytes()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(text.len());
    if end == 0 {
        return Err(UnitError::NotANumber { example });
    }
    let unit = text[end..].trim_start();
    if unit.is_empty() {
        return Err(UnitError::MissingUnit { example });
    }
    let number = text[..end].parse().map_err(|_| UnitError::TooLarge)?;
    Ok((number, unit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(parse_duration("5 m"), Ok(Duration::from_secs(300)));
        assert_eq!(
            parse_duration("15"),
            Err(UnitError::MissingUnit { example: "\"15s\"" })
        );
        assert_eq!(
            parse_duration("+1s"),
            Err(UnitError::NotANumber { example: "\"15s\"" })
        );
        assert!(matches!(
            parse_duration("1y"),
            Err(UnitError::UnknownUnit { .. })
        ));
        assert_eq!(
            parse_duration("99999999999999999999s"),
            Err(UnitError::TooLarge)
        );
    }

    #[test]
    fn sizes_need_a_unit_unless_they_are_zero() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        assert_eq!(parse_size("10MB"), Ok(10_000_000));
        assert_eq!(
            parse_size("7"),
            Err(UnitError::MissingUnit {
                example: "\"1MiB\""
            })
        );
        assert!(matches!(
            parse_size("1mib"),
            Err(UnitError::UnknownUnit { .. })
        ));
    }

    proptest! {
        #[test]
        fn what_is_formatted_reads_back(millis in 0_u64..10_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }
    }
}
