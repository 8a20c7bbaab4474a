//! All QUIC connections of one UDP listener: which datagram is whose, timers, packets out, and the seam's verbs by (connection, stream).
//!
//! Knows connection IDs, the life of connections and `engine/seam.py`. Knows no packets beyond their heads and no HTTP beyond its verbs.
//!
//! Only connections with something to do are visited: those that datagrams, timers or verbs touched. A panic below costs the connection
//! that found it and no other.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList};
use quiche::{ConnectionId, RetryConnectionIds};
use slab::Slab;

use crate::compression::Algorithm;
use crate::connection::{Connection, GRAIN, KeepAlive};
use crate::http3::{Http3, Limits};
use crate::io::{Burst, MAX_BURST, MAX_SEGMENTS, Receiver, Sender, link_mtu};
use crate::output::Chunk;
use crate::packets::{self, Cid, MAX_CID, MIN_DATAGRAM};
use crate::python::{self, Arrival, Callbacks, Teller, Told, setting};
use crate::timers::Timers;
use crate::tls::{self, Tls};
use crate::trace::Trace;

/// Version negotiations, Retry packets, refusals and resets for one batch of datagrams; the rest gets none.
const STATELESS_ANSWERS: usize = 16;

/// System calls of one `receive_fd`: enough to save turns of the event loop, few enough to stay fair to TCP.
const RECEIVES: usize = 4;

/// Largest datagram that path MTU discovery looks for: beyond it, a packet more costs next to nothing.
const LARGEST: usize = 16 * 1024;

/// The same where the link's MTU is unknown: Ethernet's, less the headers of IPv6 and UDP.
const ETHERNET: usize = 1500 - 48;

/// What an envelope adds to a datagram (`cluster/envelope.py`): by a relay, datagrams are to fit Ethernet with it.
const ENVELOPE: usize = 100;

/// Bytes set aside for relays, at which one call ends: what comes beyond is left for the next.
const ASIDE: usize = 1024 * 1024;

/// Local addresses whose link is remembered.
const LINKS: usize = 1024;

/// Bytes of packets that wait for the socket, at most.
const ARENA: usize = 512 * 1024;

/// Bytes of packets of one connection before it is the next connection's turn.
const VISIT: usize = 128 * 1024;

/// Bytes read from a stream at once.
const SCRATCH: usize = 64 * 1024;

/// Unidirectional streams that a client may have open: HTTP/3 needs three, the rest is for extensions and grease.
const UNI_STREAMS: u64 = 8;

/// Bytes in flight of one of these.
const UNI_WINDOW: u64 = 64 * 1024;

/// Connection IDs that a client has to choose from when it moves (it may ask for fewer), and the addresses of it that are kept.
const CONNECTION_IDS: u64 = 8;

/// Bits of a handle that are the slot; the rest counts connections, so that a handle is never used again.
const SLOT_BITS: u32 = 24;

/// Times that a fresh connection ID is asked for when it is taken: a client's own choice may stand there.
const MINTINGS: usize = 8;

/// One connection, and what the endpoint has to know of it.
struct Entry {
    connection: Connection,
    handle: u64,
    cids: Vec<Cid>,
    /// Of the form of its connection IDs.
    generation: u64,
    /// The client has yet to retire some of an earlier form.
    renewing: bool,
    /// Behind `connection`: dropped after it, with its last words.
    trace: Option<Trace>,
    /// Of its current entry among the timers.
    timer: Option<Instant>,
    /// Stands among the dirty ones.
    dirty: bool,
    /// Stands among those that this batch of datagrams touched.
    touched: bool,
}

impl Entry {
    /// As `Http3::waiting`.
    fn waiting(&self) -> (usize, u64) {
        self.connection.http.as_ref().map_or((0, 0), Http3::waiting)
    }
}

/// Datagrams that leave by a relay.
struct Aside {
    data: Vec<u8>,
    segment: usize,
    from: SocketAddr,
    to: SocketAddr,
}

/// Packets that wait for the socket.
struct Outgoing {
    arena: Vec<u8>,
    used: usize,
    bursts: Vec<Burst>,
    /// Bursts at the head that were sent.
    done: usize,
}

impl Outgoing {
    /// There is room for another packet of at most `size` bytes.
    fn has_room(&mut self, size: usize) -> bool {
        if self.arena.is_empty() {
            self.arena = vec![0; ARENA.max(size)];
        }
        self.arena.len() - self.used >= size
    }

    /// A packet of `size` bytes was written behind the others.
    fn add(&mut self, size: usize, from: SocketAddr, to: SocketAddr) {
        let start = self.used;
        self.used += size;
        if self.done < self.bursts.len()
            && let Some(last) = self.bursts.last_mut()
        {
            let bytes = last.range.len();
            let whole = bytes % last.segment == 0;
            let room = bytes / last.segment < MAX_SEGMENTS && bytes + size <= MAX_BURST;
            if whole && room && size <= last.segment && last.to == to && last.from == from {
                last.range.end += size;
                return;
            }
        }
        self.bursts.push(Burst { range: start..start + size, segment: size, from, to });
    }

    fn clear(&mut self) {
        self.used = 0;
        self.done = 0;
        self.bursts.clear();
    }
}

