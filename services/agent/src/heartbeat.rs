//! The node: one heartbeat stream to the arbiter, and the workers it speaks for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tether_clock::{
    BootClock, Clock as _, HolderClock, Tick,
    wall::{Step, WallWatch},
};
use tether_kit::arbiters::Arbiters;
use tether_proto::{
    SHARD,
    common::WorkerPhase,
    expect_shard,
    node::{
        self, HeartbeatRequest, HeartbeatResponse, Hello, OwnerExit, StartWorker, WorkerReport,
        WorkerTable, node_service_client::NodeServiceClient,
    },
};
use tether_types::{Address, Digest, PoolName, WorkerId};
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        watch,
    },
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    beat::Beats,
    epoch::NodeEpoch,
    hands::{Adopted, Grants, Hands, Launchers, Order, Place, Tie, Wires},
    history, launch,
    metrics::Metrics,
    news::News,
    owners,
    permission::{self, Permissions, Steps, Told},
    report,
    search::{End, Search},
    worker,
};

/// Messages on their way to the arbiter; more are held back in one list of what changed.
const OUTBOX: usize = 8;

/// Shims that read no page are told of a later end of their permission in steps of this part of a beat's interval: news has a
/// beat of its own, and a thousand workers are not to hear of each other's.
const STEPS: u32 = 8;

/// Between two looks at which launchers there are: a supervisor may be started after its agent.
const LAUNCHERS_AGAIN: Duration = Duration::from_secs(10);

/// What an orderly stop may take beyond the longest grace of the workers it ends.
const STOP_SLACK: Duration = Duration::from_secs(2);

/// An agent's node, not yet running.
#[derive(Debug)]
pub(crate) struct Node {
    hands: Box<dyn Hands>,
    metrics: Arc<Metrics>,
    address: Address,
    /// Where gateways are told of fates.
    fates: Option<Address>,
    arbiters: Arbiters,
    /// Whether it has joined and holds its lease.
    joined: watch::Sender<bool>,
}

struct Worker {
    orders: UnboundedSender<Order>,
    /// What is known of it, for a stream that begins anew.
    last: WorkerReport,
    /// Its phase as the stream was told last; unspecified for not at all.
    told: WorkerPhase,
    /// Time it is given at an orderly stop of the agent; none for one that stays.
    ends_with_agent: Option<u64>,
    /// How long before the end of its permission it is asked to end.
    lease_grace_ms: u64,
}

struct Running {
    hands: Box<dyn Hands>,
    metrics: Arc<Metrics>,
    place: Place,
    /// Beats and leases count by it; shims, whose timers are the kernel's, by `BootClock`.
    clock: HolderClock,
    beats: Beats,
    epoch: NodeEpoch,
    /// Looked at with each beat.
    wall: WallWatch,
    /// What was granted. Told when there is more to it than a later end, which the lease page tells.
    permissions: watch::Sender<Permissions>,
    /// The same for those that read no page, in steps, and told with each.
    steps: watch::Sender<Permissions>,
    workers: BTreeMap<WorkerId, Worker>,
    reports: UnboundedSender<WorkerReport>,
    /// What changed and is not sent yet.
    news: News,
    /// Whether the arbiter asked for all there is.
    resync: bool,
    /// Owners' ends the arbiter has not answered yet, and the beat that told them, if one did on this
    /// stream: they are observed only once, so they are told until they are heard.
    exits: Vec<OwnerExit>,
    exits_told: Option<u64>,
    joined: watch::Sender<bool>,
    /// The launchers that it says it has. Looked for while a stream is open: a supervisor that hangs is not to hold up
    /// the next one, and the lease with it.
    offered: Vec<String>,
}

impl Node {
    pub(crate) fn new(
        hands: Box<dyn Hands>,
        metrics: Arc<Metrics>,
        address: Address,
        arbiters: Arbiters,
    ) -> Self {
        Self {
            hands,
            metrics,
            address,
            fates: None,
            arbiters,
            joined: watch::Sender::new(false),
        }
    }

