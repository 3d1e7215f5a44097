defmodule Tether.Watchers do
  @moduledoc false
  # Who waits for which death. It is kept apart from `Tether.Events`, which may crash, and outlives it: whoever is taken out of here
  # is told, so that each is told once. Those who are left when the Tether ends are told that.

  use GenServer

  alias Tether.Worker

  @doc false
  def start_link(config), do: GenServer.start_link(__MODULE__, config.name)

  @doc "Keeps a watcher; `false` where no such Tether runs."
  @spec keep(Worker.t(), reference, pid) :: boolean
  def keep(worker, ref, pid) do
    :ets.insert(table(worker.tether), {ref, pid, worker})
  rescue
    ArgumentError -> false
  end

  @doc "Tells a watcher, where nobody has yet."
  @spec tell(atom, reference, Tether.Death.reason()) :: :ok
  def tell(tether, ref, reason) do
    for {ref, pid, worker} <- forget(tether, ref), do: send(pid, {:DOWN, ref, :tether_worker, worker, reason})
    :ok
  end

  @doc "Has a watcher never be told; it is returned where it was not."
  @spec forget(atom, reference) :: [{reference, pid, Worker.t()}]
  def forget(tether, ref) do
    :ets.take(table(tether), ref)
  rescue
    ArgumentError -> []
  end

  @doc "All of them."
  @spec all(atom) :: [{reference, pid, Worker.t()}]
  def all(tether), do: :ets.tab2list(table(tether))

  defp table(tether), do: Module.concat(tether, Watchers)

  # So that `terminate/2` is reached.
  @impl true
  def init(tether) do
    Process.flag(:trap_exit, true)
    :ets.new(table(tether), [:named_table, :public])
    {:ok, tether}
  end

  @impl true
  def terminate(_reason, tether) do
    for {ref, _pid, _worker} <- all(tether), do: tell(tether, ref, :noconnection)
  end
end
