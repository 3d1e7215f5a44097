defmodule Tether.Stream do
  @moduledoc """
  Answers of a streaming call, as an `Enumerable` that asks for no more than it is read.

  The call begins when it is enumerated, once for each time. It is cancelled when the enumeration halts (`Enum.take/2`), raises, or
  its process dies; the worker sees that at once. At most `window` answers wait in the mailbox: a slow reader holds up the worker, not
  the BEAM's memory. A call that fails raises its `Tether.Error` after the answers that came before.
  """

  alias Tether.{Error, Request, Telemetry}

  @window 32

  @doc false
  def of(tether, call, requests, opts) do
    window = Keyword.get(opts, :window, @window)
    decode = Keyword.get(opts, :decode, & &1)
    encode = Keyword.get(opts, :encode, & &1)
    metadata = %{tether: tether, pool: call.pool, method: method(call)}

    Stream.resource(
      fn -> measured(metadata, fn -> open(tether, call, requests, encode, window) end) end,
      &caught(&1, decode),
      &close/1
    )
  end

  # Without its slash, as it is written for calls.
  defp method(%{method: "/" <> method}), do: method

  defp measured(metadata, open) do
    span = Telemetry.started(metadata)

    try do
      %{open.() | span: span}
    catch
      kind, reason ->
        Telemetry.raised(span, kind, reason, __STACKTRACE__)
        :erlang.raise(kind, reason, __STACKTRACE__)
    end
  end

  # What is raised here is raised by `close/1`, which otherwise could not tell it from a reader that stops.
  defp caught(state, decode) do
    next(state, decode)
  catch
    kind, reason -> {:halt, {:raised, kind, reason, __STACKTRACE__, state}}
  end

  @doc false
  def items(tether, op, args, decode) do
    Stream.resource(
      fn -> start(tether, &{:control, &1, op, Map.put(args, :window, @window)}, @window) end,
      &next(&1, decode),
      &close/1
    )
  end

  # One message is made before the call begins: where it cannot be made, there is no call.
  defp open(tether, call, requests, encode, window) do
    if one?(requests) do
      message = IO.iodata_to_binary(encode.(requests))
      state = begin(tether, call, window)
      push_one(state.request, message)
      state
    else
      state = begin(tether, call, window)
      %{state | feeder: feed(state.request, requests, encode)}
    end
  end

  defp begin(tether, call, window) do
    %{request: request} = state = start(tether, &{:stream, &1, call}, window)
    Request.tell(request, {:credit, request.id, window})
    state
  end

  defp start(tether, build, window) do
    case Request.open(tether, build) do
      {:ok, request} ->
        %{request: request, window: window, used: 0, feeder: nil, span: nil}

      {:error, error} ->
        raise error
    end
  end

  # Needs no process of its own, as the port always has room for it.
  defp push_one(request, message) do
    Request.push(request, {:send, request.id, message})
    Request.tell(request, {:close_send, request.id})
  rescue
    error ->
      Request.cancel(request)
      reraise error, __STACKTRACE__
  end

  # Not linked, as a reader may trap exits. Where the messages raise, their reader does too; where the reader dies, they end.
  defp feed(request, messages, encode) do
    reader = self()
    {feeder, monitor} = spawn_monitor(fn -> feed_all(request, messages, encode) end)

    spawn(fn ->
      [read, fed] = for pid <- [reader, feeder], do: Process.monitor(pid)

      receive do
        {:DOWN, ^read, :process, _pid, _reason} -> Process.exit(feeder, :kill)
        {:DOWN, ^fed, :process, _pid, _reason} -> :ok
      end
    end)

    {feeder, monitor}
  end

  # A message as somebody's library has it is a struct; so are ranges and streams, which are many.
  defp one?(messages), do: is_binary(messages) or Enumerable.impl_for(messages) == nil

  defp feed_all(request, messages, encode) do
    Enum.reduce_while(messages, :ok, fn message, :ok ->
      case Request.push(request, {:send, request.id, IO.iodata_to_binary(encode.(message))}) do
        :ok -> {:cont, :ok}
        :ended -> {:halt, :ended}
      end
    end)

    Request.tell(request, {:close_send, request.id})
  end

  defp next(%{request: %{ref: ref} = request, feeder: feeder} = state, decode) do
    fed = with {_pid, monitor} <- feeder, do: monitor

    receive do
      {^ref, kind, body} when kind in [:message, :item] -> {[decode.(body)], read(state)}
      {^ref, :headers, _metadata} -> {[], state}
      {^ref, :reply, {:ok, _trailers}} -> {:halt, {:done, state}}
      {^ref, :reply, {:error, told}} -> raise Error.from_port(told, request.tether)
      {:DOWN, ^ref, :process, _pid, _reason} -> raise Request.gone(request.tether)
      {:DOWN, ^fed, :process, _pid, reason} -> {[], fed(reason, state)}
    end
  end

  defp fed(:normal, state), do: %{state | feeder: nil}
  defp fed({error, stack}, _state) when is_exception(error), do: reraise(error, stack)
  defp fed(reason, _state), do: exit(reason)

  # Credit is given back by halves, so that a message each way does not become two.
  defp read(%{used: used, window: window, request: request} = state) when used + 1 >= div(window, 2) do
    Request.tell(request, {:credit, request.id, used + 1})
    %{state | used: 0}
  end

  defp read(state), do: %{state | used: state.used + 1}

  defp close({:done, state}), do: close(state, &Telemetry.stopped(&1, {:ok, nil}))

  defp close({:raised, kind, reason, stack, state}) do
    close(state, &Telemetry.raised(&1, kind, reason, stack))
    :erlang.raise(kind, reason, stack)
  end

  defp close(state), do: close(state, &Telemetry.stopped(&1, :halted))

  defp close(%{request: request, feeder: feeder, span: span}, tell) do
    with {pid, monitor} <- feeder do
      Process.demonitor(monitor, [:flush])
      Process.exit(pid, :kill)
    end

    Request.cancel(request)
    tell.(span)
  end
end