    /// Whether it has joined and holds its lease, as it changes.
    pub(crate) fn joined(&self) -> watch::Receiver<bool> {
        self.joined.subscribe()
    }

    /// Has gateways told of fates here.
    pub(crate) fn telling_at(self, fates: Option<Address>) -> Self {
        Self { fates, ..self }
    }

    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self {
            hands,
            metrics,
            address,
            fates,
            arbiters,
            joined,
        } = self;
        let at = (address, fates);
        let (reports, mut reported) = mpsc::unbounded_channel();
        let (exits, mut exited) = mpsc::unbounded_channel();
        let mut running = Running {
            place: hands.place()?,
            hands,
            metrics,
            clock: HolderClock::start(),
            beats: Beats::new(arbiters.known().len()),
            epoch: NodeEpoch::default(),
            wall: WallWatch::default(),
            permissions: watch::Sender::new(Permissions::default()),
            steps: watch::Sender::new(Permissions::default()),
            workers: BTreeMap::new(),
            reports,
            news: News::default(),
            resync: false,
            exits: Vec::new(),
            exits_told: None,
            joined,
            offered: Vec::new(),
        };
        running.adopt(exits)?;
        tokio::spawn(permission::tell(running.permissions.subscribe()));

        let mut search = Search::new(arbiters, running.beats.interval());
        running.offered = running.hands.launchers().await;
        while !stop.is_cancelled() {
            let patience = search.patience(&running.beats, running.clock.now());
            let opened = timeout(patience, running.open(&at, search.current()));
            let end = match stop.run_until_cancelled(opened).await {
                None => break,
                Some(Err(_)) => End::Silent,
                Some(Ok(Err(status))) => End::from(status),
                Some(Ok(Ok((outbox, inbox)))) => {
                    tracing::info!(arbiter = %search.current(), "Node joined");
                    search.on_leader();
                    running.beats.on_stream();
                    running.epoch.on_stream();
                    let end = running
                        .speak(outbox, inbox, &mut reported, &mut exited, &stop)
                        .await;
                    search.on_stream_over(running.beats.interval());
                    end
                }
            };
            if let End::Fenced(status) = &end {
                running.on_fenced(status);
            }
            let pause = search.after(end, &running.beats, running.clock.now(), fastrand::f64());
            if !pause.is_zero() {
                let pause = Instant::now() + pause;
                running.wait(pause, &mut reported, &mut exited, &stop).await;
            }
            running.note_lease();
        }
        running.stop(&mut reported).await;
        Ok(())
    }
}

impl Running {
    /// Which launchers can be had in a while.
    fn launchers_again(&self) -> Launchers {
        let launchers = self.hands.launchers();
        Box::pin(async move {
            sleep(LAUNCHERS_AGAIN).await;
            launchers.await
        })
    }

    /// Opens the stream; the first message is queued before the call is awaited, else both sides
    /// would wait for each other.
    async fn open(
        &self,
        (address, fates): &(Address, Option<Address>),
        arbiter: &Address,
    ) -> Result<(mpsc::Sender<HeartbeatRequest>, Streaming<HeartbeatResponse>), tonic::Status> {
        let (outbox, requests) = mpsc::channel(OUTBOX);
        let hello = Hello {
            node: self.place.node.to_string(),
            address: address.to_string(),
            fates: fates.as_ref().map(Address::to_string).unwrap_or_default(),
            launchers: self.offered.clone(),
            boot_id: self.place.view.boot_id.clone(),
            pid_namespace: self.place.view.pid_namespace,
            instance: self.place.instance.clone(),
            guarantee: self.place.guarantee.to_string(),
            guarantee_by: self.place.guarantee.means().to_owned(),
            not_covered: self.place.guarantee.not_covered().to_owned(),
            labels: self.place.labels.clone().into_iter().collect(),
            resources: self.place.resources.clone().into_iter().collect(),
            epoch: self.epoch.on_hello(),
            shard: SHARD,
            workers: self
                .workers
                .values()
                .map(|worker| worker.last.clone())
                .collect(),
        };
        // The hello itself is beat 0: it renews nothing, so that nothing is counted from before the
        // connection stood.
        let _ = outbox.try_send(HeartbeatRequest {
            hello: Some(hello),
            ..HeartbeatRequest::default()
        });
        let mut client = NodeServiceClient::new(tether_kit::channel::connect(arbiter));
        let inbox = client
            .heartbeat(ReceiverStream::new(requests))
            .await?
            .into_inner();
        Ok((outbox, inbox))
    }

