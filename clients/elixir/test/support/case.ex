defmodule Tether.Test.Case do
  @moduledoc false
  # Tests against the real `tether port`, with real Python workers.

  use ExUnit.CaseTemplate

  alias Tether.Test.{Digits, Processes}

  using do
    quote do
      import Tether.Test.Case
      import Tether.Test.Processes
      alias Tether.Test.{Cluster, Digits}

      @moduletag timeout: 180_000
    end
  end

  setup do
    name = :"tether_#{System.unique_integer([:positive])}"
    {:ok, tether: name, pool: :"pool_#{System.unique_integer([:positive])}", marker: Processes.unique("ex")}
  end

  @doc "Starts a Tether of the test, and a pool of digits workers; both end with it."
  def start_all(context, tether_opts, pool_opts \\ []) do
    start_tether(context, tether_opts)
    start_pool(context, pool_opts)
  end

  def start_tether(%{tether: tether}, opts) do
    opts = [name: tether, port_program: Digits.program(), owner: "owner-#{tether}"] ++ opts
    ExUnit.Callbacks.start_supervised!({Tether, Keyword.put_new(opts, :worker_lifecycle_mode, :coupled)})
  end

  def start_pool(%{tether: tether, pool: pool, marker: marker}, opts \\ []) do
    {spec, opts} = Keyword.pop(opts, :digits, [])
    opts = [name: pool, tether: tether, spec: Digits.spec(marker, spec)] ++ opts
    ExUnit.Callbacks.start_supervised!({Tether.Pool, opts})
  end

  def await_lease(tether, state \\ :held) do
    Processes.eventually("the lease is #{state}", fn ->
      case Tether.owner_lease(tether) do
        {:ok, %{state: ^state} = lease} -> lease
        _other -> nil
      end
    end)
  end

  def port_pid(tether) do
    {:ok, %{port_pid: pid}} = Tether.Connection.info(tether)
    pid
  end
end
