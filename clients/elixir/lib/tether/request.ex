defmodule Tether.Request do
  @moduledoc false
  # The caller's side of something asked of the port. The frame is made here, so that large bodies are never copied into the
  # process that owns the Port, and answers come here from it directly:
  #
  #     {ref, :reply, {:ok, value} | {:error, told}}     last
  #     {ref, :message, body}   {ref, :headers, list}     of streams
  #     {ref, :item, value}                               of logs and events
  #     {:DOWN, ref, :process, pid, reason}               the owner of the Port is gone
  #
  # `ref` is a monitor and an alias in one: once it is gone, nothing late arrives.

  alias Tether.{Error, Protocol}

  # How much longer than its deadline a call waits for the port, which watches the deadline itself.
  @margin 1_000

  @enforce_keys [:tether, :connection, :id, :ref]
  defstruct [:tether, :connection, :id, :ref]

  @doc """
  Asks. `build` makes the term from the request's number; the request ends with the process `owner` too, and is not sent any more
  once `timeout` is over.
  """
  def open(tether, build, owner \\ nil, timeout \\ :infinity) do
    with {:ok, connection, ids} <- connection(tether) do
      id = :atomics.add_get(ids, 1, 1)

      case Protocol.encode(build.(id)) do
        {:ok, frame} ->
          ref = :erlang.monitor(:process, connection, alias: :demonitor)
          send(connection, {:request, id, ref, [self() | List.wrap(owner)], deadline(timeout), frame})
          {:ok, %__MODULE__{tether: tether, connection: connection, id: id, ref: ref}}

        {:error, :too_large} ->
          {:error, Error.from_port(Protocol.too_large(), tether)}
      end
    end
  end

  # Whoever is given up on is not to be called after that. Of atoms and integers the atoms are the greater: no deadline is
  # later than all.
  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: System.monotonic_time(:millisecond) + timeout

  defp connection(tether) do
    case Registry.lookup(Tether.Registry, {:connection, tether}) do
      [{pid, ids}] -> {:ok, pid, ids}
      [] -> {:error, Error.not_running(tether)}
    end
  end

  @doc "Asks for a control operation."
  def control(tether, op, args), do: open(tether, &{:control, &1, op, args})

  @doc "Asks, and waits for the one answer."
  def ask(tether, build, timeout, owner \\ nil) do
    with {:ok, request} <- open(tether, build, owner, timeout), do: await(request, timeout)
  end

  @doc "Waits for the reply."
  def await(%__MODULE__{ref: ref} = request, timeout) do
    receive do
      {^ref, :reply, reply} ->
        close(request)
        result(reply, request.tether)

      {:DOWN, ^ref, :process, _pid, _reason} ->
        {:error, gone(request.tether)}
    after
      patience(timeout) ->
        cancel(request)
        {:error, Error.from_port(Protocol.deadline(:unknown), request.tether)}
    end
  end

  @doc "How long to wait for what should be answered within `timeout`."
  def patience(:infinity), do: :infinity
  def patience(timeout), do: timeout + @margin

  @doc "The reply as callers know it."
  def result({:ok, value}, _tether), do: {:ok, value}
  def result({:error, told}, tether), do: {:error, Error.from_port(told, tether)}

  @doc "The error when the owner of the Port is gone."
  def gone(tether), do: Error.from_port(Protocol.port_down(:unknown, nil), tether)

  @doc "Sends one more frame, when the port has room for it; `:ended` where nobody takes any more."
  def push(%__MODULE__{} = request, term) do
    case Protocol.encode(term) do
      {:ok, frame} ->
        GenServer.call(request.connection, {:push, request.id, frame}, :infinity)

      # The call has begun, whatever becomes of this message.
      {:error, :too_large} ->
        raise %{Error.from_port(Protocol.too_large(), request.tether) | outcome: :unknown}
    end
  catch
    # The reader is told by its monitor.
    :exit, _gone -> :ended
  end

  @doc "Sends a small one without waiting."
  def tell(%__MODULE__{} = request, term) do
    {:ok, frame} = Protocol.encode(term)
    send(request.connection, {:tell, request.id, frame})
    :ok
  end

  @doc "Ends it, and takes what is there of it out of the mailbox."
  def cancel(%__MODULE__{} = request) do
    send(request.connection, {:cancel, request.id})
    close(request)
  end

  defp close(%__MODULE__{ref: ref}) do
    Process.demonitor(ref, [:flush])
    flush(ref)
  end

  defp flush(ref) do
    receive do
      {^ref, _kind, _value} -> flush(ref)
    after
      0 -> :ok
    end
  end
end
