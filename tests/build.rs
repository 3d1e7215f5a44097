//! Compiles the schemas of the example worker and of Snakepit's, and the small programs of the kill matrix and of fault injection.

use std::{env, error::Error, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../examples/digits/proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(["digits/v1/digits.proto"], [&root])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;
    snakepit_bridge()?;
    matrix_worker()?;
    fault_injector()
}

/// What Snakepit's BEAM and its workers say to each other; the tests are the BEAM.
fn snakepit_bridge() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("snakepit");
    println!(
        "cargo:rerun-if-changed={}",
        root.join("bridge.proto").display()
    );
    let descriptors = protox::compile(["bridge.proto"], [&root])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

/// One file without dependencies, for its words are not those of the harness.
fn fault_injector() -> Result<(), Box<dyn Error>> {
    let source = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("src/faults/injector.rs");
    let program = PathBuf::from(env::var("OUT_DIR")?).join("fault-injector");
    println!("cargo:rerun-if-changed={}", source.display());
    let status = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "-D", "warnings", "-C", "opt-level=2"])
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .status()?;
    if !status.success() {
        return Err("cannot build the fault injector".into());
    }
    println!("cargo:rustc-env=FAULT_INJECTOR={}", program.display());
    Ok(())
}

/// Two files without dependencies, static because it is started thousands of times.
fn matrix_worker() -> Result<(), Box<dyn Error>> {
    let source = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("src/matrix/worker.rs");
    let program = PathBuf::from(env::var("OUT_DIR")?).join("matrix-worker");
    println!("cargo:rerun-if-changed={}", source.display());
    println!(
        "cargo:rerun-if-changed={}",
        source.with_file_name("walls.rs").display()
    );
    let status = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args([
            "--edition",
            "2024",
            "-D",
            "warnings",
            "-C",
            "panic=abort",
            "-C",
            "opt-level=2",
        ])
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "relocation-model=static",
            "-C",
            "strip=symbols",
        ])
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .status()?;
    if !status.success() {
        return Err("cannot build the static worker of the kill matrix; it needs the static C library (libc6-dev on Debian)".into());
    }
    println!("cargo:rustc-env=MATRIX_WORKER={}", program.display());
    Ok(())
}
