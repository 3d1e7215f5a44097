defmodule Tether.Test.Beam do
  @moduledoc false
  # Another BEAM: an `elixir` of its own that holds a Tether and a pool, to be killed.

  alias Tether.Test.{Digits, Processes}

  defstruct [:port, :pid]

  @script """
  [config, pool] = for text <- System.argv(), do: text |> Base.decode64!() |> :erlang.binary_to_term()
  {:ok, _apps} = Application.ensure_all_started(:tether)
  children = [{Tether, config}, {Tether.Pool, pool}]
  {:ok, _pid} = Supervisor.start_link(children, strategy: :rest_for_one)
  :ok = Tether.Pool.await_ready(pool[:name], 90_000)
  IO.puts("ready \#{System.pid()}")
  Process.sleep(:infinity)
  """

  @doc "Starts one, and waits until its pool is ready."
  def start(marker, config, pool) do
    config = [name: :other, port_program: Digits.program()] ++ config
    pool = [name: :theirs, tether: :other, spec: Digits.spec(marker)] ++ pool
    argv = for term <- [config, pool], do: term |> :erlang.term_to_binary() |> Base.encode64()
    ebin = :tether |> :code.lib_dir() |> Path.join("ebin")

    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :binary,
        :exit_status,
        line: 1_000,
        args: ["-pa", ebin, "-e", @script, "--" | argv]
      ])

    pid = await_ready(port)
    ExUnit.Callbacks.on_exit(fn -> if Processes.alive?(pid), do: Processes.kill(pid) end)
    %__MODULE__{port: port, pid: pid}
  end

  defp await_ready(port) do
    receive do
      {^port, {:data, {:eol, "ready " <> pid}}} -> String.to_integer(pid)
      {^port, {:data, _other}} -> await_ready(port)
      {^port, {:exit_status, status}} -> ExUnit.Assertions.flunk("the other BEAM ended with #{status}")
    after
      120_000 -> ExUnit.Assertions.flunk("the other BEAM is not ready")
    end
  end
end
