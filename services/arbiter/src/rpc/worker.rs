//! Workers: what they are, orders to them, their output, events.

use std::sync::Arc;

use tether_clock::Tick;
use tether_proto::{
    Failure,
    common::WorkerRef,
    node::{ReadOutputRequest, agent_service_client::AgentServiceClient},
    worker::{
        DeclareNodeDeadRequest, DeclareNodeDeadResponse, GetWorkerRequest, GetWorkerResponse,
        ListNodesRequest, ListNodesResponse, ListWorkersRequest, ListWorkersResponse, LogStream,
        ReadLogsRequest, ReadLogsResponse, SetNodeStateRequest, SetNodeStateResponse,
        SignalWorkerRequest, SignalWorkerResponse, StopWorkerRequest, StopWorkerResponse,
        WatchEventsRequest, WatchEventsResponse, Worker, worker_service_server::WorkerService,
    },
};
use tether_types::{Address, Incarnation, NodeName, Reason, WorkerId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Answers;
use crate::{ledger::Ledger, seat::Seat, shared::Shared};

/// The longest word of a witness, in bytes: it is kept with each death.
const WITNESS_MAX: usize = 512;

/// Signals Linux has.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// Serves [`WorkerService`].
#[derive(Debug)]
pub(crate) struct Workers(pub(crate) Arc<Seat>);

fn not_there(id: &WorkerId) -> Failure {
    Failure::new(
        Reason::UnknownWorker,
        format!("no worker `{id}` lives; `tether ps` lists those that do"),
    )
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let shared = self.0.shared()?;
        let pool = request.into_inner().pool;
        if !pool.is_empty() {
            shared
                .read(|ledger, _| ledger.any_pool(&pool).map(drop))
                .await??;
        }
        let workers = shared
            .read(|ledger, now| all_workers(ledger, &pool, now))
            .await?;
        Ok(Response::new(ListWorkersResponse { workers }))
    }

    async fn list_nodes(
        &self,
        _: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let nodes = self.0.shared()?.read(Ledger::list_nodes).await?;
        Ok(Response::new(ListNodesResponse { nodes }))
    }

    async fn declare_node_dead(
        &self,
        request: Request<DeclareNodeDeadRequest>,
    ) -> Result<Response<DeclareNodeDeadResponse>, Status> {
        let DeclareNodeDeadRequest { node, witness } = request.into_inner();
        let refused = |text: String| Failure::new(Reason::ConfigInvalid, text);
        let node = NodeName::new(&node).map_err(|error| refused(error.to_string()))?;
        if !(1..=WITNESS_MAX).contains(&witness.trim().len()) {
            let text = format!(
                "`witness` has {} bytes, use 1 to {WITNESS_MAX}: who says that the node is dead, and how is it known?",
                witness.trim().len()
            );
            return Err(refused(text).into());
        }
        let workers = self
            .0
            .shared()?
            .act(|ledger, now| ledger.declare_dead(&node, witness.trim(), now))
            .await?;
        Ok(Response::new(DeclareNodeDeadResponse { workers }))
    }

    async fn set_node_state(
        &self,
        request: Request<SetNodeStateRequest>,
    ) -> Result<Response<SetNodeStateResponse>, Status> {
        let request = request.into_inner();
        let name = NodeName::new(&request.node)
            .map_err(|error| Failure::new(Reason::ConfigInvalid, error.to_string()))?;
        let node = self
            .0
            .shared()?
            .act(|ledger, now| ledger.set_node_state(&name, request.state(), now))
            .await?;
        Ok(Response::new(SetNodeStateResponse { node: Some(node) }))
    }

    async fn get_worker(
        &self,
        request: Request<GetWorkerRequest>,
    ) -> Result<Response<GetWorkerResponse>, Status> {
        let id = WorkerRef::required(request.into_inner().worker.as_ref())?;
        let workers = self
            .0
            .shared()?
            .read(|ledger, now| all_workers(ledger, id.pool.as_str(), now))
            .await?;
        let same = |worker: &WorkerRef| {
            worker.slot == id.slot
                && (id.incarnation == Incarnation(0) || worker.incarnation == id.incarnation.0)
        };
        let worker = workers
            .into_iter()
            .find(|worker| worker.worker.as_ref().is_some_and(same));
        match worker {
            Some(worker) => Ok(Response::new(GetWorkerResponse {
                worker: Some(worker),
            })),
            None => Err(not_there(&id).into()),
        }
    }

    async fn stop_worker(
        &self,
        request: Request<StopWorkerRequest>,
    ) -> Result<Response<StopWorkerResponse>, Status> {
        let request = request.into_inner();
        let id = WorkerRef::required(request.worker.as_ref())?;
        let found = self
            .0
            .shared()?
            .act(|ledger, _| {
                ledger.may_act(&request.owner, request.epoch, id.pool.as_str())?;
                ledger.check_ours(&id.pool)?;
                Ok(ledger.stop_worker(&id, request.grace_ms))
            })
            .await?;
        match found {
            true => Ok(Response::new(StopWorkerResponse {})),
            false => Err(not_there(&id).into()),
        }
    }

    async fn signal_worker(
        &self,
        request: Request<SignalWorkerRequest>,
    ) -> Result<Response<SignalWorkerResponse>, Status> {
        let request = request.into_inner();
        let id = WorkerRef::required(request.worker.as_ref())?;
        if !SIGNALS.contains(&request.signal) {
            let text = format!("{} is not a signal: Linux has 1 to 64", request.signal);
            return Err(Failure::new(Reason::ConfigInvalid, text).into());
        }
        let found = self
            .0
            .shared()?
            .act(|ledger, _| {
                ledger.may_act(&request.owner, request.epoch, id.pool.as_str())?;
                ledger.check_ours(&id.pool)?;
                Ok(ledger.signal_worker(&id, request.signal))
            })
            .await?;
        match found {
            true => Ok(Response::new(SignalWorkerResponse {})),
            false => Err(not_there(&id).into()),
        }
    }

    type ReadLogsStream = Answers<ReadLogsResponse>;

    async fn read_logs(
        &self,
        request: Request<ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let request = request.into_inner();
        let id = WorkerRef::required(request.worker.as_ref())?;
        // Asked before the stream begins, so that a wrong name is an error and not an empty answer.
        let shared = self.0.shared()?;
        let (first, address) = locate(&shared, &id, 0).await?;
        let (send, receive) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(status) = logs(&shared, first, address, &request, &send).await {
                let _ = send.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    type WatchEventsStream = Answers<WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        let shared = self.0.shared()?;
        let mut newest = shared.events.newest();
        check_known(request.after_revision, *newest.borrow())?;
        let (send, receive) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut seen = request.after_revision;
            loop {
                newest.mark_unchanged();
                for event in shared.events.after(seen) {
                    seen = event.revision;
                    let of_pool = event
                        .worker
                        .as_ref()
                        .is_some_and(|worker| worker.pool == request.pool);
                    if !request.pool.is_empty() && !of_pool {
                        continue;
                    }
                    if send
                        .send(Ok(WatchEventsResponse { event: Some(event) }))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                if !request.follow {
                    return;
                }
                tokio::select! {
                    changed = newest.changed() => if changed.is_err() { return },
                    () = send.closed() => return,
                    () = shared.over() => {
                        let _ = send.send(Err(shared.why_over())).await;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// Refuses a number that no event has had. Whoever has it from an earlier store would hear nothing until this one is
/// as old as that.
fn check_known(after: u64, newest: u64) -> Result<(), Status> {
    if after <= newest {
        return Ok(());
    }
    let text = format!(
        "there is no event {after}, the newest is {newest}: is the store another one than before?"
    );
    Err(Status::out_of_range(text))
}

/// Those of agents, and those that others have registered.
fn all_workers(ledger: &Ledger, pool: &str, now: Tick) -> Vec<Worker> {
    [
        ledger.list_workers(pool, now),
        ledger.registered_workers(pool, now),
    ]
    .concat()
}

/// The newest incarnation in a worker's place after `after`, living or dead, and the agent that has
/// its logs.
async fn locate(
    shared: &Shared,
    id: &WorkerId,
    after: u64,
) -> Result<(WorkerId, Address), Failure> {
    let found = shared
        .read(|ledger, _| ledger.check_ours(&id.pool).map(|()| ledger.find_logs(id)))
        .await??;
    let (found, address) = found.ok_or_else(|| {
        Failure::new(
            Reason::UnknownWorker,
            format!("no worker `{id}` is known; `tether ps` lists those that are"),
        )
    })?;
    if found.incarnation.0 <= after {
        return Err(not_there(id));
    }
    let address = address.parse().map_err(|_| {
        Failure::new(
            Reason::AgentUnreachable,
            format!("the node of worker `{found}` has not said where its agent is"),
        )
    })?;
    Ok((found, address))
}

async fn logs(
    shared: &Shared,
    mut worker: WorkerId,
    mut address: Address,
    request: &ReadLogsRequest,
    to: &mpsc::Sender<Result<ReadLogsResponse, Status>>,
) -> Result<(), Status> {
    let one_only = request
        .worker
        .as_ref()
        .is_some_and(|worker| worker.incarnation != 0);
    let mut newest = shared.events.newest();
    let mut tail_bytes = request.tail_bytes;
    loop {
        let mut client = AgentServiceClient::new(tether_kit::channel::connect(&address));
        let ask = ReadOutputRequest {
            worker: Some(WorkerRef::from(&worker)),
            follow: request.follow,
            tail_bytes,
        };
        let mut output = client.read_output(ask).await?.into_inner();
        while let Some(piece) = tokio::select! {
            piece = output.message() => piece?,
            () = shared.over() => None,
        } {
            let stream = if piece.stderr {
                LogStream::Stderr
            } else {
                LogStream::Stdout
            };
            let answer = ReadLogsResponse {
                stream: stream.into(),
                data: piece.data,
                worker: Some(WorkerRef::from(&worker)),
            };
            if to.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
        if !request.follow || one_only {
            return Ok(());
        }
        // The slot's next incarnation is followed in turn; each change of anything is an event.
        tail_bytes = 0;
        let place = WorkerId {
            incarnation: Incarnation(0),
            ..worker.clone()
        };
        (worker, address) = loop {
            newest.mark_unchanged();
            match locate(shared, &place, worker.incarnation.0).await {
                Ok(next) => break next,
                Err(gone)
                    if shared
                        .read(|ledger, _| ledger.find_logs(&place).is_none())
                        .await
                        .unwrap_or(true) =>
                {
                    return Err(gone.into());
                }
                Err(_) => {}
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return Ok(()) },
                () = to.closed() => return Ok(()),
                () = shared.over() => return Err(shared.why_over()),
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_follows_the_events_of_another_store_is_told_so() {
        assert!(check_known(0, 0).is_ok() && check_known(7, 7).is_ok());

        let refused = check_known(8, 7).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::OutOfRange);
    }
}
