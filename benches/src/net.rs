//! Addresses on this machine.

use tether_types::Address;

/// A port that nobody listens at.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> std::io::Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    Ok(listener.local_addr()?.port())
}

/// A port of this machine.
pub fn local(port: u16) -> Address {
    Address::Tcp {
        host: "127.0.0.1".to_owned(),
        port,
    }
}
