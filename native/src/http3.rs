//! HTTP/3 on one QUIC connection (RFC 9114): requests in, responses out. The portable engine's `engine/h3.py`, over quiche's streams.
//!
//! Knows frames, requests and quiche's verbs for streams; `control` has the client's other streams. Knows no packets, no sites and no
//! Python: what happens is told to an `Application`.
//!
//! The framing is our own and not `quiche::h3`: that one ends the connection for one oversize header section, keeps the state of streams
//! that the application resets, counts nothing, and reads a request body when it is asked to and not when there is credit for it.
//!
//! Back-pressure in: quiche lets a client send more as soon as bytes are read from it, so they are read only while the application holds
//! less than `READ_AHEAD` of a stream; its windows are smaller by as much. Back-pressure out: `Output` keeps what quiche does not take.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use quiche::Shutdown;
use quiche::h3::{Header, NameValue};

use crate::budget::{Budget, CONTROL_BURST, CONTROL_RATE, EARNED_BY_PACKET, RESET_BURST, RESET_RATE};
use crate::control::PeerStreams;
use crate::frames::{self, Fault, Section, code, kind};
use crate::output::{Chunk, Output};

/// Bytes of request body of one stream that the application may hold without having consumed them, at most; and at most a quarter of
/// the stream's window.
const READ_AHEAD: u64 = 64 * 1024;

/// Bytes of one stream that are handed to quiche before it is the next stream's turn.
const TURN: usize = 64 * 1024;

/// The first unidirectional stream of a server: our control stream. QPACK's would stay empty and are not opened (RFC 9204, section 4.2).
const CONTROL: u64 = 3;

/// The highest stream of a client: GOAWAY with it refuses nothing yet.
const LAST_REQUEST: u64 = (1 << 62) - 4;

/// What `send_data` returns, at least, where the whole connection has as much queued as it may (`seam.HOLD`).
const HOLD: usize = 1 << 40;

/// A body that is not copied once more for being sent together with its head.
const SMALL_BODY: usize = 16 * 1024;

/// Bounds of a connection, and where its application is told to stop and to go on.
pub struct Limits {
    pub header_count: usize,
    pub header_bytes: usize,
    pub stream_window: u64,
    pub connection_window: u64,
    pub high_water: usize,
    pub low_water: usize,
    /// Bytes queued for a connection above which its streams are held at `low_water`.
    pub output: usize,
}

impl Limits {
    /// Bytes of one stream that may be with the application.
    #[must_use]
    pub fn stream_ahead(&self) -> u64 {
        READ_AHEAD.min(self.stream_window / 4)
    }

    /// The same for a connection.
    #[must_use]
    pub fn connection_ahead(&self) -> u64 {
        self.connection_window / 4
    }
}

/// What became of a request's head.
pub enum Verdict {
    /// It goes on; the body's length where it was announced, and whether the method is HEAD.
    Accepted { length: Option<u64>, bodiless: bool },
    /// It was malformed, and told as such; the status says how.
    Rejected(u16),
}

/// Who is told what happens, in order.
pub trait Application {
    /// A request's head. `end`: no body follows.
    fn head(&mut self, stream: u64, fields: &[Header], end: bool) -> Verdict;
    /// Body bytes, to be consumed later.
    fn body(&mut self, stream: u64, data: &[u8]);
    /// A request's trailers: the valid ones, kept for `end`, or an error that was told as Rejected.
    ///
    /// # Errors
    /// Words for the log.
    fn trailers(&mut self, stream: u64, fields: &[Header]) -> Result<Vec<Header>, String>;
    /// The request is complete.
    fn end(&mut self, stream: u64, trailers: &[Header]);
    /// The client cut the stream.
    fn cut(&mut self, stream: u64, reason: &str);
    /// The engine refused a request by itself.
    fn rejected(&mut self, stream: u64, status: u16, reason: &str, detail: &str);
    /// What was queued for a stream has fallen under low water.
    fn drained(&mut self, stream: u64);
    /// Something happened to the connection.
    fn changed(&mut self, change: Change);
}

