defmodule Tether.ProtocolTest do
  use ExUnit.Case, async: true

  alias Tether.{Error, Protocol}

  test "a call carries only what was given" do
    assert Protocol.call("ml", "/a.B/C", []) == %{pool: "ml", method: "/a.B/C", timeout: nil, metadata: []}
    worker = %Tether.Worker{tether: T, pool: "ml", slot: 1, incarnation: 2}

    call =
      Protocol.call("ml", "a.B/C", worker: worker, timeout: :infinity, session: :s, affinity: :strict_queue)

    assert call.worker == {"ml", 1, 2}
    assert {call.session, call.affinity, call.timeout} == {"s", :strict_queue, nil}
  end

  test "a frame that is too large for the port is not sent" do
    assert {:error, :too_large} = Protocol.encode(:binary.copy("x", Protocol.max_frame()))
  end

  test "errors say whether a retry is safe, and what is not understood never does" do
    told = %{reason: "BREAKER_OPEN", code: 14, outcome: :not_sent, retry_after: 250, worker: {"ml", 0, 7}}
    error = Error.from_port(told, T)
    assert {error.reason, error.retry_after_ms, error.outcome} == {:circuit_open, 250, :not_sent}
    assert Error.retry_safe?(error)
    assert error.worker.incarnation == 7

    assert %{reason: :invalid_argument, outcome: :failed} =
             Error.from_port(%{reason: "", code: 3, outcome: :failed}, T)

    odd = Error.from_port(%{reason: "NEW_ONE", code: 99, outcome: :new_one}, T)
    assert {odd.reason, odd.outcome} == {:unknown, :unknown}
    refute Error.retry_safe?(odd)
  end

  # A test of the port's holds its own against the same page.
  test "the atoms that exist here are those that are documented" do
    page = File.read!(Path.expand("../../../../docs/reference/port.md", __DIR__))
    [_before, page] = String.split(page, "## Atoms")
    documented = page |> String.split("`") |> Enum.drop(1) |> Enum.take_every(2)
    assert Enum.sort(documented) == Protocol.atoms() |> Enum.map(&Atom.to_string/1) |> Enum.sort()
  end
end
