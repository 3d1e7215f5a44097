defmodule Tether.Proxies do
  @moduledoc false
  # The processes that stand for workers, by their ids. Each is monitored by whoever keeps them.

  require Logger

  alias Tether.Worker

  @type t :: %{pid => Worker.t()}

  @doc "Ends those of an earlier keeper."
  @spec end_all(atom) :: :ok
  def end_all(tether) do
    workers = Tether.Supervisor.workers(tether)

    for {_id, pid, _type, _modules} <- DynamicSupervisor.which_children(workers),
        is_pid(pid),
        do: DynamicSupervisor.terminate_child(workers, pid)

    :ok
  end

  @doc "Starts one."
  @spec start(t, Worker.t(), map) :: t
  def start(proxies, worker, known) do
    case DynamicSupervisor.start_child(Tether.Supervisor.workers(worker.tether), {Worker, {worker, known}}) do
      {:ok, pid} ->
        Process.monitor(pid)
        Map.put(proxies, pid, worker)

      {:error, why} ->
        Logger.error("Tether: no proxy for #{worker}: #{inspect(why)}")
        proxies
    end
  end

  @doc "Has a worker's proxy know more."
  @spec changed(Worker.t(), map) :: :ok
  def changed(worker, known) do
    with pid when pid != nil <- Worker.whereis(worker), do: Worker.changed(pid, known)
    :ok
  end

  @doc "Ends that of a worker that has died."
  @spec stop(t, Worker.t(), Tether.Death.reason()) :: t
  def stop(proxies, worker, reason) do
    with pid when pid != nil <- Worker.whereis(worker) do
      Worker.ended(pid, reason)
      Map.delete(proxies, pid)
    else
      nil -> proxies
    end
  end
end