/// What a connection saw of the network: in all, and on the path that it uses.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// Smoothed.
    pub round_trip: Duration,
    /// Bytes.
    pub congestion_window: usize,
    pub packets_sent: usize,
    pub packets_lost: usize,
    pub bytes_lost: u64,
    /// Bytes that the path was found to carry as one UDP payload.
    pub datagram_size: usize,
    /// Times that it was found to carry no longer what it had carried.
    pub black_holes: usize,
}

/// What happens to a connection as a whole.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// It takes requests: the handshake is complete, or has come as far as `early` data, which may be a replay (RFC 8446, section 8).
    Ready { early: bool },
    /// The handshake of one that was ready early is complete.
    Completed,
    /// The client has another address, and it was validated (RFC 9000, section 9).
    Moved(SocketAddr),
    /// It is over; the last change. A token for metrics, empty for a clean end, and words for the log.
    Closed { error: String, detail: String, seen: Option<Seen> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Received {
    Nothing,
    Head,
    Trailers,
    All,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Nothing,
    Head,
    All,
}

/// One request stream.
struct Request {
    /// An incomplete frame head or HEADERS frame.
    buffer: Vec<u8>,
    /// The frame that is being read, and the bytes to come of it where it is DATA or skipped.
    kind: u64,
    left: u64,
    received: Received,
    expected: Option<u64>,
    got: u64,
    /// Body bytes that the application has and did not consume.
    held: u64,
    trailers: Vec<Header>,
    sent: Sent,
    bodiless: bool,
    output: Output,
    /// Its bytes, as they stand in `Http3::queued`.
    counted: usize,
    /// The application was told to stop.
    paused: bool,
    /// Stands in `Http3::feeding`.
    feeding: bool,
}

impl Request {
    fn new() -> Self {
        Self {
            buffer: Vec::new(),
            kind: 0,
            left: 0,
            received: Received::Nothing,
            expected: None,
            got: 0,
            held: 0,
            trailers: Vec::new(),
            sent: Sent::Nothing,
            bodiless: false,
            output: Output::default(),
            counted: 0,
            paused: false,
            feeding: false,
        }
    }
}

impl Request {
    /// Bring the sum of what waits up to date.
    fn count(&mut self, all: &mut usize) {
        *all = *all + self.output.len() - self.counted;
        self.counted = self.output.len();
    }
}

/// Why a request is refused: its own fault, that costs no other stream (section 4.1.2).
struct Refusal {
    status: u16,
    /// Reason and detail where the application was not told yet.
    told: Option<(&'static str, String)>,
    detail: String,
}

impl Refusal {
    fn new(status: u16, reason: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { status, told: Some((reason, detail.clone())), detail }
    }

    fn told(status: u16, detail: impl Into<String>) -> Self {
        Self { status, told: None, detail: detail.into() }
    }
}

/// How far reading a piece of a request stream has come.
enum Progress {
    /// So many bytes were read; the rest is incomplete.
    Read(usize),
    Refused(Refusal),
}

/// HTTP/3 of one connection.
pub struct Http3 {
    requests: HashMap<u64, Request>,
    /// Streams with something to send, or whose application waits for it to be sent.
    feeding: VecDeque<u64>,
    /// Readable streams that wait for the application to consume.
    stalled: Vec<u64>,
    /// The sum of all `Request::held`.
    held: u64,
    /// Bytes that wait in all `Request::output`.
    queued: usize,
    /// How often a source was told to hold.
    holds: u64,
    /// The lowest request stream that was not seen yet.
    next: u64,
    /// Streams whose response was handed over, until it is acknowledged: the last ones.
    unacknowledged: VecDeque<u64>,
    leaving: bool,
    stop_at: Option<u64>,
    control: Output,
    peer_streams: PeerStreams,
    control_budget: Budget,
    reset_budget: Budget,
    resets_seen: u64,
    /// Requests that were answered before their end: the client resets each of them because we say so.
    resets_asked: u64,
    stops_seen: u64,
    signals_seen: u64,
}

impl Http3 {
    /// Opens our control stream.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn new(quic: &mut quiche::Connection, limits: &Limits) -> quiche::Result<Self> {
        let mut preface = Vec::new();
        frames::put_control_preface(&mut preface, limits.header_bytes as u64);
        let mut control = Output::default();
        control.push(Chunk::Owned(preface));
        quic.stream_priority(CONTROL, 0, true)?;
        control.write(quic, CONTROL, usize::MAX)?;
        Ok(Self {
            requests: HashMap::new(),
            feeding: VecDeque::new(),
            stalled: Vec::new(),
            held: 0,
            queued: 0,
            holds: 0,
            next: 0,
            unacknowledged: VecDeque::new(),
            leaving: false,
            stop_at: None,
            control,
            peer_streams: PeerStreams::default(),
            control_budget: Budget::new(CONTROL_BURST, CONTROL_RATE),
            reset_budget: Budget::new(RESET_BURST, RESET_RATE),
            resets_seen: 0,
            resets_asked: 0,
            stops_seen: 0,
            signals_seen: 0,
        })
    }

    /// Requests are in progress.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.requests.is_empty()
    }

    /// The final GOAWAY was sent, every request was answered, and every answer acknowledged.
    pub fn is_drained(&mut self, quic: &mut quiche::Connection) -> bool {
        if self.stop_at.is_none() || !self.requests.is_empty() {
            return false;
        }
        self.unacknowledged.retain(|stream| is_alive(quic, *stream));
        self.unacknowledged.is_empty()
    }

    // In

    /// Read what came. `scratch` is where bytes are put meanwhile.
    pub fn read(&mut self, quic: &mut quiche::Connection, limits: &Limits, app: &mut dyn Application, scratch: &mut [u8]) {
        if let Err(fault) = self.try_read(quic, limits, app, scratch) {
            let _ = quic.close(true, fault.code, fault.detail.as_bytes());
        }
    }

    fn try_read(
        &mut self,
        quic: &mut quiche::Connection,
        limits: &Limits,
        app: &mut dyn Application,
        scratch: &mut [u8],
    ) -> Result<(), Fault> {
        self.charge(quic)?;
        while let Some(stream) = quic.stream_readable_next() {
            match stream & 3 {
                0 => self.read_request(quic, limits, app, scratch, stream)?,
                2 => self.read_unidirectional(quic, scratch, stream)?,
                _ => {}
            }
        }
        while let Some(stream) = quic.stream_writable_next() {
            // Asked once only: quiche forgets a stopped stream with its answer, where the client's side is finished too.
            if let Err(quiche::Error::StreamStopped(code)) = quic.stream_capacity(stream) {
                self.on_stop(quic, app, stream, code)?;
            }
        }
        if self.stops_seen < quic.stats().stopped_stream_count_remote {
            self.look_for_stops(quic, app)?;
        }
        Ok(())
    }

    /// Find out which streams the client stopped: quiche tells only how many they are.
    fn look_for_stops(&mut self, quic: &mut quiche::Connection, app: &mut dyn Application) -> Result<(), Fault> {
        self.stops_seen = quic.stats().stopped_stream_count_remote;
        let streams: Vec<u64> = self.requests.keys().copied().chain([CONTROL]).collect();
        for stream in streams {
            if let Err(quiche::Error::StreamStopped(code)) = quic.stream_capacity(stream) {
                self.on_stop(quic, app, stream, code)?;
            }
        }
        Ok(())
    }

    /// Take what quiche counted from the budgets: it handles these frames by itself.
    fn charge(&mut self, quic: &quiche::Connection) -> Result<(), Fault> {
        let stats = quic.stats();
        let resets = stats.reset_stream_count_remote + stats.stopped_stream_count_remote;
        let signals = stats.data_blocked_recv_count
            + stats.stream_data_blocked_recv_count
            + stats.streams_blocked_bidi_recv_count
            + stats.streams_blocked_uni_recv_count
            + stats.path_challenge_rx_count
            + stats.overhead_recv_count;
        if resets > self.resets_seen {
            let count = resets - self.resets_seen;
            self.resets_seen = resets;
            self.spend_resets(count)?;
        }
        if signals > self.signals_seen {
            let count = signals - self.signals_seen;
            self.signals_seen = signals;
            spend_control(&mut self.control_budget, quic, count)?;
        }
        Ok(())
    }

    fn spend_resets(&mut self, count: u64) -> Result<(), Fault> {
        let asked = self.resets_asked;
        if self.reset_budget.spend(count, || asked) {
            return Ok(());
        }
        Err(Fault::new(code::EXCESSIVE_LOAD, "too many resets"))
    }

    fn read_unidirectional(&mut self, quic: &mut quiche::Connection, scratch: &mut [u8], stream: u64) -> Result<(), Fault> {
        loop {
            match quic.stream_recv(stream, scratch) {
                Ok((count, end)) => {
                    let budget = &mut self.control_budget;
                    let mut spend = || spend_control(budget, quic, 1);
                    self.peer_streams.receive(stream, &scratch[..count], end, &mut spend)?;
                    if end {
                        return Ok(());
                    }
                }
                Err(quiche::Error::StreamReset(_)) => return self.peer_streams.reset(stream),
                Err(_) => return Ok(()),
            }
        }
    }

    fn read_request(
        &mut self,
        quic: &mut quiche::Connection,
        limits: &Limits,
        app: &mut dyn Application,
        scratch: &mut [u8],
        stream: u64,
    ) -> Result<(), Fault> {
        loop {
            let held = match self.requests.get(&stream) {
                Some(request) => request.held,
                None if stream >= self.next => {
                    self.next = stream + 4;
                    0
                }
                None => 0,
            };
            let ahead = limits.stream_ahead().saturating_sub(held).min(limits.connection_ahead().saturating_sub(self.held));
            if ahead == 0 {
                if !self.stalled.contains(&stream) {
                    self.stalled.push(stream);
                }
                return Ok(());
            }
            let room = usize::try_from(ahead).unwrap_or(usize::MAX).min(scratch.len());
            match quic.stream_recv(stream, &mut scratch[..room]) {
                Ok((count, end)) => {
                    if !self.on_request(quic, limits, app, stream, &scratch[..count], end)? || end {
                        return Ok(());
                    }
                }
                Err(quiche::Error::StreamReset(code)) => {
                    self.on_reset(quic, app, stream, code);
                    return Ok(());
                }
                Err(_) => return Ok(()),
            }
        }
    }

    /// Take bytes of a request stream. False where nothing more of it is wanted.
    fn on_request(
        &mut self,
        quic: &mut quiche::Connection,
        limits: &Limits,
        app: &mut dyn Application,
        stream: u64,
        data: &[u8],
        end: bool,
    ) -> Result<bool, Fault> {
        let mut request = match self.requests.remove(&stream) {
            Some(request) => request,
            None if self.stop_at.is_some_and(|stop_at| stream >= stop_at) => {
                abandon(quic, stream, code::REQUEST_REJECTED);
                cut(quic, stream, code::REQUEST_REJECTED);
                return Ok(false);
            }
            None => Request::new(),
        };
        let before = request.held;
        let progress = if request.buffer.is_empty() {
            let progress = read_frames(&mut request, &mut self.control_budget, quic, limits, app, stream, data, end)?;
            if let Progress::Read(at) = progress {
                request.buffer.extend_from_slice(&data[at..]);
            }
            progress
        } else {
            let mut buffer = std::mem::take(&mut request.buffer);
            buffer.extend_from_slice(data);
            let progress = read_frames(&mut request, &mut self.control_budget, quic, limits, app, stream, &buffer, end)?;
            if let Progress::Read(at) = progress {
                buffer.drain(..at);
                request.buffer = buffer;
            }
            progress
        };
        self.held += request.held - before;
        let refusal = match progress {
            Progress::Refused(refusal) => Some(refusal),
            Progress::Read(_) if end && request.received != Received::All => match on_end(&mut request, app, stream)? {
                Ended::Whole => None,
                Ended::Headless => {
                    cut(quic, stream, code::REQUEST_INCOMPLETE);
                    return Ok(false);
                }
                Ended::Short => Some(Refusal::new(400, "body_length", "less body than content-length says")),
            },
            Progress::Read(_) => None,
        };
        if let Some(refusal) = refusal {
            self.held -= request.held;
            self.refuse(quic, app, stream, request.received, refusal)?;
            return Ok(false);
        }
        self.requests.insert(stream, request);
        if end {
            self.forget_if_done(quic, stream);
        }
        Ok(true)
    }

    fn refuse(
        &mut self,
        quic: &mut quiche::Connection,
        app: &mut dyn Application,
        stream: u64,
        received: Received,
        refusal: Refusal,
    ) -> Result<(), Fault> {
        let begun = received != Received::Nothing;
        if let Some((reason, detail)) = refusal.told {
            app.rejected(stream, refusal.status, reason, &detail);
        }
        if begun {
            app.cut(stream, &refusal.detail);
        }
        if refusal.status != 400 && !begun && answer(quic, stream, refusal.status) {
            abandon(quic, stream, code::NO_ERROR);
            self.resets_asked += 1;
            return Ok(());
        }
        abandon(quic, stream, code::MESSAGE_ERROR);
        cut(quic, stream, code::MESSAGE_ERROR);
        self.spend_resets(1)
    }

    fn on_reset(&mut self, quic: &mut quiche::Connection, app: &mut dyn Application, stream: u64, code: u64) {
        self.next = self.next.max(stream + 4);
        // Nobody would answer any more; harmless where the request is complete (section 4.1.1).
        match self.requests.get(&stream) {
            Some(request) if request.received == Received::All => return,
            Some(request) => {
                if request.received != Received::Nothing {
                    app.cut(stream, &format!("reset by the client ({})", words(code)));
                }
                self.forget(stream);
            }
            None => {}
        }
        cut(quic, stream, code::REQUEST_CANCELLED);
    }

    fn on_stop(&mut self, quic: &mut quiche::Connection, app: &mut dyn Application, stream: u64, code: u64) -> Result<(), Fault> {
        if stream == CONTROL {
            return Err(Fault::new(code::CLOSED_CRITICAL_STREAM, "a critical stream was stopped"));
        }
        let Some(request) = self.requests.get(&stream) else { return Ok(()) };
        let received = request.received;
        self.forget(stream);
        if received != Received::All {
            abandon(quic, stream, code::REQUEST_CANCELLED);
        }
        if received != Received::Nothing {
            app.cut(stream, &format!("stopped by the client ({})", words(code)));
        }
        Ok(())
    }

    /// The application consumed `count` bytes of a request's body. True where reading can go on.
    pub fn consumed(&mut self, stream: u64, count: u64) -> bool {
        if let Some(request) = self.requests.get_mut(&stream) {
            let count = count.min(request.held);
            request.held -= count;
            self.held -= count;
        }
        !self.stalled.is_empty()
    }

    /// Read on where reading had stopped for want of credit.
    pub fn resume(&mut self, quic: &mut quiche::Connection, limits: &Limits, app: &mut dyn Application, scratch: &mut [u8]) {
        for stream in std::mem::take(&mut self.stalled) {
            if let Err(fault) = self.read_request(quic, limits, app, scratch, stream) {
                let _ = quic.close(true, fault.code, fault.detail.as_bytes());
                return;
            }
        }
    }

    // Out

    /// A whole answer, with content-length where it has none and the status allows one.
    pub fn respond<T: NameValue>(
        &mut self,
        quic: &mut quiche::Connection,
        limits: &Limits,
        stream: u64,
        status: u16,
        fields: &[T],
        body: Chunk,
    ) {
        let Some(request) = self.requests.get_mut(&stream) else { return };
        if request.sent != Sent::Nothing {
            return;
        }
        let size = body.len();
        let bodiless = matches!(status, 204 | 304);
        let length = size.to_string();
        let described = bodiless || fields.iter().any(|field| field.name() == b"content-length");
        let Some(mut head) = encode(status, fields, (!described).then_some(length.as_bytes())) else { return };
        if size == 0 || bodiless || request.bodiless {
            request.output.push(Chunk::Owned(head));
        } else {
            frames::put_frame_head(&mut head, kind::DATA, size);
            if size <= SMALL_BODY {
                head.extend_from_slice(body.as_slice());
                request.output.push(Chunk::Owned(head));
            } else {
                request.output.push(Chunk::Owned(head));
                request.output.push(body);
            }
        }
        request.output.finish();
        request.sent = Sent::All;
        self.flush(quic, limits, stream);
    }

    /// A final response head; `end` when no body follows.
    pub fn send_head<T: NameValue>(
        &mut self,
        quic: &mut quiche::Connection,
        limits: &Limits,
        stream: u64,
        status: u16,
        fields: &[T],
        end: bool,
    ) {
        let Some(request) = self.requests.get_mut(&stream) else { return };
        if request.sent != Sent::Nothing {
            return;
        }
        let Some(head) = encode(status, fields, None) else { return };
        request.bodiless |= matches!(status, 204 | 304);
        request.output.push(Chunk::Owned(head));
        request.sent = Sent::Head;
        if end {
            request.output.finish();
            request.sent = Sent::All;
        }
        self.flush(quic, limits, stream);
    }

    /// A 1xx response.
    pub fn inform<T: NameValue>(&mut self, quic: &mut quiche::Connection, limits: &Limits, stream: u64, status: u16, fields: &[T]) {
        let Some(request) = self.requests.get_mut(&stream) else { return };
        if request.sent != Sent::Nothing {
            return;
        }
        if let Some(head) = encode(status, fields, None) {
            request.output.push(Chunk::Owned(head));
            self.flush(quic, limits, stream);
        }
    }

    /// Queue body bytes; returns what is queued for the stream, or `HOLD` and more.
    pub fn send_data(&mut self, quic: &mut quiche::Connection, limits: &Limits, stream: u64, data: Chunk, end: bool) -> usize {
        let Some(request) = self.requests.get_mut(&stream) else { return 0 };
        if request.sent != Sent::Head {
            return 0;
        }
        let size = data.len();
        if size > 0 && !request.bodiless {
            let mut head = Vec::with_capacity(9);
            frames::put_frame_head(&mut head, kind::DATA, size);
            request.output.push(Chunk::Owned(head));
            request.output.push(data);
        }
        if end {
            request.output.finish();
            request.sent = Sent::All;
        }
        self.flush(quic, limits, stream)
    }

    /// End the body with trailers.
    pub fn send_trailers<T: NameValue>(&mut self, quic: &mut quiche::Connection, limits: &Limits, stream: u64, fields: &[T]) {
        let Some(request) = self.requests.get_mut(&stream) else { return };
        if request.sent != Sent::Head {
            return;
        }
        if !fields.is_empty() && !request.bodiless {
            let mut frame = Vec::new();
            if frames::put_headers(&mut frame, fields).is_ok() {
                request.output.push(Chunk::Owned(frame));
            }
        }
        request.output.finish();
        request.sent = Sent::All;
        self.flush(quic, limits, stream);
    }

    /// Hand over to quiche what it takes at once; returns what is left.
    fn flush(&mut self, quic: &mut quiche::Connection, limits: &Limits, stream: u64) -> usize {
        let Some(request) = self.requests.get_mut(&stream) else { return 0 };
        if !request.feeding && request.output.write(quic, stream, usize::MAX).is_err() {
            return 0; // stopped by the client: `look_for_stops` tells
        }
        request.count(&mut self.queued);
        if request.output.is_empty() {
            self.forget_if_done(quic, stream);
            return 0;
        }
        let mut queued = request.output.len();
        if self.queued > limits.output && queued > limits.low_water {
            self.holds += 1;
            queued += HOLD;
        }
        if queued > limits.high_water {
            request.paused = true;
        }
        if !request.feeding {
            request.feeding = true;
            self.feeding.push_back(stream);
        }
        queued
    }

    /// Bytes of answers that wait here, and how often a source was told to hold.
    #[must_use]
    pub fn waiting(&self) -> (usize, u64) {
        (self.queued, self.holds)
    }

    /// Move waiting bytes into quiche as it takes them, stream by stream in turns, and tell who may go on. True where some were moved.
    pub fn feed(&mut self, quic: &mut quiche::Connection, limits: &Limits, app: &mut dyn Application) -> bool {
        let mut moved = false;
        if !self.control.is_empty() {
            moved = self.control.write(quic, CONTROL, usize::MAX).unwrap_or(false);
        }
        let mut blocked = 0;
        while blocked < self.feeding.len() {
            let Some(stream) = self.feeding.pop_front() else { break };
            let Some(request) = self.requests.get_mut(&stream) else { continue };
            let Ok(written) = request.output.write(quic, stream, TURN) else {
                request.feeding = false; // stopped: as in `flush`
                continue;
            };
            request.count(&mut self.queued);
            moved |= written;
            blocked = if written { 0 } else { blocked + 1 };
            if request.paused && request.output.len() < limits.low_water {
                request.paused = false;
                if request.sent == Sent::Head {
                    app.drained(stream);
                }
            }
            if request.output.is_empty() {
                request.feeding = false;
                self.forget_if_done(quic, stream);
            } else {
                self.feeding.push_back(stream);
            }
        }
        moved
    }

    /// Cut one stream.
    pub fn reset(&mut self, quic: &mut quiche::Connection, stream: u64, code: u64) {
        if self.requests.contains_key(&stream) {
            self.forget(stream);
            abandon(quic, stream, code);
            cut(quic, stream, code);
        }
    }

    /// The first call says that the end is near; the second refuses requests that were not seen yet (section 5.2).
    pub fn goaway(&mut self, quic: &mut quiche::Connection) {
        let last = if !self.leaving {
            self.leaving = true;
            LAST_REQUEST
        } else if self.stop_at.is_none() {
            self.stop_at = Some(self.next);
            self.next
        } else {
            return;
        };
        let mut frame = Vec::new();
        frames::put_goaway(&mut frame, last);
        self.control.push(Chunk::Owned(frame));
        let _ = self.control.write(quic, CONTROL, usize::MAX); // what it does not take is fed later
    }

    /// Forget a stream whose response was handed over, asking for the rest of its request no more (section 4.1).
    fn forget_if_done(&mut self, quic: &mut quiche::Connection, stream: u64) {
        let Some(request) = self.requests.get(&stream) else { return };
        if request.sent != Sent::All || !request.output.is_empty() {
            return;
        }
        let received = request.received;
        self.forget(stream);
        if received != Received::All {
            abandon(quic, stream, code::NO_ERROR);
            self.resets_asked += 1;
        }
        while self.unacknowledged.front().is_some_and(|first| !is_alive(quic, *first)) {
            self.unacknowledged.pop_front();
        }
        self.unacknowledged.push_back(stream);
    }

    fn forget(&mut self, stream: u64) {
        if let Some(request) = self.requests.remove(&stream) {
            self.held -= request.held;
            self.queued -= request.counted;
        }
    }
}