/// The QUIC endpoint of one UDP listener: implements the verbs of `seam.Endpoint` and `seam.FastEndpoint`.
#[pyclass(unsendable, subclass, module = "qproxy_native")]
pub struct Endpoint {
    callbacks: Callbacks,
    config: quiche::Config,
    limits: Limits,
    handshake_timeout: Duration,
    keep_alive: Option<KeepAlive>,
    max_connections: usize,
    /// What the settings say; 0 leaves it to the link.
    max_datagram: usize,
    /// Bytes of our connection IDs, those of the present form first.
    cid_lengths: Vec<usize>,
    /// How often their form has changed.
    generation: u64,
    /// Handles of connections whose client may have some of an earlier form.
    to_renew: VecDeque<u64>,
    /// Largest datagram by local address.
    links: HashMap<IpAddr, usize>,
    entries: Slab<Box<Entry>>,
    by_cid: HashMap<Cid, usize>,
    timers: Timers,
    dirty: VecDeque<usize>,
    touched: Vec<usize>,
    events: Py<PyList>,
    outgoing: Outgoing,
    receiver: Receiver,
    sender: Sender,
    scratch: Vec<u8>,
    /// The same moment by our clock and by Python's.
    clock: (Instant, f64),
    serial: u64,
    answers: usize,
    refusing: bool,
    /// Datagrams that belonged nowhere, or came beyond a bound.
    #[pyo3(get)]
    dropped: u64,
    /// Handshakes in which the certificate went compressed, by algorithm.
    #[pyo3(get)]
    certificates_compressed: HashMap<&'static str, u64>,
    /// How often a source was told to hold, on connections that are gone.
    holds_of_gone: u64,
    /// Clients may change their IP address.
    migration: bool,
    /// Datagrams from another IP address than their client's, where clients may not change theirs.
    #[pyo3(get)]
    moves_refused: u64,
    /// Which datagrams that no connection has may be another's.
    strays: packets::Strays,
    /// Some connection may have a path by a relay.
    relaying: bool,
    /// What leaves by a relay.
    aside: Vec<Aside>,
    aside_bytes: usize,
}

#[pymethods]
impl Endpoint {
    #[new]
    fn new(py: Python<'_>, settings: &Bound<'_, PyDict>) -> PyResult<Self> {
        let limits = Limits {
            header_count: setting(settings, "header_count")?,
            header_bytes: setting(settings, "header_bytes")?,
            stream_window: setting(settings, "stream_window")?,
            connection_window: setting(settings, "connection_window")?,
            high_water: setting(settings, "high_water")?,
            low_water: setting(settings, "low_water")?,
            output: setting(settings, "output")?,
        };
        let max_datagram = setting(settings, "max_datagram_size")?;
        let compression = Algorithm::called(&setting::<Vec<String>>(settings, "certificate_compression")?)?;
        let tls = Tls::new(setting(settings, "begin")?, setting(settings, "tickets")?, compression.clone());
        let config = configure(settings, &tls, &limits).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let most: usize = setting(settings, "connections")?;
        Ok(Self {
            callbacks: Callbacks::new(settings)?,
            config,
            limits,
            handshake_timeout: Duration::try_from_secs_f64(setting(settings, "handshake_timeout")?)
                .map_err(|error| PyValueError::new_err(error.to_string()))?,
            keep_alive: keep_alive(settings)?,
            max_connections: most.min(1 << SLOT_BITS),
            max_datagram,
            cid_lengths: vec![setting(settings, "cid_bytes")?],
            generation: 0,
            to_renew: VecDeque::new(),
            links: HashMap::new(),
            entries: Slab::new(),
            by_cid: HashMap::new(),
            timers: Timers::default(),
            dirty: VecDeque::new(),
            touched: Vec::new(),
            events: PyList::empty(py).unbind(),
            outgoing: Outgoing { arena: Vec::new(), used: 0, bursts: Vec::new(), done: 0 },
            receiver: Receiver::new(),
            sender: Sender::new(),
            scratch: vec![0; SCRATCH],
            clock: (Instant::now(), 0.0),
            serial: 0,
            answers: STATELESS_ANSWERS,
            refusing: false,
            dropped: 0,
            certificates_compressed: compression.iter().map(|algorithm| (algorithm.name(), 0)).collect(),
            migration: setting(settings, "migration")?,
            moves_refused: 0,
            strays: packets::Strays::default(),
            relaying: false,
            aside: Vec::new(),
            aside_bytes: 0,
            holds_of_gone: 0,
        })
    }

    /// Connections that are alive, handshakes included.
    #[getter]
    fn connections(&self) -> usize {
        self.entries.len()
    }

    /// Hold each stream at the low-water mark while more than `most` waits for its connection.
    fn bound_output(&mut self, most: usize) {
        self.limits.output = most;
    }

    /// Bytes of answers that wait here, of all connections.
    #[getter]
    fn output_bytes(&self) -> usize {
        self.entries.iter().map(|(_, entry)| entry.waiting().0).sum()
    }

    /// How often so far a source was told to hold.
    #[getter]
    fn holds(&self) -> u64 {
        self.holds_of_gone + self.entries.iter().map(|(_, entry)| entry.waiting().1).sum::<u64>()
    }

    /// Datagrams read by `receive_fd` so far.
    #[getter]
    fn datagrams_in(&self) -> u64 {
        self.receiver.datagrams
    }