    /// Takes responsibility for all that an earlier agent left.
    fn adopt(&mut self, exits: UnboundedSender<OwnerExit>) -> anyhow::Result<()> {
        let wires = Wires {
            exits,
            reports: self.reports.clone(),
            grants: self.grants(),
        };
        let found = self.hands.adopt(wires)?;
        if !found.is_empty() {
            let workers = found.len();
            tracing::info!(workers, "Found workers of an earlier agent");
        }
        for Adopted {
            id,
            lease_grace_ms,
            resources,
            orders,
        } in found
        {
            tracing::debug!(worker = %id, "Found a worker of an earlier agent");
            let last = WorkerReport {
                adopted: true,
                resources,
                ..report::phase(&id, WorkerPhase::Waiting)
            };
            let worker = Worker {
                orders,
                last,
                told: WorkerPhase::Unspecified,
                ends_with_agent: None,
                lease_grace_ms,
            };
            self.workers.insert(id, worker);
            self.metrics.on_worker();
        }
        Ok(())
    }

    fn grants(&self) -> Grants {
        Grants {
            news: self.permissions.subscribe(),
            steps: self.steps.subscribe(),
        }
    }

    /// Beats and obeys until the stream ends.
    async fn speak(
        &mut self,
        outbox: mpsc::Sender<HeartbeatRequest>,
        mut inbox: Streaming<HeartbeatResponse>,
        reported: &mut UnboundedReceiver<WorkerReport>,
        exited: &mut UnboundedReceiver<OwnerExit>,
        stop: &CancellationToken,
    ) -> End {
        // What was pending is in the hello.
        self.tell_all();
        self.exits_told = None;
        let mut again = self.launchers_again();
        loop {
            // All that is known by now goes into one beat.
            while let Ok(report) = reported.try_recv() {
                self.on_report(report);
            }
            while let Ok(exit) = exited.try_recv() {
                self.on_exit(exit);
            }
            let now = self.clock.now();
            let exits = self.exits_told.is_none() && !self.exits.is_empty();
            let news = exits || self.resync || !self.news.is_empty();
            if now >= self.beats.due() || (news && !self.beats.in_flight()) {
                let (seq, ack_seen) = self.beats.on_send(now);
                let beat = HeartbeatRequest {
                    owner_exits: self.exits.clone(),
                    ..self.beat(seq, ack_seen)
                };
                self.exits_told = Some(seq);
                // A stream that takes no more leads nowhere; what this beat would have told is in the
                // next hello.
                if outbox.try_send(beat).is_err() {
                    return End::Broken(Status::unavailable("it takes no more beats"));
                }
                continue;
            }
            if now >= self.beats.overdue() {
                return End::Silent;
            }
            let due = Instant::now() + self.beats.due().min(self.beats.overdue()).since(now);
            tokio::select! {
                message = inbox.message() => match message {
                    Ok(Some(message)) => match expect_shard(message.shard) {
                        Ok(()) => self.on_answer(message),
                        Err(foreign) => return End::Broken(foreign.into()),
                    },
                    Ok(None) => return End::Broken(Status::unavailable("it closed the stream")),
                    Err(status) => return End::from(status),
                },
                Some(report) = reported.recv() => self.on_report(report),
                Some(exit) = exited.recv() => self.on_exit(exit),
                // What is not there any more says so when it is wanted.
                there = &mut again => {
                    let is_new = |launcher| !self.offered.contains(launcher);
                    if there.iter().any(is_new) {
                        self.offered = there;
                        return End::Anew;
                    }
                    again = self.launchers_again();
                }
                () = sleep_until(due) => {}
                () = stop.cancelled() => {
                    self.farewell(&outbox, &mut inbox, reported).await;
                    return End::Stopped;
                }
            }
        }
    }

