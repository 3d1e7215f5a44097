//! Room for the beginnings of calls: each needs a few KiB for as long as it waits for its answer to begin, and another call
//! has the same room after it.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{self, Context, Poll},
};

use tokio_util::sync::ReusableBoxFuture;

/// How many are kept.
const KEPT: usize = 256;

/// What a beginning comes to.
type Beginning<T> = ReusableBoxFuture<'static, Option<T>>;

/// The rooms of one lane that are free.
pub(crate) struct Rooms<T>(Arc<Mutex<Vec<Beginning<T>>>>);

impl<T> Clone for Rooms<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Rooms<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> fmt::Debug for Rooms<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rooms").finish_non_exhaustive()
    }
}

impl<T> Rooms<T> {
    /// What begins with `beginning`, and goes on as that says.
    pub(crate) fn begin<F>(&self, beginning: F) -> Serving<T>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let used = self.lock().pop();
        let beginning = match used {
            Some(mut room) => {
                room.set(beginning);
                room
            }
            None => ReusableBoxFuture::new(beginning),
        };
        Serving::Begins(Some(beginning), self.clone())
    }

    fn free(&self, room: Beginning<T>) {
        let mut kept = self.lock();
        if kept.len() < KEPT {
            kept.push(room);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Beginning<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is served. Its beginning takes much more room than the rest, which may last for hours.
pub(crate) enum Serving<T> {
    Begins(Option<Beginning<T>>, Rooms<T>),
    Goes(T),
}

impl<T: Future<Output = ()> + Unpin> Future for Serving<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Begins(beginning, rooms) = &mut *self {
            let begun = match beginning {
                Some(beginning) => task::ready!(beginning.poll(cx)),
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
        let rooms = Rooms::default();
        let (mut first, second) = (rooms.begin(begin(true)), rooms.begin(begin(false)));
        assert!(futures::poll!(&mut first).is_pending());
        second.await;
        assert_eq!(rooms.lock().len(), 1);
        first.await;
        assert_eq!(rooms.lock().len(), 2);
        rooms.begin(begin(true)).await;
        drop(rooms.begin(begin(true)));

        // The room of a call that was given up goes with it.
        assert_eq!(rooms.lock().len(), 1);
    }
}