    /// Datagrams sent by `transmit_fd` so far.
    #[getter]
    fn datagrams_out(&self) -> u64 {
        self.sender.datagrams
    }

    /// Datagrams that the kernel would not take.
    #[getter]
    fn datagrams_failed(&self) -> u64 {
        self.sender.failed
    }

    // In, out and time

    /// Take datagrams (objects with `data`, `peer` and `local`). Never raises on hostile input.
    fn receive<'py>(&mut self, py: Python<'py>, datagrams: &Bound<'py, PyAny>, now: f64) -> PyResult<Bound<'py, PyList>> {
        self.begin(now);
        for datagram in datagrams.try_iter()? {
            let datagram = datagram?;
            let mut data: Vec<u8> = datagram.getattr("data")?.extract()?;
            let from = socket_address(&datagram.getattr("peer")?)?;
            let to = socket_address(&datagram.getattr("local")?)?;
            self.relaying |= is_relayed(to.ip());
            self.on_datagram(py, &mut data, from, to)?;
        }
        self.collect_touched(py)?;
        Ok(self.take_events(py))
    }

    /// Read what has come to a socket, many datagrams with one system call.
    fn receive_fd<'py>(&mut self, py: Python<'py>, fd: RawFd, now: f64) -> PyResult<Bound<'py, PyList>> {
        self.begin(now);
        for _ in 0..RECEIVES {
            let more = self.receiver.receive(fd).map_err(PyOSError::new_err)?;
            let arrived = std::mem::take(&mut self.receiver.arrived);
            let mut arena = std::mem::take(&mut self.receiver.arena);
            let mut result = Ok(());
            for datagram in &arrived {
                result = self.on_datagram(py, &mut arena[datagram.range.clone()], datagram.from, datagram.to);
                if result.is_err() {
                    break;
                }
            }
            self.receiver.arrived = arrived;
            self.receiver.arena = arena;
            result?;
            if !more {
                break;
            }
        }
        self.collect_touched(py)?;
        Ok(self.take_events(py))
    }

    /// Datagrams to send now, of all connections with something to send.
    fn take_datagrams<'py>(&mut self, py: Python<'py>, now: f64) -> PyResult<Bound<'py, PyList>> {
        self.begin(now);
        let out = PyList::empty(py);
        loop {
            let whole = self.generate(py)?;
            let outgoing = &self.outgoing;
            for burst in &outgoing.bursts[outgoing.done..] {
                for data in outgoing.arena[burst.range.clone()].chunks(burst.segment) {
                    out.append(self.callbacks.transmit(py, data, burst.to, burst.from)?)?;
                }
            }
            self.outgoing.clear();
            if whole {
                return Ok(out);
            }
        }
    }

    /// Send what is to be sent now to a socket, many datagrams with one system call. False where the socket is full: to be called again
    /// when it is writable.
    fn transmit_fd(&mut self, py: Python<'_>, fd: RawFd, now: f64) -> PyResult<bool> {
        self.begin(now);
        loop {
            if self.relaying {
                self.set_aside();
            }
            let outgoing = &mut self.outgoing;
            if outgoing.done < outgoing.bursts.len() {
                outgoing.done += self.sender.send(fd, &outgoing.bursts[outgoing.done..], &outgoing.arena);
                if outgoing.done < outgoing.bursts.len() {
                    return Ok(false);
                }
            }
            outgoing.clear();
            self.generate(py)?;
            if self.outgoing.bursts.is_empty() || self.aside_bytes >= ASIDE {
                return Ok(true);
            }
        }
    }

    /// Events that arose outside `receive` and `on_deadline`.
    fn take_events<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyList> {
        let taken = std::mem::replace(&mut self.events, PyList::empty(py).unbind());
        taken.into_bound(py)
    }

    /// When `on_deadline` is to be called next, or None.
    fn deadline(&mut self) -> Option<f64> {
        let entries = &self.entries;
        let due = self
            .timers
            .next(|handle, due| entries.get(slot_of(handle)).is_some_and(|entry| entry.handle == handle && entry.timer == Some(due)))?;
        let (ours, theirs) = self.clock;
        Some(theirs + due.saturating_duration_since(ours).as_secs_f64() - ours.saturating_duration_since(due).as_secs_f64())
    }

    /// Handle the timers that are due (loss detection, pacing, idle, handshake, drain).
    fn on_deadline<'py>(&mut self, py: Python<'py>, now: f64) -> PyResult<Bound<'py, PyList>> {
        self.begin(now);
        let now = self.clock.0;
        while let Some((due, handle)) = self.timers.pop_due(now) {
            let slot = slot_of(handle);
            let Some(entry) = self.entries.get_mut(slot) else { continue };
            if entry.handle != handle || entry.timer != Some(due) {
                continue;
            }
            entry.timer = None;
            match guarded(|| entry.connection.on_timer(now)) {
                Ok(true) => {
                    self.collect(py, slot)?;
                    self.soil(slot);
                }
                Ok(false) => self.remove(py, slot, "handshake_timeout", "the handshake took too long")?,
                Err(words) => self.remove(py, slot, "internal_error", &words)?,
            }
        }
        Ok(self.take_events(py))
    }

    // The verbs of the seam. A connection or a stream that is gone takes everything silently.

    fn respond(
        &mut self,
        py: Python<'_>,
        connection: u64,
        stream: u64,
        status: u16,
        headers: &Bound<'_, PyList>,
        body: PyBackedBytes,
    ) -> PyResult<()> {
        let fields = python::fields(headers)?;
        self.with_http(py, connection, |http, quic, limits| {
            http.respond(quic, limits, stream, status, &fields, Chunk::Shared(body));
        })?;
        Ok(())
    }

    fn send_head(
        &mut self,
        py: Python<'_>,
        connection: u64,
        stream: u64,
        status: u16,
        headers: &Bound<'_, PyList>,
        end: bool,
    ) -> PyResult<()> {
        let fields = python::fields(headers)?;
        self.with_http(py, connection, |http, quic, limits| http.send_head(quic, limits, stream, status, &fields, end))?;
        Ok(())
    }

    fn send_data(&mut self, py: Python<'_>, connection: u64, stream: u64, data: PyBackedBytes, end: bool) -> PyResult<usize> {
        let queued = self.with_http(py, connection, |http, quic, limits| http.send_data(quic, limits, stream, Chunk::Shared(data), end))?;
        Ok(queued.unwrap_or(0))
    }

    fn send_trailers(&mut self, py: Python<'_>, connection: u64, stream: u64, headers: &Bound<'_, PyList>) -> PyResult<()> {
        let fields = python::fields(headers)?;
        self.with_http(py, connection, |http, quic, limits| http.send_trailers(quic, limits, stream, &fields))?;
        Ok(())
    }

    fn inform(&mut self, py: Python<'_>, connection: u64, stream: u64, status: u16, headers: &Bound<'_, PyList>) -> PyResult<()> {
        let fields = python::fields(headers)?;
        self.with_http(py, connection, |http, quic, limits| http.inform(quic, limits, stream, status, &fields))?;
        Ok(())
    }

    fn consumed(&mut self, py: Python<'_>, connection: u64, stream: u64, credit: u64) -> PyResult<()> {
        let stalled = self.with_http(py, connection, |http, _, _| http.consumed(stream, credit))?;
        if stalled == Some(true) {
            self.visit(py, slot_of(connection), |entry, limits, app, scratch| {
                let Connection { quic, http, .. } = &mut entry.connection;
                if let Some(http) = http {
                    http.resume(quic, limits, app, scratch);
                }
            })?;
        }
        Ok(())
    }

    /// Cut one stream with an HTTP/3 code.
    fn reset_stream(&mut self, py: Python<'_>, connection: u64, stream: u64, code: u64) -> PyResult<()> {
        self.with_http(py, connection, |http, quic, _| http.reset(quic, stream, code))?;
        Ok(())
    }

    /// In two calls, as `seam.Connection.goaway`.
    fn goaway(&mut self, py: Python<'_>, connection: u64) -> PyResult<()> {
        self.with_http(py, connection, |http, quic, _| http.goaway(quic))?;
        Ok(())
    }

    /// Close the connection at once, with an HTTP/3 code.
    fn close_connection(&mut self, py: Python<'_>, connection: u64, code: u64, words: &str) -> PyResult<()> {
        self.with_http(py, connection, |_, quic, _| {
            let _ = quic.close(true, code, words.as_bytes()); // Done: it is closed already
        })?;
        Ok(())
    }

    /// From now on `mint` gives connection IDs of another form, and of so many bytes.
    fn begin_generation(&mut self, cid_bytes: usize) {
        self.generation += 1;
        self.cid_lengths.retain(|length| *length != cid_bytes);
        self.cid_lengths.insert(0, cid_bytes);
        self.to_renew = self.entries.iter().map(|(_, entry)| entry.handle).collect();
    }

    /// See `seam.Endpoint`.
    fn renew_connection_ids(&mut self, py: Python<'_>, most: usize) -> PyResult<bool> {
        for _ in 0..most.min(self.to_renew.len()) {
            let Some(handle) = self.to_renew.pop_front() else { break };
            let slot = slot_of(handle);
            if self.entries.get(slot).is_some_and(|entry| entry.handle == handle) {
                self.renew(py, slot)?;
                self.soil(slot);
            }
        }
        Ok(!self.to_renew.is_empty())
    }

    /// Connections whose client has connection IDs of an earlier form.
    #[getter]
    fn connections_to_renew(&self) -> usize {
        self.entries.iter().filter(|(_, entry)| entry.renewing || entry.generation != self.generation).count()
    }

    /// Ask `stray` about datagrams for connection IDs that end in one of these slots, in forms of (configuration ID, bytes), and about
    /// all of the forms `named`.
    fn watch_strays(&mut self, slots: Vec<u8>, forms: Vec<(u8, usize)>, named: Vec<(u8, usize)>) {
        self.strays = packets::Strays { slots, forms, named };
    }

    /// See `seam.FastEndpoint`.
    fn take_relayed<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let taken = PyList::empty(py);
        for one in self.aside.drain(..) {
            taken.append((PyBytes::new(py, &one.data), one.segment, python::address(one.to), python::address(one.from)))?;
        }
        self.aside_bytes = 0;
        Ok(taken)
    }

    /// Answer new connection attempts with `CONNECTION_REFUSED` from now on.
    fn refuse_new(&mut self) {
        self.refusing = true;
    }
}

