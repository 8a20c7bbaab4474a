//! The border to Python: event classes, callables, header lists.
//!
//! Knows what `engine/events.py` and the constructor's callables look like. Knows no packets.

use std::net::SocketAddr;

use pyo3::exceptions::PyKeyError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyList, PyTuple};
use quiche::h3::{Header, NameValue};

use crate::http3::{Application, Change, Seen, Verdict};
use crate::packets::Cid;
use crate::tls;

/// What becomes of a client's first packet.
pub enum Arrival {
    /// It may begin a handshake. `original` is the destination ID of its very first packet; `retry_source` the source ID of the Retry packet
    /// that it answers, which proves its address.
    Enter {
        original: Cid,
        retry_source: Option<Cid>,
    },
    Answer(Vec<u8>),
    Drop,
}

/// The classes of events and the callables that the endpoint was given.
pub struct Callbacks {
    request_body: Py<PyAny>,
    request_end: Py<PyAny>,
    stream_reset: Py<PyAny>,
    rejected: Py<PyAny>,
    drained: Py<PyAny>,
    handshake_completed: Py<PyAny>,
    path_changed: Py<PyAny>,
    connection_ids_renewed: Py<PyAny>,
    connection_closed: Py<PyAny>,
    connection_stats: Py<PyAny>,
    make_head: Py<PyAny>,
    make_trailers: Py<PyAny>,
    mint: Py<PyAny>,
    reset: Py<PyAny>,
    stray: Py<PyAny>,
    refuse: Py<PyAny>,
    judge: Py<PyAny>,
    enter: Py<PyAny>,
    leave: Py<PyAny>,
    admit: Option<Py<PyAny>>,
    transmit: Py<PyAny>,
    trace: Option<Py<PyAny>>,
}

/// A setting that has to be there.
///
/// # Errors
/// `KeyError` and those of its type.
pub fn setting<'py, T: for<'a> FromPyObject<'py>>(settings: &Bound<'py, PyDict>, name: &str) -> PyResult<T> {
    settings.get_item(name)?.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?.extract()
}

impl Callbacks {
    /// Take them out of the settings.
    ///
    /// # Errors
    /// Where one is missing.
    pub fn new(settings: &Bound<'_, PyDict>) -> PyResult<Self> {
        let events: Bound<'_, PyAny> = setting(settings, "events")?;
        let class = |name: &str| events.getattr(name).map(Bound::unbind);
        Ok(Self {
            request_body: class("RequestBody")?,
            request_end: class("RequestEnd")?,
            stream_reset: class("StreamReset")?,
            rejected: class("Rejected")?,
            drained: class("Drained")?,
            handshake_completed: class("HandshakeCompleted")?,
            path_changed: class("PathChanged")?,
            connection_ids_renewed: class("ConnectionIdsRenewed")?,
            connection_closed: class("ConnectionClosed")?,
            connection_stats: class("ConnectionStats")?,
            make_head: setting(settings, "make_head")?,
            make_trailers: setting(settings, "make_trailers")?,
            mint: setting(settings, "mint")?,
            reset: setting(settings, "reset")?,
            stray: setting(settings, "stray")?,
            refuse: setting(settings, "refuse")?,
            judge: setting(settings, "judge")?,
            enter: setting(settings, "enter")?,
            leave: setting(settings, "leave")?,
            admit: setting(settings, "admit")?,
            transmit: setting(settings, "transmit")?,
            trace: setting(settings, "trace")?,
        })
    }

    /// A connection ID and its stateless reset token.
    ///
    /// # Errors
    /// Those of the callable, and for an ID or a token of a wrong length.
    pub fn mint(&self, py: Python<'_>) -> PyResult<(Cid, u128)> {
        let (cid, token): (Vec<u8>, [u8; 16]) = self.mint.bind(py).call0()?.extract()?;
        Ok((connection_id(&cid)?, u128::from_be_bytes(token)))
    }

