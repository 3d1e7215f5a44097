//! Workers as they are kept beside other proxies: each at a port of its own for good, and started again when it has died.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::Signal;
use tether_tests::kill;
use tokio::{net::TcpStream, task::JoinHandle, time::sleep};

use super::site::{Manner, Member, Patience};
use crate::{ground::Ground, net::free_port};

/// How often it is seen whether one has died.
const LOOK: Duration = Duration::from_millis(10);

/// From one worker's replacement to the next: about what ours takes by itself, and enough for what a proxy remembers of
/// the one before.
const PACE: Duration = Duration::from_secs(1);

/// Workers, and who starts them again.
#[derive(Debug)]
pub(super) struct Kept {
    places: Arc<Mutex<Vec<Place>>>,
    keeping: JoinHandle<()>,
}

#[derive(Debug)]
struct Place {
    port: u16,
    child: Child,
    incarnation: u32,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeping.abort();
        for place in lock(&self.places).iter_mut() {
            let _ = place.child.kill();
            let _ = place.child.wait();
        }
    }
}

/// What is needed to start one.
#[derive(Clone)]
struct Start {
    ground: Arc<Ground>,
    clerk: PathBuf,
    books: PathBuf,
    manner: Manner,
}

impl Start {
    fn start(&self, slot: usize, port: u16, incarnation: u32) -> anyhow::Result<Place> {
        let book = self.books.join(format!("{slot}.{incarnation}"));
        let mut command = Command::new(&self.clerk);
        let listen = format!("127.0.0.1:{port}");
        command
            .args(["--listen", &listen, "--book"])
            .arg(book)
            .args(["--slot", &slot.to_string()])
            .args(self.manner.flags())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Place {
            port,
            child: self.ground.start(&mut command)?,
            incarnation,
        })
    }
}

impl Kept {
    pub(super) async fn start(
        ground: &Arc<Ground>,
        clerk: PathBuf,
        books: PathBuf,
        manner: Manner,
    ) -> anyhow::Result<Self> {
        let start = Start {
            ground: Arc::clone(ground),
            clerk,
            books,
            manner,
        };
        let places: anyhow::Result<Vec<_>> = (0..manner.count)
            .map(|slot| start.start(slot, free_port()?, 1))
            .collect();
        let places = Arc::new(Mutex::new(places?));
        let kept = Self {
            keeping: tokio::spawn(keep(Arc::clone(&places), start)),
            places,
        };
        for port in kept.ports() {
            listens(port).await?;
        }
        Ok(kept)
    }

    pub(super) fn ports(&self) -> Vec<u16> {
        lock(&self.places).iter().map(|place| place.port).collect()
    }

    /// Those that listen.
    pub(super) async fn members(&self) -> Vec<Member> {
        let all: Vec<_> = lock(&self.places)
            .iter()
            .enumerate()
            .map(|(slot, place)| Member {
                slot,
                clerk: format!("{slot}.{}", place.incarnation),
                pid: place.child.id(),
                port: place.port,
            })
            .collect();
        let mut listening = Vec::new();
        for member in all {
            if connects(member.port).await {
                listening.push(member);
            }
        }
        listening
    }

    /// Asks one after the other to stop, waits until the next one listens in its place, and a while.
    pub(super) async fn roll(&self) -> anyhow::Result<()> {
        for slot in 0..self.ports().len() {
            let (before, port) = {
                let places = lock(&self.places);
                kill(places[slot].child.id(), Signal::TERM);
                (places[slot].incarnation, places[slot].port)
            };
            let patience = Patience::new();
            while lock(&self.places)[slot].incarnation == before {
                patience.pause("a worker does not end").await?;
            }
            listens(port).await?;
            sleep(PACE).await;
        }
        Ok(())
    }
}

async fn keep(places: Arc<Mutex<Vec<Place>>>, start: Start) {
    loop {
        sleep(LOOK).await;
        let dead: Vec<_> = {
            let mut places = lock(&places);
            let dead = |place: &mut Place| matches!(place.child.try_wait(), Ok(Some(_)));
            let slots = places.iter_mut().enumerate();
            slots
                .filter_map(|(slot, place)| dead(place).then_some(slot))
                .collect()
        };
        if dead.is_empty() {
            continue;
        }
        sleep(start.manner.restart_after).await;
        let mut places = lock(&places);
        for slot in dead {
            let (port, incarnation) = (places[slot].port, places[slot].incarnation + 1);
            if let Ok(next) = start.start(slot, port, incarnation) {
                places[slot] = next;
            }
        }
    }
}

async fn listens(port: u16) -> anyhow::Result<()> {
    let patience = Patience::new();
    while !connects(port).await {
        patience.pause("a worker does not listen").await?;
    }
    Ok(())
}

async fn connects(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).await.is_ok()
}

fn lock(places: &Mutex<Vec<Place>>) -> MutexGuard<'_, Vec<Place>> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}
