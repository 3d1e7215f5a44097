defmodule Tether.Config.Check do
  @moduledoc false
  # Whether a value is of its kind: `:ok`, or what would be one.

  alias Tether.Config.Keys

  @breaker [:failure_threshold, :timeout, :half_open_max_calls]
  @tls [:cacertfile, :certfile, :keyfile, :server_name]

  @doc false
  def kind({:one_of, some}, value), do: if(value in some, do: :ok, else: expected({:one_of, some}))
  def kind(:string, value) when is_binary(value) and value != "", do: :ok
  def kind(:time, value) when is_integer(value) and value > 0, do: :ok
  def kind(:boolean, value) when is_boolean(value), do: :ok
  def kind(:map, value) when is_map(value), do: :ok
  def kind(:addresses, value), do: each(List.wrap(value), &gateway/1, :addresses)
  def kind({:list, :address}, value) when is_list(value), do: each(value, &address/1, {:list, :address})
  def kind(:discovery, {:static, addresses}) when is_list(addresses), do: kind({:list, :address}, addresses)
  def kind(:discovery, value) when value in [:dns, :etcd, :consul], do: :ok
  def kind(:breaker, value), do: keywords(value, @breaker, &(is_integer(&1) and &1 > 0), "a positive integer")
  def kind(:tls, value), do: keywords(value, @tls, &(is_binary(&1) and &1 != ""), "a string")
  def kind(kind, _value), do: expected(kind)

  defp expected(kind), do: {:error, "expected " <> String.replace(Keys.words(kind), "`", "")}

  defp each(values, check, kind) do
    case Enum.find(values, &(check.(&1) == :error)) do
      nil -> :ok
      wrong -> {:error, "#{inspect(wrong)} is no address; " <> elem(expected(kind), 1)}
    end
  end

  defp keywords(value, known, check, what) do
    cond do
      not Keyword.keyword?(value) ->
        {:error, "expected a keyword list of #{list(known)}"}

      unknown = Enum.find(Keyword.keys(value), &(&1 not in known)) ->
        {:error, "has no `#{unknown}`; it has #{list(known)}"}

      wrong = Enum.find(value, fn {_key, value} -> not check.(value) end) ->
        {:error, "`#{elem(wrong, 0)}` is #{what}, not #{inspect(elem(wrong, 1))}"}

      true ->
        :ok
    end
  end

  defp list(keys), do: Enum.map_join(keys, ", ", &"`#{&1}`")

  @doc "A gateway's address as the port takes it."
  def gateway({:dns, name, port}) when is_binary(name) and is_integer(port),
    do: with_port("dns:#{name}", port)

  def gateway("http://" <> rest), do: address(String.trim_trailing(rest, "/"))
  def gateway("https://" <> rest), do: address(String.trim_trailing(rest, "/"))
  def gateway("dns:" <> rest), do: with({:ok, rest} <- host_port(rest), do: {:ok, "dns:" <> rest})
  def gateway(other), do: address(other)

  @doc "A worker's address as discovery takes it."
  def address("unix:/" <> _path = address), do: {:ok, address}
  def address(address) when is_binary(address), do: host_port(address)
  def address(_other), do: :error

  defp host_port(address) do
    with [host, port] when host != "" <- split(address),
         {port, ""} <- Integer.parse(port) do
      with_port(host, port)
    else
      _other -> :error
    end
  end

  # The last colon: an IPv6 address has others.
  defp split(address) do
    case Regex.run(~r/^(.*):(\d+)$/, address) do
      [_all, host, port] -> [host, port]
      nil -> [address]
    end
  end

  defp with_port(host, port) when port in 1..65_535, do: {:ok, "#{host}:#{port}"}
  defp with_port(_host, _port), do: :error
end