    /// What to do with the Initial of a client that nobody knows.
    ///
    /// # Errors
    /// Those of the callable.
    pub fn judge(&self, py: Python<'_>, datagram: &[u8], peer: SocketAddr, now: f64, may_answer: bool) -> PyResult<Arrival> {
        type Judged = (Option<PyBackedBytes>, Option<PyBackedBytes>, Option<PyBackedBytes>);
        let judged = self.judge.bind(py).call1((PyBytes::new(py, datagram), address(peer), now, may_answer))?;
        let (answer, original, source): Judged = judged.extract()?;
        Ok(match (answer, original) {
            (Some(answer), _) => Arrival::Answer(answer.to_vec()),
            (None, Some(original)) => Arrival::Enter {
                original: connection_id(&original)?,
                retry_source: source.map(|source| connection_id(&source)).transpose()?,
            },
            (None, None) => Arrival::Drop,
        })
    }

    /// A handshake began.
    ///
    /// # Errors
    /// Those of the callable.
    pub fn enter(&self, py: Python<'_>, handle: u64, peer: SocketAddr) -> PyResult<()> {
        self.enter.bind(py).call1((handle, peer.ip().to_string()))?;
        Ok(())
    }

    /// It is over; complete or not.
    ///
    /// # Errors
    /// Those of the callable.
    pub fn leave(&self, py: Python<'_>, handle: u64, complete: bool) -> PyResult<()> {
        self.leave.bind(py).call1((handle, complete))?;
        Ok(())
    }

    /// Who admits has to know: a client that was counted and is not to be a connection.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.admit.is_some()
    }

    /// Whether a new client may come in.
    ///
    /// # Errors
    /// Those of the callable.
    pub fn admit(&self, py: Python<'_>, handle: u64, peer: SocketAddr) -> PyResult<bool> {
        match &self.admit {
            Some(admit) => admit.bind(py).call1((handle, address(peer)))?.extract(),
            None => Ok(true),
        }
    }

    /// The packet that refuses a client's Initial, if there is one.
    ///
    /// # Errors
    /// Those of the callable.
    pub fn refuse(&self, py: Python<'_>, datagram: &[u8]) -> PyResult<Option<Vec<u8>>> {
        self.refuse.bind(py).call1((PyBytes::new(py, datagram),))?.extract()
    }

    /// Where the trace of a new connection goes, if there is to be one.
    ///
    /// # Errors
    /// Those of the callable.
    pub fn trace(&self, py: Python<'_>, peer: SocketAddr, original: Cid) -> PyResult<Option<Py<PyAny>>> {
        match &self.trace {
            Some(trace) => trace.bind(py).call1((address(peer), PyBytes::new(py, original.as_slice())))?.extract(),
            None => Ok(None),
        }
    }

    /// The stateless reset that answers a packet of `size` bytes, if there is one; `start` is the packet from its connection ID on.
    ///
    /// # Errors
    /// Those of the callable.
    pub fn reset(&self, py: Python<'_>, start: &[u8], size: usize, now: f64) -> PyResult<Option<Vec<u8>>> {
        self.reset.bind(py).call1((PyBytes::new(py, start), size, now))?.extract()
    }

    /// Whether a datagram of no connection here is another worker's, who gets it then.
    ///
    /// # Errors
    /// Those of the callable.
    pub fn stray(&self, py: Python<'_>, data: &[u8], from: SocketAddr, to: SocketAddr) -> PyResult<bool> {
        self.stray.bind(py).call1((PyBytes::new(py, data), address(from), address(to)))?.extract()
    }

    /// Append the event that a client has no connection IDs of an earlier form any more.
    ///
    /// # Errors
    /// Those of the class.
    pub fn tell_renewed(&self, events: &Bound<'_, PyList>, handle: u64) -> PyResult<()> {
        events.append((handle, self.connection_ids_renewed.bind(events.py()).call0()?))
    }

    /// Append the event that a connection is over.
    ///
    /// # Errors
    /// Those of the class.
    pub fn tell_closed(&self, events: &Bound<'_, PyList>, handle: u64, error: &str, detail: &str, seen: Option<&Seen>) -> PyResult<()> {
        let py = events.py();
        let stats = seen.map(|seen| {
            let (round_trip, window) = (seen.round_trip.as_secs_f64(), seen.congestion_window);
            let packets = (seen.packets_sent, seen.packets_lost, seen.bytes_lost);
            let path = (seen.datagram_size, seen.black_holes);
            self.connection_stats.bind(py).call1((round_trip, window, packets.0, packets.1, packets.2, path.0, path.1))
        });
        let event = self.connection_closed.bind(py).call1((error, detail, stats.transpose()?))?;
        events.append((handle, event))
    }

    /// A `seam.Transmit`.
    ///
    /// # Errors
    /// Those of the class.
    pub fn transmit<'py>(&self, py: Python<'py>, data: &[u8], to: SocketAddr, from: SocketAddr) -> PyResult<Bound<'py, PyAny>> {
        self.transmit.bind(py).call1((PyBytes::new(py, data), address(to), address(from)))
    }
}

