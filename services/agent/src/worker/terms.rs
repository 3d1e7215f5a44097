//! What a worker's shim was told of its permission, and telling it what changed.

use tether_clock::Tick;
use tether_shim_protocol::{Identity, Launch, Message, OnLinkLoss, OnOwnerExit};

use super::Task;
use crate::link::ToShim;

/// What a shim's timers and its watch on the owner are set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) node: Tick,
    pub(super) owner: Tick,
    process: Option<Identity>,
    on_owner_exit: OnOwnerExit,
    pub(super) on_link_loss: OnLinkLoss,
    nearer: u64,
}

impl Terms {
    /// What a shim is told with its launch, after ends were moved nearer so often.
    pub(super) fn of(launch: &Launch, nearer: u64) -> Self {
        Self {
            node: Tick::from_nanos(launch.node_deadline_ns),
            owner: Tick::from_nanos(launch.owner_deadline_ns),
            process: launch.owner,
            on_owner_exit: launch.on_owner_exit,
            on_link_loss: launch.on_link_loss,
            nearer,
        }
    }

    /// What of it is about others than the node.
    fn ties(&self) -> (Option<Identity>, OnOwnerExit, OnLinkLoss) {
        (self.process, self.on_owner_exit, self.on_link_loss)
    }
}

impl Task {
    /// Whether its shim is told of its permission by the lease page.
    pub(super) fn reads_page(&self) -> bool {
        self.seat.is_some() && !self.off_page
    }

    /// Tells the shim what changed of its permission: to one that reads the lease page that is neither time nor the
    /// end it was given, but that an end has moved nearer.
    pub(super) async fn renew(&mut self, to: &mut ToShim) {
        // One that has a job may outlive what the page says for its pool. Told once in a message, a shim looks at
        // the page no more; the worker itself looks at a slot of its own.
        if self.ties.grants.news.borrow().has_job(&self.id) {
            self.off_page = true;
            if let Some(seat) = &mut self.seat {
                seat.move_apart(&self.id);
            }
        }
        let reads_page = self.reads_page();
        let terms = {
            let permissions = self.ties.grants.of(reads_page).borrow_and_update();
            // A new agent that was told nothing yet has nothing to give, and must not take.
            let Some(pool) = permissions.pool(&self.id.pool) else {
                return;
            };
            Terms {
                node: permissions.alive_until(&self.id),
                owner: pool.deadline,
                process: pool.process,
                on_owner_exit: pool.on_owner_exit,
                on_link_loss: pool.on_link_loss,
                nearer: permissions.nearer,
            }
        };
        if self.told == Some(terms) {
            return;
        }
        if self.told.is_none_or(|told| told.ties() != terms.ties()) {
            let (owner, on_owner_exit, on_link_loss) = terms.ties();
            to.send(&Message::Ties {
                owner,
                on_owner_exit,
                on_link_loss,
            })
            .await;
        }
        if reads_page {
            if self.told.is_none_or(|told| told.nearer != terms.nearer) {
                to.send(&Message::Look).await;
            }
        } else {
            to.send(&Message::Renew {
                node_deadline_ns: terms.node.as_nanos(),
                owner_deadline_ns: terms.owner.as_nanos(),
            })
            .await;
        }
        self.told = Some(terms);
    }
}