impl Endpoint {
    fn begin(&mut self, now: f64) {
        self.clock = (Instant::now(), now);
        self.answers = STATELESS_ANSWERS;
    }

    // Datagrams in

    fn on_datagram(&mut self, py: Python<'_>, data: &mut [u8], from: SocketAddr, to: SocketAddr) -> PyResult<()> {
        let slot = match self.find(data) {
            Some(slot) => slot,
            None if self.strays.may_be(data) && self.callbacks.stray(py, data, from, to)? => return Ok(()),
            None if packets::is_short(data) => return self.reset_unknown(py, data, from, to),
            None => match self.accept(py, data, from, to)? {
                Some(slot) => slot,
                None => return Ok(()),
            },
        };
        let Some(entry) = self.entries.get_mut(slot) else { return Ok(()) };
        if !self.migration && from.ip() != entry.connection.peer.ip() {
            self.moves_refused += 1;
            return Ok(());
        }
        let authentic = match guarded(|| entry.connection.receive(data, from, to)) {
            Ok(authentic) => authentic,
            Err(words) => return self.remove(py, slot, "internal_error", &words),
        };
        if !authentic {
            self.dropped += 1; // nothing is kept for it
            if let Some(trace) = &entry.trace {
                trace.abandon();
            }
            return self.remove(py, slot, "not_authentic", "");
        }
        if !entry.touched {
            entry.touched = true;
            self.touched.push(slot);
        }
        Ok(())
    }

