//! Pools.

use std::sync::Arc;

use tether_proto::Failure;
use tether_proto::pool::{
    ApplyPoolRequest, ApplyPoolResponse, DeletePoolRequest, DeletePoolResponse, DrainPoolRequest,
    DrainPoolResponse, GetPoolRequest, GetPoolResponse, ListPoolsRequest, ListPoolsResponse,
    ScalePoolRequest, ScalePoolResponse, pool_service_server::PoolService,
};
use tether_types::{Epoch, Reason};
use tonic::{Request, Response, Status};

use super::owner;
use crate::{ledger::Ledger, seat::Seat};

/// Serves [`PoolService`].
#[derive(Debug)]
pub(crate) struct Pools(pub(crate) Arc<Seat>);

#[tonic::async_trait]
impl PoolService for Pools {
    async fn apply_pool(
        &self,
        request: Request<ApplyPoolRequest>,
    ) -> Result<Response<ApplyPoolResponse>, Status> {
        let request = request.into_inner();
        let owner = owner(&request.owner)?;
        let spec = request
            .pool
            .ok_or_else(|| Failure::new(Reason::ConfigInvalid, "the field `pool` is missing"))?;
        let shared = self.0.shared()?;
        let pool = shared
            .act(|ledger, now| ledger.apply_pool(spec, owner, Epoch(request.epoch), now))
            .await?;
        shared.pool_applied();
        Ok(Response::new(ApplyPoolResponse { pool: Some(pool) }))
    }

    async fn get_pool(
        &self,
        request: Request<GetPoolRequest>,
    ) -> Result<Response<GetPoolResponse>, Status> {
        let name = request.into_inner().name;
        let pool = self
            .0
            .shared()?
            .read(|ledger, _| ledger.any_pool(&name))
            .await??;
        Ok(Response::new(GetPoolResponse { pool: Some(pool) }))
    }

    async fn list_pools(
        &self,
        _: Request<ListPoolsRequest>,
    ) -> Result<Response<ListPoolsResponse>, Status> {
        let pools = self
            .0
            .shared()?
            .read(|ledger: &Ledger, _| {
                // Those of agents first: each kind is in order of its names.
                [ledger.list_pools(), ledger.registered_pools()].concat()
            })
            .await?;
        Ok(Response::new(ListPoolsResponse { pools }))
    }

    async fn scale_pool(
        &self,
        request: Request<ScalePoolRequest>,
    ) -> Result<Response<ScalePoolResponse>, Status> {
        let request = request.into_inner();
        let pool = self
            .0
            .shared()?
            .act(|ledger, now| {
                ledger.may_act(&request.owner, request.epoch, &request.name)?;
                ledger.scale_pool(&request.name, request.size, request.from, now)
            })
            .await?;
        Ok(Response::new(ScalePoolResponse { pool: Some(pool) }))
    }

    async fn drain_pool(
        &self,
        request: Request<DrainPoolRequest>,
    ) -> Result<Response<DrainPoolResponse>, Status> {
        let request = request.into_inner();
        let pool = self
            .0
            .shared()?
            .act(|ledger, now| {
                ledger.may_act(&request.owner, request.epoch, &request.name)?;
                ledger.drain_pool(&request.name, !request.undrain, now)
            })
            .await?;
        Ok(Response::new(DrainPoolResponse { pool: Some(pool) }))
    }

    async fn delete_pool(
        &self,
        request: Request<DeletePoolRequest>,
    ) -> Result<Response<DeletePoolResponse>, Status> {
        let request = request.into_inner();
        self.0
            .shared()?
            .act(|ledger, now| {
                ledger.may_act(&request.owner, request.epoch, &request.name)?;
                ledger.delete_pool(&request.name, now)
            })
            .await?;
        Ok(Response::new(DeletePoolResponse {}))
    }
}
