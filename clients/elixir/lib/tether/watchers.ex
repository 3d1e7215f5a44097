defmodule Tether.Watchers do
  @moduledoc false
  # Who waits for which death, and how far all was told. It is kept apart from `Tether.Events`, which may crash, and outlives it:
  # whoever is taken out of here is told, so that each is told once. Those who are left when the Tether ends are told that.

  use GenServer

  alias Tether.{Events, Worker}

  @doc false
  def start_link(config), do: GenServer.start_link(__MODULE__, config.name)

  @doc "Has the caller told of a worker's death."
  @spec monitor(Worker.t()) :: reference
  def monitor(%Worker{} = worker) do
    ref = make_ref()

    if keep(worker, ref, self()) do
      try do
        :ok = Events.watch(worker, ref, self())
      catch
        # Whoever follows the events next finds it there, and where nobody does it is told that.
        :exit, _reason -> :ok
      end
    else
      send(self(), {:DOWN, ref, :tether_worker, worker, :noproc})
    end

    ref
  end

  # False where no such Tether runs.
  defp keep(worker, ref, pid) do
    :ets.insert(table(worker.tether), {ref, pid, worker})
  rescue
    ArgumentError -> false
  end

  @doc "Ends that; a death that is in the mailbox already is taken out of it."
  @spec demonitor(atom, reference) :: :ok
  def demonitor(tether, ref) do
    forget(tether, ref)

    try do
      Events.unwatch(tether, ref)
    catch
      :exit, _reason -> :ok
    end

    receive do
      {:DOWN, ^ref, :tether_worker, _worker, _reason} -> :ok
    after
      0 -> :ok
    end
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
  def all(tether), do: :ets.match_object(table(tether), {:_, :_, :_})

  @doc "Keeps how far all was told, for the next `Tether.Events`."
  @spec keep_told(atom, Tether.Roster.kept()) :: true
  def keep_told(tether, kept), do: :ets.insert(table(tether), {:told, kept})

  @doc "How far that is; `nil` where nothing was told yet."
  @spec told(atom) :: Tether.Roster.kept() | nil
  def told(tether) do
    with [{:told, kept}] <- :ets.lookup(table(tether), :told), do: kept, else: ([] -> nil)
  end

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