    /// Whose datagram it is: by the connection ID of our usual length, or else, behind a short header, by one of another.
    fn find(&self, data: &[u8]) -> Option<usize> {
        let (usual, others) = self.cid_lengths.split_first()?;
        let of = |length| packets::destination_of(data, length).and_then(|cid| self.by_cid.get(&cid).copied());
        of(*usual).or_else(|| others.iter().filter(|_| packets::is_short(data)).find_map(|length| of(*length)))
    }

    /// A packet of a connection that is gone.
    fn reset_unknown(&mut self, py: Python<'_>, data: &[u8], from: SocketAddr, to: SocketAddr) -> PyResult<()> {
        let start = &data[1..data.len().min(1 + MAX_CID)];
        let answer = if self.answers > 0 { self.callbacks.reset(py, start, data.len(), self.clock.1)? } else { None };
        match answer {
            Some(answer) => self.answer(&answer, from, to),
            None => self.dropped += 1,
        }
        Ok(())
    }

    /// The connection that this datagram begins, or None: it was answered or dropped.
    fn accept(&mut self, py: Python<'_>, data: &[u8], from: SocketAddr, to: SocketAddr) -> PyResult<Option<usize>> {
        let header = match packets::read_long_header(data) {
            Some(header) if data.len() >= MIN_DATAGRAM => header,
            _ => {
                self.dropped += 1;
                return Ok(None);
            }
        };
        if header.version != quiche::PROTOCOL_VERSION {
            if header.version != 0 && self.answers > 0 {
                let answer = packets::version_negotiation(&header, self.callbacks.mint(py)?.0.as_slice()[0]);
                self.answer(&answer, from, to);
            } else {
                self.dropped += 1;
            }
            return Ok(None);
        }
        let long_ids = header.source.len() > MAX_CID;
        let Some(destination) = Cid::new(header.destination).filter(|_| header.initial && !long_ids) else {
            self.dropped += 1;
            return Ok(None);
        };
        if self.refusing || self.entries.len() >= self.max_connections {
            self.refuse(py, data, from, to)?;
            return Ok(None);
        }
        let (original, retry_source) = match self.callbacks.judge(py, data, from, self.clock.1, self.answers > 0)? {
            Arrival::Enter { original, retry_source } => (original, retry_source),
            Arrival::Answer(answer) => {
                self.answer(&answer, from, to);
                return Ok(None);
            }
            Arrival::Drop => {
                self.dropped += 1;
                return Ok(None);
            }
        };
        let slot = self.entries.vacant_key();
        let handle = (self.serial + 1) << SLOT_BITS | slot as u64;
        if !self.callbacks.admit(py, handle, from)? {
            self.refuse(py, data, from, to)?;
            return Ok(None);
        }
        self.serial += 1;
        let (cid, token) = self.fresh_cid(py)?;
        self.config.set_stateless_reset_token(Some(token));
        let largest = self.largest_from(to.ip());
        self.config.set_max_send_udp_payload_size(largest);
        self.config.discover_pmtu(largest > MIN_DATAGRAM);
        let scid = ConnectionId::from_ref(cid.as_slice());
        let quic = match &retry_source {
            None => quiche::accept(&scid, None, to, from, &mut self.config),
            Some(source) => {
                let original_destination_cid = &ConnectionId::from_ref(original.as_slice());
                let retry_source_cid = &ConnectionId::from_ref(source.as_slice());
                let retry = RetryConnectionIds { original_destination_cid, retry_source_cid };
                quiche::accept_with_retry(&scid, retry, to, from, &mut self.config)
            }
        };
        let mut quic = quic.map_err(|error| PyValueError::new_err(error.to_string()))?;
        tls::prepare(quic.as_mut(), original);
        let sink = self.callbacks.trace(py, from, original)?;
        let trace = sink.map(|sink| Trace::begin(&mut quic, sink, original.as_slice()));
        self.by_cid.insert(cid, slot);
        self.by_cid.insert(destination, slot);
        self.entries.insert(Box::new(Entry {
            connection: Connection::new(quic, from, self.handshake_timeout, self.keep_alive),
            handle,
            cids: vec![cid, destination],
            generation: self.generation,
            renewing: false,
            trace,
            timer: None,
            dirty: false,
            touched: false,
        }));
        self.callbacks.enter(py, handle, from)?;
        Ok(Some(slot))
    }

