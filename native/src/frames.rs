//! HTTP/3's alphabet (RFC 9114) and static QPACK (RFC 9204): integers, frame heads, field sections, codes.
//!
//! Knows bytes. Knows no streams and no connection. The QPACK coder is quiche's, without a dynamic table in either direction: nothing to
//! block on, and nothing that a few bytes on the wire could blow up.

use quiche::h3::{Header, NameValue, qpack};

/// Frame types (RFC 9114, section 7.2).
pub mod kind {
    pub const DATA: u64 = 0x0;
    pub const HEADERS: u64 = 0x1;
    pub const CANCEL_PUSH: u64 = 0x3;
    pub const SETTINGS: u64 = 0x4;
    pub const PUSH_PROMISE: u64 = 0x5;
    pub const GOAWAY: u64 = 0x7;
    pub const MAX_PUSH_ID: u64 = 0xD;

    /// Of HTTP/2, errors here (section 7.2.8).
    #[must_use]
    pub fn is_http2(kind: u64) -> bool {
        matches!(kind, 0x2 | 0x6 | 0x8 | 0x9)
    }

    /// Frames that may stand on a control stream only.
    #[must_use]
    pub fn is_control_only(kind: u64) -> bool {
        matches!(kind, CANCEL_PUSH | SETTINGS | GOAWAY | MAX_PUSH_ID)
    }
}

/// Types of unidirectional streams (RFC 9114, section 6.2; RFC 9204, section 4.2).
pub mod stream_type {
    pub const CONTROL: u64 = 0x0;
    pub const PUSH: u64 = 0x1;
    pub const ENCODER: u64 = 0x2;
    pub const DECODER: u64 = 0x3;
}

/// Error codes (RFC 9114, section 8.1; RFC 9204, section 6).
pub mod code {
    pub const NO_ERROR: u64 = 0x100;
    pub const INTERNAL_ERROR: u64 = 0x102;
    pub const STREAM_CREATION_ERROR: u64 = 0x103;
    pub const CLOSED_CRITICAL_STREAM: u64 = 0x104;
    pub const FRAME_UNEXPECTED: u64 = 0x105;
    pub const FRAME_ERROR: u64 = 0x106;
    pub const EXCESSIVE_LOAD: u64 = 0x107;
    pub const ID_ERROR: u64 = 0x108;
    pub const SETTINGS_ERROR: u64 = 0x109;
    pub const MISSING_SETTINGS: u64 = 0x10A;
    pub const REQUEST_REJECTED: u64 = 0x10B;
    pub const REQUEST_CANCELLED: u64 = 0x10C;
    pub const REQUEST_INCOMPLETE: u64 = 0x10D;
    pub const MESSAGE_ERROR: u64 = 0x10E;
    pub const QPACK_DECOMPRESSION_FAILED: u64 = 0x200;
    pub const QPACK_ENCODER_STREAM_ERROR: u64 = 0x201;
    pub const QPACK_DECODER_STREAM_ERROR: u64 = 0x202;

    /// A short token for metrics; None for a number that no RFC of ours gives a name.
    #[must_use]
    pub fn name(code: u64) -> Option<&'static str> {
        Some(match code {
            NO_ERROR => "no_error",
            0x101 => "general_protocol_error",
            INTERNAL_ERROR => "internal_error",
            STREAM_CREATION_ERROR => "stream_creation_error",
            CLOSED_CRITICAL_STREAM => "closed_critical_stream",
            FRAME_UNEXPECTED => "frame_unexpected",
            FRAME_ERROR => "frame_error",
            EXCESSIVE_LOAD => "excessive_load",
            ID_ERROR => "id_error",
            SETTINGS_ERROR => "settings_error",
            MISSING_SETTINGS => "missing_settings",
            REQUEST_REJECTED => "request_rejected",
            REQUEST_CANCELLED => "request_cancelled",
            REQUEST_INCOMPLETE => "request_incomplete",
            MESSAGE_ERROR => "message_error",
            QPACK_DECOMPRESSION_FAILED => "qpack_decompression_failed",
            QPACK_ENCODER_STREAM_ERROR => "qpack_encoder_stream_error",
            QPACK_DECODER_STREAM_ERROR => "qpack_decoder_stream_error",
            _ => return None,
        })
    }
}

/// `SETTINGS_MAX_FIELD_SECTION_SIZE` (RFC 9114, section 7.2.4.1).
const SETTING_MAX_FIELD_SECTION_SIZE: u64 = 0x6;

/// Bytes of the largest frame head: two integers.
const FRAME_HEAD: usize = 16;

/// Ends the connection with `code` (RFC 9114, section 8.1): an expected value of the client's making.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: u64,
    pub detail: String,
}

