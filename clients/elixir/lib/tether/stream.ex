defmodule Tether.Stream do
  @moduledoc """
  Answers of a streaming call, as an `Enumerable` that asks for no more than it is read.

  The call begins when it is enumerated, once for each time. It is cancelled when the enumeration halts (`Enum.take/2`), raises, or
  its process dies; the worker sees that at once. At most `window` answers wait in the mailbox: a slow reader holds up the worker, not
  the BEAM's memory. A call that fails raises its `Tether.Error` after the answers that came before.
  """

  alias Tether.{Error, Request}

  @window 32

  @doc false
  def of(tether, call, requests, opts) do
    window = Keyword.get(opts, :window, @window)
    decode = Keyword.get(opts, :decode, & &1)
    encode = Keyword.get(opts, :encode, & &1)

    Stream.resource(
      fn -> open(tether, call, requests, encode, window) end,
      &next(&1, decode),
      &close/1
    )
  end

  @doc false
  def items(tether, op, args, decode) do
    Stream.resource(
      fn -> start(tether, &{:control, &1, op, args}, @window, nil) end,
      &next(&1, decode),
      &close/1
    )
  end

  defp open(tether, call, requests, encode, window) do
    start(tether, &{:stream, &1, call}, window, fn request -> feed(request, requests, encode) end)
  end

  defp start(tether, build, window, feed) do
    case Request.open(tether, build) do
      {:ok, request} ->
        Request.tell(request, {:credit, request.id, window})
        %{request: request, window: window, used: 0, feeder: feed && feed.(request)}

      {:error, error} ->
        raise error
    end
  end

  defp feed(request, messages, encode) do
    if one?(messages) do
      # Needs no process of its own, as the port always has room for it.
      Request.push(request, {:send, request.id, IO.iodata_to_binary(encode.(messages))})
      Request.tell(request, {:close_send, request.id})
      nil
    else
      # Linked: when the messages raise, so does their reader.
      spawn_link(fn -> feed_all(request, messages, encode) end)
    end
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

  defp next({:done, state}, _decode), do: {:halt, {:done, state}}

  defp next(%{request: %{ref: ref} = request} = state, decode) do
    receive do
      {^ref, kind, body} when kind in [:message, :item] -> {[decode.(body)], read(state)}
      {^ref, :headers, _metadata} -> {[], state}
      {^ref, :reply, {:ok, _trailers}} -> {:halt, {:done, state}}
      {^ref, :reply, {:error, told}} -> raise Error.from_port(told, request.tether)
      {:DOWN, ^ref, :process, _pid, _reason} -> raise Request.gone(request.tether)
    end
  end

  # Credit is given back by halves, so that a message each way does not become two.
  defp read(%{used: used, window: window, request: request} = state) when used + 1 >= div(window, 2) do
    Request.tell(request, {:credit, request.id, used + 1})
    %{state | used: 0}
  end

  defp read(state), do: %{state | used: state.used + 1}

  defp close({:done, state}), do: close(state)

  defp close(%{request: request, feeder: feeder}) do
    if feeder do
      Process.unlink(feeder)
      Process.exit(feeder, :kill)
    end

    Request.cancel(request)
  end
end
