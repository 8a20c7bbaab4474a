//! How much of what costs us but brings nothing a client may send: token buckets (the numbers are those of the portable engine's `abuse`).
//!
//! Knows no frames: `http3` and `control` say what each thing costs.

use std::time::Instant;

/// Control frames in a burst: those of QUIC that bring nothing to read (quiche counts them, with our patch), small STREAM frames, and in
/// HTTP/3 empty DATA, unknown frames and stream types, the frames of a control stream.
pub const CONTROL_BURST: u64 = 1000;

/// Control frames a second, on average; on top of it what our own packets ask for.
pub const CONTROL_RATE: f64 = 200.0;

/// Control frames that the client earns with each packet that we sent: its acknowledgement, `MAX_DATA` and `MAX_STREAM_DATA` for what it
/// brought, and one more.
pub const EARNED_BY_PACKET: u64 = 4;

/// `RESET_STREAM`, `STOP_SENDING` and requests that we reset as malformed, in a burst: a browser that leaves a page with four times the
/// usual 100 streams.
pub const RESET_BURST: u64 = 400;

/// The same a second, on average (the rapid reset attack of CVE-2023-44487 does thousands).
pub const RESET_RATE: f64 = 50.0;

/// A token bucket that looks at the clock only when it is empty.
pub struct Budget {
    burst: u64,
    rate: f64,
    tokens: u64,
    filled_at: Option<Instant>,
    seen: u64,
}

impl Budget {
    /// A full one.
    #[must_use]
    pub fn new(burst: u64, rate: f64) -> Self {
        Self { burst, rate, tokens: burst, filled_at: None, seen: 0 }
    }

    /// Take `count`; false when there are not so many left. `earned` counts from the connection's start and adds one token each.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // seconds times a rate, bounded by `burst` below
    pub fn spend(&mut self, count: u64, earned: impl FnOnce() -> u64) -> bool {
        if self.tokens < count {
            let now = Instant::now();
            let since = self.filled_at.map_or(0.0, |then| now.duration_since(then).as_secs_f64());
            let earned = earned();
            let refill = (since * self.rate) as u64 + (earned - self.seen);
            self.filled_at = Some(now);
            self.seen = earned;
            self.tokens = self.burst.min(self.tokens.saturating_add(refill));
        } else if self.filled_at.is_none() {
            self.filled_at = Some(Instant::now());
        }
        let enough = self.tokens >= count;
        self.tokens = self.tokens.saturating_sub(count);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_what_was_earned_after_it() {
        let mut budget = Budget::new(3, 0.0);
        assert!(budget.spend(3, || 0));
        assert!(!budget.spend(1, || 0));
        assert!(budget.spend(2, || 2));
        assert!(!budget.spend(1, || 2));
    }
}