    /// Tell a client that it may not come in.
    fn refuse(&mut self, py: Python<'_>, data: &[u8], from: SocketAddr, to: SocketAddr) -> PyResult<()> {
        match if self.answers > 0 { self.callbacks.refuse(py, data)? } else { None } {
            Some(answer) => self.answer(&answer, from, to),
            None => self.dropped += 1,
        }
        Ok(())
    }

    /// Where path MTU discovery ends.
    fn largest_from(&mut self, local: IpAddr) -> usize {
        if self.max_datagram > 0 {
            return self.max_datagram;
        }
        if let Some(known) = self.links.get(&local) {
            return *known;
        }
        if self.links.len() >= LINKS {
            self.links.clear();
        }
        if is_relayed(local) {
            return ETHERNET - ENVELOPE;
        }
        let headers = if local.is_ipv6() { 48 } else { 28 };
        let largest = link_mtu(local).map_or(ETHERNET, |mtu| mtu.saturating_sub(headers).clamp(MIN_DATAGRAM, LARGEST));
        self.links.insert(local, largest);
        largest
    }

    fn fresh_cid(&self, py: Python<'_>) -> PyResult<(Cid, u128)> {
        for _ in 0..MINTINGS {
            let (cid, token) = self.callbacks.mint(py)?;
            if cid.as_slice().len() != self.cid_lengths[0] {
                return Err(PyValueError::new_err(format!("a connection ID of ours has {} bytes", self.cid_lengths[0])));
            }
            if !self.by_cid.contains_key(&cid) {
                return Ok((cid, token));
            }
        }
        Err(PyValueError::new_err("no fresh connection ID"))
    }

    /// Queue a packet that belongs to no connection; dropped where there is no room for it.
    fn answer(&mut self, packet: &[u8], to: SocketAddr, from: SocketAddr) {
        self.answers -= 1;
        if !self.outgoing.has_room(packet.len()) {
            self.dropped += 1;
            return;
        }
        let start = self.outgoing.used;
        self.outgoing.arena[start..start + packet.len()].copy_from_slice(packet);
        self.outgoing.add(packet.len(), from, to);
    }

