//! The tests of a plain shim once more, on workers that live in a PID namespace of their own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../shim/endings.rs"]
mod endings;
#[path = "../shim/harness.rs"]
mod harness;
#[path = "../shim/output.rs"]
mod output;
#[path = "../shim/page.rs"]
mod page;
#[path = "../shim/permission.rs"]
mod permission;
#[path = "../shim/starting.rs"]
mod starting;
