//! A sign of a clerk's death that comes before the others, as `tether.life` of the Python SDK gives it.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    path::Path,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tether_sys::hold_life;

/// Takes a lock for as long as this process lives, and sends it to whoever listens there. To be called in the main
/// thread.
///
/// # Errors
/// When there is no such lock, or nobody listens.
pub fn hold(notify: &Path) -> anyhow::Result<()> {
    let memory = hold_life()?;
    let agent = UnixDatagram::unbound()?;
    agent.connect(notify)?;
    let descriptors = [memory.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let word = IoSlice::new(b"TETHER_HOLD=1");
    sendmsg(&agent, &[word], &mut control, SendFlags::empty())?;
    Ok(())
}
