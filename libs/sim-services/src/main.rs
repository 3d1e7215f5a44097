//! The services themselves, on a simulated network, with clocks that are off: `cargo xtask sim --services`.
//!
//! Arbiters, discovery, the gateway, the agents' nodes and the client's session are the code that ships, with their
//! gRPC between them; what stands in for something are the network (`turmoil`), the clocks of each machine, the
//! store that the arbiters share, and the processes of workers with the kernel timers that end them.
//! Built with `--cfg tokio_unstable` a schedule is the same each time its seed is played.

#[cfg(tokio_unstable)]
mod simulation;

#[cfg(tokio_unstable)]
fn main() -> std::process::ExitCode {
    simulation::main()
}

#[cfg(not(tokio_unstable))]
fn main() -> std::process::ExitCode {
    use std::io::Write as _;

    let advice = "call it as `cargo xtask sim --services`: it is built with --cfg tokio_unstable";
    let _ = writeln!(std::io::stderr(), "{advice}");
    std::process::ExitCode::from(2)
}
