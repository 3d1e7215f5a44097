//! What a backend is tested on, and the tests that all of them have to pass.
//!
//! A new backend gets all tests by one [`Ground`] and one line in [`crate::grounds`].

use async_trait::async_trait;

/// The port on every ground.
pub(crate) const PORT: u16 = 50051;

/// A source, real or a stand-in of it, in the hands of a test. Whoever serves does so at [`PORT`].
#[async_trait]
pub(crate) trait Ground: Sized + Send {
    /// What it is called in a URL.
    const SCHEME: &'static str;

    /// What its backend has to refuse: what follows `://`, beyond what all refuse.
    const NONSENSE: &'static [&'static str];

    /// Starts it, with these serving.
    async fn start(hosts: &[&str]) -> Self;

    /// The URL of it.
    fn url(&self) -> String;

    /// What an error has to name.
    fn name(&self) -> String;

    /// Says who serves from now on.
    async fn serve(&mut self, hosts: &[&str]);

    /// Takes it away: nobody can ask it.
    async fn away(&mut self);

    /// Brings it back, as it was.
    async fn back(&mut self);

    /// Has it name `10.0.0.1`, and beside it entries that cannot be called. Answers with how many those are.
    async fn spoil(&mut self) -> usize;

    /// Has it name more than can be believed.
    async fn flood(&mut self);

    /// How much of it this process holds: connections, or what watches it.
    fn held(&self) -> usize;
}

/// Makes a module with these rules, each a test on this ground.
macro_rules! rules {
    ($module:ident: $ground:ty, $($rule:ident)+) => {
        mod $module {
            // Not on a runtime, where IO would panic.
            #[test]
            fn nonsense_is_refused_before_any_io() {
                $crate::rules::nonsense_is_refused_before_any_io::<$ground>();
            }

            $(
                #[tokio::test]
                async fn $rule() {
                    $crate::rules::$rule::<$ground>().await;
                }
            )+
        }
    };
}

/// What has to hold for a list that never changes.
macro_rules! fixed_rules {
    ($module:ident: $ground:ty) => {
        rules! { $module: $ground,
            the_first_answer_says_who_serves
            a_quiet_source_says_little_and_the_watch_goes_on
            a_watch_that_is_dropped_leaves_nothing
        }
    };
}

/// What has to hold for every source that changes.
macro_rules! changing_rules {
    ($module:ident: $ground:ty $(, $more:ident)*) => {
        rules! { $module: $ground,
            the_first_answer_says_who_serves
            a_quiet_source_says_little_and_the_watch_goes_on
            a_watch_that_is_dropped_leaves_nothing
            a_watch_of_what_is_away_leaves_nothing
            changes_are_told
            nobody_is_an_answer
            away_is_an_error_and_its_return_is_followed
            what_is_away_at_first_is_found_later
            entries_that_cannot_be_called_are_left_out_with_a_word
            a_thousand_flaps_end_in_the_last_state
            $($more)*
        }
    };
}

/// What has to hold for every source that can name any number.
macro_rules! all_rules {
    ($module:ident: $ground:ty) => {
        changing_rules! { $module: $ground, more_than_can_be_believed_is_an_error }
    };
}
