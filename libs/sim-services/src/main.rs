//! The services in a simulated world.
fn main() {}
