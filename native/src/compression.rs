//! Certificates in fewer bytes, for clients that take them compressed (RFC 8879): a long chain fits what may be sent to an address that
//! nobody has proven yet, and the handshake is a round trip shorter.
//!
//! Knows the algorithms and BoringSSL's callback. What was compressed is kept by `identity`.

use std::io::Write;
use std::os::raw::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use boring::error::ErrorStack;
use boring::ssl::{SslContextBuilder, SslRef};
use boring_sys as ffi;
use brotli::enc::BrotliEncoderParams;
use flate2::write::ZlibEncoder;
use foreign_types_shared::ForeignTypeRef;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::tls;

/// An algorithm by its number (RFC 8879, section 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RFC 1950.
    Zlib = 1,
    /// RFC 7932.
    Brotli = 2,
}

impl Algorithm {
    /// As the settings call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Zlib => "zlib",
            Algorithm::Brotli => "brotli",
        }
    }

    /// By the names that the settings have for them.
    pub fn called(names: &[String]) -> PyResult<Vec<Algorithm>> {
        let one = |name: &String| {
            let found = [Algorithm::Zlib, Algorithm::Brotli].into_iter().find(|algorithm| algorithm.name() == name);
            found.ok_or_else(|| PyValueError::new_err(format!("no certificate compression {name}")))
        };
        names.iter().map(one).collect()
    }
}

/// Let the sessions of a context have their certificates compressed by *algorithms*, best first.
pub fn offer(builder: &mut SslContextBuilder, algorithms: &[Algorithm]) -> Result<(), ErrorStack> {
    for &algorithm in algorithms {
        let callback: unsafe extern "C" fn(*mut ffi::SSL, *mut ffi::CBB, *const u8, usize) -> c_int = match algorithm {
            Algorithm::Zlib => by_zlib,
            Algorithm::Brotli => by_brotli,
        };
        // SAFETY: the context is alive; without a function to decompress, clients' certificates are not asked for in that form.
        if unsafe { ffi::SSL_CTX_add_cert_compression_alg(builder.as_ptr(), algorithm as u16, Some(callback), None) } != 1 {
            return Err(ErrorStack::get());
        }
    }
    Ok(())
}

/// *data* in fewer bytes, as few as the algorithm can: it is done once.
#[must_use]
pub fn compressed(algorithm: Algorithm, data: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(data.len());
    match algorithm {
        Algorithm::Zlib => {
            let mut encoder = ZlibEncoder::new(&mut out, flate2::Compression::best());
            encoder.write_all(data).ok()?;
            encoder.finish().ok()?;
        }
        Algorithm::Brotli => {
            let parameters = BrotliEncoderParams { size_hint: data.len(), lgwin: 16, ..BrotliEncoderParams::default() };
            brotli::BrotliCompress(&mut &*data, &mut out, &parameters).ok()?;
        }
    }
    Some(out)
}

unsafe extern "C" fn by_zlib(ssl: *mut ffi::SSL, out: *mut ffi::CBB, data: *const u8, size: usize) -> c_int {
    // SAFETY: what BoringSSL gave.
    unsafe { write(Algorithm::Zlib, ssl, out, data, size) }
}

unsafe extern "C" fn by_brotli(ssl: *mut ffi::SSL, out: *mut ffi::CBB, data: *const u8, size: usize) -> c_int {
    // SAFETY: what BoringSSL gave.
    unsafe { write(Algorithm::Brotli, ssl, out, data, size) }
}

/// Write a Certificate message in its compressed form; 0 ends the handshake.
///
/// # Safety
///
/// The arguments are BoringSSL's: a session in its handshake, a place to write to, *size* bytes to read.
unsafe fn write(algorithm: Algorithm, ssl: *mut ffi::SSL, out: *mut ffi::CBB, data: *const u8, size: usize) -> c_int {
    // SAFETY: the caller's word.
    let (ssl, message) = unsafe { (SslRef::from_ptr_mut(ssl), std::slice::from_raw_parts(data, size)) };
    // A panic must not cross BoringSSL.
    let found = catch_unwind(AssertUnwindSafe(|| tls::compressed(ssl, algorithm, message)));
    match found {
        // SAFETY: the caller's word; the bytes are copied.
        Ok(Some(becomes)) => unsafe { ffi::CBB_add_bytes(out, becomes.as_ptr(), becomes.len()) },
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_compressed_can_be_read_again() {
        let message: Vec<u8> = (0..20_000_u32).map(|at| (at * at / 700 % 251) as u8).collect();
        let zlib = compressed(Algorithm::Zlib, &message).expect("compressed");
        let mut read = Vec::new();
        flate2::read::ZlibDecoder::new(&*zlib).read_to_end(&mut read).expect("zlib");
        assert!(read == message && zlib.len() < message.len());
        let brotli = compressed(Algorithm::Brotli, &message).expect("compressed");
        let mut read = Vec::new();
        brotli::BrotliDecompress(&mut &*brotli, &mut read).expect("brotli");
        assert!(read == message && brotli.len() < message.len());
    }
}
