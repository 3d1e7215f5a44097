//! HTTP/2 without a socket: bytes of one connection go in and events come out, calls go in and bytes come out.
//!
//! It is made for passing calls on: many small messages, many streams that are idle, and two connections for each call.
//!
//! ```text
//!   read --> Connection::next --> Event        what came: heads, pieces of bodies, trailers, ends
//!   write <-- Connection::output <-- open, respond, send_data, send_trailers, release, reset, forget
//! ```
//!
//! # What always holds
//!
//! - **W1** Nothing is sent beyond a window of the other side, and nothing beyond its largest frame or its number of
//!   streams.
//! - **W2** A connection's window is given back as it is used, and a stream's as it is taken: a stream that nobody reads
//!   holds up its own sender, and no other.
//! - **H1** A header block is read whatever becomes of its message, so that the next one can be.
//! - **H2** A field is put in the table when it is seen again: what one client says once crowds nothing out.
//! - **E1** A message that is none ends its stream; what leaves the two sides with different views of the connection
//!   ends the connection (RFC 9113, 5.4).
//! - **B1** What the other side can make us keep is bounded by the streams it may open, the windows it was given, and
//!   the limits of [`Config`] and of [`Connection::next`], whatever it sends.
//!
//! No clock is read and no bytes are moved here.

mod config;
mod connection;
mod error;
mod event;
mod frame;
mod hpack;
mod message;
mod output;
mod settings;
mod spare;
mod spread;
mod stream;

pub use config::{Config, Role};
pub use connection::Connection;
pub use error::{Error, Reason};
pub use event::{Event, Key};
pub use output::Output;
pub use spare::recycle;
