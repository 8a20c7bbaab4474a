//! Where a datagram belongs, read from what no version of QUIC may change (RFC 8999) and the type bits of version 1. Keeps no state.

use std::hash::{Hash, Hasher};

/// Longest connection ID of version 1 (RFC 9000, section 17.2).
pub const MAX_CID: usize = 20;

/// Smallest datagram with a client's Initial, and what every path carries (RFC 9000, section 14).
pub const MIN_DATAGRAM: usize = 1200;

/// A connection ID of version 1, in place: it is looked up for every datagram.
#[derive(Clone, Copy)]
pub struct Cid {
    length: u8,
    bytes: [u8; MAX_CID],
}

impl Cid {
    /// None for one that is longer than version 1 allows.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // at most MAX_CID
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut copy = [0; MAX_CID];
        copy.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { length: bytes.len() as u8, bytes: copy })
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl PartialEq for Cid {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Cid {}

impl Hash for Cid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

/// The head of a datagram that begins with a long header.
#[derive(Debug, PartialEq, Eq)]
pub struct LongHeader<'a> {
    pub version: u32,
    pub destination: &'a [u8],
    pub source: &'a [u8],
    /// An Initial of version 1.
    pub initial: bool,
}

/// The connection ID that a datagram is for; None where it is none of QUIC's, or none of ours, which have `cid_bytes`.
#[must_use]
pub fn destination_of(data: &[u8], cid_bytes: usize) -> Option<Cid> {
    let first = *data.first()?;
    if first & 0x80 != 0 {
        let length = usize::from(*data.get(5)?);
        Cid::new(data.get(6..6 + length)?)
    } else if first & 0x40 != 0 {
        Cid::new(data.get(1..=cid_bytes)?)
    } else {
        None
    }
}

/// Whether a datagram begins with a short header.
#[must_use]
pub fn is_short(data: &[u8]) -> bool {
    data.first().is_some_and(|first| first & 0xc0 == 0x40)
}

/// What tells that a datagram may be another worker's, by the slot at the end of the connection ID that it is for, or another instance's.
#[derive(Default)]
pub struct Strays {
    /// Of the other workers.
    pub slots: Vec<u8>,
    /// (Configuration ID, bytes) of connection IDs with a slot; opaque ones tell their length.
    pub forms: Vec<(u8, usize)>,
    /// The same of connection IDs that name a server; empty where there are no other instances.
    pub named: Vec<(u8, usize)>,
}

impl Strays {
    /// For all but a few of the datagrams that are not, false at once; the rest is for who knows our connection IDs.
    #[must_use]
    pub fn may_be(&self, data: &[u8]) -> bool {
        if self.slots.is_empty() && self.named.is_empty() {
            return false;
        }
        let cid = match data.first() {
            Some(first) if first & 0x80 != 0 => data.get(5).and_then(|length| data.get(6..6 + usize::from(*length))),
            Some(first) if first & 0x40 != 0 => data.get(1..),
            _ => None,
        };
        let Some((cid, first)) = cid.and_then(|cid| Some((cid, *cid.first()?))) else { return false };
        let ends = |length: usize| cid.get(length - 1).is_some_and(|slot| self.slots.contains(slot));
        let unroutable = first >> 5 == 0b111 && ends(1 + usize::from(first & 0b11111));
        let whole = |length: usize| if data[0] & 0x80 == 0 { cid.len() >= length } else { cid.len() == length };
        unroutable
            || self.forms.iter().any(|(config, length)| first >> 5 == *config && ends(*length))
            || self.named.iter().any(|(config, length)| first >> 5 == *config && whole(*length))
    }
}

/// The long header that a datagram begins with; None for anything else.
#[must_use]
pub fn read_long_header(data: &[u8]) -> Option<LongHeader<'_>> {
    let first = *data.first()?;
    if first & 0x80 == 0 {
        return None;
    }
    let version = u32::from_be_bytes(data.get(1..5)?.try_into().ok()?);
    let end = 6 + usize::from(*data.get(5)?);
    let destination = data.get(6..end)?;
    let source_end = end + 1 + usize::from(*data.get(end)?);
    let source = data.get(end + 1..source_end)?;
    let initial = version == quiche::PROTOCOL_VERSION && first & 0x70 == 0x40;
    Some(LongHeader { version, destination, source, initial })
}

/// The version that we speak (RFC 9000, section 17.2.1), with one that nobody speaks. `first` is random.
///
/// At most 7 + 2 * 255 + 8 bytes, for a datagram of at least 1200: it can't amplify.
#[must_use]
pub fn version_negotiation(header: &LongHeader<'_>, first: u8) -> Vec<u8> {
    const GREASE: u32 = 0x1A2A_3A4A; // of the reserved form 0x?a?a?a?a (section 15)
    let mut out = vec![first | 0xC0, 0, 0, 0, 0];
    for cid in [header.source, header.destination] {
        out.push(u8::try_from(cid.len()).unwrap_or(0)); // it was read from one octet
        out.extend_from_slice(cid);
    }
    for version in [quiche::PROTOCOL_VERSION, GREASE] {
        out.extend_from_slice(&version.to_be_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_header_is_read_and_a_cut_one_is_not() {
        let data = b"\xc3\x00\x00\x00\x01\x08destined\x03srcrest";
        let header = read_long_header(data).unwrap();
        assert_eq!(header, LongHeader { version: 1, destination: b"destined", source: b"src", initial: true });
        assert_eq!(destination_of(data, 8).unwrap().as_slice(), b"destined");
        for length in 0..18 {
            assert_eq!(read_long_header(&data[..length]), None);
        }
    }

    #[test]
    fn a_short_header_has_an_id_of_our_length() {
        assert_eq!(destination_of(b"\x40destined rest", 8).unwrap().as_slice(), b"destined");
        assert!(destination_of(b"\x40dest", 8).is_none());
        assert!(destination_of(b"\x00destined", 8).is_none());
        assert!(destination_of(b"\xc0\0\0\0\x01\xff", 8).is_none());
    }

    #[test]
    fn what_may_be_another_workers_ends_in_its_slot() {
        let strays = Strays { slots: vec![2, 9], forms: vec![(0, 4), (3, 6)], named: Vec::new() };
        for (data, may_be) in [
            (&b"\x40\x03ab\x09rest"[..], true),
            (b"\x40\x03ab\x08rest", false),
            (b"\x00\x03ab\x09rest", false),
            (b"\x40\x65abcd\x02rest", true),
            (b"\x40\x25abcd\x02rest", false),
            (b"\x40\xe3ab\x02rest", true),
            (b"\x40\xe4ab\x02\x03rest", false),
            (b"\x40\xe4ab", false),
            (b"\xe0\0\0\0\x01\x04\x03ab\x02\x02", true),
            (b"\xe0\0\0\0\x01\x03\x03ab\x02\x02", false),
            (b"\xe0\0\0\0\x01\xff\x03ab\x02\x02", false),
            (b"\xe0\0\0\0\x01\0", false),
            (b"", false),
            (b"\x40", false),
        ] {
            assert_eq!(strays.may_be(data), may_be, "{data:x?}");
            assert!(!Strays::default().may_be(data));
        }
    }

    #[test]
    fn version_negotiation_swaps_the_ids() {
        let header = LongHeader { version: 9, destination: b"dest", source: b"sr", initial: false };
        assert_eq!(version_negotiation(&header, 1), b"\xc1\0\0\0\0\x02sr\x04dest\0\0\0\x01\x1a\x2a\x3a\x4a");
    }
}
