//! Tells the versions in Cargo.lock of the crates that `versions` names: neither of them tells its own.

use std::fs;

fn main() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    let lock = fs::read_to_string("Cargo.lock").expect("Cargo.lock stands beside Cargo.toml");
    for name in ["quiche", "boring"] {
        let head = format!("name = \"{name}\"\nversion = \"");
        let (_, rest) = lock.split_once(&head).expect("a dependency");
        let (version, _) = rest.split_once('"').expect("a version");
        println!("cargo::rustc-env={}_VERSION={version}", name.to_uppercase());
    }
}
