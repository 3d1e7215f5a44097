//! The epoch of the node's lease, as the arbiter tells it and this agent says it.

/// Under which epoch this agent holds its node's lease.
#[derive(Debug, Default)]
pub(crate) struct NodeEpoch {
    /// As it was told last; zero for never.
    held: u64,
    /// Whether the arbiter has to hear that it was.
    unsaid: bool,
    /// Whether it was told on this stream: the lease may have ended before that, and be another one.
    is_sure: bool,
}

impl NodeEpoch {
    /// What is said first on a stream.
    pub(crate) fn on_hello(&self) -> u64 {
        self.held
    }

    /// A stream has begun: what was to be said, its hello has.
    pub(crate) fn on_stream(&mut self) {
        (self.unsaid, self.is_sure) = (false, false);
    }

    /// The arbiter tells one. Returns the one before, where it is over with that.
    pub(crate) fn on_told(&mut self, epoch: u64) -> Option<u64> {
        if epoch == 0 {
            return None;
        }
        (self.unsaid, self.is_sure) = (true, true);
        let before = std::mem::replace(&mut self.held, epoch);
        Some(before).filter(|&before| before != 0 && before != epoch)
    }

    /// What the next beat says; zero for nothing.
    pub(crate) fn on_beat(&mut self) -> u64 {
        match std::mem::take(&mut self.unsaid) {
            true => self.held,
            false => 0,
        }
    }

    /// Under which the lease is held; none where none was told on this stream.
    pub(crate) fn held(&self) -> Option<u64> {
        self.is_sure.then_some(self.held)
    }

    /// It is over: another agent has the node's lease, or nobody. Returns which it was.
    pub(crate) fn take(&mut self) -> Option<u64> {
        let held = std::mem::take(self).held;
        (held != 0).then_some(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_said_back_once_and_with_each_hello_until_it_is_over() {
        let mut epoch = NodeEpoch::default();
        assert_eq!(
            (epoch.on_hello(), epoch.on_beat(), epoch.held()),
            (0, 0, None)
        );

        assert_eq!(epoch.on_told(7), None);
        assert_eq!((epoch.on_beat(), epoch.on_beat()), (7, 0));
        assert_eq!(epoch.on_told(0), None);
        assert_eq!((epoch.on_hello(), epoch.held()), (7, Some(7)));
        // Told again it is said again: it may not have come.
        assert_eq!(epoch.on_told(7), None);
        epoch.on_stream();
        assert_eq!(
            (epoch.on_beat(), epoch.held()),
            (0, None),
            "its hello has said it"
        );
        assert_eq!(epoch.on_told(9), Some(7));

        assert_eq!(epoch.take(), Some(9));
        assert_eq!((epoch.on_hello(), epoch.on_beat()), (0, 0));
    }
}
