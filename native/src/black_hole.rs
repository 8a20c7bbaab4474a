//! Notices that a path has begun to drop what it used to carry: large datagrams, without a word (RFC 8899, section 4.3).
//!
//! Knows counts of one path and no packets. quiche looks for the size that a path carries, and does not notice when that shrinks.

use crate::packets::MIN_DATAGRAM;

/// Probe timeouts, with less than one datagram of the present size acknowledged since the first of them. One is a lost tail; after two
/// (RFC 9002, section 7.6, takes as many for persistent congestion) a size that surely passes costs little if it was something else.
const TIMEOUTS: usize = 2;

/// Watches one connection.
#[derive(Default)]
pub struct BlackHole {
    timeouts: usize,
    acknowledged: u64,
}

impl BlackHole {
    /// Whether datagrams of *size* bytes are no longer to be sent. To be asked after each timeout, with the probe *timeouts* of the path
    /// and the *acknowledged* bytes so far.
    pub fn found(&mut self, timeouts: usize, acknowledged: u64, size: usize) -> bool {
        let moved = timeouts < self.timeouts; // another path
        let alive = acknowledged.saturating_sub(self.acknowledged) >= size as u64;
        if moved || alive {
            *self = Self { timeouts: timeouts.saturating_sub(1), acknowledged };
        }
        if size <= MIN_DATAGRAM || timeouts - self.timeouts < TIMEOUTS {
            return false;
        }
        *self = Self { timeouts, acknowledged };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_timeouts_without_a_large_datagram_acknowledged_are_one() {
        let mut path = BlackHole::default();
        assert!(!path.found(1, 100_000, 1472));
        assert!(!path.found(1, 100_000, 1472), "another timer");
        assert!(path.found(2, 101_000, 1472), "small ones may pass");
        assert!(!path.found(3, 101_000, 1472), "it begins anew");
        assert!(path.found(4, 101_000, 1472));
    }

    #[test]
    fn a_path_that_carries_large_datagrams_is_none_however_many_timeouts_it_has() {
        let mut path = BlackHole::default();
        assert!((1..100).all(|at| !path.found(at, at as u64 * 1472, 1472)));
    }

    #[test]
    fn the_smallest_datagrams_pass_everywhere() {
        let mut path = BlackHole::default();
        assert!((1..100).all(|at| !path.found(at, 0, MIN_DATAGRAM)));
    }

    #[test]
    fn another_path_has_timeouts_of_its_own() {
        let mut path = BlackHole::default();
        assert!(!path.found(7, 100_000, 1472));
        assert!(!path.found(1, 100_000, 1472));
        assert!(path.found(2, 100_000, 1472));
    }
}
