//! Session tickets, made and read by Python: BoringSSL's state goes in, a ticket comes out, and the other way round.
//!
//! Knows the session object of `engine/quic/sessions.py`, which stands in the TLS session's extra data. Knows no keys and no terms.

use std::os::raw::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use boring::ssl::{SslContextBuilder, SslRef};
use boring_sys as ffi;
use foreign_types_shared::ForeignTypeRef;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes};

use crate::tls;

/// How many tickets a handshake gives, and for how many seconds each resumes.
pub type Terms = (usize, u32);

static METHOD: ffi::SSL_TICKET_AEAD_METHOD =
    ffi::SSL_TICKET_AEAD_METHOD { max_overhead: Some(max_overhead), seal: Some(seal), open: Some(open) };

/// Room in a ticket besides its state: Python's `OVERHEAD` is less.
const OVERHEAD: usize = 128;

/// Let the sessions of a context have tickets.
pub fn offer(builder: &mut SslContextBuilder, terms: Terms) {
    let (count, lifetime) = terms;
    // SAFETY: the context is alive, and the table of functions lives for ever.
    unsafe {
        ffi::SSL_CTX_set_ticket_aead_method(builder.as_ptr(), &raw const METHOD);
        ffi::SSL_CTX_set_num_tickets(builder.as_ptr(), count);
        ffi::SSL_CTX_set_session_psk_dhe_timeout(builder.as_ptr(), lifetime);
    }
}

extern "C" fn max_overhead(_: *mut ffi::SSL) -> usize {
    OVERHEAD
}

/// Nothing written means that no ticket is given.
extern "C" fn seal(ssl: *mut ffi::SSL, out: *mut u8, out_len: *mut usize, max_out: usize, data: *const u8, data_len: usize) -> c_int {
    // SAFETY: BoringSSL's word: a session in its handshake, `data_len` bytes to read, `max_out` bytes to write. The input is copied
    // before the output is written, since they may be the same.
    let (ssl, data) = unsafe { (SslRef::from_ptr_mut(ssl), std::slice::from_raw_parts(data, data_len)) };
    let ticket = guarded(ssl, |py, session, resumed| {
        let how = [("resumed", resumed)].into_py_dict(py)?;
        session.call_method(intern!(py, "seal"), (PyBytes::new(py, data),), Some(&how))?.extract()
    });
    // SAFETY: as above.
    unsafe { *out_len = copy(&ticket.unwrap_or_default(), out, max_out).unwrap_or(0) };
    1
}

extern "C" fn open(
    ssl: *mut ffi::SSL,
    out: *mut u8,
    out_len: *mut usize,
    max_out: usize,
    data: *const u8,
    data_len: usize,
) -> ffi::ssl_ticket_aead_result_t {
    // SAFETY: as in `seal`.
    let (ssl, data) = unsafe { (SslRef::from_ptr_mut(ssl), std::slice::from_raw_parts(data, data_len)) };
    let state = guarded(ssl, |py, session, _| session.call_method1(intern!(py, "open"), (PyBytes::new(py, data),))?.extract());
    // SAFETY: as in `seal`.
    match unsafe { state.and_then(|state| copy(&state, out, max_out)) } {
        Some(size) => {
            // SAFETY: as in `seal`.
            unsafe { *out_len = size };
            ffi::ssl_ticket_aead_result_t::ssl_ticket_aead_success
        }
        None => ffi::ssl_ticket_aead_result_t::ssl_ticket_aead_ignore_ticket,
    }
}

/// Ask the Python session of a TLS session; None where there is none, for its None, and for a fault of ours, which is told.
fn guarded(ssl: &mut SslRef, ask: impl FnOnce(Python<'_>, &Bound<'_, PyAny>, bool) -> PyResult<Option<Vec<u8>>>) -> Option<Vec<u8>> {
    // A panic must not cross BoringSSL.
    catch_unwind(AssertUnwindSafe(|| {
        Python::attach(|py| {
            let session = tls::session(py, ssl)?.into_bound(py);
            ask(py, &session, ssl.session_reused()).unwrap_or_else(|error| {
                error.write_unraisable(py, Some(&session));
                None
            })
        })
    }))
    .unwrap_or_default()
}

/// # Safety
/// `max` bytes may be written to `out`.
unsafe fn copy(bytes: &[u8], out: *mut u8, max: usize) -> Option<usize> {
    if bytes.len() > max {
        return None;
    }
    // SAFETY: the caller's word.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out, bytes.len()) };
    Some(bytes.len())
}
