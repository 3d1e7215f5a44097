//! Compiles our schemas with `protox`, so that no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: &[&str] = &[
    "tether/session/v1/session_service.proto",
    "tether/pool/v1/pool_service.proto",
    "tether/worker/v1/worker_service.proto",
    "tether/node/v1/node_service.proto",
    "tether/discovery/v1/discovery_service.proto",
    "tether/job/v1/job_service.proto",
    "tether/checkpoint/v1/checkpoint_service.proto",
    "tether/gateway/v1/gateway_service.proto",
    "tether/gateway/v1/control_service.proto",
    "tether/gateway/v1/handover.proto",
    "tether/registry/v1/registry_service.proto",
    "tether/fate/v1/fate_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());

    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .generate_default_stubs(false)
        .codec_path("crate::codec::SmallCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