fn connection_id(bytes: &[u8]) -> PyResult<Cid> {
    Cid::new(bytes).ok_or_else(|| PyKeyError::new_err("a connection ID has at most 20 bytes"))
}

/// As Python has addresses.
#[must_use]
pub fn address(address: SocketAddr) -> (String, u16) {
    (address.ip().to_string(), address.port())
}

/// A field of a header section as it came from Python.
pub struct Field<'py>(Bound<'py, PyBytes>, Bound<'py, PyBytes>);

impl NameValue for Field<'_> {
    fn name(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn value(&self) -> &[u8] {
        self.1.as_bytes()
    }
}

/// A header section from Python: a list of pairs of bytes.
///
/// # Errors
/// `TypeError` for anything else.
pub fn fields<'py>(headers: &Bound<'py, PyList>) -> PyResult<Vec<Field<'py>>> {
    let mut out = Vec::with_capacity(headers.len());
    for pair in headers.iter() {
        let pair = pair.cast_into::<PyTuple>()?;
        out.push(Field(pair.get_item(0)?.cast_into()?, pair.get_item(1)?.cast_into()?));
    }
    Ok(out)
}

fn section<'py>(py: Python<'py>, fields: &[Header]) -> PyResult<Bound<'py, PyList>> {
    let pairs = fields.iter().map(|field| (PyBytes::new(py, field.name()), PyBytes::new(py, field.value())));
    PyList::new(py, pairs)
}

/// What there is to tell of a handshake.
pub struct Told {
    session: Py<PyAny>,
    resumed: bool,
    random: [u8; 32],
}

impl Told {
    /// None before the ClientHello.
    pub fn of(py: Python<'_>, quic: &mut quiche::Connection) -> Option<Self> {
        let session = tls::session(py, quic.as_mut())?;
        Some(Self { session, resumed: quic.is_resumed(), random: tls::client_random(quic.as_mut()) })
    }
}

/// Collects the events of one connection. An exception of a class or a callable is a fault of ours: it is told by `sys.unraisablehook`,
/// and `failed` says that the connection is to be closed.
pub struct Teller<'a, 'py> {
    pub py: Python<'py>,
    pub callbacks: &'a Callbacks,
    pub events: &'a Bound<'py, PyList>,
    pub handle: u64,
    pub peer: SocketAddr,
    /// Until the handshake is complete.
    pub session: Option<Told>,
    /// Requests may be replays.
    pub early: bool,
    pub closed: bool,
    pub failed: bool,
}