    /// The next beat: what changed, or all there is, and the sum of what was told with it.
    fn beat(&mut self, seq: u64, ack_seen: u64) -> HeartbeatRequest {
        let table = std::mem::take(&mut self.resync).then(|| WorkerTable {
            workers: self.tell_all(),
        });
        let reports = self.news.take();
        for report in &reports {
            if let Some(worker) = self.worker_of(report) {
                worker.told = report.phase();
            }
        }
        let mut digest = Digest::default();
        for (id, worker) in &self.workers {
            // The dead are left out: when they are forgotten is not the same moment on both sides.
            if !matches!(worker.told, WorkerPhase::Unspecified | WorkerPhase::Dead) {
                digest.add(id, worker.told.into());
            }
        }
        HeartbeatRequest {
            seq,
            ack_seen,
            reports,
            digest: Some(digest.sum()),
            count: digest.count(),
            table,
            epoch: self.epoch.on_beat(),
            clock_step_ms: self.clock_step().map_or(0, Step::millis),
            ..HeartbeatRequest::default()
        }
    }

    /// What is known of each worker, all of which is told with this.
    fn tell_all(&mut self) -> Vec<WorkerReport> {
        self.news.clear();
        self.resync = false;
        let workers = self.workers.values_mut();
        let told = workers.map(|worker| {
            worker.told = worker.last.phase();
            worker.last.clone()
        });
        told.collect()
    }

    /// Whether somebody has set the time of day since the last beat.
    fn clock_step(&mut self) -> Option<Step> {
        let step = self.wall.look()?;
        tracing::warn!(
            "The time of day was {step}: leases count by other clocks and are not affected"
        );
        self.metrics.clock_steps.inc();
        Some(step)
    }

    fn worker_of(&mut self, report: &WorkerReport) -> Option<&mut Worker> {
        let id = report.worker.as_ref()?;
        self.workers.get_mut(&WorkerId::try_from(id).ok()?)
    }

    /// Goes on listening to workers while there is no stream.
    async fn wait(
        &mut self,
        until: Instant,
        reported: &mut UnboundedReceiver<WorkerReport>,
        exited: &mut UnboundedReceiver<OwnerExit>,
        stop: &CancellationToken,
    ) {
        loop {
            tokio::select! {
                Some(report) = reported.recv() => self.on_report(report),
                Some(exit) = exited.recv() => self.on_exit(exit),
                () = sleep_until(until) => return,
                () = stop.cancelled() => return,
            }
        }
    }

    /// The arbiter that leads says that this agent was followed by another one. What it still has ends with the
    /// lease that it was told; it comes again as one that holds nothing.
    fn on_fenced(&mut self, status: &Status) {
        tracing::error!(error = status.message(), "Node was taken over");
        if let Some(epoch) = self.epoch.take() {
            history::on_stopped(&self.place.node, epoch);
        }
    }

