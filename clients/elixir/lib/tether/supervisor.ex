defmodule Tether.Supervisor do
  @moduledoc """
  What belongs to one Tether.

      Tether.Supervisor (rest_for_one)
      |- Tether.Beat               beats, at high priority
      |- workers                   a Tether.Worker for each worker
      |- tasks                     calls of Tether.async/4
      |- Tether.Watchers           keeps who waits for which death, and how far all was told
      |- Tether.Events             follows what happens
      |- Tether.Connection         owns the Port
      `- Tether.Watchdog           kills a program that does not answer

  It exits `{:shutdown, :lease_expired}` or `{:shutdown, :fenced}` when the lease is lost.
  """

  use Supervisor

  @doc false
  def start_link(config), do: Supervisor.start_link(__MODULE__, config, name: config.name)

  @doc false
  def workers(tether), do: Module.concat(tether, Workers)

  @doc false
  def tasks(tether), do: Module.concat(tether, Tasks)

  @impl true
  def init(config) do
    children = [
      {Tether.Beat, config},
      {DynamicSupervisor, name: workers(config.name), strategy: :one_for_one},
      {Task.Supervisor, name: tasks(config.name)},
      {Tether.Watchers, config},
      {Tether.Events, config},
      {Tether.Connection, config},
      {Tether.Watchdog, config}
    ]

    Supervisor.init(children, strategy: :rest_for_one)
  end

  @doc "Ends a Tether for this reason. From a process of its own, as its children may not wait for their own end."
  def stop(tether, reason) do
    spawn(fn ->
      try do
        Supervisor.stop(tether, reason)
      catch
        :exit, _already_gone -> :ok
      end
    end)

    :ok
  end
end
