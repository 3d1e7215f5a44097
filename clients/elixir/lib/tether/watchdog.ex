defmodule Tether.Watchdog do
  @moduledoc false
  # Asks the Port's program now and then whether it still answers, and kills one that does not: stopped or deadlocked, it
  # would neither renew the lease nor say that it is over. In a process of its own, as the connection waits while the
  # program does not read.

  use GenServer

  require Logger

  alias Tether.{Error, Request}

  def start_link(config), do: GenServer.start_link(__MODULE__, config)

  # What a pipe takes of who writes to a program that does not read.
  @pipe 64 * 1024

  # A program that has not answered yet may still be starting.
  @to_start 30_000

  @impl true
  def init(config),
    do: {:ok, wait(%{tether: config.name, every: max(div(config.hung_after, 2), 1), answered: nil})}

  @impl true
  def handle_info(:look, state) do
    case Tether.Beat.port(state.tether) do
      {port, pid} -> {:noreply, state |> ask(port, pid) |> wait()}
      _between_two -> {:noreply, wait(state)}
    end
  end

  def handle_info(_late, state), do: {:noreply, state}

  # Whatever it answers is an answer; one that says or reads something meanwhile is only busy.
  defp ask(state, port, pid) do
    patience = if state.answered == port, do: state.every, else: max(state.every, @to_start)
    before = moved(port)

    case Request.ask(state.tether, &{:control, &1, :ping, %{}}, patience) do
      {:error, %Error{reason: :deadline}} -> if still?(before, moved(port)), do: bark(port, pid)
      _answered -> :ok
    end

    %{state | answered: port}
  end

  # Bytes from the program, and those that are no more in the queue to it.
  defp moved(port) do
    with [{:input, heard}, {:output, given}, {:queue_size, queued}] <-
           for(what <- [:input, :output, :queue_size], do: Port.info(port, what)),
         do: {heard, given - queued}
  end

  defp still?({heard, taken}, {heard, now_taken}), do: now_taken - taken <= @pipe
  defp still?(_before, _now), do: false

  defp bark(port, pid) do
    Logger.error("Tether: the Port's program (#{pid}) does not answer; it is killed")
    # A child that was not reaped, as its port is open: the number is its own.
    if Port.info(port, :os_pid) == {:os_pid, pid}, do: System.cmd("kill", ["-KILL", to_string(pid)])
  end

  defp wait(state) do
    Process.send_after(self(), :look, state.every)
    state
  end
end
