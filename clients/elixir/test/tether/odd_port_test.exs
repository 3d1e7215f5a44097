defmodule Tether.OddPortTest do
  @moduledoc "What the library does when the Port's program misbehaves."

  use ExUnit.Case, async: true

  import Tether.Test.Processes

  alias Tether.Error

  setup context do
    dir = Path.join(System.tmp_dir!(), unique("odd"))
    File.mkdir_p!(dir)
    on_exit(fn -> File.rm_rf!(dir) end)
    program = Path.join(dir, "tether")
    script = Path.expand("../support/odd_port.exs", __DIR__)
    elixir = System.find_executable("elixir")

    File.write!(
      program,
      "#!/bin/sh\nexec #{elixir} --erl -noinput #{script} '#{context[:scenario]}' #{dir}/starts \"$@\"\n"
    )

    File.chmod!(program, 0o755)
    Process.flag(:trap_exit, true)

    {:ok,
     tether: :"odd_#{System.unique_integer([:positive])}", program: program, starts: Path.join(dir, "starts")}
  end

  defp start(context, opts \\ []) do
    opts =
      Keyword.merge(
        [
          name: context.tether,
          port_program: context.program,
          worker_lifecycle_mode: :coupled,
          gateway: "gw:1",
          owner: "odd"
        ],
        opts
      )

    {:ok, pid} = Tether.start_link(opts)

    on_exit(fn ->
      ref = Process.monitor(pid)
      Tether.Supervisor.stop(context.tether, :shutdown)
      assert_receive {:DOWN, ^ref, :process, _pid, _reason}, 10_000
    end)

    pid
  end

  defp child(context, module) do
    [pid] = for {^module, pid, _type, _modules} <- Supervisor.which_children(context.tether), do: pid
    pid
  end

  defp call(context, opts \\ []) do
    {body, opts} = Keyword.pop(opts, :body, "body")
    Tether.call({context.tether, "ml"}, "a/B", body, opts)
  end

  @tag scenario: "works"
  test "a call comes back; one of a program that was killed may be tried or is unknown, and the next one comes back",
       context do
    start(context)
    assert {:ok, "body"} = call(context)
    {:ok, %{port_pid: pid}} = Tether.Connection.info(context.tether)
    kill(pid)

    answer =
      eventually("it is answered again", fn ->
        case call(context) do
          {:ok, body} -> body
          {:error, %Error{reason: :port_down, outcome: outcome}} when outcome in [:not_sent, :unknown] -> nil
        end
      end)

    assert answer == "body"
    assert File.read!(context.starts) == ".."
  end

  @tag scenario: "works"
  test "a program that is not there for a moment is tried again, and the Tether goes on", context do
    supervisor = start(context)
    :ok = Tether.subscribe(context.tether, :port_down)
    assert {:ok, "body"} = call(context)
    File.rename!(context.program, context.program <> ".away")
    {:ok, %{port_pid: pid}} = Tether.Connection.info(context.tether)
    kill(pid)
    for _n <- 1..5, do: assert_receive({:tether, _name, %{type: :port_down}}, 10_000)
    File.rename!(context.program <> ".away", context.program)
    eventually("it is answered again", fn -> match?({:ok, "body"}, call(context)) end)
    assert Process.whereis(context.tether) == supervisor
  end

  @tag scenario: "works"
  test "a pool that cannot be says so to who waits for it", context do
    start(context)
    Process.flag(:trap_exit, true)
    name = :"pool_#{System.unique_integer([:positive])}"
    opts = [name: name, tether: :"later_#{name}", spec: %{command: "w"}]
    {:ok, pool} = Tether.Pool.start_link(opts)
    waiting = Task.async(fn -> Tether.Pool.await_ready(name) end)
    eventually("somebody waits", fn -> map_size(:sys.get_state(pool).waiting) == 1 end)
    start(%{context | tether: :"later_#{name}"})
    assert {:error, %{reason: :config_invalid, message: "`spec` is" <> _rest}} = Task.await(waiting, 20_000)
    assert_receive {:EXIT, ^pool, {:refused, _why}}, 5_000
  end

  @tag scenario: "works"
  test "a call whose deadline passed while nobody could send it is not made", context do
    start(context)
    assert {:ok, "body"} = call(context)
    connection = child(context, Tether.Connection)
    :sys.suspend(connection)
    call = Task.async(fn -> call(context, timeout: 1) end)
    assert {:error, %Error{reason: :deadline}} = Task.await(call)
    :sys.resume(connection)
    assert {:ok, "body"} = call(context)
    assert File.read!(context.starts <> ".calls") == ".."
  end

  @tag scenario: "hangs"
  test "a program that does not answer is not waited for beyond the deadline, and what it has is unknown",
       context do
    start(context)
    assert {:error, %Error{reason: :deadline, outcome: :unknown}} = call(context, timeout: 50)
    assert Process.info(self(), :message_queue_len) == {:message_queue_len, 0}
  end

  @tag scenario: "works"
  test "a program that is stopped is killed, and another one serves", context do
    start(context, heartbeat_timeout: 1_000)
    eventually("it has answered", fn -> :sys.get_state(child(context, Tether.Watchdog)).answered end)
    {:ok, %{port_pid: pid}} = Tether.Connection.info(context.tether)
    on_exit(fn -> if alive?(pid), do: kill(pid) end)
    kill(pid, "STOP")
    eventually("it is dead", fn -> not alive?(pid) end)
    eventually("another one serves", fn -> match?({:ok, "body"}, call(context, timeout: 100)) end)
  end

  @tag scenario: "garbage"
  test "one type of event may be named alone, and all may be beside others", context do
    start(context)
    test = self()
    :ok = Tether.subscribe(context.tether, :port_down)

    spawn_link(fn ->
      :ok = Tether.subscribe(context.tether, [:worker_down, :all])
      receive do: ({:tether, _name, %{type: :port_down}} -> send(test, :told))
    end)

    assert_receive {:tether, _name, %{type: :port_down}}, 10_000
    assert_receive :told, 10_000
    eventually("a call comes back", fn -> match?({:ok, "body"}, call(context)) end)
  end

  @tag scenario: "mumbles"
  test "a program that is too busy for an answer, but says something, is left alone", context do
    start(context, heartbeat_timeout: 1_000)
    # The one before the last was waited for in vain.
    eventually("it is asked again", fn -> File.read(context.starts <> ".pings") == {:ok, "..."} end)
    assert File.read!(context.starts) == "."
  end

  @tag scenario: "gap"
  test "where events are missing a list is asked for, until there is one", context do
    start(context)
    pool = :"pool_#{System.unique_integer([:positive])}"
    start_supervised!({Tether.Pool, name: pool, pool: "ml", tether: context.tether, spec: [command: "w"]})
    await_following(context)
    assert {:ok, ""} = Tether.call(pool, "a/B", "")
    assert [%{slot: 0}] = eventually("it is listed", fn -> some(Tether.workers(pool)) end)
  end

  @tag scenario: "lists"
  test "a pool of somebody else that is joined late is ready when its workers are", context do
    start(context)
    await_following(context)
    pool = :"pool_#{System.unique_integer([:positive])}"
    start_supervised!({Tether.Pool, name: pool, pool: "ml", tether: context.tether, apply: false})
    assert :ok = Tether.Pool.await_ready(pool, 10_000)
  end

  @tag scenario: "lists"
  test "a monitor of a worker that was not known yet is no death, and of one that there is not is", context do
    start(context)
    await_following(context)

    [living, nobody] =
      for n <- [1, 2], do: %Tether.Worker{tether: context.tether, pool: "ml", slot: 0, incarnation: n}

    ref = Tether.monitor(living)
    none = Tether.monitor(nobody)
    assert_receive {:DOWN, ^none, :tether_worker, ^nobody, :noproc}, 10_000
    assert Tether.workers({context.tether, "ml"}) == [living]
    refute_received {:DOWN, ^ref, _type, _worker, _reason}
  end

  @tag scenario: "lists"
  test "whoever still waits for a death when the Tether ends is told that, once", context do
    supervisor = start(context)
    await_following(context)
    worker = %Tether.Worker{tether: context.tether, pool: "ml", slot: 0, incarnation: 1}
    [ref, left] = [Tether.monitor(worker), Tether.monitor(worker)]
    :ok = Tether.demonitor(context.tether, left)
    eventually("it lives", fn -> Tether.workers({context.tether, "ml"}) == [worker] end)
    Supervisor.stop(supervisor)
    assert_receive {:DOWN, ^ref, :tether_worker, ^worker, :noconnection}
    refute_received {:DOWN, _ref, :tether_worker, _worker, _reason}
    none = Tether.monitor(worker)
    assert_receive {:DOWN, ^none, :tether_worker, ^worker, :noproc}
  end

  @tag scenario: "dies unseen"
  test "a death is told once, with its cause, also to who waits since before a crash of who follows the events",
       context do
    start(context)
    await_following(context)
    worker = %Tether.Worker{tether: context.tether, pool: "ml", slot: 0, incarnation: 1}
    ref = Tether.monitor(worker)
    eventually("it lives", fn -> Tether.workers({context.tether, "ml"}) == [worker] end)
    Process.exit(child(context, Tether.Events), :kill)
    assert_receive {:DOWN, ^ref, :tether_worker, ^worker, {:signal, :sigkill}}, 10_000
    await_following(context)
    :ok = Supervisor.stop(context.tether)
    refute_received {:DOWN, ^ref, :tether_worker, _worker, _reason}
  end

  @tag scenario: "nobody"
  test "in a pool that there is not there is nobody, which is asked once", context do
    start(context)
    await_following(context)
    worker = %Tether.Worker{tether: context.tether, pool: "ml", slot: 0, incarnation: 1}
    ref = Tether.monitor(worker)
    assert_receive {:DOWN, ^ref, :tether_worker, ^worker, :noproc}, 10_000
    # What it is asked next comes after all that it was asked before.
    assert {:ok, "body"} = call(context)
    assert File.read!(context.starts <> ".lists") == "."
  end

  @tag scenario: "no lists"
  test "however many wait, a list that cannot be had is asked for by one of them", context do
    start(context)
    await_following(context)
    began = System.monotonic_time(:millisecond)

    for n <- 1..10,
        do: Tether.monitor(%Tether.Worker{tether: context.tether, pool: "ml", slot: 0, incarnation: n})

    eventually("it is asked for again and again", fn ->
      match?({:ok, <<_lists::binary-size(13), _more::binary>>}, File.read(context.starts <> ".lists"))
    end)

    # Once for each of them, and then each half of a second.
    assert System.monotonic_time(:millisecond) - began >= 1_400
  end

  @tag scenario: "lists"
  test "after a crash of who follows the events there is one proxy for each worker again", context do
    start(context)
    await_following(context)
    pool = :"pool_#{System.unique_integer([:positive])}"
    start_supervised!({Tether.Pool, name: pool, pool: "ml", tether: context.tether, apply: false})
    assert :ok = Tether.Pool.await_ready(pool, 10_000)
    [worker] = Tether.workers(pool)
    before = Tether.Worker.whereis(worker)
    Process.exit(child(context, Tether.Events), :kill)

    eventually("it is followed again", fn -> (pid = Tether.Worker.whereis(worker)) && pid != before && pid end)

    proxy = Tether.Worker.whereis(worker)

    assert [{_id, ^proxy, _type, _modules}] =
             DynamicSupervisor.which_children(Tether.Supervisor.workers(context.tether))

    assert :ok = Tether.Pool.await_ready(pool, 10_000)
  end

  defp events(%{tether: tether}),
    do: GenServer.whereis({:via, Registry, {Tether.Registry, {:events, tether}}})

  # The revisions that come, up to this one.
  defp told_until(%{tether: tether} = context, last) do
    assert_receive {:tether, ^tether, %{revision: revision}} when revision != nil, 10_000
    if revision == last, do: [last], else: [revision | told_until(context, last)]
  end

  @tag scenario: "meanwhile"
  test "what happens while nobody follows the events is told once by who does so next, and who lives is no orphan",
       context do
    hear_telemetry()
    start(context)
    %{tether: tether} = context
    await_following(context)
    assert_receive {:telemetry, [:tether, :orphans, :detected], _count, %{tether: ^tether}}, 10_000
    :ok = Tether.subscribe(tether)
    assert {:ok, ""} = call(context)
    assert told_until(context, 1) == [1]

    events = events(context)
    Process.exit(events, :kill)
    eventually("there is another one", fn -> events(context) not in [nil, events] end)
    await_following(context)
    assert {:ok, ""} = call(context)
    assert told_until(context, 5) == [2, 3, 4, 5]
    eventually("all lists are there", fn -> :sys.get_state(events(context)).lists.asked == %{} end)

    refute_received {:tether, ^tether, %{worker: %Tether.Worker{}}}
    assert [%{slot: 0, incarnation: 2}] = Tether.workers({tether, "ml"})
    assert_received {:telemetry, [:tether, :worker, :down], _count, %{tether: ^tether}}
    refute_received {:telemetry, [:tether, :worker, :down], _count, %{tether: ^tether}}
    refute_received {:telemetry, [:tether, :orphans, _what], _count, %{tether: ^tether}}
  end

  @tag scenario: "lists"
  test "a Tether in the Port ends with who follows its events, and the next one tells so of who lived",
       context do
    start(context, gateway: nil)
    %{tether: tether} = context
    await_following(context)
    worker = %Tether.Worker{tether: tether, pool: "ml", slot: 0, incarnation: 1}
    ref = Tether.monitor(worker)
    eventually("it lives", fn -> Tether.workers({tether, "ml"}) == [worker] end)
    :ok = Tether.subscribe(tether, [:worker_down])
    Process.exit(events(context), :kill)
    assert_receive {:tether, ^tether, %{type: :worker_down, worker: ^worker, reason: :agent_lost}}, 10_000
    assert_receive {:DOWN, ^ref, :tether_worker, ^worker, :agent_lost}, 10_000
    await_following(context)
    refute_received {:tether, ^tether, _event}
    refute_received {:DOWN, ^ref, _type, _worker, _reason}
  end

  @tag scenario: "meanwhile"
  test "a worker that was lost with the lease, and has ended meanwhile, is told of as dead once", context do
    hear_telemetry()
    start(context, on_partition: :notify_only)
    %{tether: tether} = context
    await_following(context)
    worker = %Tether.Worker{tether: tether, pool: "ml", slot: 0, incarnation: 1}
    eventually("it lives", fn -> Tether.workers({tether, "ml"}) == [worker] end)
    :ok = Tether.subscribe(tether, [:worker_ready, :worker_down, :worker_up])
    assert {:ok, ""} = call(context)
    assert told_until(context, 1) == [1]
    assert {:error, _port_down} = call(context, body: "lose")
    assert_receive {:tether, _name, %{type: :worker_down, worker: ^worker, reason: :lease_expired}}, 10_000
    # The event of its death was before this one.
    assert_receive {:tether, _name, %{type: :worker_up, worker: %{incarnation: 2}}}, 10_000
    refute_received {:tether, _name, %{type: :worker_down}}
    assert_received {:telemetry, [:tether, :worker, :down], _count, %{tether: ^tether}}
    refute_received {:telemetry, [:tether, :worker, :down], _count, %{tether: ^tether}}
  end

  defp some([]), do: nil
  defp some(list), do: list

  defp await_following(context) do
    eventually("events are followed", fn ->
      match?({:following, _request}, :sys.get_state(child(context, Tether.Events)).sync)
    end)
  end

  @tag scenario: "vanishes"
  test "without a program the lease is counted here: a warning at half of it, then the end", context do
    supervisor = start(context)
    :ok = Tether.subscribe(context.tether, [:port_down, :lease_warning, :lease_lost])
    assert_receive {:tether, _name, %{type: :port_down}}, 10_000
    assert_receive {:tether, _name, %{type: :lease_warning}}, 5_000
    assert_receive {:tether, _name, %{type: :lease_lost, reason: :lease_expired}}, 5_000
    assert_receive {:EXIT, ^supervisor, {:shutdown, :lease_expired}}, 5_000
  end

  @tag scenario: "vanishes"
  test "where only a notice is wanted, another session is tried for", context do
    supervisor = start(context, on_partition: :notify_only)
    :ok = Tether.subscribe(context.tether, [:lease_lost])
    assert_receive {:tether, _name, %{type: :lease_lost}}, 10_000
    starts = byte_size(File.read!(context.starts))
    eventually("it is tried again", fn -> byte_size(File.read!(context.starts)) > starts end)
    assert Process.alive?(supervisor)
  end

  @tag scenario: "closes"
  test "and also where the arbiter had ended it", context do
    start(context, on_partition: :notify_only)
    :ok = Tether.subscribe(context.tether, [:lease_lost])
    assert_receive {:tether, _name, %{type: :lease_lost, reason: :closed}}, 10_000
    eventually("another one is started", fn -> File.read!(context.starts) == ".." end)
    eventually("it serves", fn -> match?({:ok, "body"}, call(context)) end)
  end

  @tag scenario: "vanishes"
  test "where it is wanted, the VM ends with the lease", context do
    script = """
    {:ok, _apps} = Application.ensure_all_started(:tether)
    [program] = System.argv()
    opts = [port_program: program, worker_lifecycle_mode: :coupled, gateway: "gw:1", owner: "odd", on_lease_loss: :halt]
    {:ok, _pid} = Tether.start_link(opts)
    Process.sleep(:infinity)
    """

    ebin = :tether |> :code.lib_dir() |> Path.join("ebin")
    args = ["-pa", ebin, "-e", script, "--", context.program]

    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :exit_status,
        :stderr_to_stdout,
        args: args
      ])

    assert_receive {^port, {:exit_status, 70}}, 30_000
  end

  @tag scenario: "loses"
  test "under a supervisor that wants it back, it comes back, and its pools with it", context do
    name = :"pool_#{System.unique_integer([:positive])}"
    # There before its Tether, and there after its end.
    start_supervised!({Tether.Pool, name: name, tether: context.tether, min_ready: 0, spec: [command: "w"]})
    assert {:error, %Error{reason: :deadline}} = Tether.Pool.await_ready(name, 10)

    opts = [
      name: context.tether,
      port_program: context.program,
      worker_lifecycle_mode: :coupled,
      gateway: "gw:1",
      owner: "odd"
    ]

    start_supervised!({Tether, [restart: :permanent] ++ opts})
    assert :ok = Tether.Pool.await_ready(name)
    supervisor = Process.monitor(context.tether)
    assert {:error, %Error{outcome: :unknown}} = Tether.call(name, "a/B", "body")
    assert_receive {:DOWN, ^supervisor, :process, _pid, {:shutdown, :lease_expired}}
    eventually("it is applied again", fn -> File.read(context.starts <> ".applied") == {:ok, ".."} end)
    assert {:ok, "body"} = Tether.call(name, "a/B", "body")
  end

  @tag scenario: "depends"
  test "a pool waits for one that it depends on, and says for what", context do
    start(context)

    pool = fn name, more ->
      name = :"#{name}_#{System.unique_integer([:positive])}"
      opts = [name: name, tether: context.tether, min_ready: 0, spec: [command: "w"]] ++ more
      start_supervised!({Tether.Pool, opts})
      name
    end

    web = pool.("web", pool: "web", depends_on: ["db"])

    eventually("it is said for what", fn ->
      match?({:error, %{message: "there is no pool `db`"}}, Tether.Pool.await_ready(web, 100))
    end)

    pool.("db", pool: "db")
    assert :ok = Tether.Pool.await_ready(web, 10_000)
  end

  @tag scenario: "orphans"
  test "what ended with the life before this one is told, and who lives on from it, whatever of that the history has",
       context do
    hear_telemetry()
    start(context)
    %{tether: tether} = context
    died = %Tether.Worker{tether: tether, pool: "ml", slot: 1, incarnation: 2}
    lives = %Tether.Worker{tether: tether, pool: "ml", slot: 0, incarnation: 1}
    assert_receive {:telemetry, [:tether, :orphans, :reaped], %{count: 1}, %{tether: ^tether} = told}, 10_000
    assert told.worker == died

    assert_receive {:telemetry, [:tether, :orphans, :detected], %{count: 1}, %{tether: ^tether} = told},
                   10_000

    assert told.workers == [lives]
    refute_received {:telemetry, [:tether, :orphans, :reaped], _count, %{tether: ^tether}}
  end

  # The next event of a call of this test.
  defp call_event(%{tether: tether}) do
    assert_receive {:telemetry, [:tether, :call, what], _measured, %{tether: ^tether} = told}, 10_000
    {what, told}
  end

  defp hear_telemetry do
    :telemetry.attach_to(self())
    on_exit(fn -> :telemetry.detach(self()) end)
  end

  @tag scenario: "slow"
  test "a stream is measured as a call is: whole, halted, with requests that raise", context do
    start(context)
    hear_telemetry()
    stream = &Tether.stream({context.tether, "ml"}, "a/B", &1)
    assert length(Enum.to_list(stream.(["m", "m"]))) == 2
    assert {:start, %{pool: "ml", method: "a/B"}} = call_event(context)
    assert {:stop, %{outcome: :ok, method: "a/B"}} = call_event(context)

    assert [_one] = Enum.take(stream.(["m", "m"]), 1)
    assert {:start, _told} = call_event(context)
    assert {:stop, %{outcome: :halted}} = call_event(context)

    assert_raise RuntimeError, fn ->
      Enum.to_list(stream.(Stream.map(["m"], fn _m -> raise "no more" end)))
    end

    assert {:start, _told} = call_event(context)
    assert {:exception, %{kind: :error, reason: %RuntimeError{}, stacktrace: [_ | _]}} = call_event(context)
    %{tether: tether} = context
    refute_received {:telemetry, [:tether, :call, _what], _measured, %{tether: ^tether}}
  end

  @tag scenario: "open breaker"
  test "what a breaker refuses is measured, of calls and of streams", context do
    start(context)
    hear_telemetry()
    %{tether: tether} = context

    refused = fn ->
      assert {:start, _told} = call_event(context)
      assert {:stop, %{outcome: :not_sent, reason: :circuit_open}} = call_event(context)

      assert_receive {:telemetry, [:tether, :circuit_breaker, :rejected], %{retry_after: 70},
                      %{tether: ^tether}}
    end

    assert {:error, %Error{reason: :circuit_open}} = call(context)
    refused.()
    stream = Tether.stream({tether, "ml"}, "a/B", "m")
    assert %Error{reason: :circuit_open} = catch_error(Enum.to_list(stream))
    refused.()
  end

  @tag scenario: "stalls"
  test "a change of size that waits while a pool is applied is not lost where that fails, and not made where nobody waits for it",
       context do
    start(context)
    name = :"pool_#{System.unique_integer([:positive])}"
    opts = [name: name, tether: context.tether, min_ready: 0, spec: [command: "w"]]
    pool = start_supervised!({Tether.Pool, opts})
    eventually("it is being applied", fn -> :sys.get_state(pool).request end)
    queued = fn count -> fn -> :queue.len(:sys.get_state(pool).changes) == count end end

    {leaves, left} = spawn_monitor(fn -> Tether.Pool.resize(name, 7) end)
    eventually("one waits", queued.(1))
    stays = Task.async(fn -> Tether.Pool.resize(name, 3) end)
    eventually("two wait", queued.(2))
    Process.exit(leaves, :kill)
    assert_receive {:DOWN, ^left, :process, _pid, :killed}

    assert {:ok, _body} = call(context)
    assert {:ok, %{size: 3}} = Task.await(stays)
    assert File.read!(context.starts <> ".scaled") == "3 "
  end

  @tag scenario: "works"
  test "an operation that has many answers is not asked for as if it had one", context do
    start(context)

    for op <- [:logs, :job_watch, :events] do
      assert {:error, %Error{reason: :config_invalid, outcome: :not_sent}} =
               Tether.control(context.tether, op)
    end
  end

  @tag scenario: "garbage"
  test "what is no term of the protocol makes no atom, and the program is started again", context do
    start(context)
    eventually("the second one serves", fn -> File.read(context.starts) == {:ok, ".."} end)
    eventually("a call comes back", fn -> match?({:ok, "body"}, call(context)) end)
    assert_raise ArgumentError, fn -> String.to_existing_atom("never" <> "_seen") end
  end

  @tag scenario: "refuses"
  test "a refusal ends the Tether with its words", context do
    supervisor = start(context)
    [{connection, _ids}] = Registry.lookup(Tether.Registry, {:connection, context.tether})
    ref = Process.monitor(connection)

    assert_receive {:DOWN, ^ref, :process, _pid, {:refused, "CONFIG_INVALID", "no such setting: `gatewy`"}},
                   10_000

    assert_receive {:EXIT, ^supervisor, :shutdown}, 20_000
  end

  @tag scenario: "slow"
  test "requests of a stream go as the program has room, and answers as they are read", context do
    start(context)
    messages = Stream.map(1..200, fn _n -> "m" end)
    answers = {context.tether, "ml"} |> Tether.stream("a/B", messages) |> Enum.to_list()
    assert length(answers) == 200
  end

  @tag scenario: "slow"
  test "a stream whose requests raise ends with them", context do
    start(context)
    messages = Stream.map(1..3, fn n -> if n == 3, do: raise("no more"), else: "m" end)
    reader = spawn(fn -> {context.tether, "ml"} |> Tether.stream("a/B", messages) |> Stream.run() end)
    ref = Process.monitor(reader)
    assert_receive {:DOWN, ^ref, :process, _pid, {%RuntimeError{message: "no more"}, _stack}}, 10_000
    [{connection, _ids}] = Registry.lookup(Tether.Registry, {:connection, context.tether})
    eventually("nothing of it is left", fn -> map_size(:sys.get_state(connection).requests) <= 1 end)
  end

  @tag scenario: "slow"
  test "so does one whose reader traps exits, which is told of nothing else", context do
    start(context)
    Process.flag(:trap_exit, true)
    answers = fn messages -> {context.tether, "ml"} |> Tether.stream("a/B", messages) |> Enum.to_list() end
    raising = Stream.map(1..3, fn n -> if n == 3, do: raise("no more"), else: "m" end)
    exiting = Stream.map(1..3, fn n -> if n == 3, do: exit(:no_more), else: "m" end)

    assert_raise RuntimeError, "no more", fn -> answers.(raising) end
    assert catch_exit(answers.(exiting)) == :no_more
    assert length(answers.(Stream.map(1..3, fn _n -> "m" end))) == 3
    assert Process.info(self(), :messages) == {:messages, []}
  end

  @tag scenario: "slow"
  test "a message that cannot be made leaves no call behind", context do
    start(context)
    encode = fn _message -> raise "no bytes" end
    stream = Tether.stream({context.tether, "ml"}, "a/B", "m", encode: encode)
    assert_raise RuntimeError, "no bytes", fn -> Enum.to_list(stream) end
    huge = Tether.stream({context.tether, "ml"}, "a/B", :binary.copy("x", Tether.Protocol.max_frame()))
    assert %{reason: :message_too_large, outcome: :unknown} = catch_error(Enum.to_list(huge))
    [{connection, _ids}] = Registry.lookup(Tether.Registry, {:connection, context.tether})
    # What is left is of the events.
    eventually("nothing of it is left", fn -> map_size(:sys.get_state(connection).requests) <= 1 end)
  end
end
