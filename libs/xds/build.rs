//! Compiles the part of Envoy's API that we speak with `protox`, so that no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: &[&str] = &[
    "discovery.proto",
    "cluster_service.proto",
    "endpoint_service.proto",
    "cluster.proto",
    "core.proto",
    "endpoint.proto",
    "http_connection_manager.proto",
    "listener.proto",
    "percent.proto",
    "route.proto",
    "router.proto",
    "status.proto",
    "upstream.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo:rerun-if-changed={}", root.display());

    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // A resource is encoded once, and all streams share its bytes.
    tonic_prost_build::configure()
        .generate_default_stubs(false)
        .codec_path("tether_proto::SmallCodec")
        .compile_well_known_types(true)
        .bytes(".google.protobuf.Any")
        .btree_map(".")
        .include_file("xds.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
