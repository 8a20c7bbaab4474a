//! TLS 1.3 for QUIC: the certificates by the client's SNI, and client certificates, by BoringSSL.
//!
//! Asks Python (`engine/quic/sessions.py`) for the session that a ClientHello begins, and knows what its profile looks like. Knows no
//! packets and no connections.
//!
//! A context is never swapped for another one in a handshake, since quiche's callbacks live on the one that it was
//! given: certificates, keys and the rule for client certificates are set on the session (`identity`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use boring::error::ErrorStack;
use boring::ex_data::Index;
use boring::ssl::{NameType, SniError, Ssl, SslAlert, SslContextBuilder, SslMethod, SslOptions, SslRef, SslVersion};
use foreign_types_shared::ForeignTypeRef;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::compression::{self, Algorithm};
use crate::identity::{Identity, Known};
use crate::packets::Cid;
use crate::tickets;

/// Key exchange in the server's order: the hybrid with ML-KEM-768 first (draft-ietf-tls-ecdhe-mlkem), as browsers have it.
const GROUPS: &str = "X25519MLKEM768:X25519:P-256";

/// What a TLS session knows of its connection, and what its ClientHello began.
struct Handshake {
    original: Cid,
    session: Option<Py<PyAny>>,
    identity: Option<Arc<Identity>>,
    compressed: Option<Algorithm>,
}

static HANDSHAKE: LazyLock<Index<Ssl, Handshake>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("a place for the extra data of TLS sessions"));

/// Before its first packet: whose handshake it is, by the connection ID that the client made up.
pub fn prepare(ssl: &mut SslRef, original: Cid) {
    ssl.set_ex_data(*HANDSHAKE, Handshake { original, session: None, identity: None, compressed: None });
}

/// The Python session that the ClientHello began.
pub fn session(py: Python<'_>, ssl: &SslRef) -> Option<Py<PyAny>> {
    Some(ssl.ex_data(*HANDSHAKE)?.session.as_ref()?.clone_ref(py))
}

/// A Certificate message of this handshake in its compressed form.
pub fn compressed(ssl: &mut SslRef, algorithm: Algorithm, message: &[u8]) -> Option<Arc<[u8]>> {
    let handshake = ssl.ex_data_mut(*HANDSHAKE)?;
    handshake.compressed = Some(algorithm);
    handshake.identity.as_ref()?.compressed(algorithm, message)
}

/// What its ClientHello says that no other does.
pub fn client_random(ssl: &SslRef) -> [u8; 32] {
    let mut random = [0; 32];
    ssl.client_random(&mut random);
    random
}

/// The handshake is over: nobody asks for the session any more. By what its certificate was compressed, if it was.
pub fn forget(ssl: &mut SslRef) -> Option<Algorithm> {
    let handshake = ssl.ex_data_mut(*HANDSHAKE)?;
    handshake.session = None;
    handshake.identity = None;
    handshake.compressed.take()
}

/// The choice of certificates of an endpoint.
pub struct Tls {
    shared: Arc<Shared>,
    tickets: Option<tickets::Terms>,
    compression: Vec<Algorithm>,
}

struct Shared {
    begin: Py<PyAny>,
    known: Mutex<Known>,
}

impl Tls {
    /// *begin* is `Sessions.begin`: SNI and original connection ID to session, None refuses. By *compression*
    /// certificates go compressed, best first.
    pub fn new(begin: Py<PyAny>, tickets: Option<tickets::Terms>, compression: Vec<Algorithm>) -> Tls {
        Tls { shared: Arc::new(Shared { begin, known: Mutex::default() }), tickets, compression }
    }

    /// The context of all connections of the endpoint, for quiche.
    pub fn context(&self) -> Result<SslContextBuilder, ErrorStack> {
        let mut builder = SslContextBuilder::new(SslMethod::tls())?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
        builder.set_max_proto_version(Some(SslVersion::TLS1_3))?;
        builder.set_curves_list(GROUPS)?;
        match self.tickets {
            Some(terms) => tickets::offer(&mut builder, terms),
            None => _ = builder.set_options(SslOptions::NO_TICKET),
        }
        compression::offer(&mut builder, &self.compression)?;
        let shared = Arc::clone(&self.shared);
        // Of the callbacks that may choose a certificate, this one may choose the alert as well. It runs for clients without SNI too.
        builder.set_servername_callback(move |ssl, alert| {
            // A panic must not cross BoringSSL.
            catch_unwind(AssertUnwindSafe(|| shared.choose(ssl))).unwrap_or(Err(SslAlert::INTERNAL_ERROR)).map_err(|wanted| {
                *alert = wanted;
                SniError::ALERT_FATAL
            })
        });
        Ok(builder)
    }
}

impl Shared {
    fn choose(&self, ssl: &mut SslRef) -> Result<(), SslAlert> {
        let sni = match ssl.servername_raw(NameType::HOST_NAME) {
            Some(raw) => Some(host_name(raw).ok_or(SslAlert::DECODE_ERROR)?),
            None => None,
        };
        let original = ssl.ex_data(*HANDSHAKE).ok_or(SslAlert::INTERNAL_ERROR)?.original;
        Python::attach(|py| {
            let original = PyBytes::new(py, original.as_slice());
            let session = self.begin.bind(py).call1((sni.as_deref(), original)).map_err(|error| self.told(py, error))?;
            if session.is_none() {
                return Err(SslAlert::UNRECOGNIZED_NAME);
            }
            let profile = session.getattr(intern!(py, "profile")).map_err(|error| self.told(py, error))?;
            let identity = locked(&self.known).identity(&profile).map_err(|error| self.told(py, error))?;
            identity.apply(ssl).map_err(|_| SslAlert::INTERNAL_ERROR)?;
            let early_data: bool =
                session.getattr(intern!(py, "early_data")).and_then(|word| word.extract()).map_err(|error| self.told(py, error))?;
            // SAFETY: the session is alive; with its tickets and for the one that it resumes, early data is yet to be decided on.
            unsafe { boring_sys::SSL_set_early_data_enabled(ssl.as_ptr(), early_data.into()) };
            if let Some(handshake) = ssl.ex_data_mut(*HANDSHAKE) {
                handshake.session = Some(session.unbind());
                handshake.identity = Some(identity);
            }
            Ok(())
        })
    }

    /// A fault of ours, not of the client: told by `sys.unraisablehook`, as there is nobody to raise it to.
    fn told(&self, py: Python<'_>, error: PyErr) -> SslAlert {
        error.write_unraisable(py, Some(self.begin.bind(py)));
        SslAlert::INTERNAL_ERROR
    }
}

/// A name as sites are looked up by, or None for what is no host name in ASCII (RFC 6066, section 3).
fn host_name(raw: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(raw).ok().filter(|name| name.is_ascii())?;
    Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_in_lower_case_without_the_root() {
        assert_eq!(host_name(b"A.Example.").as_deref(), Some("a.example"));
        assert_eq!(host_name(b"a.example..").as_deref(), Some("a.example."));
        assert_eq!(host_name(b".").as_deref(), Some(""));
        assert_eq!(host_name("ä.example".as_bytes()), None);
        assert_eq!(host_name(b"\xff"), None);
    }
}
