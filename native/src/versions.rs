//! What the extension was built from.

use std::collections::BTreeMap;

/// Versions of the parts that matter for security notices, by name, as Cargo.lock has them.
#[pyo3::pyfunction]
pub fn versions() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([("qproxy-native", env!("CARGO_PKG_VERSION")), ("quiche", env!("QUICHE_VERSION")), ("boring", env!("BORING_VERSION"))])
}
