//! Which of several arbiters to ask, and when to ask again.

use std::time::Duration;

use tether_types::Address;

/// The longest window that a pause is drawn from.
const WINDOW_MAX: Duration = Duration::from_secs(2);

/// The arbiters there are, and the one to ask.
#[derive(Debug, Clone)]
pub struct Arbiters {
    /// Never empty.
    known: Vec<Address>,
    at: usize,
    /// Where another one said the leader is, when that is none of the known.
    elsewhere: Option<Address>,
    /// Whether a hint has been followed since somebody last paused.
    followed: bool,
    /// The one that was found gone last, and how many pauses it is left alone for: others go on naming it
    /// as the leader until they know better.
    gone: Option<(Address, u32)>,
}

/// For as long as an election takes, roughly.
const LEFT_ALONE: u32 = 5;

/// What to do after an arbiter said that it does not lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Ask the one it named, or where it named none the next, at once.
    AskLeader,
    /// Pause, then ask another one.
    Pause,
}

impl Arbiters {
    /// Starts with the first of `known`.
    ///
    /// # Panics
    /// When there is none.
    pub fn new(known: Vec<Address>) -> Self {
        assert!(!known.is_empty(), "somebody can be asked");
        Self {
            known,
            at: 0,
            elsewhere: None,
            followed: false,
            gone: None,
        }
    }

    /// The one to ask.
    pub fn current(&self) -> &Address {
        self.elsewhere.as_ref().unwrap_or(&self.known[self.at])
    }

    /// All that were configured.
    pub fn known(&self) -> &[Address] {
        &self.known
    }

    /// The one that was asked cannot be reached, or does not answer.
    pub fn on_gone(&mut self) {
        self.gone = Some((self.current().clone(), LEFT_ALONE));
        self.go_on();
    }

    /// From here on one that was found gone is asked again where others name it.
    pub fn leave_none_alone(&mut self) {
        self.gone = None;
    }

    /// Chooses the next one that is not left alone.
    fn go_on(&mut self) {
        self.followed = false;
        if self.elsewhere.take().is_some() && !self.is_gone(&self.known[self.at]) {
            return;
        }
        let all = self.known.len();
        let others = (1..=all).map(|step| (self.at + step) % all);
        let next = others.clone().find(|&at| !self.is_gone(&self.known[at]));
        self.at = next.unwrap_or((self.at + 1) % all);
    }

    fn is_gone(&self, address: &Address) -> bool {
        self.gone.as_ref().is_some_and(|(gone, _)| gone == address)
    }

    /// The one that was asked does not lead, and may have said who does.
    pub fn on_not_leader(&mut self, leader: Option<Address>) -> Next {
        let knows_none = leader.is_none();
        let new = leader
            .filter(|leader| !self.followed && leader != self.current() && !self.is_gone(leader));
        // A socket's path means something on its own machine only.
        let position = |leader: &Address| self.known.iter().position(|known| known == leader);
        match (new.as_ref().and_then(position), new) {
            (Some(at), _) => (self.at, self.elsewhere) = (at, None),
            (None, Some(leader @ Address::Tcp { .. })) => self.elsewhere = Some(leader),
            (None, Some(Address::Unix(_)) | None) => {
                let left = self.gone.take();
                self.gone = left.and_then(|(gone, left)| Some((gone, left.checked_sub(1)?)));
                let (asked, may_ask) = (self.current().clone(), !self.followed && knows_none);
                self.go_on();
                // One that was silent and is back knows nothing yet, and another one leads already.
                self.followed = may_ask && *self.current() != asked;
                return if self.followed {
                    Next::AskLeader
                } else {
                    Next::Pause
                };
            }
        }
        self.followed = true;
        Next::AskLeader
    }

    /// The one that was asked leads.
    pub fn on_leader(&mut self) {
        self.followed = false;
        self.gone = None;
    }
}

/// Pauses between attempts, drawn from a window that grows: of many who lost the same arbiter in the
/// same instant, few come back in any one.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    window: Duration,
}

impl Spread {
    /// The first pause is within a quarter of `beat`.
    pub fn new(beat: Duration) -> Self {
        Self {
            window: (beat / 4).min(WINDOW_MAX),
        }
    }

