//! Builds the static worker that `bench-agent` supervises: as small as can be, so that what is measured is
//! the supervision of it.

use std::{env, path::PathBuf, process::Command};

fn main() {
    let source = "worker/worker.rs";
    println!("cargo:rerun-if-changed={source}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("worker");
    println!("cargo:rustc-env=TETHER_BENCH_WORKER={}", out.display());
    if env::var("TARGET").as_deref() != Ok("x86_64-unknown-linux-gnu") {
        // An empty program fails to start, and the bench says so; the others do not need it.
        std::fs::write(&out, []).expect("the build folder can be written");
        return;
    }
    let built = Command::new(env::var_os("RUSTC").expect("cargo sets it"))
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "bin",
            "--crate-name",
            "worker",
        ])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=z",
            "-C",
            "strip=symbols",
        ])
        .args([
            "-C",
            "relocation-model=static",
            "-C",
            "link-arg=-nostartfiles",
        ])
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-static"])
        // One segment in one page, instead of one per kind of access.
        .args(["-C", "link-arg=-Wl,-n,--build-id=none,-z,noseparate-code"])
        .arg(source)
        .arg("-o")
        .arg(&out)
        .status();
    assert!(
        built.as_ref().is_ok_and(std::process::ExitStatus::success),
        "cannot build the static worker of the benchmarks ({built:?}); it needs a C linker, as Rust itself does"
    );
}
