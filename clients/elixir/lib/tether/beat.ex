defmodule Tether.Beat do
  @moduledoc false
  # Tells the Port's program that this BEAM runs. A process of its own at high priority, and past the mailbox of the
  # connection: a BEAM that is busy beats, one that hangs does not.

  use GenServer

  @at_most 1_000
  # A port whose pipe is full took no beat.
  @again 20

  def start_link(config), do: GenServer.start_link(__MODULE__, config, name: via(config.name))

  defp via(tether), do: {:via, Registry, {Tether.Registry, {:beat, tether}}}

  @doc "Beats into this Port from now on."
  def into(tether, port), do: GenServer.cast(via(tether), {:into, port})

  @doc "The Port it beats into, and its program's process id."
  def port(tether), do: GenServer.call(via(tether), :port)

  @impl true
  def init(config) do
    Process.flag(:priority, :high)
    {:ok, %{every: config.hung_after |> div(8) |> max(1) |> min(@at_most), port: nil, count: 0, timer: nil}}
  end

  @impl true
  def handle_cast({:into, port}, state), do: {:noreply, beat(%{state | port: port})}

  @impl true
  def handle_call(:port, _from, %{port: port} = state) do
    found = with true <- is_port(port), {:os_pid, pid} <- Port.info(port, :os_pid), do: {port, pid}
    {:reply, found, state}
  end

  @impl true
  def handle_info({:timeout, timer, :beat}, %{timer: timer} = state), do: {:noreply, beat(state)}
  def handle_info(_other, state), do: {:noreply, state}

  defp beat(state) do
    count = state.count + 1
    {:ok, frame} = Tether.Protocol.encode({:beat, count})

    pause = if busy?(state.port, frame), do: min(@again, state.every), else: state.every
    if state.timer, do: :erlang.cancel_timer(state.timer)
    %{state | count: count, timer: :erlang.start_timer(pause, self(), :beat)}
  end

  # Never waits for room: a port that is away, or one that does not read, must not hold this up.
  defp busy?(port, frame) do
    not Port.command(port, frame, [:nosuspend])
  rescue
    ArgumentError -> false
  end
end
