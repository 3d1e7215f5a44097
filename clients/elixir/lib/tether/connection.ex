defmodule Tether.Connection do
  @moduledoc """
  Owns the Port: starts its program, starts it again when it has ended, and brings what it says to whoever asked.

  Calls in flight when the program ends get `outcome: :unknown`, for nobody knows how far they came; those that come before it
  is there again get `:not_sent`. What the session has to say goes to `Tether.Events`.
  """

  use GenServer

  require Logger

  alias Tether.{Beat, Events, Lease, Program, Protocol}

  @first_pause 100
  @longest_pause 5_000
  # So many messages of one stream the port takes before it has sent any on.
  @room 32
  # A goodbye is answered within 5 s.
  @goodbye 6_000

  @doc false
  def child_spec(config) do
    %{id: __MODULE__, start: {__MODULE__, :start_link, [config]}, shutdown: @goodbye + 2_000}
  end

  @doc false
  def start_link(config) do
    ids = :atomics.new(1, signed: false)
    via = {:via, Registry, {Tether.Registry, {:connection, config.name}, ids}}
    GenServer.start_link(__MODULE__, {config, ids}, name: via)
  end

  @doc "The lease, and what runs: `%{owner, lease, port_pid, welcome}`."
  @spec info(atom) :: {:ok, map} | {:error, Tether.Error.t()}
  def info(tether) do
    case Registry.lookup(Tether.Registry, {:connection, tether}) do
      [{pid, _ids}] -> {:ok, GenServer.call(pid, :info)}
      [] -> {:error, Tether.Error.not_running(tether)}
    end
  end

  @impl true
  def init({config, ids}) do
    Process.flag(:trap_exit, true)

    case Program.find(config.port_program) do
      {:ok, program} -> {:ok, fresh(config, ids, program), {:continue, :open}}
      {:error, why} -> {:stop, {:port_program, why}}
    end
  end

  defp fresh(config, ids, program) do
    %{
      config: config,
      ids: ids,
      program: program,
      port: nil,
      requests: %{},
      monitors: %{},
      pause: 0,
      welcome: nil,
      lease: %Lease{},
      gateways_up: MapSet.new()
    }
  end

  @impl true
  def handle_continue(:open, state), do: {:noreply, open(state)}

  defp open(state) do
    case spawn_program(state.program) do
      {:ok, port} ->
        state = %{state | port: port, welcome: nil, gateways_up: MapSet.new()}
        {:ok, hello} = Protocol.encode(Protocol.hello(state.config))
        command(state, hello)
        Beat.into(state.config.name, port)
        state

      {:error, why} ->
        down(state, why)
    end
  end

  # It may be replaced at this very moment, or there are no more files to be had: another try finds it.
  defp spawn_program(program) do
    options = [:binary, :exit_status, :use_stdio, :hide, packet: 4, args: ["port"]]
    {:ok, Port.open({:spawn_executable, program}, options)}
  rescue
    error in [ArgumentError, ErlangError, SystemLimitError] -> {:error, Exception.message(error)}
  end

  @impl true
  def handle_call({:push, id, frame}, from, state) do
    case state.requests do
      %{^id => %{room: 0} = request} ->
        {:noreply, put_in(state.requests[id], %{request | waiting: {from, frame}})}

      %{^id => request} ->
        command(state, frame)
        {:reply, :ok, put_in(state.requests[id], %{request | room: request.room - 1})}

      _ended ->
        {:reply, :ended, state}
    end
  end

  def handle_call(:info, _from, state) do
    os_pid = with port when port != nil <- state.port, {:os_pid, pid} <- Port.info(port, :os_pid), do: pid

    {:reply, %{owner: state.config.owner, lease: state.lease, port_pid: os_pid, welcome: state.welcome},
     state}
  end

  def handle_call(:reopen, _from, state), do: {:reply, :ok, close(%{state | lease: %Lease{}})}

  @impl true
  def handle_info({:request, id, ref, owners, deadline, frame}, state) do
    cond do
      deadline < now() ->
        send(ref, {ref, :reply, {:error, Protocol.deadline(:not_sent)}})
        {:noreply, state}

      command(state, frame) ->
        monitors = for owner <- owners, do: Process.monitor(owner)
        state = put_in(state.requests[id], %{ref: ref, monitors: monitors, room: @room, waiting: nil})
        {:noreply, %{state | monitors: for(monitor <- monitors, into: state.monitors, do: {monitor, id})}}

      true ->
        send(ref, {ref, :reply, {:error, Protocol.port_down(:not_sent, max(state.pause, 10))}})
        {:noreply, state}
    end
  end

  def handle_info({:tell, id, frame}, state) do
    if is_map_key(state.requests, id), do: command(state, frame)
    {:noreply, state}
  end

  def handle_info({:cancel, id}, state), do: {:noreply, cancel(state, id)}

  def handle_info({:DOWN, monitor, :process, _pid, _reason}, state) do
    {:noreply, cancel(state, Map.get(state.monitors, monitor))}
  end

  def handle_info({port, {:data, frame}}, %{port: port} = state) do
    case Protocol.decode(frame) do
      {:ok, term} ->
        said(term, state)

      {:error, :malformed} ->
        Logger.error("Tether: the Port's program sent what is no term of the protocol; it is started again")
        {:noreply, down(close(state), :malformed)}
    end
  end

  def handle_info({port, {:exit_status, status}}, %{port: port} = state), do: {:noreply, down(state, status)}
  def handle_info({:EXIT, port, reason}, %{port: port} = state), do: {:noreply, down(state, reason)}
  def handle_info(:open, %{port: nil} = state), do: {:noreply, open(state)}
  def handle_info(:lease, state), do: {:noreply, look_at_lease(state)}
  def handle_info(_other, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, %{port: nil}), do: :ok

  # An orderly end; whoever only crashes says nothing, and the end of the pipe says enough.
  def terminate(reason, state)
      when reason == :shutdown or (is_tuple(reason) and elem(reason, 0) == :shutdown) do
    {:ok, bye} = Protocol.encode({:bye, :atomics.add_get(state.ids, 1, 1)})
    if state.lease.state != :lost and command(state, bye), do: await_end(state.port)
  end

  def terminate(_reason, _state), do: :ok

  defp await_end(port) do
    receive do
      {^port, {:exit_status, _status}} -> :ok
      {:EXIT, ^port, _reason} -> :ok
    after
      @goodbye -> :ok
    end
  end

  # What the port said.

  defp said({:reply, id, reply}, state) do
    case pop(state, id) do
      {nil, state} ->
        {:noreply, state}

      {%{ref: ref}, state} ->
        send(ref, {ref, :reply, reply})
        {:noreply, state}
    end
  end

  defp said({kind, id, value}, state) when kind in [:headers, :message, :item] do
    with %{ref: ref} <- Map.get(state.requests, id), do: send(ref, {ref, kind, value})
    {:noreply, state}
  end

  defp said({:sent, id, count}, state) do
    case state.requests do
      %{^id => %{waiting: nil} = request} ->
        {:noreply, put_in(state.requests[id], %{request | room: request.room + count})}

      %{^id => %{waiting: {from, frame}} = request} ->
        command(state, frame)
        GenServer.reply(from, :ok)
        {:noreply, put_in(state.requests[id], %{request | room: request.room + count - 1, waiting: nil})}

      _ended ->
        {:noreply, state}
    end
  end

  defp said({:welcome, welcome}, state), do: {:noreply, %{state | welcome: welcome}}

  defp said({:refused, %{reason: reason, message: message}}, state) do
    Logger.error("Tether: the Port's program refused the configuration: #{message}")
    {:stop, {:refused, reason, message}, state}
  end

  defp said({:session, :opened, session}, state) do
    tell(state, {:opened, session, state.welcome})
    {:noreply, %{state | lease: Lease.opened(state.lease, session.epoch, session.ttl), pause: 0}}
  end

  defp said({:session, :warning, %{remaining: remaining}}, state), do: {:noreply, warn(state, remaining)}

  defp said({:session, :renewed, %{ttl: ttl}}, state) do
    tell(state, {:renewed, ttl})
    {:noreply, %{state | lease: Lease.renewed(state.lease)}}
  end

  defp said({:session, :lost, %{reason: reason, message: message}}, state) do
    {:noreply, lost(state, reason, message)}
  end

  defp said({:connection, up_or_down, %{gateway: gateway}}, state) do
    change = if up_or_down == :up, do: &MapSet.put/2, else: &MapSet.delete/2
    up = change.(state.gateways_up, gateway)
    tell(state, {:connection, up_or_down, gateway, MapSet.size(up)})
    {:noreply, %{state | gateways_up: up}}
  end

  defp said(other, state) do
    Logger.debug("Tether: the Port's program said something unknown: #{inspect(other, limit: 5)}")
    {:noreply, state}
  end

  defp tell(state, what), do: Events.tell(state.config.name, what)

  # The port is gone: what was under way may or may not have been done.
  defp down(state, status) do
    tell(state, {:port_down, status, embedded?(state)})
    told = Protocol.port_down(:unknown, state.pause)

    for {_id, %{ref: ref} = request} <- state.requests do
      send(ref, {ref, :reply, {:error, told}})
      let_go(request)
    end

    for {monitor, _id} <- state.monitors, do: Process.demonitor(monitor, [:flush])
    Process.send_after(self(), :open, state.pause)
    pause = state.pause |> Kernel.*(2) |> max(@first_pause) |> min(@longest_pause)

    look_at_lease(%{
      state
      | port: nil,
        requests: %{},
        monitors: %{},
        pause: pause,
        lease: Lease.silent(state.lease, now())
    })
  end

  defp embedded?(%{config: %{gateways: gateways}}), do: gateways == []

  defp close(%{port: nil} = state), do: state

  defp close(state) do
    Port.close(state.port)
    state
  rescue
    ArgumentError -> state
  end

  # While the port is away, nobody else looks at the time.
  defp look_at_lease(state) do
    case Lease.check(state.lease, now()) do
      :rest ->
        state

      {:wait, for_ms} ->
        Process.send_after(self(), :lease, for_ms)
        state

      {:warn, remaining} ->
        Process.send_after(self(), :lease, remaining)
        warn(state, remaining)

      :lost ->
        lost(state, :lease_expired, "the Port's program was away for longer than the lease")
    end
  end

  defp warn(state, remaining) do
    tell(state, {:warning, remaining})
    %{state | lease: Lease.doubted(state.lease)}
  end

  defp lost(%{lease: %{state: :lost}} = state, _reason, _message), do: state

  defp lost(state, reason, message) do
    tell(state, {:lost, reason, message})
    %{state | lease: %Lease{state.lease | state: :lost, silent_since: nil}}
  end

  # Requests.

  defp cancel(state, id) do
    case pop(state, id) do
      {nil, state} ->
        state

      {%{ref: ref}, state} ->
        # To a task whose caller is gone; whoever cancelled it listens no more.
        send(ref, {ref, :reply, {:error, Protocol.cancelled()}})
        {:ok, frame} = Protocol.encode({:cancel, id})
        command(state, frame)
        state
    end
  end

  defp pop(state, id) do
    case Map.pop(state.requests, id) do
      {nil, _requests} ->
        {nil, state}

      {%{monitors: monitors} = request, requests} ->
        for monitor <- monitors, do: Process.demonitor(monitor, [:flush])
        let_go(request)
        {request, %{state | requests: requests, monitors: Map.drop(state.monitors, monitors)}}
    end
  end

  defp let_go(%{waiting: {from, _frame}}), do: GenServer.reply(from, :ended)
  defp let_go(_request), do: :ok

  # Waits while the pipe is full, which holds up whoever pushes.
  defp command(%{port: nil}, _frame), do: false

  defp command(%{port: port}, frame) do
    Port.command(port, frame)
  rescue
    ArgumentError -> false
  end

  defp now, do: System.monotonic_time(:millisecond)
end
