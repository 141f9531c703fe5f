//! Schedule of the next call of a token endpoint, as pure functions.
//!
//! `chance` is a random number between 0 and 1; no function here reads a clock.

use std::time::Duration;

use tokio::time::Instant;

use crate::{base::backoff::Backoff, wechat::codes::RefusalClass};

/// Shortest pause between two attempts, for any lifetime that WeChat gives.
pub(crate) const MIN_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause between two attempts.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(600);
/// Rest of its life at which the platform replaces a stable token (getStableAccessToken page).
pub(crate) const ROTATION: Duration = Duration::from_secs(300);
/// Interval of reads of a token that another server keeps and may replace at any time.
pub(crate) const POLL: Duration = Duration::from_secs(60);

const TRANSIENT: Backoff = Backoff {
    min: Duration::from_secs(1),
    max: Duration::from_secs(60),
};
const ADDRESS: Backoff = Backoff {
    min: Duration::from_secs(5),
    max: Duration::from_secs(300),
};
const LASTING: Backoff = Backoff {
    min: Duration::from_secs(5),
    max: Duration::from_secs(600),
};
const MINUTE: Duration = Duration::from_secs(60);

/// Time to replace a token that expires at `expires` and was given for `lifetime`: `before` its
/// expiry, but never before half of the lifetime has passed. `chance` moves the time towards the
/// expiry by up to a fifth of the margin, so that accounts that started together spread out.
pub(crate) fn refresh_at(
    now: Instant,
    expires: Instant,
    lifetime: Duration,
    before: Duration,
    chance: f64,
) -> Instant {
    let margin = before
        .min(lifetime / 2)
        .mul_f64(1.0 - 0.2 * chance.clamp(0.0, 1.0));
    expires
        .checked_sub(margin)
        .unwrap_or(now)
        .max(now + MIN_PAUSE)
}

/// Time to ask again after the platform gave the same token again. In the last five minutes of the
/// token that is in 20 to 40 s, or each second around its expiry; before that, at the ordinary
/// time.
pub(crate) fn ask_again_at(
    now: Instant,
    expires: Instant,
    before: Duration,
    chance: f64,
) -> Instant {
    let left = expires.saturating_duration_since(now);
    let soon = now + Duration::from_secs(20).mul_f64(1.0 + chance.clamp(0.0, 1.0));
    // The platform's clock decides when the token expires, and requests cannot wait for half a
    // minute: around that time the endpoint is asked every second.
    let ends_now = now < expires + MIN_PAUSE;
    let over = if ends_now {
        now.max(expires) + Duration::from_secs(1)
    } else {
        now + MIN_PAUSE
    };
    if left <= ROTATION {
        soon.min(over)
    } else {
        refresh_at(now, expires, left, before, chance).max(soon)
    }
}

/// Time to ask again for a ticket after WeChat gave the same ticket again. The quota is small, so
/// the pause halves the rest of its life, and the last call comes a second after its expiry.
pub(crate) fn ask_for_ticket_again_at(now: Instant, expires: Instant) -> Instant {
    let left = expires.saturating_duration_since(now);
    let pause = if left > MINUTE {
        left / 2
    } else {
        left + Duration::from_secs(1)
    };
    now + pause.max(MIN_PAUSE)
}

/// Time of the next read of a token that another server keeps and that expires at `expires`: within
/// a minute, and at half of the rest of its life. `chance` makes the minute up to a fifth shorter.
pub(crate) fn poll_at(now: Instant, expires: Instant, chance: f64) -> Instant {
    let pause = POLL.mul_f64(1.0 - 0.2 * chance.clamp(0.0, 1.0));
    now + pause
        .min(expires.saturating_duration_since(now) / 2)
        .max(MIN_PAUSE)
}