    fn collect_touched(&mut self, py: Python<'_>) -> PyResult<()> {
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            if let Some(entry) = self.entries.get_mut(slot) {
                entry.touched = false;
                self.collect(py, slot)?;
                self.soil(slot);
            }
        }
        self.touched = touched;
        Ok(())
    }

    /// Turn what a connection has to tell into events.
    fn collect(&mut self, py: Python<'_>, slot: usize) -> PyResult<()> {
        let was_complete = self.entries.get(slot).is_some_and(|entry| entry.connection.is_complete());
        self.visit(py, slot, |entry, limits, app, scratch| entry.connection.collect(limits, app, scratch))?;
        let Some(entry) = self.entries.get_mut(slot) else { return Ok(()) };
        while let Some(cid) = entry.connection.quic.retired_scid_next() {
            if let Some(cid) = Cid::new(&cid) {
                entry.cids.retain(|known| *known != cid);
                self.by_cid.remove(&cid);
            }
        }
        let completed = !was_complete && entry.connection.is_complete();
        let renewed = entry.renewing && entry.connection.quic.retiring_scids() == 0;
        if completed || was_complete && entry.connection.quic.scids_left() > 0 {
            self.issue_cids(py, slot)?;
        }
        if renewed {
            self.renewed(py, slot)?;
        }
        if completed || renewed {
            self.renew(py, slot)?; // where the form has changed meanwhile
        }
        Ok(())
    }

    /// A client has retired the last connection ID of an earlier form.
    fn renewed(&mut self, py: Python<'_>, slot: usize) -> PyResult<()> {
        let Some(entry) = self.entries.get_mut(slot) else { return Ok(()) };
        entry.renewing = false;
        self.callbacks.tell_renewed(self.events.bind(py), entry.handle)
    }

    /// Give a client connection IDs of the present form for those of another. Not before the handshake is complete; and one change after
    /// the other, so that no client makes us keep more than twice as many.
    fn renew(&mut self, py: Python<'_>, slot: usize) -> PyResult<()> {
        let Some(entry) = self.entries.get(slot) else { return Ok(()) };
        let over = entry.connection.is_closed() || !entry.connection.is_complete();
        if over || entry.renewing || entry.generation == self.generation {
            return Ok(());
        }
        let (cid, token) = self.fresh_cid(py)?;
        let Some(entry) = self.entries.get_mut(slot) else { return Ok(()) };
        if entry.connection.quic.replace_scids(&ConnectionId::from_ref(cid.as_slice()), token).is_err() {
            return Ok(()); // it is about to end
        }
        entry.cids.push(cid);
        entry.generation = self.generation;
        entry.renewing = true;
        self.by_cid.insert(cid, slot);
        self.issue_cids(py, slot)
    }

    fn issue_cids(&mut self, py: Python<'_>, slot: usize) -> PyResult<()> {
        loop {
            let (cid, token) = self.fresh_cid(py)?;
            let Some(entry) = self.entries.get_mut(slot) else { return Ok(()) };
            let quic = &mut entry.connection.quic;
            if quic.scids_left() == 0 || quic.new_scid(&ConnectionId::from_ref(cid.as_slice()), token, false).is_err() {
                return Ok(());
            }
            entry.cids.push(cid);
            self.by_cid.insert(cid, slot);
        }
    }

    /// Do something with a connection that may tell events, and settle what follows from them.
    fn visit(
        &mut self,
        py: Python<'_>,
        slot: usize,
        action: impl FnOnce(&mut Entry, &Limits, &mut Teller<'_, '_>, &mut [u8]),
    ) -> PyResult<()> {
        let Some(entry) = self.entries.get_mut(slot) else { return Ok(()) };
        let was_complete = entry.connection.is_complete();
        let session = if was_complete { None } else { Told::of(py, &mut entry.connection.quic) };
        let mut teller = Teller {
            py,
            callbacks: &self.callbacks,
            events: self.events.bind(py),
            handle: entry.handle,
            peer: entry.connection.peer,
            session,
            early: entry.connection.is_early(),
            closed: false,
            failed: false,
        };
        let outcome = guarded(|| action(entry, &self.limits, &mut teller, &mut self.scratch));
        let Teller { closed, failed, .. } = teller;
        let is_complete = entry.connection.is_complete(); // also where a panic kept it from being told
        if !was_complete && (is_complete || closed) {
            if let Some(algorithm) = tls::forget(entry.connection.quic.as_mut()).filter(|_| is_complete) {
                *self.certificates_compressed.entry(algorithm.name()).or_default() += 1;
            }
            self.callbacks.leave(py, entry.handle, is_complete)?;
        }
        if let Some(trace) = &entry.trace {
            trace.hand_over(py)?;
        }
        match outcome {
            Err(words) if !closed => self.remove(py, slot, "internal_error", &words),
            Err(_) => {
                self.forget(slot);
                Ok(())
            }
            Ok(()) => {
                if failed {
                    entry.connection.close(crate::frames::code::INTERNAL_ERROR, "");
                    self.soil(slot);
                }
                Ok(())
            }
        }
    }

    // Packets out

    /// Let connections write packets until none has any (true) or there is no room for more.
    fn generate(&mut self, py: Python<'_>) -> PyResult<bool> {
        let largest = self.max_datagram.max(LARGEST);
        while let Some(slot) = self.dirty.pop_front() {
            if !self.outgoing.has_room(largest) {
                self.dirty.push_front(slot);
                return Ok(false);
            }
            let Some(entry) = self.entries.get_mut(slot) else { continue };
            entry.dirty = false;
            let mut outgoing = std::mem::replace(&mut self.outgoing, Outgoing { arena: Vec::new(), used: 0, bursts: Vec::new(), done: 0 });
            let mut whole = false;
            let result = self.visit(py, slot, |entry, limits, app, _| {
                whole = fill(&mut entry.connection, &mut outgoing, largest, limits, app);
                entry.connection.look_at_end(app);
            });
            self.outgoing = outgoing;
            result?;
            self.settle(slot, whole);
        }
        Ok(true)
    }

    /// Keep what leaves by a relay for `take_relayed`. Nothing of it was ever given to the sender, so none of it is half sent.
    fn set_aside(&mut self) {
        let Outgoing { arena, bursts, done, .. } = &mut self.outgoing;
        if !bursts[*done..].iter().any(|burst| is_relayed(burst.from.ip())) {
            return;
        }
        let mut at = 0;
        bursts.retain(|burst| {
            let relayed = at >= *done && is_relayed(burst.from.ip());
            at += 1;
            if relayed {
                self.aside_bytes += burst.range.len();
                let data = arena[burst.range.clone()].to_vec();
                self.aside.push(Aside { data, segment: burst.segment, from: burst.from, to: burst.to });
            }
            !relayed
        });
    }

    /// After a connection's packets were written: forget it, come back to it, or wait for its next deadline.
    fn settle(&mut self, slot: usize, whole: bool) {
        let Some(entry) = self.entries.get_mut(slot) else { return };
        if entry.connection.is_gone() {
            self.forget(slot);
            return;
        }
        if !whole {
            self.soil(slot);
            return;
        }
        let Some(due) = entry.connection.deadline() else { return };
        let now = self.clock.0;
        let due = if due <= now { now + GRAIN } else { due };
        if entry.timer.is_none_or(|timer| due < timer) {
            entry.timer = Some(due);
            self.timers.arm(due, entry.handle);
        }
    }

    fn soil(&mut self, slot: usize) {
        if let Some(entry) = self.entries.get_mut(slot)
            && !entry.dirty
        {
            entry.dirty = true;
            self.dirty.push_back(slot);
        }
    }

    /// Do something with a connection's HTTP/3; None where it is gone.
    fn with_http<R>(
        &mut self,
        py: Python<'_>,
        handle: u64,
        action: impl FnOnce(&mut Http3, &mut quiche::Connection, &Limits) -> R,
    ) -> PyResult<Option<R>> {
        let slot = slot_of(handle);
        let Some(entry) = self.entries.get_mut(slot).filter(|entry| entry.handle == handle && !entry.connection.is_closed()) else {
            return Ok(None);
        };
        let Connection { quic, http, .. } = &mut entry.connection;
        let Some(http) = http else { return Ok(None) };
        match guarded(|| action(http, quic, &self.limits)) {
            Ok(result) => {
                self.soil(slot);
                Ok(Some(result))
            }
            Err(words) => {
                self.remove(py, slot, "internal_error", &words)?;
                Ok(None)
            }
        }
    }

    // Ends

    /// Drop a connection at once, telling why.
    fn remove(&mut self, py: Python<'_>, slot: usize, error: &str, detail: &str) -> PyResult<()> {
        let Some(entry) = self.forget(slot) else { return Ok(()) };
        if entry.connection.is_closed() {
            return Ok(());
        }
        if !entry.connection.is_complete() {
            self.callbacks.leave(py, entry.handle, false)?;
            if error == "not_authentic" && !self.callbacks.counts() {
                return Ok(()); // nobody knows of it
            }
        }
        self.callbacks.tell_closed(self.events.bind(py), entry.handle, error, detail, entry.connection.seen().as_ref())
    }

    fn forget(&mut self, slot: usize) -> Option<Box<Entry>> {
        let entry = self.entries.try_remove(slot)?;
        self.holds_of_gone += entry.waiting().1;
        for cid in &entry.cids {
            if self.by_cid.get(cid) == Some(&slot) {
                self.by_cid.remove(cid);
            }
        }
        Some(entry)
    }
}

