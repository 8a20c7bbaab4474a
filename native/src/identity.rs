//! What a server shows in a handshake: certificates with their keys, and the rule for client certificates.
//!
//! Knows what a profile of Python's looks like, and BoringSSL's credentials. Knows no handshakes.
//!
//! A credential is a chain with its key. A session may have several of them, best first, and BoringSSL takes the first that can sign by an
//! algorithm of the client's (RFC 8446, section 4.4.2.2).

use std::collections::HashMap;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use boring::error::ErrorStack;
use boring::pkey::PKey;
use boring::ssl::{SslRef, SslVerifyMode};
use boring::x509::X509;
use boring::x509::store::{X509Store, X509StoreBuilder};
use boring_sys as ffi;
use foreign_types_shared::ForeignTypeRef;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyWeakrefMethods, PyWeakrefReference};

use crate::compression::{Algorithm, compressed};

/// Certificates in a client's chain.
const MAX_CHAIN: u32 = 8;

/// Profiles known at least before those that died are looked for.
const SWEEP: usize = 64;

/// Compressed messages that are kept of one identity: each algorithm of each of its certificates, of which there is one for each kind of key.
const KEPT: usize = 8;

/// Certificates with their keys, parsed, and the rule for client certificates.
pub struct Identity {
    credentials: Vec<Credential>,
    clients: Option<Clients>,
    compressed: Mutex<Vec<Compressed>>,
}

/// A Certificate message, and what it becomes.
struct Compressed {
    algorithm: Algorithm,
    message: Box<[u8]>,
    becomes: Arc<[u8]>,
}

struct Clients {
    authorities: X509Store,
    required: bool,
}

impl Identity {
    fn of(profile: &Bound<'_, PyAny>) -> PyResult<Identity> {
        let py = profile.py();
        let mut credentials = Vec::new();
        for certificate in profile.getattr(intern!(py, "certificates"))?.try_iter()? {
            credentials.push(Credential::of(&certificate?)?);
        }
        let rule = profile.getattr(intern!(py, "client_rule"))?;
        let clients = if rule.is_none() { None } else { Some(Clients::of(&rule)?) };
        Ok(Identity { credentials, clients, compressed: Mutex::default() })
    }

    /// Show it in this session.
    pub fn apply(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        for credential in &self.credentials {
            credential.add_to(ssl)?;
        }
        if let Some(clients) = &self.clients {
            // BoringSSL verifies for the purpose of a TLS client, and answers with the alert that fits (RFC 8446, section 4.4.2.4).
            let required = if clients.required { SslVerifyMode::FAIL_IF_NO_PEER_CERT } else { SslVerifyMode::NONE };
            ssl.set_verify(SslVerifyMode::PEER | required);
            ssl.set_verify_depth(MAX_CHAIN);
            ssl.set_verify_cert_store(clients.authorities.clone())?;
        }
        Ok(())
    }

    /// The compressed form of one of its Certificate messages: made for the first client that wants it, and kept.
    pub fn compressed(&self, algorithm: Algorithm, message: &[u8]) -> Option<Arc<[u8]>> {
        let mut kept = self.compressed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.iter().find(|one| one.algorithm == algorithm && *one.message == *message) {
            return Some(Arc::clone(&found.becomes));
        }
        let becomes: Arc<[u8]> = compressed(algorithm, message)?.into();
        if kept.len() < KEPT {
            kept.push(Compressed { algorithm, message: message.into(), becomes: Arc::clone(&becomes) });
        }
        Some(becomes)
    }
}

/// BoringSSL's own: shared by the sessions that show it.
struct Credential(*mut ffi::SSL_CREDENTIAL);

// SAFETY: it is complete and changes no more, and BoringSSL counts references to it atomically.
unsafe impl Send for Credential {}
// SAFETY: as above.
unsafe impl Sync for Credential {}

impl Drop for Credential {
    fn drop(&mut self) {
        // SAFETY: our reference, given up once.
        unsafe { ffi::SSL_CREDENTIAL_free(self.0) };
    }
}

impl Credential {
    fn of(certificate: &Bound<'_, PyAny>) -> PyResult<Credential> {
        let py = certificate.py();
        let pem = certificate.getattr(intern!(py, "chain_pem"))?;
        let chain = X509::stack_from_pem(pem.cast::<PyBytes>()?.as_bytes()).map_err(invalid)?;
        if chain.is_empty() {
            return Err(PyValueError::new_err("no certificate in chain_pem"));
        }
        let pem = certificate.getattr(intern!(py, "key_pem"))?;
        let key = PKey::private_key_from_pem(pem.cast::<PyBytes>()?.as_bytes()).map_err(invalid)?;
        let mut buffers = Buffers(Vec::with_capacity(chain.len()));
        for one in &chain {
            buffers.add(&one.to_der().map_err(invalid)?)?;
        }
        // SAFETY: a new credential is ours; it takes references to the buffers and the key, which are alive.
        unsafe {
            let raw = ffi::SSL_CREDENTIAL_new_x509();
            if raw.is_null() {
                return Err(invalid(ErrorStack::get()));
            }
            let credential = Credential(raw);
            if ffi::SSL_CREDENTIAL_set1_cert_chain(raw, buffers.0.as_ptr(), buffers.0.len()) != 1
                || ffi::SSL_CREDENTIAL_set1_private_key(raw, key.as_ptr()) != 1
            {
                return Err(invalid(ErrorStack::get()));
            }
            Ok(credential)
        }
    }

    fn add_to(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        // SAFETY: both are alive, and the session takes a reference.
        if unsafe { ffi::SSL_add1_credential(ssl.as_ptr(), self.0) } == 1 { Ok(()) } else { Err(ErrorStack::get()) }
    }
}

/// References to BoringSSL's buffers, until they are handed on.
struct Buffers(Vec<*mut ffi::CRYPTO_BUFFER>);

impl Buffers {
    fn add(&mut self, data: &[u8]) -> PyResult<()> {
        // SAFETY: the bytes are copied; no pool is one of the choices.
        let raw = unsafe { ffi::CRYPTO_BUFFER_new(data.as_ptr(), data.len(), ptr::null_mut()) };
        if raw.is_null() {
            return Err(invalid(ErrorStack::get()));
        }
        self.0.push(raw);
        Ok(())
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        for raw in &self.0 {
            // SAFETY: our references, given up once each.
            unsafe { ffi::CRYPTO_BUFFER_free(*raw) };
        }
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
pub struct Known {
    identities: HashMap<usize, (Py<PyWeakrefReference>, Arc<Identity>)>,
    /// How many there may be before the dead ones are swept out: twice as many as lived after the last time.
    sweep_at: usize,
}

impl Known {
    /// What *profile* says, parsed once.
    pub fn identity(&mut self, profile: &Bound<'_, PyAny>) -> PyResult<Arc<Identity>> {
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

fn invalid(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}
