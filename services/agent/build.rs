//! Builds the shim as a small static program, so that the agent can carry it inside itself: there is
//! no path to look it up at, and no other version of it to meet.

use std::{env, path::PathBuf, process::Command};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let services = manifest.parent().expect("the agent lies in services/");
    for source in [
        "shim/src",
        "shim/Cargo.toml",
        "../libs/shim-protocol/src",
        "../libs/shim-protocol/Cargo.toml",
        "../libs/sys/src",
        "../libs/sys/Cargo.toml",
        "../libs/clock/src",
        "../libs/clock/Cargo.toml",
        "../Cargo.toml",
        "../Cargo.lock",
    ] {
        println!("cargo:rerun-if-changed={}", services.join(source).display());
    }

    let target = out.join("shim");
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    cargo
        .args(["build", "--quiet", "--locked", "--release", "--package", "tether-shim"])
        .arg("--manifest-path")
        .arg(services.join("shim/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static -C panic=abort -C opt-level=z",
        );
    // What the outer cargo set for this crate, or for clippy, must not reach the inner one.
    for outer in [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
    ] {
        cargo.env_remove(outer);
    }
    let built = cargo.status();
    assert!(
        built.as_ref().is_ok_and(std::process::ExitStatus::success),
        "cannot build the static tether-shim ({built:?}); it needs the static C library (libc6-dev on Debian)"
    );
    println!(
        "cargo:rustc-env=TETHER_SHIM={}",
        target.join("release/tether-shim").display()
    );
}
