defmodule Tether.Worker do
  @moduledoc """
  A worker: which one it is, and the local process that stands for it.

  The struct is a value that names one start of one place of a pool; it prints as `pool/slot#incarnation`. The process is a proxy
  that lives as long as this BEAM knows the worker to live, so that links, monitors, `:observer` and `Registry` do what they
  do for any other process. It ends with `{:shutdown, reason}`, where the reason is one of `Tether.Death`.

  A proxy that is killed comes back, as its worker still lives: it is a view, and to end the worker there is
  `Tether.stop_worker/2`. For a message exactly once for each death, use `Tether.monitor/1`.
  """

  use GenServer, restart: :temporary

  @type t :: %__MODULE__{
          tether: atom,
          pool: String.t(),
          slot: non_neg_integer,
          incarnation: non_neg_integer
        }

  @enforce_keys [:tether, :pool, :slot, :incarnation]
  defstruct [:tether, :pool, :slot, :incarnation]

  @doc "The proxy of a worker, where there is one."
  @spec whereis(t) :: pid | nil
  def whereis(%__MODULE__{} = worker) do
    case Registry.lookup(Tether.Registry, {:worker, worker}) do
      [{pid, _value}] -> pid
      [] -> nil
    end
  end

  @doc "What this BEAM knows of a worker without asking: its phase, its node."
  @spec known(pid | t) :: map
  def known(pid) when is_pid(pid), do: GenServer.call(pid, :known)
  def known(%__MODULE__{} = worker), do: GenServer.call(via(worker), :known)

  @doc false
  def start_link({%__MODULE__{} = worker, known}) do
    GenServer.start_link(__MODULE__, {worker, known}, name: via(worker))
  end

  defp via(worker), do: {:via, Registry, {Tether.Registry, {:worker, worker}}}

  @doc false
  def changed(proxy, known), do: send(proxy, {:changed, known})

  @doc false
  def ended(proxy, reason), do: send(proxy, {:ended, reason})

  @doc """
  The worker that the port means.

      iex> Tether.Worker.from_port({"ml", 0, 3}, MyApp.Tether)
      %Tether.Worker{tether: MyApp.Tether, pool: "ml", slot: 0, incarnation: 3}
  """
  @spec from_port({String.t(), non_neg_integer, non_neg_integer} | nil, atom) :: t | nil
  def from_port({pool, slot, incarnation}, tether) do
    %__MODULE__{tether: tether, pool: pool, slot: slot, incarnation: incarnation}
  end

  def from_port(nil, _tether), do: nil

  @doc false
  def to_port(%__MODULE__{pool: pool, slot: slot, incarnation: incarnation}), do: {pool, slot, incarnation}

  @impl true
  def init({worker, known}), do: {:ok, Map.put(known, :worker, worker)}

  @impl true
  def handle_call(:known, _from, known), do: {:reply, known, known}

  @impl true
  def handle_info({:changed, more}, known), do: {:noreply, Map.merge(known, more)}
  def handle_info({:ended, reason}, known), do: {:stop, {:shutdown, reason}, known}
  def handle_info(_other, known), do: {:noreply, known}

  defimpl String.Chars do
    def to_string(worker), do: "#{worker.pool}/#{worker.slot}##{worker.incarnation}"
  end
end
