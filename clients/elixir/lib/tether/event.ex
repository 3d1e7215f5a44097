defmodule Tether.Event do
  @moduledoc """
  Something that happened, as `Tether.subscribe/2` delivers it: `{:tether, name, %Tether.Event{}}`.

  Events of the cluster have a `revision`, which grows; each is told exactly once, also over a lost connection. Those that
  this BEAM sees by itself have none: so too a `:worker_down` of which it knows from the loss of its lease or from a list.
  The cluster's event of the same death is then not told, but where the worker was seen at work in between.

  | type | |
  | --- | --- |
  | `:worker_up`, `:worker_ready`, `:worker_ending`, `:worker_down` | `worker`; with the last one `reason` and `death` |
  | `:worker_adopted` | a new agent has found it again |
  | `:worker_crash_loop` | its place was given up |
  | `:worker_signaled`, `:worker_registered`, `:worker_deregistered` | |
  | `:pool_changed` | somebody applied, scaled, drained or deleted a pool of this owner |
  | `:session_opened`, `:session_closed`, `:session_lost` | the arbiter's word on this owner |
  | `:agent_up`, `:agent_lost`, `:node_state_changed`, `:clock_stepped` | `node` |
  | `:lease_granted`, `:lease_renewed` | this BEAM holds its lease, or holds it surely again |
  | `:lease_warning` | half of the timeout has passed without an acknowledged beat: the time for a checkpoint |
  | `:lease_doubted` | the arbiter has not heard this owner for half of its lease |
  | `:lease_lost` | it is over, `reason` says how: `:lease_expired`, `:fenced` or `:closed` |
  | `:partition_suspected`, `:partition_healed`, `:partition_confirmed` | no gateway answers; one does again; the lease ran out meanwhile |
  | `:connection_up`, `:connection_down` | to a gateway, named in `text` |
  | `:port_down` | the Port's program ended, and is started again |
  """

  @type t :: %__MODULE__{
          type: atom,
          revision: non_neg_integer | nil,
          worker: Tether.Worker.t() | nil,
          reason: Tether.Death.reason() | nil,
          death: map | nil,
          generation: non_neg_integer | nil,
          owner: String.t() | nil,
          node: String.t() | nil,
          text: String.t(),
          at: DateTime.t() | nil
        }

  @enforce_keys [:type]
  defstruct [:type, :revision, :worker, :reason, :death, :generation, :owner, :node, :at, text: ""]

  @types %{
    "WORKER_STARTED" => :worker_up,
    "WORKER_READY" => :worker_ready,
    "WORKER_ENDING" => :worker_ending,
    "WORKER_DIED" => :worker_down,
    "WORKER_CRASH_LOOP" => :worker_crash_loop,
    "WORKER_ADOPTED" => :worker_adopted,
    "WORKER_SIGNALED" => :worker_signaled,
    "WORKER_REGISTERED" => :worker_registered,
    "WORKER_DEREGISTERED" => :worker_deregistered,
    "SESSION_OPENED" => :session_opened,
    "SESSION_CLOSED" => :session_closed,
    "SESSION_LOST" => :session_lost,
    "LEASE_WARNING" => :lease_doubted,
    "POOL_CHANGED" => :pool_changed,
    "NODE_UP" => :agent_up,
    "NODE_LOST" => :agent_lost,
    "NODE_STATE_CHANGED" => :node_state_changed,
    "CLOCK_STEPPED" => :clock_stepped
  }

  @local [
    :lease_granted,
    :lease_renewed,
    :lease_warning,
    :lease_lost,
    :partition_suspected,
    :partition_healed,
    :partition_confirmed,
    :connection_up,
    :connection_down,
    :port_down
  ]

  @doc "Every type there is."
  @spec types :: [atom]
  def types, do: Enum.sort([:unknown | Map.values(@types)] ++ @local)

  @doc """
  An event of the cluster, from what the port tells of it.

      iex> told = %{revision: 7, kind: "WORKER_READY", unix_ms: 0, worker: {"ml", 0, 3}, death: nil, text: "", owner: "me", node: "a"}
      iex> event = Tether.Event.from_port(told, MyApp.Tether)
      iex> {event.type, event.revision, to_string(event.worker), event.generation}
      {:worker_ready, 7, "ml/0#3", 3}
  """
  @spec from_port(map, atom) :: t
  def from_port(told, tether) do
    worker = Tether.Worker.from_port(told[:worker], tether)
    type = Map.get(@types, told[:kind], :unknown)
    dead? = type in [:worker_down, :worker_crash_loop]

    %__MODULE__{
      type: type,
      revision: told[:revision],
      worker: worker,
      generation: worker && worker.incarnation,
      death: told[:death],
      reason: if(dead?, do: Tether.Death.reason(told[:death])),
      owner: told[:owner],
      node: told[:node],
      text: told[:text] || "",
      at: at(told[:unix_ms])
    }
  end

  defp at(nil), do: nil

  defp at(unix_ms) do
    case DateTime.from_unix(unix_ms, :millisecond) do
      {:ok, at} -> at
      {:error, _reason} -> nil
    end
  end
end
