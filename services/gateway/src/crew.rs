//! The tasks that serve the calls of one connection: one that has served its call takes the next, since to make a task
//! costs as much as a good part of a small call.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    task::{Context, Poll, Waker, ready},
};

use pin_project_lite::pin_project;
use slab::Slab;

/// How many tasks without a call are kept.
const KEPT: usize = 64;

/// All tasks of a connection, which `serve` calls. Those without a call end with it; the others when they have served
/// theirs.
pub(crate) struct Crew<C, S> {
    roster: Arc<Mutex<Roster<C>>>,
    serve: S,
}

struct Roster<C> {
    all: Slab<Arc<Hand<C>>>,
    /// Those without a call; `None` when there will be no more for them.
    idle: Option<Vec<Arc<Hand<C>>>>,
}

/// How a call is given to a task.
struct Hand<C> {
    given: Mutex<Given<C>>,
    /// There once the task has run, and the same for as long as it is there.
    waker: OnceLock<Waker>,
}

enum Given<C> {
    Nothing,
    Call(C),
    /// There will be no more.
    Leave,
}

impl<C, S, F> Crew<C, S>
where
    C: Send + 'static,
    S: Fn(C) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    pub(crate) fn new(serve: S) -> Self {
        let roster = Roster {
            all: Slab::new(),
            idle: Some(Vec::new()),
        };
        Self {
            roster: Arc::new(Mutex::new(roster)),
            serve,
        }
    }

    /// Serves a call.
    pub(crate) fn take(&self, call: C) {
        let mut roster = lock(&self.roster);
        if let Some(hand) = roster.idle.as_mut().and_then(Vec::pop) {
            drop(roster);
            return hand.give(Given::Call(call));
        }
        let hand = Arc::new(Hand {
            given: Mutex::new(Given::Call(call)),
            waker: OnceLock::new(),
        });
        let place = Place {
            number: roster.all.insert(Arc::clone(&hand)),
            roster: Arc::downgrade(&self.roster),
        };
        drop(roster);
        tokio::spawn(Task {
            call: None,
            serve: self.serve.clone(),
            hand,
            place,
        });
    }
}

impl<C, S> Crew<C, S> {
    /// Has all tasks look whether their calls may go on.
    pub(crate) fn rouse(&self) {
        for (_, hand) in &lock(&self.roster).all {
            hand.wake();
        }
    }
}

impl<C, S> Drop for Crew<C, S> {
    fn drop(&mut self) {
        let idle = lock(&self.roster).idle.take();
        for hand in idle.into_iter().flatten() {
            hand.give(Given::Leave);
        }
    }
}

impl<C> Hand<C> {
    fn give(&self, given: Given<C>) {
        *lock(&self.given) = given;
        self.wake();
    }

    fn wake(&self) {
        // One that has not run yet is about to.
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    fn poll(&self) -> Poll<Option<C>> {
        match mem::replace(&mut *lock(&self.given), Given::Nothing) {
            Given::Call(call) => Poll::Ready(Some(call)),
            Given::Leave => Poll::Ready(None),
            Given::Nothing => Poll::Pending,
        }
    }
}

/// Of a task among all of its connection.
struct Place<C> {
    number: usize,
    roster: Weak<Mutex<Roster<C>>>,
}

impl<C> Drop for Place<C> {
    fn drop(&mut self) {
        if let Some(roster) = self.roster.upgrade() {
            lock(&roster).all.remove(self.number);
        }
    }
}

pin_project! {
    struct Task<C, S, F> {
        #[pin]
        call: Option<F>,
        serve: S,
        hand: Arc<Hand<C>>,
        place: Place<C>,
    }
}

impl<C, S: Fn(C) -> F, F: Future<Output = ()>> Future for Task<C, S, F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        this.hand.waker.get_or_init(|| cx.waker().clone());
        loop {
            if let Some(call) = this.call.as_mut().as_pin_mut() {
                ready!(call.poll(cx));
                this.call.set(None);
                let Some(roster) = this.place.roster.upgrade() else {
                    return Poll::Ready(());
                };
                match &mut lock(&roster).idle {
                    Some(idle) if idle.len() < KEPT => idle.push(Arc::clone(this.hand)),
                    // One that joins now would wait for a call that nobody gives it.
                    _ => return Poll::Ready(()),
                }
            }
            match ready!(this.hand.poll()) {
                Some(call) => this.call.set(Some((this.serve)(call))),
                None => return Poll::Ready(()),
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;
    use tokio::{runtime::Handle, sync::oneshot, task::yield_now};

    use super::*;

    type Call = BoxFuture<'static, ()>;

    /// A call that ends when it is told to.
    fn call() -> (oneshot::Sender<()>, Call) {
        let (end, ends) = oneshot::channel();
        (end, Box::pin(async move { drop(ends.await) }))
    }

    fn tasks() -> usize {
        Handle::current().metrics().num_alive_tasks()
    }

    #[tokio::test]
    async fn a_task_serves_one_call_after_the_other_and_ends_with_its_connection() {
        let crew = Crew::new(|call: Call| call);
        for _ in 0..10 {
            let (end, served) = call();
            crew.take(served);
            end.send(()).unwrap();
            while lock(&crew.roster).idle.as_ref().is_some_and(Vec::is_empty) {
                yield_now().await;
            }
            assert_eq!(tasks(), 1);
        }
        let (first, served) = call();
        crew.take(served);
        let (second, served) = call();
        crew.take(served);
        assert_eq!(tasks(), 2);
        second.send(()).unwrap();
        while lock(&crew.roster).idle.as_ref().is_some_and(Vec::is_empty) {
            yield_now().await;
        }

        drop(crew);
        while tasks() > 1 {
            yield_now().await;
        }
        // A call goes on to its end.
        assert!(!first.is_closed());
        first.send(()).unwrap();
        while tasks() > 0 {
            yield_now().await;
        }
    }

    /// Another thread may have it in hand while it is dropped.
    #[tokio::test]
    async fn a_task_whose_call_ends_while_the_connection_does_ends_too() {
        let crew = Crew::new(|call: Call| call);
        let (end, served) = call();
        crew.take(served);
        let in_hand = Arc::clone(&crew.roster);
        drop(crew);
        end.send(()).unwrap();
        for _ in 0..100 {
            yield_now().await;
        }
        assert_eq!(tasks(), 0);
        drop(in_hand);
    }

    #[tokio::test]
    async fn no_more_tasks_are_kept_than_a_few() {
        let crew = Crew::new(|call: Call| call);
        let (ends, calls): (Vec<_>, Vec<_>) = (0..2 * KEPT).map(|_| call()).unzip();
        calls.into_iter().for_each(|served| crew.take(served));
        assert_eq!(tasks(), 2 * KEPT);
        ends.into_iter().for_each(|end| end.send(()).unwrap());
        while tasks() > KEPT {
            yield_now().await;
        }
        assert_eq!(lock(&crew.roster).idle.as_ref().map(Vec::len), Some(KEPT));
    }

    #[tokio::test]
    async fn those_with_a_call_are_woken_to_look_whether_it_may_go_on() {
        let crew = Crew::new(|(): ()| {
            let mut polls = 0;
            std::future::poll_fn(move |_| {
                polls += 1;
                if polls == 2 {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
        });
        crew.take(());
        yield_now().await;
        assert_eq!(lock(&crew.roster).idle.as_ref().map(Vec::len), Some(0));

        crew.rouse();
        yield_now().await;
        assert_eq!(lock(&crew.roster).idle.as_ref().map(Vec::len), Some(1));
        assert_eq!(lock(&crew.roster).all.len(), 1);
    }
}