    fn on_answer(&mut self, message: HeartbeatResponse) {
        if let Some(before) = self.epoch.on_told(message.epoch) {
            history::on_stopped(&self.place.node, before);
        }
        let ttl = Duration::from_millis(message.ttl_ms);
        let interval = Duration::from_millis(message.beat_ms);
        if message.seq > 0 {
            let now = self.clock.now();
            let Some(sent) = self.beats.on_answer(message.seq, ttl, interval, now) else {
                return;
            };
            self.metrics.on_answer(sent, now);
            if self.exits_told.is_some_and(|told| message.seq >= told) {
                self.exits.clear();
            }
            let told = Told {
                owners: &message.owners,
                sent: self.clock.on_boot(sent),
                lease_end: self.clock.on_boot(self.beats.lease_end()),
            };
            self.permit(&told, interval / STEPS, BootClock.now());
            history::on_answer(&self.place.node, &self.permissions.borrow());
            if let Some(epoch) = self.epoch.held() {
                history::on_held(&self.place.node, epoch, self.beats.lease_end(), now);
            }
            if message.resync {
                tracing::warn!("Arbiter was told something else than what is; telling it all");
                self.resync = true;
            }
            self.hands.on_granted(&self.permissions.borrow());
            self.note_lease();
        }
        for order in message.orders.into_iter().filter_map(|order| order.order) {
            self.on_order(order);
        }
    }

    /// Whoever asks for this agent's readiness hears whether it holds its lease.
    fn note_lease(&self) {
        let holds = self.clock.now() < self.beats.lease_end();
        self.joined
            .send_if_modified(|joined| std::mem::replace(joined, holds) != holds);
    }

    /// Passes on what was granted: on the lease pages, which is all that a later end takes, and to whom there is
    /// more to say.
    fn permit(&mut self, told: &Told<'_>, least: Duration, now: Tick) {
        let Self { workers, .. } = self;
        let keeps = |pool: &PoolName| workers.keys().any(|id| id.pool == *pool);
        let mut granted = self.permissions.borrow().clone();
        let steps = Steps {
            later: Duration::ZERO,
            nearer: least,
        };
        granted.hear(told, &self.place.view, steps, keeps);
        // Stored before it is told: whoever is told to look finds it there.
        if self.hands.permit(&granted, now) {
            granted.nearer += 1;
        }
        self.permissions.send_if_modified(|before| {
            let is_news = granted.is_news_since(before);
            *before = granted;
            is_news
        });
        let steps = Steps {
            later: least,
            nearer: least,
        };
        self.steps.send_if_modified(|granted| {
            let before = granted.clone();
            granted.hear(told, &self.place.view, steps, keeps);
            *granted != before
        });
    }

    fn on_order(&mut self, order: node::order::Order) {
        use node::order::Order::{Forget, Signal, Start, Stop};

        let worker = match &order {
            Start(start) => &start.worker,
            Stop(stop) => &stop.worker,
            Signal(signal) => &signal.worker,
            Forget(forget) => &forget.worker,
        };
        let Some(id) = worker
            .as_ref()
            .and_then(|worker| WorkerId::try_from(worker).ok())
        else {
            return tracing::error!(?order, "Order names no worker");
        };
        match order {
            Start(start) => self.start(id, start),
            Stop(stop) => {
                let cause = report::ordered(stop.cause());
                self.tell(
                    &id,
                    Order::Stop {
                        cause,
                        grace_ms: stop.grace_ms,
                    },
                );
            }
            Signal(signal) => self.tell(&id, Order::Signal(signal.signal)),
            Forget(_) => {
                self.tell(&id, Order::Forget);
                if let Some(worker) = self.workers.remove(&id) {
                    self.metrics.on_forgotten(worker.last.phase());
                    self.hands.forget(&id);
                }
            }
        }
    }

    fn start(&mut self, id: WorkerId, order: StartWorker) {
        if self.workers.contains_key(&id) {
            return; // Orders may be repeated.
        }
        let (orders, received) = mpsc::unbounded_channel();
        let tie = Tie {
            orders: received,
            reports: self.reports.clone(),
            grants: self.grants(),
        };
        let template = order.template.clone().unwrap_or_default();
        let ends_with_agent = order
            .kill_on_agent_loss
            .then(|| launch::grace_ms(&template));
        let last = WorkerReport {
            resources: order.resources.clone(),
            ..report::phase(&id, WorkerPhase::Waiting)
        };
        self.workers.insert(
            id.clone(),
            Worker {
                orders,
                last,
                told: WorkerPhase::Unspecified,
                ends_with_agent,
                lease_grace_ms: order.lease_grace_ms,
            },
        );
        self.metrics.on_worker();
        self.hands.start(id, order, tie);
    }

