//! The client's unidirectional HTTP/3 streams: control, QPACK, and those that we don't know (RFC 9114, section 6.2).
//!
//! Knows frames. Knows no requests and no transport: bytes come in, faults come out, and what has no end is counted by the caller's
//! `spend`, which says whether there is budget left. Nothing is buffered but an incomplete frame of the control stream.

use std::collections::HashMap;

use crate::frames::{self, Fault, code, kind, stream_type};

/// Payload of SETTINGS, GOAWAY, `MAX_PUSH_ID` or `CANCEL_PUSH`: the last three are 8 bytes, and SETTINGS a few dozen.
const MAX_CONTROL_FRAME: u64 = 4096;

/// One of the client's unidirectional streams.
#[derive(Default)]
struct Incoming {
    /// An incomplete stream type, frame or instruction.
    buffer: Vec<u8>,
    kind: Option<u64>,
    /// Bytes to come of a frame that is skipped.
    left: u64,
    /// SETTINGS were received.
    settled: bool,
}

/// The state of those streams of one connection.
#[derive(Default)]
pub struct PeerStreams {
    streams: HashMap<u64, Incoming>,
    /// Stream numbers of the control stream, QPACK's encoder and decoder stream.
    critical: [Option<u64>; 4],
    max_push_id: Option<u64>,
    goaway_seen: Option<u64>,
}

impl PeerStreams {
    /// The client reset one of them.
    ///
    /// # Errors
    /// A fault for a critical one.
    pub fn reset(&mut self, stream: u64) -> Result<(), Fault> {
        if self.critical.contains(&Some(stream)) {
            return Err(Fault::new(code::CLOSED_CRITICAL_STREAM, "a critical stream was reset"));
        }
        self.streams.remove(&stream);
        Ok(())
    }

    /// Take bytes of one of them. `spend` takes one of the control budget.
    ///
    /// # Errors
    /// A fault of the client, or its budget is used up.
    pub fn receive(&mut self, number: u64, data: &[u8], end: bool, spend: &mut dyn FnMut() -> Result<(), Fault>) -> Result<(), Fault> {
        let mut stream = self.streams.remove(&number).unwrap_or_default();
        let carried = std::mem::take(&mut stream.buffer);
        let joined;
        let mut rest = if carried.is_empty() {
            data
        } else {
            joined = [&carried, data].concat();
            &joined[..]
        };
        if stream.kind.is_none()
            && let Some((kind, size)) = frames::take_int(rest)
        {
            rest = &rest[size..];
            self.begin(number, kind, spend)?;
            stream.kind = Some(kind);
        }
        rest = match stream.kind {
            None => rest,
            Some(stream_type::CONTROL) => self.on_control(&mut stream, rest, spend)?,
            Some(stream_type::ENCODER) => {
                if rest.iter().any(|byte| *byte != 0x20) {
                    // all that a table of size 0 allows is to set its size to 0 (RFC 9204, section 4.3.1)
                    return Err(Fault::new(code::QPACK_ENCODER_STREAM_ERROR, "an instruction for a table of size 0"));
                }
                if !rest.is_empty() {
                    spend()?;
                }
                &[]
            }
            Some(stream_type::DECODER) => on_decoder(rest, spend)?,
            Some(_) => {
                spend()?; // unknown: not an error (section 6.2), but worth nothing
                &[]
            }
        };
        stream.buffer.extend_from_slice(rest);
        if !end {
            self.streams.insert(number, stream);
        } else if self.critical.contains(&Some(number)) {
            return Err(Fault::new(code::CLOSED_CRITICAL_STREAM, "a critical stream was closed"));
        }
        Ok(())
    }

    fn begin(&mut self, number: u64, kind: u64, spend: &mut dyn FnMut() -> Result<(), Fault>) -> Result<(), Fault> {
        match kind {
            stream_type::PUSH => Err(Fault::new(code::STREAM_CREATION_ERROR, "clients don't push")),
            stream_type::CONTROL | stream_type::ENCODER | stream_type::DECODER => {
                let place = &mut self.critical[usize::try_from(kind).unwrap_or_default()];
                if place.is_some() {
                    return Err(Fault::new(code::STREAM_CREATION_ERROR, format!("a second stream of type {kind}")));
                }
                *place = Some(number);
                Ok(())
            }
            _ => spend(),
        }
    }

