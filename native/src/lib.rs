//! QUIC and HTTP/3 for qproxy: one endpoint object for all connections of a UDP listener, around quiche.
//!
//! From the wire to Python: `io` has the system calls, `packets` says whose a datagram is, `endpoint` owns the connections and their
//! `timers`, `connection` is one of them, `http3` its requests (`frames`, `control`, `output`, `budget` are its parts), `tls` chooses
//! certificates and `tickets` resumes sessions, `python` tells what happened. No policy is here: what a request means and where it goes, Python decides.

mod black_hole;
mod budget;
mod compression;
mod connection;
mod control;
#[cfg(test)]
mod dialogues;
mod endpoint;
mod frames;
mod http3;
mod identity;
mod io;
mod output;
mod packets;
#[cfg(test)]
mod pair;
mod python;
mod tickets;
mod timers;
mod tls;
mod trace;
mod versions;

use pyo3::prelude::*;

/// The extension module.
#[pymodule]
fn qproxy_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<endpoint::Endpoint>()?;
    module.add_function(wrap_pyfunction!(versions::versions, module)?)
}