impl Fault {
    /// A fault with its words for the log.
    pub fn new(code: u64, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

/// What became of an encoded field section.
pub enum Section {
    Fields(Vec<Header>),
    /// More bytes than the limits allow: names, values and 32 for each field (RFC 9114, section 4.2.2).
    TooLarge,
    /// More fields than the limits allow.
    TooMany,
}

/// Append a variable-length integer (RFC 9000, section 16).
#[allow(clippy::cast_possible_truncation)] // each arm has checked its range
pub fn put_int(out: &mut Vec<u8>, value: u64) {
    match value {
        0..0x40 => out.push(value as u8),
        0x40..0x4000 => out.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        0x4000..0x4000_0000 => out.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
        _ => out.extend_from_slice(&(value | 0xC000_0000_0000_0000).to_be_bytes()),
    }
}

/// The integer that `data` begins with and its length; None while it is incomplete.
#[must_use]
pub fn take_int(data: &[u8]) -> Option<(u64, usize)> {
    let first = *data.first()?;
    let size = 1usize << (first >> 6);
    let mut value = u64::from(first & 0x3F);
    for byte in data.get(1..size)? {
        value = value << 8 | u64::from(*byte);
    }
    Some((value, size))
}

/// The head of a frame: type, payload length, bytes of the head; None while it is incomplete.
#[must_use]
pub fn take_frame_head(data: &[u8]) -> Option<(u64, u64, usize)> {
    let (kind, first) = take_int(data)?;
    let (length, second) = take_int(&data[first..])?;
    Some((kind, length, first + second))
}

/// Append the head of a frame.
pub fn put_frame_head(out: &mut Vec<u8>, kind: u64, length: usize) {
    put_int(out, kind);
    put_int(out, length as u64);
}

/// Append what our control stream begins with: its type, and SETTINGS.
pub fn put_control_preface(out: &mut Vec<u8>, max_field_section_size: u64) {
    let mut payload = Vec::with_capacity(FRAME_HEAD);
    put_int(&mut payload, SETTING_MAX_FIELD_SECTION_SIZE);
    put_int(&mut payload, max_field_section_size);
    put_int(out, stream_type::CONTROL);
    put_frame_head(out, kind::SETTINGS, payload.len());
    out.extend_from_slice(&payload);
}

/// Append a GOAWAY frame.
pub fn put_goaway(out: &mut Vec<u8>, stream: u64) {
    let mut payload = Vec::with_capacity(FRAME_HEAD);
    put_int(&mut payload, stream);
    put_frame_head(out, kind::GOAWAY, payload.len());
    out.extend_from_slice(&payload);
}

/// Append a HEADERS frame. Field names are lower case already.
///
/// # Errors
/// Never in practice: the buffer is made large enough.
pub fn put_headers<T: NameValue>(out: &mut Vec<u8>, fields: &[T]) -> Result<(), qpack::Error> {
    let most: usize = fields.iter().map(|field| field.name().len() + field.value().len() + 2 * FRAME_HEAD).sum();
    let mut block = vec![0; most + FRAME_HEAD];
    let size = qpack::Encoder::new().encode(fields, &mut block)?;
    put_frame_head(out, kind::HEADERS, size);
    out.extend_from_slice(&block[..size]);
    Ok(())
}

/// The fields of an encoded section of at most `max_fields` fields and `max_size` bytes once decoded.
///
/// # Errors
/// A fault where the section can't be read or refers to a dynamic table.
pub fn read_section(block: &[u8], max_fields: usize, max_size: usize) -> Result<Section, Fault> {
    let failed = || Fault::new(code::QPACK_DECOMPRESSION_FAILED, "field section can't be decoded");
    if block.first() != Some(&0) {
        return Err(failed()); // a Required Insert Count: of a table that we don't have
    }
    match qpack::Decoder::new().decode(block, max_size as u64) {
        Ok(fields) if fields.len() > max_fields => Ok(Section::TooMany),
        Ok(fields) => Ok(Section::Fields(fields)),
        Err(qpack::Error::HeaderListTooLarge) if has_more_fields_than(block, max_fields) => Ok(Section::TooMany),
        Err(qpack::Error::HeaderListTooLarge) => Ok(Section::TooLarge),
        Err(_) => Err(failed()),
    }
}

/// Whether an encoded section has more than `most` field lines (RFC 9204, section 4.5). A malformed end counts as one.
fn has_more_fields_than(block: &[u8], most: usize) -> bool {
    let mut rest = skip_int(skip_int(Some(block), 0xFF), 0x7F);
    for _ in 0..=most {
        let Some(&first) = rest.and_then(|rest| rest.first()) else { return false };
        rest = match first {
            0x80.. => skip_int(rest, 0x3F),
            0x40.. => skip_string(skip_int(rest, 0x0F), 0x7F),
            0x20.. => skip_string(skip_string(rest, 0x07), 0x7F),
            0x10.. => skip_int(rest, 0x0F),
            _ => skip_string(skip_int(rest, 0x07), 0x7F),
        };
    }
    true
}

/// What follows an integer whose prefix has these bits (RFC 7541, section 5.1).
fn skip_int(data: Option<&[u8]>, mask: u8) -> Option<&[u8]> {
    read_int(data?, mask).map(|(_, rest)| rest)
}

/// What follows a string whose length has a prefix of these bits.
fn skip_string(data: Option<&[u8]>, mask: u8) -> Option<&[u8]> {
    let (length, rest) = read_int(data?, mask)?;
    rest.get(length..)
}

fn read_int(data: &[u8], mask: u8) -> Option<(usize, &[u8])> {
    let (first, mut rest) = data.split_first()?;
    let mut value = usize::from(first & mask);
    if first & mask < mask {
        return Some((value, rest));
    }
    for shift in (0..35).step_by(7) {
        let (octet, after) = rest.split_first()?;
        rest = after;
        value += usize::from(octet & 0x7F) << shift;
        if octet & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

/// Check a SETTINGS payload. None of its values matters to us: we send no dynamic references and no pushes.
///
/// # Errors
/// A fault for a malformed one.
pub fn check_settings(mut payload: &[u8]) -> Result<(), Fault> {
    let mut seen = Vec::new();
    while !payload.is_empty() {
        let truncated = || Fault::new(code::FRAME_ERROR, "truncated SETTINGS");
        let (key, size) = take_int(payload).ok_or_else(truncated)?;
        payload = &payload[size..];
        let (_, size) = take_int(payload).ok_or_else(truncated)?;
        payload = &payload[size..];
        if matches!(key, 0x0 | 0x2..=0x5) || seen.contains(&key) {
            return Err(Fault::new(code::SETTINGS_ERROR, format!("setting {key:#x} twice or reserved")));
        }
        seen.push(key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_every_size_come_back_and_incomplete_ones_wait() {
        for value in [0, 63, 64, 16383, 16384, (1 << 30) - 1, 1 << 30, (1 << 62) - 1] {
            let mut bytes = Vec::new();
            put_int(&mut bytes, value);
            assert_eq!(take_int(&bytes), Some((value, bytes.len())));
            assert_eq!(take_int(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn a_section_comes_back_as_it_was_written() {
        let fields = [Header::new(b":status", b"200"), Header::new(b"x-name", b"value \xff")];
        let mut frame = Vec::new();
        put_headers(&mut frame, &fields).unwrap();
        let (kind, length, head) = take_frame_head(&frame).unwrap();
        assert_eq!((kind, length), (kind::HEADERS, (frame.len() - head) as u64));
        let Section::Fields(read) = read_section(&frame[head..], 2, 1000).unwrap() else { panic!("it is small") };
        assert_eq!(read, fields);
        assert!(matches!(read_section(&frame[head..], 2, 50), Ok(Section::TooLarge)));
        assert!(matches!(read_section(&frame[head..], 1, 1000), Ok(Section::TooMany)));
        assert!(matches!(read_section(&frame[head..], 1, 50), Ok(Section::TooMany)));
    }

    #[test]
    fn field_lines_of_every_kind_are_counted() {
        let lines = [&b"\xd1"[..], b"\xff\x03", b"\x51\x02ab", b"\x21n\x01v", b"\x27\x00names..\x01v"];
        for count in 0..10 {
            let block = [&b"\0\0"[..]].into_iter().chain(lines.into_iter().cycle().take(count)).collect::<Vec<_>>().concat();
            assert!(!has_more_fields_than(&block, count));
            assert_eq!(has_more_fields_than(&block, count.saturating_sub(1)), count > 0);
        }
    }

    #[test]
    fn a_reference_to_a_dynamic_table_is_a_fault() {
        for block in [&b"\x00\x00\x80"[..], b"\x02\x00\xd1", b""] {
            let fault = read_section(block, 10, 1000).err().unwrap();
            assert_eq!(fault.code, code::QPACK_DECOMPRESSION_FAILED);
        }
    }

    #[test]
    fn settings_that_are_reserved_doubled_or_cut_are_faults() {
        assert_eq!(check_settings(b"\x06\x40\x64\x21\x05"), Ok(()));
        assert_eq!(check_settings(b"\x02\x00").unwrap_err().code, code::SETTINGS_ERROR);
        assert_eq!(check_settings(b"\x06\x00\x06\x00").unwrap_err().code, code::SETTINGS_ERROR);
        assert_eq!(check_settings(b"\x06").unwrap_err().code, code::FRAME_ERROR);
    }
}