    fn on_control<'a>(
        &mut self,
        stream: &mut Incoming,
        mut rest: &'a [u8],
        spend: &mut dyn FnMut() -> Result<(), Fault>,
    ) -> Result<&'a [u8], Fault> {
        loop {
            if stream.left > 0 {
                let skipped = usize::try_from(stream.left).unwrap_or(usize::MAX).min(rest.len());
                stream.left -= skipped as u64;
                rest = &rest[skipped..];
            }
            let Some((kind, length, head)) = frames::take_frame_head(rest) else { return Ok(rest) };
            if !stream.settled && kind != kind::SETTINGS {
                return Err(Fault::new(code::MISSING_SETTINGS, format!("frame {kind:#x} before SETTINGS")));
            }
            if kind::is_http2(kind) || matches!(kind, kind::DATA | kind::HEADERS | kind::PUSH_PROMISE) {
                return Err(Fault::new(code::FRAME_UNEXPECTED, format!("frame {kind:#x} on the control stream")));
            }
            if !kind::is_control_only(kind) {
                spend()?;
                stream.left = length;
                rest = &rest[head..];
                continue;
            }
            if length > MAX_CONTROL_FRAME {
                return Err(Fault::new(code::EXCESSIVE_LOAD, format!("frame {kind:#x} of {length} bytes")));
            }
            let end = head + usize::try_from(length).unwrap_or(usize::MAX);
            let Some(payload) = rest.get(head..end) else { return Ok(rest) };
            self.on_control_frame(stream, kind, payload, spend)?;
            rest = &rest[end..];
        }
    }

    fn on_control_frame(
        &mut self,
        stream: &mut Incoming,
        kind: u64,
        payload: &[u8],
        spend: &mut dyn FnMut() -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        if kind == kind::SETTINGS {
            if stream.settled {
                return Err(Fault::new(code::FRAME_UNEXPECTED, "SETTINGS twice"));
            }
            stream.settled = true;
            return frames::check_settings(payload);
        }
        spend()?;
        let number = match frames::take_int(payload) {
            Some((number, size)) if size == payload.len() => number,
            _ => return Err(Fault::new(code::FRAME_ERROR, format!("malformed frame {kind:#x}"))),
        };
        match kind {
            kind::CANCEL_PUSH => Err(Fault::new(code::ID_ERROR, "a push was cancelled that was never promised")),
            kind::MAX_PUSH_ID => {
                if self.max_push_id.is_some_and(|before| number < before) {
                    return Err(Fault::new(code::ID_ERROR, "MAX_PUSH_ID went down"));
                }
                self.max_push_id = Some(number);
                Ok(())
            }
            _ => {
                if self.goaway_seen.is_some_and(|before| number > before) {
                    return Err(Fault::new(code::ID_ERROR, "GOAWAY went up"));
                }
                self.goaway_seen = Some(number);
                Ok(())
            }
        }
    }
}

/// Only Stream Cancellation makes sense to an encoder without a table (RFC 9204, section 4.4). Returns an incomplete instruction.
fn on_decoder<'a>(mut rest: &'a [u8], spend: &mut dyn FnMut() -> Result<(), Fault>) -> Result<&'a [u8], Fault> {
    const LONGEST: usize = 10;
    while let Some(first) = rest.first() {
        if first & 0xC0 != 0x40 {
            return Err(Fault::new(code::QPACK_DECODER_STREAM_ERROR, "an acknowledgement of nothing"));
        }
        let mut size = 1;
        if first & 0x3F == 0x3F {
            let Some(last) = rest[1..].iter().position(|byte| byte & 0x80 == 0) else {
                if rest.len() > LONGEST {
                    return Err(Fault::new(code::QPACK_DECODER_STREAM_ERROR, "an integer that is too long"));
                }
                return Ok(rest);
            };
            size += last + 1;
        }
        rest = &rest[size..];
        spend()?;
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(streams: &mut PeerStreams, number: u64, data: &[u8]) -> Result<(), u64> {
        for byte in data {
            streams.receive(number, &[*byte], false, &mut || Ok(())).map_err(|fault| fault.code)?;
        }
        Ok(())
    }

    #[test]
    fn a_control_stream_is_read_byte_by_byte() {
        let mut streams = PeerStreams::default();
        let good = b"\x00\x04\x02\x06\x00\x21\x03abc\x0d\x01\x05\x07\x01\x08";
        assert_eq!(feed(&mut streams, 2, good), Ok(()));
        assert_eq!(feed(&mut streams, 2, b"\x0d\x01\x04"), Err(code::ID_ERROR));
    }

    #[test]
    fn what_may_not_stand_there_is_a_fault() {
        for (data, fault) in [
            (&b"\x00\x07\x01\x00"[..], code::MISSING_SETTINGS),
            (b"\x00\x04\x00\x04\x00", code::FRAME_UNEXPECTED),
            (b"\x00\x04\x00\x00\x00", code::FRAME_UNEXPECTED),
            (b"\x00\x04\x00\x02\x00", code::FRAME_UNEXPECTED),
            (b"\x00\x04\x00\x07\x01\x01\x07\x01\x05", code::ID_ERROR),
            (b"\x00\x04\x00\x03\x01\x01", code::ID_ERROR),
            (b"\x00\x04\x00\x07\x02\x01\x01", code::FRAME_ERROR),
            (b"\x00\x04\x60\x00", code::EXCESSIVE_LOAD),
            (b"\x01", code::STREAM_CREATION_ERROR),
            (b"\x02\x3f", code::QPACK_ENCODER_STREAM_ERROR),
            (b"\x03\x80", code::QPACK_DECODER_STREAM_ERROR),
            (b"\x03\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", code::QPACK_DECODER_STREAM_ERROR),
        ] {
            assert_eq!(feed(&mut PeerStreams::default(), 2, data), Err(fault), "{data:x?}");
        }
    }

    #[test]
    fn critical_streams_are_single_and_stay_open() {
        let mut streams = PeerStreams::default();
        assert_eq!(feed(&mut streams, 2, b"\x00\x04\x00"), Ok(()));
        assert_eq!(feed(&mut streams, 6, b"\x00"), Err(code::STREAM_CREATION_ERROR));
        assert_eq!(streams.reset(2).unwrap_err().code, code::CLOSED_CRITICAL_STREAM);
        assert_eq!(streams.receive(2, b"", true, &mut || Ok(())).unwrap_err().code, code::CLOSED_CRITICAL_STREAM);
    }
}
