defmodule Tether.NothingRunsTest do
  @moduledoc "What is said where no Tether runs."

  use ExUnit.Case, async: true

  alias Tether.{Error, Worker}

  test "calls say which one is missing, and that a retry is safe" do
    assert {:error, %Error{reason: :not_running, outcome: :not_sent} = error} =
             Tether.call({:nobody, "ml"}, "a/B", "")

    assert Exception.message(error) =~ "put {Tether, name: :nobody} under a supervisor"
    assert_raise Error, fn -> Tether.async({:nobody, "ml"}, "a/B", "") end
    assert_raise Error, fn -> {:nobody, "ml"} |> Tether.stream("a/B", "") |> Enum.to_list() end
    assert {:error, %Error{reason: :unknown_pool}} = Tether.Pool.await_ready(:no_pool)
    assert {:error, %Error{reason: :not_running}} = Tether.owner_lease(:nobody)
  end

  test "a monitor is told at once, as Process.monitor/1 would" do
    worker = %Worker{tether: :nobody, pool: "ml", slot: 0, incarnation: 1}
    ref = Tether.monitor(worker)
    assert_received {:DOWN, ^ref, :tether_worker, ^worker, :noproc}
  end

  test "an event that there is not is refused with those there are" do
    assert_raise ArgumentError, ~r/there is no event :worker_born; there are .*:worker_down/, fn ->
      Tether.subscribe(:nobody, [:worker_born])
    end
  end

  test "a configuration that is wrong raises with every problem" do
    assert_raise Tether.Config.Error, ~r/has 1 problem/, fn ->
      Tether.start_link(name: :nobody, gateway: "nowhere")
    end
  end
end
