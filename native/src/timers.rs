//! Deadlines of all connections in order, so that finding the next one and the due ones costs the logarithm of their number.
//!
//! Knows no connections: a deadline belongs to a slot, whose owner remembers which of its entries is the current one. An entry that was
//! overtaken by an earlier one stays and is passed over when it comes up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// A heap of deadlines.
#[derive(Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
}

impl Timers {
    /// Arm a deadline of `handle`.
    pub fn arm(&mut self, due: Instant, handle: u64) {
        self.heap.push(Reverse((due, handle)));
    }

    /// The next deadline that `is_current` knows; the stale ones before it are dropped.
    pub fn next(&mut self, is_current: impl Fn(u64, Instant) -> bool) -> Option<Instant> {
        while let Some(Reverse((due, handle))) = self.heap.peek() {
            if is_current(*handle, *due) {
                return Some(*due);
            }
            self.heap.pop();
        }
        None
    }

    /// Take the first deadline that is due, stale or not.
    pub fn pop_due(&mut self, now: Instant) -> Option<(Instant, u64)> {
        if self.heap.peek().is_some_and(|Reverse((due, _))| *due <= now) {
            return self.heap.pop().map(|Reverse(entry)| entry);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn deadlines_come_in_order_and_stale_ones_are_passed_over() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        for (seconds, handle) in [(3, 1), (1, 2), (2, 3)] {
            timers.arm(at(seconds), handle);
        }
        assert_eq!(timers.next(|handle, _| handle != 2), Some(at(2)));
        assert_eq!(timers.pop_due(at(2)), Some((at(2), 3)));
        assert_eq!(timers.pop_due(at(2)), None);
        assert_eq!(timers.next(|_, _| false), None);
    }
}
