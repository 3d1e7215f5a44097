//! What one end of a connection offers and allows.

use crate::settings::LARGEST_WINDOW;

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that asks.
    Client,
    /// The one that answers.
    Server,
}

/// What one end of a connection offers and allows.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Streams the other side may have open at once.
    pub max_streams: u32,
    /// What one stream may hold that was not taken yet, in bytes.
    pub stream_window: u32,
    /// What all streams together may have under way, in bytes. It is given back as it comes, so that one who does not
    /// read a stream does not stand in the way of the others.
    pub connection_window: u32,
    /// The most metadata of one message, in bytes.
    pub header_list: u32,
    /// How much may wait to be written before streams have to wait, in bytes.
    pub send_buffer: usize,
    /// Streams the other side may give up before they were accepted.
    pub max_abandoned: usize,
}

impl Config {
    /// How much of one stream may wait to be written, where each has its own buffer, in bytes.
    pub fn stream_buffer(&self) -> usize {
        self.send_buffer / 4
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_streams: 1_000,
            stream_window: 1 << 20,
            connection_window: LARGEST_WINDOW,
            header_list: 64 << 10,
            send_buffer: 256 << 10,
            max_abandoned: 1_000,
        }
    }
}
