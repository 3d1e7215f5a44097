defmodule Tether.Error do
  @moduledoc """
  Why something did not work, and whether it may be tried again.

  `outcome` answers the question that matters after a failure:

  | outcome | what is known | may I try again? |
  | --- | --- | --- |
  | `:not_sent` | no worker has seen the call, or the operation was refused and changed nothing | yes, always (`retry_safe?/1`) |
  | `:unknown` | a worker may have done it, all of it or a part | only when doing it twice does no harm |
  | `:failed` | the worker began, and failed or died | the same; its answer is in `code`, `message`, `details` |

  `reason` is for branching, `message` for people. `retry_after_ms` says when a retry has a chance, where that is known.
  `worker` is the worker concerned, `attempts` how many were tried.

  Reasons: `:no_worker`, `:worker_down`, `:call_reset`, `:circuit_open`, `:overloaded`, `:session_lost` (the worker that knew
  this affinity key is gone), `:lease_expired`, `:fenced`, `:draining`, `:deadline`, `:partitioned` (one of Tether's own services
  cannot be reached), `:mode_forbids`, `:config_invalid`, `:spawn_failed`, `:crash_loop`, `:unknown_pool`, `:unknown_template`,
  `:unknown_worker`, `:unknown_session`, `:unknown_job`, `:not_owner`, `:metadata_invalid`, `:message_too_large`, `:port_down` (the
  Port's program ended; it is started again), `:not_running` (no Tether of that name), and else the name of the gRPC status
  that the worker answered: `:invalid_argument`, `:not_found`, `:unauthenticated` and so on.
  """

  @type outcome :: :not_sent | :unknown | :failed

  @type t :: %__MODULE__{
          reason: atom,
          message: String.t(),
          outcome: outcome,
          retry_after_ms: non_neg_integer | nil,
          code: non_neg_integer | nil,
          worker: Tether.Worker.t() | nil,
          attempts: non_neg_integer,
          details: binary,
          trailers: [{String.t(), binary}]
        }

  defexception reason: :unknown,
               message: "",
               outcome: :unknown,
               retry_after_ms: nil,
               code: nil,
               worker: nil,
               attempts: 0,
               details: "",
               trailers: []

  @reasons %{
    "NO_WORKER_READY" => :no_worker,
    "WORKER_DIED" => :worker_down,
    "CALL_RESET" => :call_reset,
    "BREAKER_OPEN" => :circuit_open,
    "OVERLOADED" => :overloaded,
    "SESSION_WORKER_GONE" => :session_lost,
    "LEASE_EXPIRED" => :lease_expired,
    "LEASE_FENCED" => :fenced,
    "DRAINING" => :draining,
    "MODE_FORBIDS" => :mode_forbids,
    "CONFIG_INVALID" => :config_invalid,
    "SPAWN_FAILED" => :spawn_failed,
    "UNKNOWN_POOL" => :unknown_pool,
    "UNKNOWN_TEMPLATE" => :unknown_template,
    "UNKNOWN_WORKER" => :unknown_worker,
    "UNKNOWN_SESSION" => :unknown_session,
    "UNKNOWN_JOB" => :unknown_job,
    "NOT_OWNER" => :not_owner,
    "NODE_TAKEN" => :node_taken,
    "REGISTRATION_TAKEN" => :registration_taken,
    "UNKNOWN_REGISTRATION" => :unknown_registration,
    "NOT_LEADER" => :partitioned,
    "ARBITER_UNREACHABLE" => :partitioned,
    "DISCOVERY_UNREACHABLE" => :partitioned,
    "AGENT_UNREACHABLE" => :partitioned,
    "STORE_FAILED" => :store_failed,
    "METADATA_INVALID" => :metadata_invalid,
    "MESSAGE_TOO_LARGE" => :message_too_large,
    "DEADLINE_EXCEEDED" => :deadline,
    "PORT_DOWN" => :port_down
  }

  @codes %{
    1 => :cancelled,
    2 => :unknown,
    3 => :invalid_argument,
    4 => :deadline,
    5 => :not_found,
    6 => :already_exists,
    7 => :permission_denied,
    8 => :resource_exhausted,
    9 => :failed_precondition,
    10 => :aborted,
    11 => :out_of_range,
    12 => :unimplemented,
    13 => :internal,
    14 => :unavailable,
    15 => :data_loss,
    16 => :unauthenticated
  }

  @doc """
  Whether trying again can do nothing twice.

      iex> Tether.Error.retry_safe?(%Tether.Error{outcome: :not_sent})
      true
      iex> Tether.Error.retry_safe?(%Tether.Error{outcome: :unknown})
      false
  """
  @spec retry_safe?(t) :: boolean
  def retry_safe?(%__MODULE__{outcome: outcome}), do: outcome == :not_sent

  @doc false
  @spec from_port(map, atom) :: t
  def from_port(told, tether) do
    %__MODULE__{
      reason: reason(told),
      message: Map.get(told, :message) || "",
      outcome: outcome(Map.get(told, :outcome)),
      retry_after_ms: Map.get(told, :retry_after),
      code: Map.get(told, :code),
      worker: Tether.Worker.from_port(Map.get(told, :worker), tether),
      attempts: Map.get(told, :attempts) || 0,
      details: Map.get(told, :details) || "",
      trailers: Map.get(told, :trailers) || []
    }
  end

  defp reason(told) do
    Map.get(@reasons, Map.get(told, :reason)) || Map.get(@codes, Map.get(told, :code), :unknown)
  end

  # What is not understood must not look like an invitation to try again.
  defp outcome(outcome) when outcome in [:not_sent, :unknown, :failed], do: outcome
  defp outcome(_other), do: :unknown

  @doc false
  def not_running(tether) do
    %__MODULE__{
      reason: :not_running,
      outcome: :not_sent,
      message:
        "no Tether called #{inspect(tether)} runs; put {Tether, name: #{inspect(tether)}} under a supervisor"
    }
  end
end
