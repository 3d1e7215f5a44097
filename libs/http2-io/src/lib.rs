//! HTTP/2 over a socket, in the manner of the `h2` crate: a connection is one task, and each of its streams has handles
//! that calls hold.
//!
//! ```text
//!   socket --> driver --> tether_http2::Connection --> slots: what came for each stream, and who waits for it
//!      ^                            ^                                       |
//!      +------- one write --------- +------------- handles <--- tasks of calls
//! ```
//!
//! The driver reads what there is, hands it to the streams it is for, and wakes their calls. What those send is written
//! when all of them have run: the first to send wakes the driver, which has its turn behind the others that are ready. So
//! a hundred calls that were answered in one read are passed on in one write.
//!
//! A connection and the calls on it are meant to share a thread. Nothing breaks where they do not, but then they wait for
//! each other.

mod client;
mod driver;
pub mod either;
mod handle;
mod openers;
mod received;
mod server;
mod shared;
mod streams;

pub use client::{ClientConnection, ResponseFuture, SendRequest, connect};
pub use server::{SendResponse, ServerConnection, Taken, accept};
pub use streams::{RecvStream, SendStream};
pub use tether_http2::{Config, Error, Reason, recycle};
