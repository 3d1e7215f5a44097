defmodule Tether.Test.Processes do
  @moduledoc false
  # What runs on this machine, and waiting for it to change.

  import ExUnit.Assertions

  @doc "Waits until `fun` answers something, and returns that."
  def eventually(what, fun, within \\ 30_000) do
    wait(what, fun, System.monotonic_time(:millisecond) + within)
  end

  defp wait(what, fun, deadline) do
    cond do
      answer = fun.() ->
        answer

      System.monotonic_time(:millisecond) > deadline ->
        flunk("waited in vain: #{what}")

      true ->
        receive after: (20 -> wait(what, fun, deadline))
    end
  end

  @doc "Process ids with this in their environment, which whatever they forked has too. Zombies have none."
  def with_marker(marker) do
    for "/proc/" <> pid = dir <- Path.wildcard("/proc/[0-9]*"),
        {:ok, environment} <- [File.read(Path.join(dir, "environ"))],
        String.contains?(environment, "TETHER_TEST=" <> marker <> <<0>>),
        do: String.to_integer(pid)
  end

  @doc "Waits until none is left."
  def none_left(marker, within \\ 30_000),
    do: eventually("no process of #{marker} is left", fn -> with_marker(marker) == [] end, within)

  def kill(pid, signal \\ "KILL"), do: {_out, 0} = System.cmd("kill", ["-#{signal}", to_string(pid)])

  def alive?(pid),
    do:
      File.exists?("/proc/#{pid}/environ") and
        match?({:ok, <<_, _::binary>>}, File.read("/proc/#{pid}/cmdline"))

  @doc "A name that nobody else has."
  def unique(prefix), do: "#{prefix}-#{System.pid()}-#{System.unique_integer([:positive])}"
end
