defmodule Tether.Config.Discovery do
  @moduledoc false
  # What discovery is told of the pool `python_service_name` where its workers run already: by settings of the Port, or by
  # whoever reads the advice where discovery is behind a gateway.

  alias Tether.Config.Check

  @doc "The pool's name."
  def pool(values), do: values.python_service_name |> String.split(":") |> hd()

  @doc "Whether its workers run already and are found. Services of a supervisor are not: their agent knows them."
  def finds?(values), do: values.supervisor_type == :agent and connect?(values)

  @doc "Whether workers are only connected to."
  def connect?(values), do: (values.connection_mode || values.python_pool_strategy) == :connect

  @doc "The settings of it; a map without keys where there is nothing to say."
  def settings(values) do
    health =
      values.health_check_interval &&
        %{"check" => "grpc", "interval" => "#{values.health_check_interval}ms"}

    told =
      for {key, value} <- [{"source", source(values)}, {"health", health}], value, into: %{}, do: {key, value}

    if finds?(values) and told != %{}, do: %{"discovery" => %{"pools" => %{pool(values) => told}}}, else: %{}
  end

  @doc "Whether these settings, all in all, say where the pool's workers are."
  def sourced?(settings, pool) do
    told = told(settings, pool)
    Map.has_key?(told, "source") or Map.has_key?(told, "sources")
  end

  # What settings say of the pool, whatever else they are.
  defp told(settings, pool) do
    case Tether.Config.deep_merge(%{"discovery" => %{"pools" => %{pool => %{}}}}, settings) do
      %{"discovery" => %{"pools" => %{^pool => %{} = told}}} -> told
      _nonsense -> %{}
    end
  end

  @doc "What is to be written, and where, when the gateway does not know the pool."
  def advice(%{connect: pool, gateways: gateways, settings: settings}) do
    told = told(settings, pool)

    health =
      with %{} = health <- told["health"],
           do: Enum.map_join(health, ", ", fn {key, value} -> "#{key} = #{inspect(value)}" end)

    lines =
      ["[discovery.pools.#{key(pool)}]", "source = #{inspect(told["source"] || "static://HOST:PORT")}"] ++
        if(health, do: ["health = { #{health} }"], else: [])

    """
    no pool is named `#{pool}` at #{Enum.join(gateways, ", ")}. With a `gateway` it is the discovery of that Tether that \
    finds workers which run already, and nothing of this configuration tells it where they are. Write in its settings:

    #{Enum.map_join(lines, "\n", &("    " <> &1))}
    """
    |> String.trim_trailing()
  end

  defp key(pool), do: if(pool =~ ~r/^[A-Za-z0-9_-]+$/, do: pool, else: inspect(pool))

  defp source(%{python_discovery: {:static, addresses}}), do: "static://" <> Enum.join(addresses, ",")
  defp source(%{python_pool_addresses: [_ | _] = addresses}), do: "static://" <> Enum.join(addresses, ",")

  defp source(%{python_discovery: :dns} = values) do
    case Check.address(values.python_service_name) do
      {:ok, address} -> "dns://" <> address
      :error -> "dns://#{values.python_service_name}:50051"
    end
  end

  defp source(%{python_discovery: :consul} = values), do: "consul://127.0.0.1:8500/" <> pool(values)
  defp source(_values), do: nil
end