    /// The next pause, within `longest`; `random` is from 0 to 1.
    pub fn next(&mut self, random: f64, longest: Duration) -> Duration {
        let pause = self.window.min(longest).mul_f64(random.clamp(0.0, 1.0));
        self.window = (self.window * 2).clamp(Duration::from_millis(10), WINDOW_MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn three() -> Arbiters {
        Arbiters::new(["a:1", "b:1", "c:1"].map(address).to_vec())
    }

    #[test]
    fn one_that_does_not_answer_is_followed_by_the_next_and_the_last_by_the_first() {
        let mut arbiters = three();
        let mut asked = Vec::new();

        for _ in 0..4 {
            asked.push(arbiters.current().to_string());
            arbiters.on_gone();
        }

        assert_eq!(asked, ["a:1", "b:1", "c:1", "a:1"]);
    }

    #[test]
    fn a_hint_is_followed_once_and_then_there_is_a_pause() {
        let mut arbiters = three();

        assert_eq!(
            arbiters.on_not_leader(Some(address("c:1"))),
            Next::AskLeader
        );
        assert_eq!(arbiters.current(), &address("c:1"));
        let back = Some(address("a:1"));
        assert_eq!(arbiters.on_not_leader(back.clone()), Next::Pause);
        assert_eq!(
            arbiters.on_not_leader(back),
            Next::Pause,
            "it is that one already"
        );
        assert_eq!(arbiters.on_not_leader(None), Next::AskLeader);
        assert_eq!(arbiters.on_not_leader(None), Next::Pause);
        assert_eq!(
            arbiters.on_not_leader(Some(address("b:1"))),
            Next::AskLeader
        );
    }

    #[test]
    fn a_leader_that_was_not_configured_is_asked_as_long_as_it_answers() {
        let mut arbiters = three();

        assert_eq!(
            arbiters.on_not_leader(Some(address("d:1"))),
            Next::AskLeader
        );
        assert_eq!(arbiters.current(), &address("d:1"));
        arbiters.on_leader();
        arbiters.on_gone();

        assert_eq!(arbiters.current(), &address("a:1"));
        let socket = address("unix:/elsewhere.sock");
        assert_eq!(arbiters.on_not_leader(Some(socket)), Next::Pause);
    }

    #[test]
    fn one_that_is_gone_is_left_alone_for_a_while_however_often_others_name_it() {
        let mut arbiters = Arbiters::new(["a:1", "b:1"].map(address).to_vec());
        arbiters.on_gone();

        let mut asked = Vec::new();
        for _ in 0..7 {
            asked.push(arbiters.current().to_string());
            arbiters.on_not_leader(Some(address("a:1")));
        }

        assert_eq!(asked[..6], ["b:1"; 6]);
        assert_eq!(asked[6], "a:1");
    }

    #[test]
    fn one_that_is_gone_is_asked_again_once_there_is_no_time_to_leave_it_alone() {
        let mut arbiters = Arbiters::new(["a:1", "b:1"].map(address).to_vec());
        arbiters.on_gone();
        let named = Some(address("a:1"));
        assert_eq!(arbiters.on_not_leader(named.clone()), Next::Pause);

        arbiters.leave_none_alone();

        assert_eq!(arbiters.on_not_leader(named), Next::AskLeader);
        assert_eq!(arbiters.current(), &address("a:1"));
    }

    #[test]
    fn where_none_is_named_the_next_is_asked_at_once_and_then_there_is_a_pause() {
        let mut arbiters = Arbiters::new(["a:1", "b:1"].map(address).to_vec());

        assert_eq!(arbiters.on_not_leader(None), Next::AskLeader);
        assert_eq!(arbiters.current(), &address("b:1"));
        assert_eq!(arbiters.on_not_leader(None), Next::Pause);
        assert_eq!(arbiters.current(), &address("a:1"));
        let mut alone = Arbiters::new(vec![address("a:1")]);
        assert_eq!(alone.on_not_leader(None), Next::Pause);
    }

    #[test]
    fn pauses_are_spread_over_a_window_that_grows_to_a_bound() {
        let mut spread = Spread::new(Duration::from_secs(5));
        let any = Duration::MAX;
        let longest: Vec<_> = (0..3).map(|_| spread.next(1.0, any).as_millis()).collect();

        assert_eq!(longest, [1_250, 2_000, 2_000]);
        assert_eq!(spread.next(0.0, any), Duration::ZERO);
        let little = Duration::from_millis(500);
        assert_eq!(spread.next(0.5, little), little / 2);
        let mut eager = Spread::new(Duration::ZERO);
        eager.next(1.0, any);
        assert_eq!(eager.next(1.0, any), Duration::from_millis(10));
    }
}
