//! What every service did with leases and workers, one line of JSON each, and the check of it afterwards.
//!
//! A process that is asked to write a history appends to a file of its own ([`install`], [`note`]). Nothing
//! is decided by it and nothing waits for it: it is there so that the promises can be verified offline,
//! after a test, an incident or a night under load ([`Checker`]).
//!
//! ```text
//! {"at":81200,"what":"opened","service":"arbiter","boot":"5d1f..."}
//! {"at":90417,"what":"granted","lease":"node/n1","epoch":7,"left":20700000000}
//! ```
//!
//! `at` is a tick: nanoseconds of the machine's boot clock, sleep included. What is left of a lease counts
//! from there, as holders and grantors count by clocks of their own. Ticks are compared only where both were
//! written on one machine since one boot, which `opened` says for the lines after it. What cannot be
//! compared is counted as unjudged and never taken for right.
//!
//! # What is checked
//!
//! | rule | promise | what must hold |
//! | --- | --- | --- |
//! | **H1** | no orphan | a worker was gone when its permission was over, at most half a second later |
//! | **H2** | no double life, live | two incarnations of a slot, or two holders of a lease, never live at one time |
//! | **H3** | no double life, effective | no gate lets a lower fencing token through after a higher one |
//! | **H4** | no innocent death | no lease is freed as run out before it has, and no worker ended for want of a permission that it had |
//! | **H5** | no silence | a death has one recorded cause, the same wherever it is told |

mod check;
mod read;
mod record;
mod recorder;

pub use check::{Checker, Report, Rule, Violation};
pub use read::{Error, Lines, files_in};
pub use record::{
    Freed, Record, Scope, What, Worker, lease_of_node, lease_of_owner, lease_of_registration,
};
pub use recorder::{Recorder, install, is_on, left, note};
