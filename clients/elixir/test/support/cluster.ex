defmodule Tether.Test.Cluster do
  @moduledoc false
  # A real `tether up` in a directory of its own, ended with its test, however that ends.

  alias Tether.Test.{Digits, Processes}

  defstruct [:dir, :port, :pid]

  @doc "Starts one, and waits until it serves."
  def start(sets \\ []) do
    dir = Path.join(System.tmp_dir!(), Processes.unique("tether-ex"))
    File.mkdir_p!(dir)
    cluster = up(%__MODULE__{dir: dir}, sets)
    ExUnit.Callbacks.on_exit(fn -> tidy(cluster) end)
    cluster
  end

  def gateway(cluster), do: "unix:" <> Path.join(cluster.dir, "run/gateway.sock")

  defp up(cluster, sets) do
    sets = [
      "listen.gateway=[\"#{gateway(cluster)}\"]",
      "listen.runtime_dir=#{Path.join(cluster.dir, "run")}",
      "agent.node=node-1" | sets
    ]

    args = ["up", "--store", "memory:"] ++ Enum.flat_map(sets, &["--set", &1])
    log = Path.join(cluster.dir, "up.log")

    # Dies with the BEAM that runs the tests, whatever ends that.
    command = "exec setpriv --pdeathsig KILL \"$@\" >\"$LOG\" 2>&1 </dev/null"

    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :exit_status,
        args: ["-c", command, "sh", Digits.program() | args],
        env: [{'LOG', to_charlist(log)}, {'TETHER_LOG', 'info'}, {'TETHER_CONFIG', false}]
      ])

    {:os_pid, pid} = Port.info(port, :os_pid)

    Processes.eventually("`tether up` serves and its node has joined", fn ->
      receive do
        {^port, {:exit_status, _status}} ->
          ExUnit.Assertions.flunk("`tether up` ended:\n" <> File.read!(log))
      after
        0 -> :ok
      end

      match?({:ok, text} when is_binary(text), File.read(log)) and File.read!(log) =~ "Node joined"
    end)

    %{cluster | port: port, pid: pid}
  end

  @doc "Starts one in the same place, which knows nothing of the one before."
  def again(cluster, sets \\ []) do
    File.rm!(Path.join(cluster.dir, "up.log"))
    cluster = up(cluster, sets)
    ExUnit.Callbacks.on_exit(fn -> tidy(cluster) end)
    cluster
  end

  @doc "Kills it."
  def kill(cluster) do
    Processes.kill(cluster.pid)
    Processes.eventually("`tether up` is dead", fn -> not Processes.alive?(cluster.pid) end)
  end

  defp tidy(cluster) do
    if Processes.alive?(cluster.pid), do: kill(cluster)
    mark = "TETHER_DIR=" <> Path.join(cluster.dir, "run/workers/")

    for "/proc/" <> pid = dir <- Path.wildcard("/proc/[0-9]*"),
        {:ok, environment} <- [File.read(Path.join(dir, "environ"))],
        String.contains?(environment, mark),
        do: System.cmd("kill", ["-KILL", pid], stderr_to_stdout: true)

    File.rm_rf!(cluster.dir)
  end
end
