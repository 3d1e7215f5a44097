//! The engine by itself: what it says to what it is told.

mod arbitrary;
mod limits;
mod pairs;
mod rules;
mod wire;

/// How many histories are tried: `TETHER_HTTP2_CASES` for more.
fn cases(usual: u32) -> u32 {
    let given = std::env::var("TETHER_HTTP2_CASES").ok();
    given.and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}
