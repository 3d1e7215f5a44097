//! Leases that let two sides part safely when they cannot talk.
//!
//! A [`Grantor`] promises not to give the same work to anyone else until a lease has run out. A
//! [`Holder`] promises to have stopped by then. Neither has to hear from the other for that to
//! hold, which is the point: it is the only thing that still works across a partition.
//!
//! ```text
//! holder   |<-------- 2/3 ttl -------->| jeopardy ...| stopping |expired
//!          |<---------------- ttl * (1 - rho) ----------------->|
//!          sent                                      |<-- K --->|
//! grantor     |<------------- ttl * (1 + rho) / (1 - rho) + slack ------------->| free
//!             received
//! ```
//!
//! The holder counts from when it *sent* a beat that was answered, the grantor from when it
//! *received* it, so time on the wire only ever makes the holder stop earlier. `rho` covers clocks
//! that tick at different rates, `slack` the time a kill takes, and `K` is the notice a holder has
//! to stop in good order.
//!
//! A beat alone proves that the holder can send, not that it can hear. A holder that cannot hear
//! the answers stops, so a grantor that went on extending would keep its work from everyone else;
//! each beat therefore says which answer its sender saw last ([`Grantor::on_beat`]).
//!
//! # Invariants
//!
//! - **L1** A holder has expired strictly before its grantor considers the lease free.
//! - **L2** A late or repeated answer never lengthens a lease beyond what its beat earned, and
//!   never shortens it.
//! - **L3** Once expired, a holder stays expired; a new term needs a new holder.
//! - **L4** After a [`Fence`] has seen an epoch, it admits no lower one.
//! - **L5** A beat without a proven round trip does not extend a lease.
//!
//! L1 rests on clocks that keep within `rho` of true time. A paused machine breaks that without
//! noticing, which is why every grant also carries an epoch (L4).
//!
//! No clock is read here. Every call is told what time it is.

mod fence;
mod grantor;
mod holder;
mod terms;

pub use fence::{Fence, Fenced};
pub use grantor::{BEHIND_MAX, Beat, Grantor, Tenure};
pub use holder::{Holder, Standing};
pub use terms::{InvalidTerms, Margins, Terms};
