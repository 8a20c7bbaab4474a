//! TLS 1.3 for QUIC: the certificate by the client's SNI, and client certificates, by BoringSSL.
//!
//! Asks Python (`engine/quic/sessions.py`) for the session that a ClientHello begins, and knows what its profile looks like. Knows no
//! packets and no connections.
//!
//! A context is never swapped for another one in a handshake, since quiche's callbacks live on the one that it was
//! given: certificate, key and the rule for client certificates are set on the session.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use boring::error::ErrorStack;
use boring::ex_data::Index;
use boring::pkey::{PKey, Private};
use boring::ssl::{NameType, SniError, Ssl, SslAlert, SslContextBuilder, SslMethod, SslOptions, SslRef, SslVerifyMode, SslVersion};
use boring::x509::X509;
use boring::x509::store::{X509Store, X509StoreBuilder};
use foreign_types_shared::ForeignTypeRef;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyWeakrefMethods, PyWeakrefReference};

use crate::packets::Cid;
use crate::tickets;

/// Key exchange in the server's order: the hybrid with ML-KEM-768 first (draft-ietf-tls-ecdhe-mlkem), as browsers have it.
const GROUPS: &str = "X25519MLKEM768:X25519:P-256";

/// Certificates in a client's chain.
const MAX_CHAIN: u32 = 8;

/// Profiles known at least before those that died are looked for.
const SWEEP: usize = 64;

/// What a TLS session knows of its connection, and what its ClientHello began.
struct Handshake {
    original: Cid,
    session: Option<Py<PyAny>>,
}

static HANDSHAKE: LazyLock<Index<Ssl, Handshake>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("a place for the extra data of TLS sessions"));

/// Before its first packet: whose handshake it is, by the connection ID that the client made up.
pub fn prepare(ssl: &mut SslRef, original: Cid) {
    ssl.set_ex_data(*HANDSHAKE, Handshake { original, session: None });
}

/// The Python session that the ClientHello began.
pub fn session(py: Python<'_>, ssl: &SslRef) -> Option<Py<PyAny>> {
    Some(ssl.ex_data(*HANDSHAKE)?.session.as_ref()?.clone_ref(py))
}

/// What its ClientHello says that no other does.
pub fn client_random(ssl: &SslRef) -> [u8; 32] {
    let mut random = [0; 32];
    ssl.client_random(&mut random);
    random
}

/// The handshake is over: nobody asks for the session any more.
pub fn forget(ssl: &mut SslRef) {
    if let Some(handshake) = ssl.ex_data_mut(*HANDSHAKE) {
        handshake.session = None;
    }
}

/// The choice of certificates of an endpoint.
pub struct Tls {
    shared: Arc<Shared>,
    tickets: Option<tickets::Terms>,
}

struct Shared {
    begin: Py<PyAny>,
    known: Mutex<Known>,
}

impl Tls {
    /// *begin* is `Sessions.begin`: SNI and original connection ID to session, None refuses.
    pub fn new(begin: Py<PyAny>, tickets: Option<tickets::Terms>) -> Tls {
        Tls { shared: Arc::new(Shared { begin, known: Mutex::default() }), tickets }
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

/// A certificate with its chain and key, parsed, and the rule for client certificates.
struct Identity {
    certificate: X509,
    chain: Vec<X509>,
    key: PKey<Private>,
    clients: Option<Clients>,
}

struct Clients {
    authorities: X509Store,
    required: bool,
}

impl Identity {
    fn of(profile: &Bound<'_, PyAny>) -> PyResult<Identity> {
        let py = profile.py();
        let certificate = profile.getattr(intern!(py, "certificate"))?;
        let pem = certificate.getattr(intern!(py, "chain_pem"))?;
        let mut chain = X509::stack_from_pem(pem.cast::<PyBytes>()?.as_bytes()).map_err(invalid)?;
        if chain.is_empty() {
            return Err(pyo3::exceptions::PyValueError::new_err("no certificate in chain_pem"));
        }
        let pem = certificate.getattr(intern!(py, "key_pem"))?;
        let key = PKey::private_key_from_pem(pem.cast::<PyBytes>()?.as_bytes()).map_err(invalid)?;
        let rule = profile.getattr(intern!(py, "client_rule"))?;
        let clients = if rule.is_none() { None } else { Some(Clients::of(&rule)?) };
        Ok(Identity { certificate: chain.remove(0), chain, key, clients })
    }

    fn apply(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        ssl.set_certificate(&self.certificate)?;
        for certificate in &self.chain {
            ssl.add_chain_cert(certificate)?;
        }
        ssl.set_private_key(&self.key)?;
        if let Some(clients) = &self.clients {
            // BoringSSL verifies for the purpose of a TLS client, and answers with the alert that fits (RFC 8446, section 4.4.2.4).
            let required = if clients.required { SslVerifyMode::FAIL_IF_NO_PEER_CERT } else { SslVerifyMode::NONE };
            ssl.set_verify(SslVerifyMode::PEER | required);
            ssl.set_verify_depth(MAX_CHAIN);
            ssl.set_verify_cert_store(clients.authorities.clone())?;
        }
        Ok(())
    }
}

impl Clients {
    fn of(rule: &Bound<'_, PyAny>) -> PyResult<Clients> {
        let py = rule.py();
        let pem = rule.getattr(intern!(py, "ca_pem"))?;
        let mut authorities = X509StoreBuilder::new().map_err(invalid)?;
        for certificate in X509::stack_from_pem(pem.cast::<PyBytes>()?.as_bytes()).map_err(invalid)? {
            authorities.add_cert(certificate).map_err(invalid)?;
        }
        Ok(Clients { authorities: authorities.build(), required: rule.getattr(intern!(py, "required"))?.extract()? })
    }
}

/// Parsed material by the identity of its profile, for as long as the profile lives: a reload brings new ones.
#[derive(Default)]
struct Known {
    identities: HashMap<usize, (Py<PyWeakrefReference>, Arc<Identity>)>,
    /// How many there may be before the dead ones are swept out: twice as many as lived after the last time.
    sweep_at: usize,
}

impl Known {
    fn identity(&mut self, profile: &Bound<'_, PyAny>) -> PyResult<Arc<Identity>> {
        let py = profile.py();
        let address = profile.as_ptr() as usize;
        if let Some((reference, identity)) = self.identities.get(&address) {
            // another object may stand where a dead one was
            if reference.bind(py).upgrade().is_some_and(|alive| alive.is(profile)) {
                return Ok(Arc::clone(identity));
            }
        }
        let identity = Arc::new(Identity::of(profile)?);
        if self.identities.len() >= self.sweep_at {
            self.identities.retain(|_, (reference, _)| reference.bind(py).upgrade().is_some());
            self.sweep_at = SWEEP.max(2 * self.identities.len());
        }
        let reference = PyWeakrefReference::new(profile)?.unbind();
        self.identities.insert(address, (reference, Arc::clone(&identity)));
        Ok(identity)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn invalid(error: impl std::fmt::Display) -> PyErr {
    pyo3::exceptions::PyValueError::new_err(error.to_string())
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
