defmodule Tether.ClusterTest do
  @moduledoc "A `tether up` that outlives the BEAM: leases, other owners, and what is found again."

  use Tether.Test.Case

  import ExUnit.CaptureLog

  alias Tether.{Pool, Worker}
  alias Tether.Test.Beam

  test "the Port's program dies: workers live, proxies stay, the epoch is another", context do
    cluster = Cluster.start()
    start_all(context, [gateway: Cluster.gateway(cluster)], mode: :independent)
    :ok = Pool.await_ready(context.pool)
    :ok = Tether.subscribe(context.tether, [:lease_granted])
    [worker] = Tether.workers(context.pool)
    proxy = Worker.whereis(worker)
    %{epoch: epoch} = await_lease(context.tether)

    kill(port_pid(context.tether))
    assert_receive {:tether, _name, %{type: :lease_granted}}, 30_000
    assert await_lease(context.tether).epoch > epoch
    assert {:ok, _body} = Tether.call(context.pool, Digits.predict(), Digits.image())
    assert {Tether.workers(context.pool), Worker.whereis(worker)} == {[worker], proxy}
    stop_pool(context)
  end

  test "a worker that dies while nothing is connected is told of once, afterwards", context do
    cluster = Cluster.start()
    start_all(context, [gateway: Cluster.gateway(cluster)], mode: :independent)
    :ok = Pool.await_ready(context.pool)
    :ok = Tether.subscribe(context.tether, [:lease_granted, :worker_down])
    [worker] = Tether.workers(context.pool)
    ref = Tether.monitor(worker)
    {:ok, [%{pid: pid}]} = Tether.list_workers(context.pool)

    # The connection sees its program's end only when it looks, which is after the worker's.
    [{connection, _ids}] = Registry.lookup(Tether.Registry, {:connection, context.tether})
    program = port_pid(context.tether)
    :sys.suspend(connection)
    kill(program)
    kill(pid)
    eventually("the worker is dead", fn -> not alive?(pid) end)
    :sys.resume(connection)

    assert_receive {:DOWN, ^ref, :tether_worker, ^worker, {:signal, :sigkill}}, 30_000
    assert_receive {:tether, _name, %{type: :worker_down, worker: ^worker}}, 5_000
    :ok = Pool.await_ready(context.pool)
    refute_received {:DOWN, ^ref, _type, _worker, _reason}
    refute_received {:tether, _name, %{type: :worker_down}}
    stop_pool(context)
  end

  test "on loss of its lease the supervisor exits, after a warning at half of it", context do
    cluster = Cluster.start()
    Process.flag(:trap_exit, true)

    {:ok, supervisor} =
      Tether.start_link(
        name: context.tether,
        owner: "owner-#{context.tether}",
        port_program: Digits.program(),
        worker_lifecycle_mode: :coupled,
        gateway: Cluster.gateway(cluster),
        heartbeat_timeout: 4_000
      )

    start_pool(context)
    :ok = Pool.await_ready(context.pool)
    :ok = Tether.subscribe(context.tether)
    [worker] = Tether.workers(context.pool)
    ref = Tether.monitor(worker)
    proxy = Process.monitor(Worker.whereis(worker))

    Cluster.kill(cluster)
    assert_receive {:tether, _name, %{type: :partition_suspected}}, 5_000
    assert_receive {:tether, _name, %{type: :lease_warning, text: text}}, 5_000
    assert_receive {:tether, _name, %{type: :lease_lost, reason: :lease_expired}}, 6_000
    assert_receive {:EXIT, ^supervisor, {:shutdown, :lease_expired}}, 10_000
    # Half of it, and not the two thirds at which others begin to doubt.
    {left, " ms are left"} = Integer.parse(text)
    assert left in 1_400..2_000
    assert_received {:tether, _name, %{type: :partition_confirmed}}
    assert_received {:DOWN, ^ref, :tether_worker, ^worker, _reason}
    assert_received {:DOWN, ^proxy, :process, _pid, {:shutdown, _why}}
    assert {:error, %{reason: :not_running}} = Tether.owner_lease(context.tether)
    none_left(context.marker)
  end

  test "of two owners with one name the later fences the earlier, which is told so", context do
    cluster = Cluster.start()
    Process.flag(:trap_exit, true)
    later = :"#{context.tether}_later"

    opts = [
      owner: "the-same",
      port_program: Digits.program(),
      worker_lifecycle_mode: :coupled,
      gateway: Cluster.gateway(cluster)
    ]

    {:ok, first} = Tether.start_link([name: context.tether] ++ opts)
    await_lease(context.tether)
    :ok = Tether.subscribe(context.tether, [:lease_lost])
    {:ok, second} = Tether.start_link([name: later] ++ opts)

    assert_receive {:tether, _name, %{type: :lease_lost, reason: :fenced}}, 10_000
    assert_receive {:EXIT, ^first, {:shutdown, :fenced}}, 10_000
    await_lease(later)
    refute_receive {:EXIT, ^second, _reason}, 500
    Supervisor.stop(second)
  end

  test "a BEAM that is killed takes its coupled workers along, and nobody else's", context do
    cluster = Cluster.start()
    theirs = unique("theirs")
    gateway = Cluster.gateway(cluster)
    start_all(context, gateway: gateway)
    :ok = Pool.await_ready(context.pool)
    [worker] = Tether.workers(context.pool)
    ref = Tether.monitor(worker)

    other = Beam.start(theirs, [gateway: gateway, owner: "other", worker_lifecycle_mode: :coupled], size: 2)
    assert length(with_marker(theirs)) >= 2
    # What is theirs is not known here, though it is in the same cluster.
    assert Tether.workers({context.tether, "theirs"}) == []
    kill(other.pid)
    # Well before its lease has passed.
    none_left(theirs, 5_000)

    assert {:ok, _body} = Tether.call(context.pool, Digits.predict(), Digits.image())
    assert Tether.workers(context.pool) == [worker]
    refute_received {:DOWN, ^ref, _type, _worker, _reason}
  end

  test "a BEAM that is killed and comes back finds its independent workers again", context do
    cluster = Cluster.start()
    config = [gateway: Cluster.gateway(cluster), owner: "comes-back", worker_lifecycle_mode: :independent]
    other = Beam.start(context.marker, config, size: 1)
    before = with_marker(context.marker)
    kill(other.pid)
    eventually("it is dead", fn -> not alive?(other.pid) end)

    :telemetry.attach_to(self())
    on_exit(fn -> :telemetry.detach(self()) end)
    start_tether(context, config)

    start_supervised!(
      {Pool, name: :theirs, tether: context.tether, spec: Digits.spec(context.marker), on_stop: :delete}
    )

    :ok = Pool.await_ready(:theirs)
    assert with_marker(context.marker) == before
    assert_receive {:telemetry, [:tether, :orphans, :detected], %{count: 1}, %{workers: [%Worker{}]}}
  end

  test "what ended with a BEAM that was killed, its next life tells", context do
    cluster = Cluster.start()
    config = [gateway: Cluster.gateway(cluster), owner: "comes-back", worker_lifecycle_mode: :coupled]
    other = Beam.start(context.marker, config, size: 2)
    kill(other.pid)
    none_left(context.marker, 5_000)

    %{tether: tether} = context
    :telemetry.attach_to(self())
    on_exit(fn -> :telemetry.detach(self()) end)
    start_tether(context, config)
    reaped = [:tether, :orphans, :reaped]
    assert_receive {:telemetry, ^reaped, %{count: 1}, %{tether: ^tether, worker: one}}, 30_000
    assert_receive {:telemetry, ^reaped, %{count: 1}, %{tether: ^tether, worker: two}}, 30_000
    assert Enum.sort([one.slot, two.slot]) == [0, 1]
  end

  test "where the store begins anew, whoever is told of a lost lease only hears of what happens then",
       context do
    cluster = Cluster.start()
    config = [gateway: Cluster.gateway(cluster), heartbeat_timeout: 4_000, on_partition: :notify_only]
    start_all(context, config)
    :ok = Pool.await_ready(context.pool)
    # So many events that the next store is behind this one for as long as the test takes.
    for undo <- Enum.flat_map(1..25, fn _n -> [false, true] end),
        do: {:ok, _pool} = Tether.drain(context.pool, undo: undo)

    :ok = Tether.subscribe(context.tether, [:lease_lost, :worker_ready])
    Cluster.kill(cluster)
    assert_receive {:tether, _name, %{type: :lease_lost}}, 10_000
    none_left(context.marker)

    Cluster.again(cluster)
    assert_receive {:tether, _name, %{type: :worker_ready}}, 20_000
    :ok = Pool.await_ready(context.pool)
    assert {:ok, _body} = Tether.call(context.pool, Digits.predict(), Digits.image())
  end

  test "workers that run already are those of the gateway's discovery; one that was told of none says what to write",
       context do
    address = Digits.serve(context.marker)
    cluster = Cluster.start()
    pool = :"snakepit-python-workers"

    # The first design's example, and the gateway.
    config = [
      gateway: Cluster.gateway(cluster),
      worker_lifecycle_mode: :independent,
      python_pool_strategy: :connect,
      python_pool_addresses: [address],
      heartbeat_interval: 10_000,
      heartbeat_timeout: 60_000
    ]

    start_tether(context, config)

    log =
      capture_log(fn ->
        pid = start_supervised!({Pool, name: pool, tether: context.tether})
        eventually("it is said what is missing", fn -> :sys.get_state(pid).problem end)
      end)

    wanted = ~s([discovery.pools.snakepit-python-workers]\n    source = "static://#{address}")
    assert log =~ wanted
    assert {:error, %{reason: :unknown_pool, message: message}} = Pool.await_ready(pool, 100)
    assert message =~ wanted

    # What was to be written there is.
    :ok = stop_supervised(context.tether)
    Cluster.kill(cluster)
    Cluster.again(cluster, ["discovery.pools.#{pool}.source=static://#{address}"])
    start_tether(context, config)
    :ok = Pool.await_ready(pool)
    assert {:ok, _body} = Tether.call(pool, Digits.predict(), Digits.image(), timeout: 10_000)
  end

  test "a BEAM that is killed in development leaves nothing" do
    marker = unique("embedded")
    other = Beam.start(marker, [worker_lifecycle_mode: :coupled], size: 2)
    assert length(with_marker(marker)) >= 2
    kill(other.pid)
    none_left(marker, 5_000)
  end

  # Independent workers would outlive the test by their grace; and its process may be about to apply the pool again.
  defp stop_pool(context) do
    :ok = stop_supervised({Pool, context.pool})
    {:ok, _done} = Tether.control(context.tether, :pool_delete, %{name: to_string(context.pool)})
    none_left(context.marker)
  end
end