enum Ended {
    Whole,
    /// Before there was a head (section 4.1).
    Headless,
    /// Before all of the announced body had come.
    Short,
}

/// Read what is complete of a request stream.
#[allow(clippy::too_many_arguments)] // what a frame may touch
fn read_frames(
    request: &mut Request,
    budget: &mut Budget,
    quic: &quiche::Connection,
    limits: &Limits,
    app: &mut dyn Application,
    stream: u64,
    data: &[u8],
    end: bool,
) -> Result<Progress, Fault> {
    let mut at = 0;
    while at < data.len() {
        if request.left > 0 {
            let take = usize::try_from(request.left).unwrap_or(usize::MAX).min(data.len() - at);
            request.left -= take as u64;
            if request.kind == kind::DATA {
                request.got += take as u64;
                if request.expected.is_some_and(|expected| request.got > expected) {
                    return Ok(Progress::Refused(Refusal::new(400, "body_length", "more body than content-length says")));
                }
                request.held += take as u64;
                app.body(stream, &data[at..at + take]);
            }
            at += take;
            continue;
        }
        let Some((kind, length, head)) = frames::take_frame_head(&data[at..]) else { break };
        if kind == kind::HEADERS {
            if request.received == Received::Trailers {
                return Err(Fault::new(code::FRAME_UNEXPECTED, "HEADERS after trailers"));
            }
            if length > limits.header_bytes as u64 {
                let detail = format!("field section of {length} bytes");
                return Ok(Progress::Refused(Refusal::new(431, "header_too_large", detail)));
            }
            let start = at + head;
            let Some(block) = usize::try_from(length).ok().and_then(|length| data.get(start..start + length)) else { break };
            at = start + block.len();
            if let Some(refusal) = on_section(request, limits, app, stream, block, end && at == data.len())? {
                return Ok(Progress::Refused(refusal));
            }
            continue;
        }
        if kind == kind::DATA {
            if request.received != Received::Head {
                return Err(Fault::new(code::FRAME_UNEXPECTED, "DATA outside a body"));
            }
            if length == 0 {
                spend_control(budget, quic, 1)?;
            }
        } else if kind::is_control_only(kind) || kind::is_http2(kind) || kind == kind::PUSH_PROMISE {
            return Err(Fault::new(code::FRAME_UNEXPECTED, format!("frame {kind:#x} on a request stream")));
        } else {
            spend_control(budget, quic, 1)?; // one that we don't know is skipped (section 9)
        }
        request.kind = kind;
        request.left = length;
        at += head;
    }
    Ok(Progress::Read(at))
}

