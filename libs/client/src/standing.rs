//! Whether a session may still act, by its own clock: also where nobody can be asked.

use tether_clock::{Clock as _, HolderClock, Tick};
use tether_lease::{Holder, Standing};
use tether_proto::Failure;
use tether_types::{Epoch, OwnerName, Reason};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tonic::{Request, Status, metadata::MetadataValue, service::Interceptor};

use crate::Lost;

/// Metadata that says in whose name a call is made.
const OWNER: &str = "tether-owner";
/// And in which of its sessions.
const EPOCH: &str = "tether-epoch";

/// Makes calls in the name of a session, and refuses them by itself from the moment in which its lease is over,
/// whether or not anybody could say so; cheap to clone.
#[derive(Debug, Clone)]
pub struct Acting {
    owner: OwnerName,
    epoch: Epoch,
    /// That of its beats.
    clock: HolderClock,
    holder: watch::Receiver<Holder>,
    lost: watch::Receiver<Option<Lost>>,
}

impl Acting {
    pub(crate) fn new(
        (owner, epoch): (OwnerName, Epoch),
        clock: HolderClock,
        holder: watch::Receiver<Holder>,
        lost: watch::Receiver<Option<Lost>>,
    ) -> Self {
        Self {
            owner,
            epoch,
            clock,
            holder,
            lost,
        }
    }

    /// Whether the session may act now.
    ///
    /// # Errors
    /// `LEASE_FENCED` where another session took over, else `LEASE_EXPIRED`.
    pub fn check(&self) -> Result<(), Failure> {
        self.check_at(self.clock.now())
    }

    fn check_at(&self, now: Tick) -> Result<(), Failure> {
        let refused = |reason, why: &dyn std::fmt::Display| {
            let text = format!(
                "owner `{}`, epoch {}, may not act any more: {why}; open a new session",
                self.owner, self.epoch
            );
            Err(Failure::new(reason, text))
        };
        if let Some(lost) = &*self.lost.borrow() {
            return match lost {
                Lost::Fenced(_) => refused(Reason::LeaseFenced, lost),
                Lost::Expired(_) | Lost::Ended(_) => refused(Reason::LeaseExpired, lost),
            };
        }
        match self.holder.borrow().clone().check(now) {
            Standing::Valid | Standing::Jeopardy | Standing::Stopping => Ok(()),
            Standing::Expired => refused(
                Reason::LeaseExpired,
                &"no beat was answered within its lease",
            ),
        }
    }
}

impl Interceptor for Acting {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.check()?;
        let owner = MetadataValue::try_from(self.owner.as_str()).map_err(|error| {
            Status::internal(format!("an owner's name is no metadata: {error}"))
        })?;
        request.metadata_mut().insert(OWNER, owner);
        request.metadata_mut().insert(EPOCH, self.epoch.0.into());
        Ok(request)
    }
}

/// Tells how a session stands as it changes, until its keep-alive ends. It may be late, and nothing rests on it.
pub(crate) async fn tell(
    clock: HolderClock,
    mut holder: watch::Receiver<Holder>,
    told: watch::Sender<Standing>,
) {
    loop {
        let (standing, next) = {
            let mut holder = holder.borrow_and_update().clone();
            (holder.check(clock.now()), holder.next_deadline())
        };
        told.send_if_modified(|before| std::mem::replace(before, standing) != standing);
        let due = next.map(|next| Instant::now() + next.since(clock.now()));
        let over = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            changed = holder.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tether_lease::Terms;

    use super::*;

    #[test]
    fn a_session_refuses_itself_from_its_own_deadline_on_and_says_why_where_it_knows() {
        let terms = Terms::usual(Duration::from_secs(60)).unwrap();
        let sent = Tick::ZERO + Duration::from_secs(100);
        let (_holder, holder) = watch::channel(Holder::granted(terms, sent));
        let (lost, told) = watch::channel(None);
        let acting = Acting::new(
            ("beam@a".parse().unwrap(), Epoch(7)),
            HolderClock::start(),
            holder,
            told,
        );
        let reason = |millis| {
            let now = sent + Duration::from_millis(millis);
            acting.check_at(now).map_err(|failure| failure.reason())
        };

        // 60 s less half a per cent, whoever could be asked.
        assert_eq!(reason(59_699), Ok(()));
        assert_eq!(reason(59_700), Err(Reason::LeaseExpired));
        lost.send_replace(Some(Lost::Fenced("epoch 8".to_owned())));
        assert_eq!(reason(0), Err(Reason::LeaseFenced));
    }
}
