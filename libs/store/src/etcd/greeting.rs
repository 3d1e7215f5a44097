//! Finds out whether anybody answers at an address, before anything is asked there.
//!
//! For a process that hangs the kernel goes on to take connections, and keeps what is sent on them. A request that was
//! given up is there still, and so are those of every other try of every other client: once the process goes on it
//! would serve them all, to nobody. Of a greeting it finds a connection that has ended.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// What opens a connection of HTTP/2, with settings that say nothing.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Comes back as soon as `address` answers in some way, if only by a refusal.
pub(super) async fn greet(address: &str) {
    let greeted = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(GREETING).await?;
        stream.read_u8().await?;
        io::Result::Ok(())
    };
    // What is wrong is said better by the client, which is next.
    let _ = greeted.await;
}
