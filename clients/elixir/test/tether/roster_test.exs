defmodule Tether.RosterTest do
  use ExUnit.Case, async: true

  alias Tether.{Event, Roster, Worker}

  defp worker(incarnation), do: %Worker{tether: T, pool: "ml", slot: 0, incarnation: incarnation}

  defp event(type, revision, worker, reason \\ nil) do
    %Event{type: type, revision: revision, worker: worker, reason: reason, node: "a"}
  end

  defp after_events(roster \\ Roster.new(), events) do
    Enum.reduce(events, {roster, []}, fn event, {roster, all} ->
      case Roster.event(roster, event) do
        :seen -> {roster, all}
        {roster, actions} -> {roster, all ++ actions}
      end
    end)
  end

  test "a worker is born once, changes, and dies once" do
    worker = worker(1)

    {roster, actions} =
      after_events([
        event(:worker_up, 1, worker),
        event(:worker_ready, 2, worker),
        event(:worker_ending, 3, worker),
        event(:worker_down, 4, worker, :oom),
        event(:worker_crash_loop, 5, worker, :oom)
      ])

    assert [
             {:born, ^worker, _},
             {:changed, ^worker, %{phase: :ready}},
             {:changed, ^worker, _},
             {:died, ^worker, :oom}
           ] = actions

    assert roster.workers == %{}
  end

  test "a worker that gives back its registration is gone" do
    worker = worker(1)
    ref = make_ref()
    {roster, _actions} = after_events([event(:worker_registered, 1, worker)])
    {roster, []} = Roster.watch(roster, worker, ref)

    assert {%{workers: none}, [{:died, ^worker, :normal}, {:down, ^ref, ^worker, :normal}]} =
             Roster.event(roster, event(:worker_deregistered, 2, worker))

    assert none == %{}
  end

  test "R1: neither a list that is older than its death nor an event brings a worker back" do
    worker = worker(1)
    {roster, _actions} = after_events([event(:worker_up, 1, worker), event(:worker_down, 2, worker, :normal)])

    assert {^roster, [], []} = Roster.listed(roster, [], [{worker, %{phase: :ready}}])
    assert {later, []} = Roster.event(roster, event(:worker_ready, 3, worker))
    assert later.workers == %{}
  end

  test "R2: each watcher is told once, whatever tells of it" do
    worker = worker(1)
    {roster, _actions} = after_events([event(:worker_up, 1, worker)])
    [one, two] = [make_ref(), make_ref()]
    {roster, []} = Roster.watch(roster, worker, one)
    {roster, []} = Roster.watch(roster, worker, two)

    {roster, actions} = Roster.lose_all(roster, :lease_expired, :keep)
    downs = for {:down, ref, ^worker, :lease_expired} <- actions, do: ref
    assert Enum.sort(downs) == Enum.sort([one, two])

    assert {_roster, []} = Roster.event(roster, event(:worker_down, 2, worker, :oom))
  end

  # One that was lost, and whom somebody waits for since.
  defp lost(worker) do
    {roster, _actions} = after_events([event(:worker_up, 1, worker)])
    {roster, [{:died, ^worker, :lease_expired}]} = Roster.lose_all(roster, :lease_expired, :keep)
    late = make_ref()
    {roster, []} = Roster.watch(roster, worker, late)
    {roster, late}
  end

  test "R4: what was lost dies no second time, whatever tells of it, and who waits since is told" do
    worker = worker(1)
    {roster, late} = lost(worker)
    assert Roster.told?(roster, worker)
    {roster, []} = Roster.event(roster, event(:worker_ending, 2, worker))
    assert {roster, [], []} = Roster.listed(roster, [worker], [{worker, %{phase: :ending}}])

    downs = fn {roster, actions} ->
      assert Roster.told?(roster, worker)
      assert [{:down, ^late, ^worker, _reason}] = actions
    end

    downs.(Roster.event(roster, event(:worker_down, 3, worker, :oom)))
    downs.(Roster.event(roster, event(:worker_deregistered, 3, worker)))
    downs.(Roster.lose_all(roster, :lease_expired, :keep))
    assert {_new, [{:down, ^late, ^worker, :unknown}]} = Roster.lose_all(roster, :unknown, :forget)
  end

  test "what was lost and is on no list is settled, and not remembered as lost for ever" do
    worker = worker(1)
    {roster, late} = lost(worker)
    roster = Roster.unwatch(roster, worker, late)
    assert {Roster.unknown_pools(roster), Roster.expected(roster, "ml")} == {["ml"], [worker]}
    assert {roster, [], [^worker]} = Roster.listed(roster, [worker], [])
    assert {roster, []} = Roster.died(roster, worker, :unknown)
    refute Roster.unsettled?(roster, worker)
    assert {Roster.unknown_pools(roster), Roster.told?(roster, worker)} == {[], true}
  end

  test "R4: one that was lost, and seen at work since, dies once more" do
    worker = worker(1)

    for seen <- [:worker_up, :worker_ready, :worker_registered] do
      {roster, late} = lost(worker)
      assert {roster, [{:born, ^worker, _known}]} = Roster.event(roster, event(seen, 2, worker))
      refute Roster.told?(roster, worker)

      assert {_roster, [{:died, ^worker, :oom}, {:down, ^late, ^worker, :oom}]} =
               Roster.event(roster, event(:worker_down, 3, worker, :oom))
    end
  end

  test "a later roster goes on where one was: who lives, who was lost, what was seen" do
    [lost, lives] = [worker(1), worker(2)]
    {roster, _late} = lost(lost)
    {roster, _born} = Roster.event(roster, event(:worker_up, 2, lives))
    roster = roster |> Roster.kept() |> Roster.new()
    assert {Roster.lives?(roster, lives), Roster.told?(roster, lost)} == {true, true}
    assert :seen = Roster.event(roster, event(:worker_down, 2, lives, :oom))
    assert {roster, []} = Roster.event(roster, event(:worker_down, 3, lost, :oom))
    assert {_roster, [{:died, ^lives, :oom}]} = Roster.event(roster, event(:worker_down, 4, lives, :oom))
  end

  test "a worker that was lost with the lease and lives on is there again with the next list" do
    worker = worker(1)
    {roster, _actions} = after_events([event(:worker_up, 1, worker)])
    {roster, [{:died, ^worker, :lease_expired}]} = Roster.lose_all(roster, :lease_expired, :keep)
    late = make_ref()
    {roster, []} = Roster.watch(roster, worker, late)

    assert {roster, [{:born, ^worker, _known}], []} =
             Roster.listed(roster, [worker], [{worker, %{phase: :ready}}])

    assert {_roster, [_died, {:down, ^late, ^worker, :oom}]} = Roster.died(roster, worker, :oom)
  end

  test "a worker that is not known is waited for, until a list says that there is none" do
    [worker, other] = [worker(1), worker(2)]
    [one, two] = [make_ref(), make_ref()]
    {roster, []} = Roster.watch(Roster.new(), worker, one)
    {roster, []} = Roster.watch(roster, other, two)

    assert {Roster.unknown_pools(roster), Enum.sort(Roster.expected(roster, "ml"))} ==
             {["ml"], [worker, other]}

    {roster, actions, []} = Roster.listed(roster, [worker, other], [{worker, %{phase: :ready}}])
    assert [{:born, ^worker, _known}, {:down, ^two, ^other, :noproc}] = actions
    assert Roster.unknown_pools(roster) == []

    assert {_roster, [{:died, ^worker, :oom}, {:down, ^one, ^worker, :oom}]} =
             Roster.event(roster, event(:worker_down, 1, worker, :oom))

    {roster, []} = Roster.watch(Roster.new(), worker, one)

    assert {_roster, [_died, {:down, ^one, ^worker, :agent_lost}]} =
             Roster.lose_all(roster, :agent_lost, :forget)
  end

  test "a watcher that left is not told" do
    worker = worker(1)
    {roster, _actions} = after_events([event(:worker_up, 1, worker)])
    ref = make_ref()
    {roster, []} = Roster.watch(roster, worker, ref)
    roster = Roster.unwatch(roster, worker, ref)
    assert roster.watchers == %{}
    assert {_roster, [{:died, ^worker, :unknown}]} = Roster.died(roster, worker, :unknown)
  end

  test "R3: a revision that was seen changes nothing" do
    {roster, _actions} = after_events([event(:worker_up, 5, worker(1))])
    assert :seen = Roster.event(roster, event(:worker_down, 5, worker(1), :normal))
    assert :seen = Roster.event(roster, event(:worker_up, 4, worker(2)))
  end

  test "who is missing from a list is named, but for those who came after it was asked for" do
    {roster, _actions} = after_events([event(:worker_up, 1, worker(1)), event(:worker_up, 2, worker(2))])
    [old, young] = [worker(1), worker(2)]
    assert {_roster, [], [^old]} = Roster.listed(roster, [old], [])
    assert {_roster, _actions, []} = Roster.listed(roster, [old], [{old, %{phase: :ready}}])
    assert {_roster, [], []} = Roster.listed(roster, [], [{young, %{phase: :starting}}])
  end

  test "of another cluster nothing is remembered, so that its numbers may begin anew" do
    worker = worker(1)
    {roster, _actions} = after_events([event(:worker_up, 7, worker)])
    {roster, [{:died, ^worker, :agent_lost}]} = Roster.lose_all(roster, :agent_lost, :forget)
    assert {_roster, [{:born, ^worker, _known}]} = Roster.event(roster, event(:worker_up, 1, worker))
  end

  test "one that is started after its death, as numbers began anew, lives, and dies once more" do
    worker = worker(1)
    {roster, _actions} = after_events([event(:worker_down, 1, worker, :agent_lost)])
    assert {roster, [{:born, ^worker, _known}]} = Roster.event(roster, event(:worker_up, 2, worker))
    assert {roster, _changed, []} = Roster.listed(roster, [worker], [{worker, %{phase: :starting}}])
    assert {roster, [{:died, ^worker, :oom}]} = Roster.event(roster, event(:worker_down, 3, worker, :oom))
    assert :queue.to_list(roster.order) == [worker]
  end

  test "memory of deaths is bounded" do
    {roster, _actions} =
      after_events(
        for n <- 1..5_000,
            do: event(if(rem(n, 2) == 1, do: :worker_up, else: :worker_down), n, worker(div(n + 1, 2)))
      )

    assert map_size(roster.dead) == 1_024
    assert :queue.len(roster.order) == 1_024
  end
end