/// Write a connection's packets; false where it may have more, but it is another's turn.
fn fill(connection: &mut Connection, outgoing: &mut Outgoing, largest: usize, limits: &Limits, app: &mut Teller<'_, '_>) -> bool {
    let begin = outgoing.used;
    loop {
        let fed = connection.feed(limits, app);
        let before = outgoing.used;
        loop {
            if outgoing.used - begin >= VISIT || !outgoing.has_room(largest) {
                return false;
            }
            let start = outgoing.used;
            let Some((size, info)) = connection.send(&mut outgoing.arena[start..start + largest]) else { break };
            outgoing.add(size, info.from, info.to);
        }
        if !fed || outgoing.used == before {
            return true;
        }
    }
}

fn configure(settings: &Bound<'_, PyDict>, tls: &Tls, limits: &Limits) -> Result<quiche::Config, Box<dyn std::error::Error>> {
    let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls.context()?)?;
    config.set_application_protos(&[b"h3"])?;
    let idle = Duration::try_from_secs_f64(setting(settings, "idle_timeout")?)?;
    config.set_max_idle_timeout(u64::try_from(idle.as_millis())?);
    config.set_max_recv_udp_payload_size(65527);
    let stream_window = limits.stream_window - limits.stream_ahead();
    let connection_window = limits.connection_window - limits.connection_ahead();
    config.set_initial_max_data(connection_window);
    config.set_max_connection_window(setting::<u64>(settings, "max_connection_window")? - limits.connection_ahead());
    config.set_initial_max_stream_data_bidi_remote(stream_window);
    config.set_max_stream_window(setting::<u64>(settings, "max_stream_window")? - limits.stream_ahead());
    config.set_initial_max_stream_data_uni(UNI_WINDOW);
    config.set_initial_max_streams_bidi(setting(settings, "streams")?);
    config.set_initial_max_streams_uni(UNI_STREAMS);
    config.set_disable_active_migration(!setting::<bool>(settings, "migration")?);
    config.set_active_connection_id_limit(CONNECTION_IDS);
    config.set_cc_algorithm_name(&setting::<String>(settings, "congestion_control")?)?;
    config.set_key_packets(setting(settings, "key_packets")?);
    config.enable_pacing(true);
    config.enable_hystart(true); // RFC 9406, for cubic and reno
    Ok(config)
}

fn keep_alive(settings: &Bound<'_, PyDict>) -> PyResult<Option<KeepAlive>> {
    let seconds: f64 = setting(settings, "keep_alive")?;
    let interval = Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((seconds > 0.0).then_some(KeepAlive { interval, idle: setting(settings, "keep_alive_idle")? }))
}

/// Whether a local address stands for a relay: 100::/64 is nobody's (RFC 6666).
fn is_relayed(local: IpAddr) -> bool {
    matches!(local, IpAddr::V6(ip) if ip.octets()[..8] == [1, 0, 0, 0, 0, 0, 0, 0])
}

fn slot_of(handle: u64) -> usize {
    usize::try_from(handle & ((1 << SLOT_BITS) - 1)).unwrap_or(usize::MAX)
}

fn socket_address(address: &Bound<'_, PyAny>) -> PyResult<SocketAddr> {
    let (host, port): (String, u16) = address.extract()?;
    let ip: IpAddr = host.parse().map_err(|_| PyValueError::new_err(format!("{host} is no IP address")))?;
    Ok(SocketAddr::new(ip, port))
}

/// Run something that must not take the endpoint down with it; the words of a panic.
fn guarded<R>(action: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(action)).map_err(|panic| {
        let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
        words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
    })
}
