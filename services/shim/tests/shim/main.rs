//! Real shims around real workers: every promise is shown on processes that mean it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod endings;
mod forked;
mod harness;
mod output;
mod page;
mod permission;
mod starting;
