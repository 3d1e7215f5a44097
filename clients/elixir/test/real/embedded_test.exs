defmodule Tether.EmbeddedTest do
  @moduledoc "The Port runs all of Tether itself: coupled mode, as in development."

  use Tether.Test.Case

  alias Tether.{Error, Pool, Worker}

  describe "calls" do
    test "start does not block, await_ready does, and calls come back", context do
      start_all(context, [], size: 2)
      assert :ok = Pool.await_ready(context.pool)

      :telemetry.attach_to(self())
      on_exit(fn -> :telemetry.detach(self()) end)
      assert {:ok, body} = Tether.call(context.pool, Digits.predict(), Digits.image())
      assert Digits.fields(body)[2] > 0.0

      assert {:ok, reply} = Tether.call(context.pool, Digits.predict(), Digits.image(), full: true)
      assert %{body: ^body, metadata: [], trailers: []} = reply

      metadata = %{pool: to_string(context.pool), method: Digits.predict()}
      assert_received {:telemetry, [:tether, :call, :start], %{system_time: _}, told}
      assert Map.take(told, [:pool, :method]) == metadata
      assert_received {:telemetry, [:tether, :call, :stop], %{duration: _}, %{outcome: :ok}}

      decode = &Digits.fields/1
      task = Tether.async(context.pool, Digits.predict(), Digits.image(), decode: decode)
      assert {:ok, %{2 => _probability}} = Task.await(task)
    end

    test "an error says what it is and whether a retry is safe", context do
      start_all(context, [])
      :ok = Pool.await_ready(context.pool)

      assert {:error, %Error{reason: :invalid_argument, outcome: :failed, code: 3}} =
               Tether.call(context.pool, Digits.predict(), "")

      assert {:error, %Error{outcome: :not_sent} = error} =
               Tether.call({context.tether, "nobody"}, Digits.predict(), Digits.image(), timeout: 1_000)

      assert Error.retry_safe?(error)
      assert {:error, %Error{reason: :unknown_pool}} = Tether.call(:no_such_pool, "a/B", "")

      for odd <- [make_ref(), self(), [1 | 2], Integer.pow(2, 70), Enum.to_list(1..100_000)] do
        assert {:error, %Error{reason: :config_invalid, outcome: :not_sent}} =
                 Tether.control(context.tether, :pool_get, %{name: odd})
      end

      assert {:ok, _body} = Tether.call(context.pool, Digits.predict(), Digits.image())
    end

    test "a key has its worker, and other sessions have others", context do
      start_all(context, [], size: 2)
      :ok = Pool.await_ready(context.pool)

      serving = fn key ->
        opts = [session: key, affinity: :strict_queue, full: true]

        {:ok, %{worker: %Worker{} = worker}} =
          Tether.call(context.pool, Digits.predict(), Digits.image(), opts)

        worker
      end

      for key <- ["a", "b", "c"] do
        first = serving.(key)
        assert for(_n <- 1..3, do: serving.(key)) == [first, first, first]
      end

      [worker, _other] = Tether.workers(context.pool)
      assert {:ok, _body} = Tether.call(context.pool, Digits.predict(), Digits.image(), worker: worker)
      gone = %{worker | incarnation: worker.incarnation + 1_000}

      assert {:error, %Error{reason: :no_worker, outcome: :not_sent}} =
               Tether.call(context.pool, Digits.predict(), Digits.image(), worker: gone)
    end
  end

  describe "streams" do
    # One call at a time: the next one gets through only when the one before is over for the worker too.
    setup context do
      start_all(context, [], digits: [template: %{"capacity" => 1}])
      :ok = Pool.await_ready(context.pool)
    end

    test "all answers come, in order, and few at a time", context do
      training = Digits.training("short", 5, 0)

      answers =
        context.pool |> Tether.stream(Digits.train(), training, window: 2) |> Enum.map(&Digits.fields/1)

      epochs = Enum.map(answers, &Map.get(&1, 2, 0))
      assert epochs == Enum.sort(epochs)
      assert List.last(answers)[7] == 1
    end

    test "one that halts is cancelled, so that the worker is free", context do
      training = Digits.training("long", 1_000, 100)
      assert [_one, _two] = context.pool |> Tether.stream(Digits.train(), training) |> Enum.take(2)
      assert {:ok, _body} = Tether.call(context.pool, Digits.predict(), Digits.image(), timeout: 5_000)
      assert Process.info(self(), :message_queue_len) == {:message_queue_len, 0}
    end

    test "one whose process dies is cancelled", context do
      test = self()

      reader =
        spawn(fn ->
          context.pool
          |> Tether.stream(Digits.train(), Digits.training("left", 1_000, 100))
          |> Enum.each(&send(test, {:answer, &1}))
        end)

      assert_receive {:answer, _body}, 30_000
      Process.exit(reader, :kill)
      assert {:ok, _body} = Tether.call(context.pool, Digits.predict(), Digits.image(), timeout: 5_000)
    end

    test "a task that is cancelled is, and one whose caller ends in order, for the port too", context do
      holder = hold(context)
      test = self()
      [{connection, _ids}] = Registry.lookup(Tether.Registry, {:connection, context.tether})
      :erlang.trace(connection, true, [:receive])

      spawn(fn ->
        task = Tether.async(context.pool, Digits.predict(), Digits.image(), timeout: 60_000)
        send(test, {:task, task.pid})
      end)

      assert_receive {:task, pid}
      ref = Process.monitor(pid)
      # Its caller has ended, so nobody waits for it, and it is not left waiting for the worker either.
      assert_receive {:DOWN, ^ref, :process, _pid, _reason}, 5_000
      await_cancelled()

      before = Map.keys(connection_state(context.tether).requests)
      mine = Tether.async(context.pool, Digits.predict(), Digits.image(), timeout: 60_000)

      eventually("it is under way", fn ->
        Map.keys(connection_state(context.tether).requests) -- before != []
      end)

      assert Tether.cancel(mine) == nil
      await_cancelled()
      :erlang.trace(connection, false, [:receive])
      Process.exit(holder, :kill)
      assert {:ok, _body} = Tether.call(context.pool, Digits.predict(), Digits.image())
    end

    test "a failed call raises its error", context do
      assert_raise Error, fn -> context.pool |> Tether.stream(Digits.train(), "") |> Enum.to_list() end
    end
  end

  describe "workers" do
    test "one that is killed is one DOWN with its reason, for monitors and for links", context do
      start_all(context, [])
      :ok = Pool.await_ready(context.pool)
      :ok = Tether.subscribe(context.tether, [:worker_down, :worker_ready])
      [worker] = Tether.workers(context.pool)
      ref = Tether.monitor(worker)
      proxy = Process.monitor(Worker.whereis(worker))
      assert %{phase: :ready} = Worker.known(worker)

      assert {:ok, [%{worker: ^worker, pid: pid}]} = Tether.list_workers(context.pool)
      assert {:ok, %{phase: "READY"}} = Tether.info(worker)
      kill(pid)

      assert_receive {:DOWN, ^ref, :tether_worker, ^worker, {:signal, :sigkill}}, 10_000
      assert_receive {:DOWN, ^proxy, :process, _pid, {:shutdown, {:signal, :sigkill}}}
      assert_receive {:tether, _name, %{type: :worker_down, worker: ^worker, reason: {:signal, :sigkill}}}
      assert_receive {:tether, _name, %{type: :worker_ready, worker: next}}, 30_000
      assert next.incarnation > worker.incarnation
      refute_receive {:DOWN, ^ref, _type, _worker, _reason}, 100

      late = Tether.monitor(worker)
      assert_receive {:DOWN, ^late, :tether_worker, ^worker, {:signal, :sigkill}}

      elsewhere = %{worker | pool: "no-such-pool"}
      none = Tether.monitor(elsewhere)
      assert_receive {:DOWN, ^none, :tether_worker, ^elsewhere, :noproc}, 10_000
    end

    test "a proxy that is killed comes back, as its worker lives", context do
      start_all(context, [])
      :ok = Pool.await_ready(context.pool)
      [worker] = Tether.workers(context.pool)
      ref = Tether.monitor(worker)
      before = Worker.whereis(worker)
      Process.exit(before, :kill)
      eventually("it is back", fn -> (pid = Worker.whereis(worker)) && pid != before end)
      assert Tether.workers(context.pool) == [worker]
      :ok = Tether.demonitor(context.tether, ref)
    end

    test "a pool is made larger and smaller, and workers are stopped", context do
      start_all(context, [], restart: :transient)
      :ok = Pool.await_ready(context.pool)
      assert {:ok, %{spec: %{size: 2}}} = Tether.start_worker(context.pool)
      :ok = Pool.await_ready(context.pool)
      workers = Tether.workers(context.pool)
      assert length(workers) == 2

      refs = Map.new(workers, &{Tether.monitor(&1), &1})
      {:ok, %{}} = Tether.resize(context.pool, 1)
      assert_receive {:DOWN, ref, :tether_worker, gone, :drained}, 20_000
      assert refs[ref] == gone

      [left] = workers -- [gone]
      assert :ok = Tether.stop_worker(left, :kill)
      assert_receive {:DOWN, _ref, :tether_worker, ^left, {:ordered, _by}}, 20_000
    end

    test "a pool that drains takes no calls, and takes them again", context do
      start_all(context, [])
      :ok = Pool.await_ready(context.pool)
      assert {:ok, %{draining: true}} = Tether.drain(context.pool)

      eventually("calls are refused", fn ->
        match?(
          {:error, %Error{outcome: :not_sent}},
          Tether.call(context.pool, Digits.predict(), Digits.image(), timeout: 500)
        )
      end)

      assert {:ok, %{draining: false}} = Tether.drain(context.pool, undo: true)

      eventually("calls are taken", fn ->
        match?({:ok, _body}, Tether.call(context.pool, Digits.predict(), Digits.image()))
      end)
    end

    test "a job is begun once, and found by whoever asks for it again", context do
      start_all(context, [])
      :ok = Pool.await_ready(context.pool)
      [worker] = Tether.workers(context.pool)

      assert {:ok, %{found: false, job: %{key: "night-run", worker: ^worker}}} =
               Tether.job(context.pool, "night-run")

      assert {:ok, %{found: true, job: %{fence: fence}}} = Tether.job(context.pool, "night-run")
      assert {:ok, %{state: "RUNNING", fence: ^fence}} = Tether.job_status(context.pool, "night-run")
      assert {:error, %Error{reason: :unknown_job}} = Tether.job_status(context.pool, "another")
    end

    test "a job is followed through its changes until it is forgotten", context do
      start_all(context, [])
      :ok = Pool.await_ready(context.pool)
      {:ok, %{job: %{worker: worker}}} = Tether.job(context.pool, "night-run")
      test = self()

      follower =
        Task.async(fn ->
          context.pool |> Tether.watch_job("night-run") |> Enum.each(&send(test, {:job, &1}))
        end)

      assert_receive {:job, %{key: "night-run", state: "RUNNING", worker: ^worker}}, 10_000
      {:ok, _job} = Tether.cancel_job(context.pool, "night-run", grace: 0)
      assert_receive {:job, %{state: "CANCELLED"}}, 20_000
      :ok = Tether.acknowledge_job(context.pool, "night-run")
      assert :ok = Task.await(follower, 20_000)

      assert_raise Error, fn -> context.pool |> Tether.watch_job("another") |> Enum.to_list() end
    end

    test "an operation that was refused may be tried again", context do
      start_tether(context, [])
      await_lease(context.tether)

      assert {:error, %Error{reason: :unknown_pool, outcome: :not_sent} = error} =
               Tether.job({context.tether, "no-such-pool"}, "night-run")

      assert Error.retry_safe?(error)
    end

    test "what a worker writes can be read, also as it writes", context do
      start_all(context, [])
      :ok = Pool.await_ready(context.pool)
      [worker] = Tether.workers(context.pool)
      assert Enum.any?(Tether.logs(worker), &match?({:stderr, _text}, &1))
      assert [{_stream, _text}] = worker |> Tether.logs(follow: true) |> Enum.take(1)
    end

    test "one that cannot start is a crash loop, which is said to who waits", context do
      start_tether(context, [])

      start_pool(context,
        max_restarts: {1, 60_000},
        digits: [script: ["unruly.py", "--exit-after", "0", "--exit-code", "3"]]
      )

      assert {:error, %Error{reason: :crash_loop} = error} = Pool.await_ready(context.pool, 60_000)
      assert error.message =~ "was given up"
    end

    test "a pool that is refused ends its process with what is wrong", context do
      start_tether(context, [])
      Process.flag(:trap_exit, true)

      opts = [
        name: context.pool,
        tether: context.tether,
        policy: %{on_owner_exit: "dance"},
        spec: [command: "sleep"]
      ]

      {:ok, pid} = Pool.start_link(opts)
      assert_receive {:EXIT, ^pid, {:refused, why}}, 30_000
      assert why =~ "dance"
    end
  end

  describe "the Port's program" do
    test "is started again when it is killed; calls in flight are unknown, and its workers are gone",
         context do
      start_all(context, [], digits: [template: %{"capacity" => 1}])
      :ok = Pool.await_ready(context.pool)
      :ok = Tether.subscribe(context.tether, [:port_down, :lease_granted, :worker_ready, :worker_down])
      old = with_marker(context.marker)
      [worker] = Tether.workers(context.pool)
      ref = Tether.monitor(worker)

      # A stream has the one worker, so that the call is under way when the program dies.
      holder = hold(context)

      call =
        Task.async(fn -> Tether.call(context.pool, Digits.predict(), Digits.image(), timeout: 60_000) end)

      eventually("the call is under way", fn -> map_size(connection_state(context.tether).requests) >= 3 end)

      kill(port_pid(context.tether))
      assert {:error, %Error{reason: :port_down, outcome: :unknown}} = Task.await(call)
      assert_receive {:tether, _name, %{type: :port_down}}
      assert_receive {:DOWN, ^ref, :tether_worker, ^worker, :agent_lost}, 5_000
      assert_receive {:tether, _name, %{type: :worker_down, worker: ^worker, reason: :agent_lost}}
      assert_receive {:tether, _name, %{type: :lease_granted}}, 30_000
      assert_receive {:tether, _name, %{type: :worker_ready}}, 60_000
      :ok = Pool.await_ready(context.pool)
      assert {:ok, _body} = Tether.call(context.pool, Digits.predict(), Digits.image())
      eventually("the old ones are gone", fn -> not Enum.any?(old, &alive?/1) end)
      refute_received {:DOWN, ^ref, _type, _worker, _reason}
      Process.exit(holder, :kill)
    end

    test "that is not there is a clear error that names the fix" do
      Process.flag(:trap_exit, true)
      opts = [name: :tether_without, port_program: "/nowhere/tether", worker_lifecycle_mode: :coupled]

      assert {:error, {:shutdown, {:failed_to_start_child, _child, {:port_program, why}}}} =
               Tether.start_link(opts)

      assert why =~ "`port_program` is \"/nowhere/tether\""
    end

    test "an orderly end leaves nothing", context do
      start_all(context, [], size: 2)
      :ok = Pool.await_ready(context.pool)
      assert length(with_marker(context.marker)) >= 2
      :ok = stop_supervised({Pool, context.pool})
      :ok = stop_supervised(context.tether)
      none_left(context.marker)
    end
  end

  describe "workers that run already" do
    test "are connected to by their addresses, and called, as the first design has it", context do
      address = Digits.serve(context.marker)

      start_tether(context,
        worker_lifecycle_mode: :independent,
        python_pool_strategy: :connect,
        python_pool_addresses: [address],
        heartbeat_interval: 10_000,
        heartbeat_timeout: 60_000,
        health_check_interval: 500,
        circuit_breaker: [failure_threshold: 5, timeout: 1_000]
      )

      pool = :"snakepit-python-workers"
      start_supervised!({Pool, name: pool, tether: context.tether})

      :ok = Pool.await_ready(pool)
      opts = [timeout: 10_000, full: true, session: "one"]
      assert {:ok, %{worker: worker}} = Tether.call(pool, Digits.predict(), Digits.image(), opts)
      # As the documentation has it: nobody tells of its death, or knows it to live.
      ref = Tether.monitor(worker)
      assert_receive {:DOWN, ^ref, :tether_worker, ^worker, :noproc}, 10_000

      # It is Tether's to call, and not to end.
      pids = with_marker(context.marker)
      :ok = stop_supervised({Pool, pool})
      :ok = stop_supervised(context.tether)
      assert with_marker(context.marker) == pids
    end

    test "are not ready where nobody answers", context do
      start_tether(context,
        worker_lifecycle_mode: :distributed,
        python_pool_strategy: :connect,
        python_pool_addresses: [Digits.free_address()],
        python_service_name: "nobody"
      )

      start_supervised!({Pool, name: :nobody, tether: context.tether})
      assert {:error, %Tether.Error{outcome: :not_sent}} = Pool.await_ready(:nobody, 500)
    end
  end

  # A process whose stream has the pool's one worker, which takes one call at a time.
  defp hold(context) do
    test = self()
    training = Digits.training("held", 10_000, 100)

    holder =
      spawn(fn ->
        context.pool |> Tether.stream(Digits.train(), training) |> Enum.each(&send(test, {:held, &1}))
      end)

    assert_receive {:held, _answer}, 30_000
    holder
  end

  # The port's last word on a call that was cancelled there. One that it was not told of waits for the worker for longer.
  defp await_cancelled do
    eventually("the port has answered that a call is cancelled", fn ->
      receive do
        {:trace, _connection, :receive, {_port, {:data, frame}}} ->
          match?({:ok, {:reply, _id, {:error, %{code: 1}}}}, Tether.Protocol.decode(frame))
      after
        0 -> false
      end
    end)
  end

  defp connection_state(tether) do
    [{pid, _ids}] = Registry.lookup(Tether.Registry, {:connection, tether})
    :sys.get_state(pid)
  end
end
