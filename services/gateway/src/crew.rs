//! The tasks that serve the calls of one connection: one that has served its call takes the next, since to make a task
//! costs as much as a good part of a small call.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker, ready},
};

use pin_project_lite::pin_project;

/// How many tasks without a call are kept.
const KEPT: usize = 64;

/// All tasks of a connection. Those without a call end with it; the others when they have served theirs.
pub(crate) struct Crew<F>(Arc<Idle<F>>);

/// The tasks without a call; `None` when there will be no more for them.
type Idle<F> = Mutex<Option<Vec<Arc<Hand<F>>>>>;

/// How a call is given to a task.
struct Hand<F>(Mutex<Given<F>>);

enum Given<F> {
    Nothing(Option<Waker>),
    Call(F),
    /// There will be no more.
    Leave,
}

impl<F> Crew<F>
where
    F: Future<Output = ()> + Send + 'static,
{
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Vec::new()))))
    }

    /// Serves a call.
    pub(crate) fn take(&self, call: F) {
        let idle = lock(&self.0).as_mut().and_then(Vec::pop);
        match idle {
            Some(hand) => hand.give(Given::Call(call)),
            None => drop(tokio::spawn(Task {
                call: Some(call),
                hand: Arc::new(Hand(Mutex::new(Given::Nothing(None)))),
                crew: Arc::downgrade(&self.0),
            })),
        }
    }
}

impl<F> Drop for Crew<F> {
    fn drop(&mut self) {
        let idle = lock(&self.0).take();
        for hand in idle.into_iter().flatten() {
            hand.give(Given::Leave);
        }
    }
}

impl<F> Hand<F> {
    fn give(&self, given: Given<F>) {
        let before = mem::replace(&mut *lock(&self.0), given);
        if let Given::Nothing(Some(waker)) = before {
            waker.wake();
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Option<F>> {
        let mut given = lock(&self.0);
        match mem::replace(&mut *given, Given::Nothing(None)) {
            Given::Call(call) => Poll::Ready(Some(call)),
            Given::Leave => Poll::Ready(None),
            Given::Nothing(_) => {
                *given = Given::Nothing(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

pin_project! {
    struct Task<F> {
        #[pin]
        call: Option<F>,
        hand: Arc<Hand<F>>,
        crew: Weak<Idle<F>>,
    }
}

impl<F: Future<Output = ()>> Future for Task<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            if let Some(call) = this.call.as_mut().as_pin_mut() {
                ready!(call.poll(cx));
                this.call.set(None);
                let Some(crew) = this.crew.upgrade() else {
                    return Poll::Ready(());
                };
                match &mut *lock(&crew) {
                    Some(idle) if idle.len() < KEPT => idle.push(Arc::clone(this.hand)),
                    // One that joins now would wait for a call that nobody gives it.
                    _ => return Poll::Ready(()),
                }
            }
            match ready!(this.hand.poll(cx)) {
                Some(call) => this.call.set(Some(call)),
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
        let crew = Crew::new();
        for _ in 0..10 {
            let (end, served) = call();
            crew.take(served);
            end.send(()).unwrap();
            while lock(&crew.0).as_ref().is_some_and(Vec::is_empty) {
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
        while lock(&crew.0).as_ref().is_some_and(Vec::is_empty) {
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
        let crew = Crew::new();
        let (end, served) = call();
        crew.take(served);
        let in_hand = Arc::clone(&crew.0);
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
        let crew = Crew::new();
        let (ends, calls): (Vec<_>, Vec<_>) = (0..2 * KEPT).map(|_| call()).unzip();
        calls.into_iter().for_each(|served| crew.take(served));
        assert_eq!(tasks(), 2 * KEPT);
        ends.into_iter().for_each(|end| end.send(()).unwrap());
        while tasks() > KEPT {
            yield_now().await;
        }
        assert_eq!(lock(&crew.0).as_ref().map(Vec::len), Some(KEPT));
    }
}
