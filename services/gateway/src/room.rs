//! Room for the beginnings of calls: each needs a few KiB for as long as it waits for its answer to begin, and another call
//! has the same room after it. A beginning is made where it stays: to move one would cost as much as to make it.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{self, Context, Poll},
};

use pin_project_lite::pin_project;

/// How many are kept.
const KEPT: usize = 256;

/// Has room for one call; what comes of its beginning is how it goes on, where it does.
pub(crate) trait Room<C, T>: Send {
    fn begin(self: Pin<&mut Self>, call: C);
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>>;
}

pin_project! {
    struct Space<B, F> {
        begin: B,
        #[pin]
        beginning: Option<F>,
    }
}

impl<C, T, B, F> Room<C, T> for Space<B, F>
where
    B: Fn(C) -> F + Send,
    F: Future<Output = Option<T>> + Send,
{
    fn begin(self: Pin<&mut Self>, call: C) {
        let mut this = self.project();
        this.beginning.set(Some((this.begin)(call)));
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut this = self.project();
        let begun = match this.beginning.as_mut().as_pin_mut() {
            Some(beginning) => task::ready!(beginning.poll(cx)),
            None => None,
        };
        this.beginning.set(None);
        Poll::Ready(begun)
    }
}

pub(crate) type Free<C, T> = Pin<Box<dyn Room<C, T>>>;

/// The rooms of one lane.
pub(crate) struct Rooms<C, T>(Arc<Shared<C, T>>);

struct Shared<C, T> {
    free: Mutex<Vec<Free<C, T>>>,
    build: Box<dyn Fn() -> Free<C, T> + Send + Sync>,
}

impl<C, T> Clone for Rooms<C, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C, T> fmt::Debug for Rooms<C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rooms").finish_non_exhaustive()
    }
}

impl<C: 'static, T: 'static> Rooms<C, T> {
    /// For calls that begin so.
    pub(crate) fn new<B, F>(begin: B) -> Self
    where
        B: Fn(C) -> F + Copy + Send + Sync + 'static,
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let build = move || -> Free<C, T> {
            Box::pin(Space {
                begin,
                beginning: None,
            })
        };
        Self(Arc::new(Shared {
            free: Mutex::default(),
            build: Box::new(build),
        }))
    }

    /// Serves a call.
    pub(crate) fn serve(&self, call: C) -> Serving<C, T> {
        let used = self.lock().pop();
        let mut room = used.unwrap_or_else(|| (self.0.build)());
        room.as_mut().begin(call);
        Serving::Begins(Some(room), self.clone())
    }
}

impl<C, T> Rooms<C, T> {
    fn free(&self, room: Free<C, T>) {
        let mut kept = self.lock();
        if kept.len() < KEPT {
            kept.push(room);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Free<C, T>>> {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is served. Its beginning takes much more room than the rest, which may last for hours.
pub(crate) enum Serving<C, T> {
    Begins(Option<Free<C, T>>, Rooms<C, T>),
    Goes(T),
}

impl<C, T: Future<Output = ()> + Unpin> Future for Serving<C, T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Begins(beginning, rooms) = &mut *self {
            let begun = match beginning {
                Some(room) => task::ready!(room.as_mut().poll(cx)),
                None => None,
            };
            if let Some(room) = beginning.take() {
                rooms.free(room);
            }
            match begun {
                None => return Poll::Ready(()),
                Some(rest) => *self = Self::Goes(rest),
            }
        }
        match &mut *self {
            Self::Goes(rest) => Pin::new(rest).poll(cx),
            Self::Begins(..) => Poll::Ready(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use super::*;

    async fn begin(goes_on: bool) -> Option<Ready<()>> {
        tokio::task::yield_now().await;
        goes_on.then(|| ready(()))
    }

    #[tokio::test]
    async fn a_room_is_used_again_and_not_while_somebody_is_in_it() {
        let rooms = Rooms::new(begin);
        let (mut first, second) = (rooms.serve(true), rooms.serve(false));
        assert!(futures::poll!(&mut first).is_pending());
        second.await;
        assert_eq!(rooms.lock().len(), 1);
        first.await;
        assert_eq!(rooms.lock().len(), 2);
        rooms.serve(true).await;
        drop(rooms.serve(true));

        // The room of a call that was given up goes with it.
        assert_eq!(rooms.lock().len(), 1);
    }
}
