//! The trace of one connection (qlog): what quiche tells of it is kept until its turn is over, and handed over then.
//!
//! Knows the two methods of `seam.TraceSink`. Knows no connection.

use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Bytes of one turn, at most; beyond it, the trace has ended. A turn sends 128 KiB, of which the trace is a fraction.
const MAX_KEPT: usize = 1024 * 1024;

/// What was told; None once no more is wanted.
#[derive(Clone)]
struct Kept(Arc<Mutex<Option<Vec<u8>>>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side of quiche, which writes a record in many pieces.
impl io::Write for Kept {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let mut kept = self.lock();
        if kept.as_ref().is_some_and(|told| told.len() + piece.len() > MAX_KEPT) {
            *kept = None;
        }
        if let Some(told) = kept.as_mut() {
            told.extend_from_slice(piece);
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The trace of one connection.
pub struct Trace {
    sink: Py<PyAny>,
    kept: Kept,
}

impl Trace {
    /// Have `quic`, which is to have seen no packet, tell its trace to `sink`.
    #[must_use]
    pub fn begin(quic: &mut quiche::Connection, sink: Py<PyAny>, original: &[u8]) -> Self {
        let kept = Kept(Arc::new(Mutex::new(Some(Vec::new()))));
        let mut hex = String::new();
        for byte in original {
            let _ = write!(hex, "{byte:02x}"); // a String takes everything
        }
        quic.set_qlog(Box::new(kept.clone()), "qproxy".to_owned(), hex);
        Self { sink, kept }
    }

    /// Forget what was not handed over: there was no connection.
    pub fn abandon(&self) {
        *self.kept.lock() = None;
    }

    /// The connection's turn is over: hand over what was told.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn hand_over(&self, py: Python<'_>) -> PyResult<()> {
        let told = self.kept.lock().as_mut().map(std::mem::take).unwrap_or_default();
        if told.is_empty() {
            return Ok(());
        }
        let wanted: bool = self.sink.bind(py).call_method1("write", (PyBytes::new(py, &told),))?.extract()?;
        if !wanted {
            self.abandon();
        }
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        Python::attach(|py| {
            let closed = self.hand_over(py).and_then(|()| self.sink.bind(py).call_method0("close").map(drop));
            if let Err(error) = closed {
                error.write_unraisable(py, None);
            }
        });
    }
}
