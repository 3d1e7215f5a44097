//! Compiles the example worker's schema.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../examples/digits/proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(["digits/v1/digits.proto"], [&root])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
