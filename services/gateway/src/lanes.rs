//! Where connections are served: each lane is a thread with a runtime of its own, so that a call and the connections
//! it goes over stay on one processor and wake nobody else.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tether_kit::{
    listen::{Detached, Stream},
    manager,
    tls::Acceptor,
};
use tokio::sync::mpsc;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{ending::Ending, forward::Forwarder, server};

/// How many tasks of a lane have their turn before it looks at its sockets: a call is some three turns, and what has come
/// for all calls that are under way is then read and answered at once. Whoever comes has its turn behind the others in
/// either case.
const TURNS: u32 = 256;

/// A connection on its way to a lane, with what TLS is spoken over it, and its number; it counts as one that is served.
type Given = (Detached, Option<Arc<Acceptor>>, u64, TaskTrackerToken);

/// Serves connections on lanes, or where it is called when there are none.
pub(crate) struct Lanes {
    here: Arc<Forwarder>,
    lanes: Vec<mpsc::UnboundedSender<Given>>,
    connections: TaskTracker,
    ending: Ending,
    /// How many connections have come so far.
    count: AtomicU64,
}

impl Lanes {
    /// Starts a lane for each of these; `here` serves where there are none.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub(crate) fn start(
        here: Arc<Forwarder>,
        forwarders: Vec<Forwarder>,
        connections: &TaskTracker,
        ending: &Ending,
    ) -> io::Result<Arc<Self>> {
        let start = |(number, forwarder): (usize, Forwarder)| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .event_interval(TURNS)
                .build()?;
            let lane = run(
                receiver,
                Arc::new(forwarder),
                connections.clone(),
                ending.clone(),
            );
            thread::Builder::new()
                .name(format!("lane-{number}"))
                .spawn(move || {
                    runtime.spawn(manager::pulse());
                    runtime.block_on(lane);
                })?;
            Ok(sender)
        };
        let lanes = forwarders.into_iter().enumerate().map(start);
        Ok(Arc::new(Self {
            here,
            lanes: lanes.collect::<io::Result<_>>()?,
            connections: connections.clone(),
            ending: ending.clone(),
            count: AtomicU64::new(0),
        }))
    }

    /// Serves a connection, on the lane whose turn it is: a BEAM has few connections, and they last.
    pub(crate) fn serve(&self, stream: Stream, tls: Option<Arc<Acceptor>>) {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        if self.lanes.is_empty() {
            let here = Arc::clone(&self.here);
            let serving = server::serve(stream, tls, number, here, self.ending.clone());
            self.connections.spawn(serving);
            return;
        }
        let turn = usize::try_from(number).unwrap_or(0) % self.lanes.len();
        match stream.detach() {
            // A lane takes connections for as long as this is here.
            Ok(stream) => {
                let counts = self.connections.token();
                drop(self.lanes[turn].send((stream, tls, number, counts)));
            }
            Err(error) => tracing::warn!(%error, "A connection could not be given to a lane"),
        }
    }
}

/// Serves what comes until nothing more can.
async fn run(
    mut streams: mpsc::UnboundedReceiver<Given>,
    forwarder: Arc<Forwarder>,
    connections: TaskTracker,
    ending: Ending,
) {
    while let Some((stream, tls, number, _counts)) = streams.recv().await {
        match stream.attach() {
            Ok(stream) => {
                let forwarder = Arc::clone(&forwarder);
                let serving = server::serve(stream, tls, number, forwarder, ending.clone());
                connections.spawn(serving);
            }
            Err(error) => tracing::warn!(%error, "A connection could not be taken by a lane"),
        }
    }
}