/// A whole field section: the head or the trailers. Returns why the request is refused.
fn on_section(
    request: &mut Request,
    limits: &Limits,
    app: &mut dyn Application,
    stream: u64,
    block: &[u8],
    last: bool,
) -> Result<Option<Refusal>, Fault> {
    let fields = match frames::read_section(block, limits.header_count, limits.header_bytes)? {
        Section::Fields(fields) => fields,
        Section::TooLarge => {
            let detail = format!("more than {} bytes", limits.header_bytes);
            return Ok(Some(Refusal::new(431, "header_too_large", detail)));
        }
        Section::TooMany => {
            let detail = format!("more than {} fields", limits.header_count);
            return Ok(Some(Refusal::new(431, "too_many_fields", detail)));
        }
    };
    if request.received == Received::Head {
        request.trailers = match app.trailers(stream, &fields) {
            Ok(trailers) => trailers,
            Err(detail) => return Ok(Some(Refusal::told(400, detail))),
        };
        request.received = Received::Trailers;
        return Ok(None);
    }
    match app.head(stream, &fields, last) {
        Verdict::Rejected(status) => Ok(Some(Refusal::told(status, "malformed"))),
        Verdict::Accepted { length, bodiless } => {
            request.received = if last { Received::All } else { Received::Head };
            request.expected = length;
            request.bodiless = bodiless;
            Ok(None)
        }
    }
}