impl<'py> Teller<'_, 'py> {
    fn tell(&mut self, event: PyResult<Bound<'py, PyAny>>) {
        let told = event.and_then(|event| self.events.append((self.handle, event)));
        if let Err(error) = told {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: PyErr) {
        self.failed = true;
        error.write_unraisable(self.py, None);
    }

    fn call(&mut self, class: &Py<PyAny>, arguments: impl pyo3::call::PyCallArgs<'py>) {
        let event = class.bind(self.py).call1(arguments);
        self.tell(event);
    }

    fn ready_event(&mut self, early: bool) -> PyResult<Bound<'py, PyAny>> {
        let told = self.session.take().ok_or_else(|| PyKeyError::new_err("a handshake without a session"))?;
        let how = [("resumed", told.resumed)].into_py_dict(self.py)?;
        if early {
            how.set_item("early", PyBytes::new(self.py, &told.random))?;
        }
        told.session.into_bound(self.py).call_method(intern!(self.py, "ready"), (address(self.peer),), Some(&how))
    }

    fn try_head(&mut self, stream: u64, fields: &[Header], end: bool) -> PyResult<Verdict> {
        let fields = section(self.py, fields)?;
        let made = self.callbacks.make_head.bind(self.py).call1((stream, fields, end))?;
        let made = made.cast_into::<PyTuple>()?;
        let status: u16 = made.get_item(1)?.extract()?;
        let length: i64 = made.get_item(2)?.extract()?;
        if status == 0 && end && length > 0 {
            let (reason, detail) = ("body_length", "no body where content-length says there is one");
            self.rejected(stream, 400, reason, detail);
            return Ok(Verdict::Rejected(400));
        }
        let event = made.get_item(0)?;
        if self.early && status == 0 {
            event.setattr(intern!(self.py, "early"), true)?;
        }
        self.events.append((self.handle, event))?;
        if status != 0 {
            return Ok(Verdict::Rejected(status));
        }
        Ok(Verdict::Accepted { length: u64::try_from(length).ok(), bodiless: made.get_item(3)?.extract()? })
    }

    fn try_trailers(&mut self, stream: u64, fields: &[Header]) -> PyResult<Result<Vec<Header>, String>> {
        let fields = section(self.py, fields)?;
        let made = self.callbacks.make_trailers.bind(self.py).call1((stream, fields))?;
        if let Ok(kept) = made.cast::<PyList>() {
            let kept = self::fields(kept)?;
            return Ok(Ok(kept.iter().map(|field| Header::new(field.name(), field.value())).collect()));
        }
        let detail = made.getattr("detail")?.extract()?;
        self.events.append((self.handle, made))?;
        Ok(Err(detail))
    }
}

impl Application for Teller<'_, '_> {
    fn head(&mut self, stream: u64, fields: &[Header], end: bool) -> Verdict {
        self.try_head(stream, fields, end).unwrap_or_else(|error| {
            self.fail(error);
            Verdict::Rejected(400)
        })
    }

    fn body(&mut self, stream: u64, data: &[u8]) {
        let bytes = PyBytes::new(self.py, data);
        self.call(&self.callbacks.request_body, (stream, bytes, data.len()));
    }

    fn trailers(&mut self, stream: u64, fields: &[Header]) -> Result<Vec<Header>, String> {
        self.try_trailers(stream, fields).unwrap_or_else(|error| {
            self.fail(error);
            Err("internal error".to_owned())
        })
    }

    fn end(&mut self, stream: u64, trailers: &[Header]) {
        match section(self.py, trailers) {
            Ok(trailers) => self.call(&self.callbacks.request_end, (stream, trailers)),
            Err(error) => self.fail(error),
        }
    }

    fn cut(&mut self, stream: u64, reason: &str) {
        self.call(&self.callbacks.stream_reset, (stream, reason));
    }

    fn rejected(&mut self, stream: u64, status: u16, reason: &str, detail: &str) {
        self.call(&self.callbacks.rejected, (stream, status, reason, detail));
    }

    fn drained(&mut self, stream: u64) {
        self.call(&self.callbacks.drained, (stream,));
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Ready { early } => {
                self.early = early;
                let event = self.ready_event(early);
                self.tell(event);
            }
            Change::Completed => {
                self.early = false;
                self.call(&self.callbacks.handshake_completed, ());
            }
            Change::Moved(peer) => self.call(&self.callbacks.path_changed, (address(peer),)),
            Change::Closed { error, detail, seen } => {
                self.closed = true;
                let told = self.callbacks.tell_closed(self.events, self.handle, &error, &detail, seen.as_ref());
                if let Err(error) = told {
                    self.fail(error);
                }
            }
        }
    }
}
