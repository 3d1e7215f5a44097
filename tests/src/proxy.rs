//! A bad network between two programs: bytes that come late, in gusts, or not at all, and connections that
//! break. The kernel here may have no such queue of its own, and what TCP makes of loss is delay anyway.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// As much as is passed on at once.
const PIECE: usize = 16 << 10;

/// Pieces on their way before whoever sends them has to wait.
const ON_THE_WAY: usize = 256;

/// What the network does to what passes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weather {
    /// What is on its way towards the server.
    pub there: Way,
    /// What is on its way back.
    pub back: Way,
    /// How many times connections were broken: raising it breaks all there are.
    pub broken: u64,
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    /// How late everything comes.
    pub delay: Duration,
    /// Up to how much later, differing from piece to piece; order is kept, as TCP does.
    pub jitter: Duration,
    /// Whether nothing gets through: it comes when this ends, as TCP sends again.
    pub stalled: bool,
}

/// A proxy on a loopback port; gone when dropped, with its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// Passes connections on to `server`.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub async fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let weather = watch::Sender::new(Weather::default());
        let seen = weather.subscribe();
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, seen.clone()));
            }
        });
        Ok(Self {
            address,
            weather,
            listening,
        })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather.
    pub fn set(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }

    /// Breaks every connection there is.
    pub fn break_all(&self) {
        self.set(|weather| weather.broken += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Passes one connection on, until either side or the weather ends it.
async fn pass(client: TcpStream, server: SocketAddr, weather: watch::Receiver<Weather>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut breaks = weather.clone();
    let broken = breaks.borrow_and_update().broken;
    // A side that has said all it had to say still hears the other.
    let both = async {
        tokio::join!(
            carry(from_client, to_server, weather.clone(), |weather| weather
                .there),
            carry(from_server, to_client, weather, |weather| weather.back),
        )
    };
    tokio::select! {
        _ = both => {}
        _ = breaks.wait_for(|weather| weather.broken != broken) => {}
    }
}

/// One direction: pieces are taken as they come and handed over when their time has come.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    way: fn(&Weather) -> Way,
) {
    let (send, mut receive) = mpsc::channel::<(Instant, Arc<[u8]>)>(ON_THE_WAY);
    let seen = weather.clone();
    let taking = async move {
        let mut buffer = vec![0; PIECE];
        let mut last = Instant::now();
        // A generator good enough for weather, and the same for every run.
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        while let Ok(count) = from.read(&mut buffer).await
            && count > 0
        {
            let Way { delay, jitter, .. } = way(&seen.borrow());
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let part = f64::from(u32::try_from(dice >> 32).unwrap_or(0)) / f64::from(u32::MAX);
            last = last.max(Instant::now() + delay + jitter.mul_f64(part));
            if send.send((last, buffer[..count].into())).await.is_err() {
                return;
            }
        }
    };
    let handing = async {
        while let Some((due, piece)) = receive.recv().await {
            sleep_until(due).await;
            let stalled = |weather: &Weather| way(weather).stalled;
            let open = weather.wait_for(|now| !stalled(now)).await.is_ok();
            if !open || to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(taking, handing);
}