fn on_end(request: &mut Request, app: &mut dyn Application, stream: u64) -> Result<Ended, Fault> {
    if !request.buffer.is_empty() || request.left > 0 {
        return Err(Fault::new(code::FRAME_ERROR, "the stream ends within a frame"));
    }
    if request.received == Received::Nothing {
        return Ok(Ended::Headless);
    }
    if request.expected.is_some_and(|expected| request.got != expected) {
        return Ok(Ended::Short);
    }
    request.received = Received::All;
    app.end(stream, &std::mem::take(&mut request.trailers));
    Ok(Ended::Whole)
}

fn spend_control(budget: &mut Budget, quic: &quiche::Connection, count: u64) -> Result<(), Fault> {
    if budget.spend(count, || EARNED_BY_PACKET * quic.stats().sent as u64) {
        return Ok(());
    }
    Err(Fault::new(code::EXCESSIVE_LOAD, "too many control frames"))
}

/// A HEADERS frame with a response's head.
fn encode<T: NameValue>(status: u16, fields: &[T], content_length: Option<&[u8]>) -> Option<Vec<u8>> {
    let status = status.to_string();
    let mut all: Vec<(&[u8], &[u8])> = Vec::with_capacity(fields.len() + 2);
    all.push((b":status", status.as_bytes()));
    all.extend(fields.iter().map(|field| (field.name(), field.value())));
    if let Some(length) = content_length {
        all.push((b"content-length", length));
    }
    let mut frame = Vec::new();
    frames::put_headers(&mut frame, &all).ok()?;
    Some(frame)
}

/// Answer a refused request; false where quiche does not take all of it now.
fn answer(quic: &mut quiche::Connection, stream: u64, status: u16) -> bool {
    let none: [(&[u8], &[u8]); 0] = [];
    let Some(head) = encode(status, &none, Some(b"0")) else { return false };
    quic.stream_capacity(stream).is_ok_and(|room| room >= head.len()) && quic.stream_send(stream, &head, true).is_ok()
}

/// `STOP_SENDING`: what comes of the stream is dropped, and credited at once.
fn abandon(quic: &mut quiche::Connection, stream: u64, code: u64) {
    let _ = quic.stream_shutdown(stream, Shutdown::Read, code);
}

/// `RESET_STREAM`: what was queued is dropped.
fn cut(quic: &mut quiche::Connection, stream: u64, code: u64) {
    let _ = quic.stream_shutdown(stream, Shutdown::Write, code);
}

/// Quiche still keeps the stream: something of it was not acknowledged.
fn is_alive(quic: &mut quiche::Connection, stream: u64) -> bool {
    quic.stream_capacity(stream).is_ok()
}

fn words(code: u64) -> String {
    code::name(code).map_or_else(|| format!("{code:#x}"), str::to_owned)
}