    fn tell(&self, id: &WorkerId, order: Order) {
        if let Some(worker) = self.workers.get(id) {
            let _ = worker.orders.send(order);
        }
    }

    fn on_exit(&mut self, exit: OwnerExit) {
        self.exits.push(exit);
        self.exits_told = None;
    }

    fn on_report(&mut self, mut report: WorkerReport) {
        let exit = owners::exit_behind(&report, &self.permissions.borrow());
        if let Some(exit) = exit {
            self.on_exit(exit);
        }
        if let Some(worker) = self.worker_of(&report) {
            // Whoever takes over from the arbiter that gave it these hears of them here.
            report.resources = std::mem::take(&mut worker.last.resources);
            let (before, grace_ms) = (worker.last.phase(), worker.lease_grace_ms);
            worker.last = report.clone();
            self.metrics.on_report(before, &report);
            history::on_report(&self.place.node, grace_ms, before, &report);
            self.news.push(report);
        }
    }

    /// Ends the workers that end with the agent, and tells the arbiter of their deaths.
    async fn farewell(
        &mut self,
        outbox: &mpsc::Sender<HeartbeatRequest>,
        inbox: &mut Streaming<HeartbeatResponse>,
        reported: &mut UnboundedReceiver<WorkerReport>,
    ) {
        self.stop(reported).await;
        let told = async {
            loop {
                let (seq, ack_seen) = self.beats.on_send(self.clock.now());
                let mut beat = self.beat(seq, ack_seen);
                // Said with the last of them: what comes after it would come from a node that has left.
                let last = self.news.is_empty();
                let dead = |worker: &Worker| worker.last.phase() == WorkerPhase::Dead;
                beat.goodbye = last && self.workers.values().all(dead);
                let leaves = beat.goodbye;
                outbox.send(beat).await.ok()?;
                while inbox.message().await.ok()??.seq < seq {}
                if last {
                    if let Some(epoch) = self.epoch.held().filter(|_| leaves) {
                        history::on_stopped(&self.place.node, epoch);
                    }
                    return Some(());
                }
            }
        };
        if !matches!(timeout(STOP_SLACK, told).await, Ok(Some(()))) {
            tracing::warn!("Arbiter did not hear of the last deaths");
        }
    }

    /// Ends the workers that end with the agent; those that stay live on under their leases.
    async fn stop(&mut self, reported: &mut UnboundedReceiver<WorkerReport>) {
        let dead = |worker: &Worker| worker.last.phase() == WorkerPhase::Dead;
        let graces = || {
            self.workers
                .values()
                .filter(|worker| !dead(worker))
                .filter_map(|worker| worker.ends_with_agent)
        };
        let Some(longest) = graces().max() else {
            return;
        };
        tracing::info!(
            workers = graces().count(),
            "Stopping the workers that end with the agent"
        );
        for worker in self.workers.values() {
            if let Some(grace_ms) = worker.ends_with_agent {
                let _ = worker.orders.send(worker::stop_with_agent(grace_ms));
            }
        }
        let all_gone = async {
            while self
                .workers
                .values()
                .any(|worker| worker.ends_with_agent.is_some() && !dead(worker))
            {
                match reported.recv().await {
                    Some(report) => self.on_report(report),
                    None => return,
                }
            }
        };
        if timeout(Duration::from_millis(longest) + STOP_SLACK, all_gone)
            .await
            .is_err()
        {
            tracing::error!(
                "Some workers did not end in time; their shims kill them as the agent goes"
            );
        }
    }
}
