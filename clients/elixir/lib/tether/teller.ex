defmodule Tether.Teller do
  @moduledoc false
  # Tells subscribers and telemetry what happened.

  require Logger

  alias Tether.{Death, Event, Telemetry}

  @workers %{
    worker_up: [:worker, :spawn],
    worker_ready: [:worker, :ready],
    worker_adopted: [:worker, :adopted],
    worker_down: [:worker, :down]
  }

  @doc "Tells of an event."
  @spec tell(Event.t(), Tether.Config.t()) :: :ok
  def tell(event, config) do
    publish(event, config)
    measure(event, config)
  end

  @doc "Tells of what this BEAM sees of its session; `metadata` says which one that is."
  @spec heard(tuple, Tether.Config.t(), map) :: :ok
  def heard({:opened, session, _welcome}, config, metadata) do
    Telemetry.execute([:lease, :granted], %{ttl: session.ttl}, metadata)
    local(config, :lease_granted, generation: session.epoch)
  end

  def heard({:renewed, ttl}, config, metadata) do
    Telemetry.execute([:lease, :renewed], %{ttl: ttl}, metadata)
    local(config, :lease_renewed)
  end

  def heard({:warning, remaining}, config, metadata) do
    Telemetry.execute([:lease, :warning], %{remaining: remaining}, metadata)
    local(config, :lease_warning, text: "#{remaining} ms are left")
  end

  def heard({:lost, reason, message}, config, metadata) do
    Telemetry.execute([:lease, :expired], %{remaining: 0}, Map.put(metadata, :reason, reason))
    Logger.error("Tether: #{config.owner} has lost its lease (#{reason}): #{message}")
    local(config, :lease_lost, reason: reason, text: message)
  end

  def heard({:connection, up_or_down, gateway, _up}, config, metadata) do
    Telemetry.execute([:connection, up_or_down], %{count: 1}, Map.put(metadata, :gateway, gateway))
    local(config, :"connection_#{up_or_down}", text: gateway)
  end

  def heard({:partition, stage}, config, metadata) do
    Telemetry.execute([:partition, stage], %{count: 1}, metadata)
    local(config, :"partition_#{stage}")
  end

  def heard({:port_down, status, _embedded?}, config, metadata) do
    Telemetry.execute([:port, :down], %{count: 1}, Map.put(metadata, :status, status))
    Logger.warning("Tether: the Port's program ended (#{inspect(status)}); it is started again")
    local(config, :port_down, text: "status #{inspect(status)}")
  end

  def heard({:orphans, workers}, %{orphan_detection: true}, metadata) when workers != [] do
    metadata = Map.put(metadata, :workers, workers)
    Telemetry.execute([:orphans, :detected], %{count: length(workers)}, metadata)
  end

  def heard({:orphans, _workers}, _config, _metadata), do: :ok

  @doc "Tells of one that only this BEAM sees."
  @spec local(Tether.Config.t(), atom, keyword) :: :ok
  def local(config, type, fields \\ []) do
    tell(struct!(%Event{type: type, owner: config.owner, at: DateTime.utc_now()}, fields), config)
  end

  @doc "Tells of a worker that was ended because its owner was gone."
  @spec reaped(Event.t(), Tether.Config.t()) :: :ok
  def reaped(_event, %{orphan_detection: false}), do: :ok
  def reaped(event, config), do: Telemetry.execute([:orphans, :reaped], %{count: 1}, about(event, config))

  defp publish(event, %{name: name}) do
    Registry.dispatch(Tether.Subscribers, name, fn subscribers ->
      for {pid, topics} <- subscribers, topics == :all or event.type in topics do
        send(pid, {:tether, name, event})
      end
    end)
  end

  defp measure(%{type: type} = event, config) when is_map_key(@workers, type) do
    Telemetry.execute(Map.fetch!(@workers, type), %{count: 1}, about(event, config))
    if type == :worker_down, do: measure_death(event, config), else: :ok
  end

  defp measure(_event, _config), do: :ok

  defp measure_death(%{reason: :owner_gone} = event, config), do: reaped(event, config)

  defp measure_death(%{reason: reason} = event, config) do
    if Death.crash?(reason), do: Telemetry.execute([:worker, :crash], %{count: 1}, about(event, config))
    if reason == :recycled, do: Telemetry.execute([:worker, :recycled], %{count: 1}, about(event, config))
    :ok
  end

  defp about(event, %{name: tether}) do
    %{tether: tether, worker: event.worker, node: event.node, reason: event.reason}
  end
end