/// Pause after a failure, by its class (`None` for a transient failure, of the network for
/// instance) and the number of failures of that class in a row.
pub(crate) fn pause_after(class: Option<RefusalClass>, failures: u32, chance: f64) -> Duration {
    match class {
        None | Some(RefusalClass::Busy) => TRANSIENT.jittered(failures, chance),
        Some(RefusalClass::Minute) => MINUTE.mul_f64(1.0 + 0.1 * chance.clamp(0.0, 1.0)),
        Some(RefusalClass::Address | RefusalClass::Approval | RefusalClass::Other) => {
            ADDRESS.jittered(failures, chance)
        }
        Some(RefusalClass::Credential | RefusalClass::Frozen | RefusalClass::Quota) => {
            LASTING.jittered(failures, chance)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLASSES: [Option<RefusalClass>; 9] = [
        None,
        Some(RefusalClass::Busy),
        Some(RefusalClass::Minute),
        Some(RefusalClass::Quota),
        Some(RefusalClass::Address),
        Some(RefusalClass::Approval),
        Some(RefusalClass::Credential),
        Some(RefusalClass::Frozen),
        Some(RefusalClass::Other),
    ];

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    proptest! {
        #[test]
        fn a_refresh_is_never_at_once_and_never_before_half_of_the_lifetime(
            lifetime in 1_u64..=7200, before in 0_u64..100_000, chance in 0.0..=1.0_f64,
        ) {
            let now = Instant::now();
            let at = refresh_at(now, now + secs(lifetime), secs(lifetime), secs(before), chance);
            prop_assert!(at >= now + MIN_PAUSE);
            prop_assert!(at + Duration::from_millis(1) >= now + secs(lifetime) / 2);
            prop_assert!(at <= now + secs(lifetime).max(MIN_PAUSE));
        }

        #[test]
        fn with_the_default_margin_an_ordinary_token_is_replaced_in_its_last_five_minutes(chance in 0.0..=1.0_f64) {
            let now = Instant::now();
            let at = refresh_at(now, now + secs(7200), secs(7200), secs(300), chance) - now;
            prop_assert!((secs(6900)..=secs(6960)).contains(&at), "{at:?}");
        }

        #[test]
        fn the_same_token_again_is_asked_for_in_20_to_40_seconds_and_right_after_its_end(
            left in 0_u64..=300, chance in 0.0..=1.0_f64,
        ) {
            let now = Instant::now();
            let pause = ask_again_at(now, now + secs(left), secs(300), chance) - now;
            let over = secs(left + 1);
            let (least, most) = (over.min(secs(20)), over.min(secs(40)));
            prop_assert!((least..=most).contains(&pause), "{pause:?}");
        }

        #[test]
        fn another_server_is_read_every_minute_and_sooner_when_the_token_ends(
            left in 0_u64..=7200, chance in 0.0..=1.0_f64,
        ) {
            let now = Instant::now();
            let pause = poll_at(now, now + secs(left), chance) - now;
            prop_assert!(pause >= MIN_PAUSE && pause <= POLL, "{pause:?}");
            prop_assert!(left < 10 || pause <= secs(left) / 2, "{pause:?}");
            prop_assert!(left < 120 || pause >= secs(48), "{pause:?}");
        }

        #[test]
        fn the_same_token_long_before_its_end_is_left_alone(left in 301_u64..=7200, chance in 0.0..=1.0_f64) {
            let now = Instant::now();
            let pause = ask_again_at(now, now + secs(left), secs(300), chance) - now;
            prop_assert!(pause >= secs(20) && pause <= secs(left), "{pause:?}");
        }

        #[test]
        fn the_same_ticket_is_asked_for_a_few_times_until_it_is_over(left in 0_u64..=7200) {
            let now = Instant::now();
            let (expires, mut at, mut calls) = (now + secs(left), now, 0);
            while at < expires {
                at = ask_for_ticket_again_at(at, expires);
                calls += 1;
            }
            prop_assert!(calls <= 9 && at <= expires + MIN_PAUSE, "{calls} calls");
        }

        #[test]
        fn pauses_keep_their_bounds(failures in 1_u32.., chance in 0.0..=1.0_f64) {
            for class in CLASSES {
                let pause = pause_after(class, failures, chance);
                prop_assert!(pause >= Duration::from_millis(500), "{class:?} {pause:?}");
                let most = match class {
                    None | Some(RefusalClass::Busy) => 60,
                    Some(RefusalClass::Minute) => 66,
                    Some(RefusalClass::Address | RefusalClass::Approval | RefusalClass::Other) => 300,
                    Some(RefusalClass::Credential | RefusalClass::Frozen | RefusalClass::Quota) => 600,
                };
                prop_assert!(pause <= secs(most), "{class:?} {pause:?}");
            }
        }
    }
}
