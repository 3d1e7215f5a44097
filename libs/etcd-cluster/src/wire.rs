//! A wire to a member that loses what goes one way, or brings it late.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// What gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Everything.
    Both,
    /// What the client says. What the member answers is lost.
    OnlyUp,
    /// What the member says. What the client asks is lost.
    OnlyDown,
    /// What the member says. What the client asks is held until everything gets through again.
    LateUp,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Up,
    Down,
}

/// What becomes of bytes.
enum Fate {
    Carried,
    Held,
    Lost,
}

impl Flow {
    fn fate(self, way: Way) -> Fate {
        match (self, way) {
            (Self::Both, _) | (Self::OnlyUp, Way::Up) => Fate::Carried,
            (Self::OnlyDown | Self::LateUp, Way::Down) => Fate::Carried,
            (Self::LateUp, Way::Up) => Fate::Held,
            (Self::OnlyUp, Way::Down) | (Self::OnlyDown, Way::Up) => Fate::Lost,
        }
    }
}

/// What was said each way since the flow was set last.
#[derive(Debug, Default)]
struct Said {
    up: Vec<u8>,
    down: Vec<u8>,
}

/// A TCP proxy in front of one member. Cutting loses bytes and closes nothing, as a network does that
/// drops packets; what was lost is not sent again, so a connection that was cut stays useless.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    flow: Arc<watch::Sender<Flow>>,
    said: Arc<Mutex<Said>>,
    _tasks: JoinSet<()>,
}

impl Wire {
    /// A wire to the member that listens at `to`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn to(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("it listens");
        let address = listener.local_addr().expect("it has an address");
        let flow = Arc::new(watch::Sender::new(Flow::Both));
        let said = Arc::new(Mutex::new(Said::default()));
        let mut tasks = JoinSet::new();
        let (flows, heard) = (Arc::clone(&flow), Arc::clone(&said));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(member) = TcpStream::connect(&to).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_member, to_member) = member.into_split();
                let up = (Way::Up, flows.subscribe(), Arc::clone(&heard));
                connections.spawn(carry(from_client, to_member, up));
                let down = (Way::Down, flows.subscribe(), Arc::clone(&heard));
                connections.spawn(carry(from_member, to_client, down));
            }
        });
        Self {
            address,
            flow,
            said,
            _tasks: tasks,
        }
    }

    /// Where clients find the member, as `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Says what gets through from here on.
    pub fn set(&self, flow: Flow) {
        *lock(&self.said) = Said::default();
        self.flow.send_replace(flow);
    }

    /// Whether a client has said these bytes since the flow was set, in one piece.
    pub fn asked(&self, bytes: &[u8]) -> bool {
        contains(&lock(&self.said).up, bytes)
    }

    /// Whether the member has.
    pub fn answered(&self, bytes: &[u8]) -> bool {
        contains(&lock(&self.said).down, bytes)
    }
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

fn lock(said: &Mutex<Said>) -> std::sync::MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries bytes one way, once one of them was lost never again. An end that was not cut is passed on; after a
/// cut nothing is.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (way, mut flow, said): (Way, watch::Receiver<Flow>, Arc<Mutex<Said>>),
) {
    let mut bytes = vec![0; 64 * 1024];
    let mut held = Vec::new();
    let (mut open, mut whole) = (true, true);
    while open || !whole || !held.is_empty() {
        tokio::select! {
            read = from.read(&mut bytes), if open => {
                let new = &bytes[..read.unwrap_or(0)];
                open = !new.is_empty();
                match way {
                    Way::Up => lock(&said).up.extend(new),
                    Way::Down => lock(&said).down.extend(new),
                }
                let fate = flow.borrow().fate(way);
                match fate {
                    Fate::Held if whole => held.extend(new),
                    Fate::Carried if whole && held.is_empty() => {
                        whole = to.write_all(new).await.is_ok();
                    }
                    Fate::Held | Fate::Carried | Fate::Lost => whole &= new.is_empty(),
                }
            }
            changed = flow.changed() => {
                if changed.is_err() {
                    return;
                }
                if matches!(flow.borrow_and_update().fate(way), Fate::Carried) {
                    let _ = to.write_all(&std::mem::take(&mut held)).await;
                }
            }
        }
    }
}
