defmodule Tether.Telemetry do
  @moduledoc """
  Events for `:telemetry`, where the application has it. Without it nothing is emitted and nothing is missing.

  Names parallel Snakepit's, with `:tether` in front. Times are in native units.

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:tether, :call, :start]` | `system_time` | `tether`, `pool`, `method` |
  | `[:tether, :call, :stop]` | `duration` | the same, and `outcome`: `:ok` or that of the error, or `:halted` of a stream whose reader stopped, `reason` |
  | `[:tether, :call, :exception]` | `duration` | the same, and `kind`, `reason`, `stacktrace`: an encoder or decoder raised, or the requests of a stream |
  | `[:tether, :worker, :spawn]`, `:ready`, `:adopted`, `:down` | `count` | `tether`, `worker`, `node`; with `:down` also `reason` |
  | `[:tether, :worker, :crash]`, `:recycled` | `count` | beside `:down`, for a death nobody ordered, and for a recycling |
  | `[:tether, :lease, :granted]`, `:renewed`, `:warning`, `:expired` | `ttl` or `remaining` in ms | `tether`, `owner`, `epoch` |
  | `[:tether, :partition, :suspected]`, `:healed`, `:confirmed` | `count` | `tether` |
  | `[:tether, :connection, :up]`, `:down` | `count` | `tether`, `gateway` |
  | `[:tether, :circuit_breaker, :rejected]` | `retry_after` in ms | `tether`, `pool`, `method` |
  | `[:tether, :orphans, :detected]` | `count` | `tether`, `workers`: those of an earlier life of this owner that were found alive |
  | `[:tether, :orphans, :reaped]` | `count` | `tether`, `worker`: it was ended because its owner was gone; told by the next life of that owner, whose BEAM was away then |
  | `[:tether, :port, :down]` | `count` | `tether`, `status`: the Port's program ended |

  A stream of `Tether.stream/4` is a call, which is over when its reader has its end or stops.

  The breakers are in the gateway, one for each worker and for all callers: of their opening and closing the gateway's metrics
  tell, and there are no events of that here, by design. A BEAM sees what they refuse.
  """

  @doc false
  def look, do: :persistent_term.put(__MODULE__, Code.ensure_loaded?(:telemetry))

  @doc false
  def execute(event, measurements, metadata) do
    if :persistent_term.get(__MODULE__, false) do
      apply(:telemetry, :execute, [[:tether | event], measurements, metadata])
    end

    :ok
  end

  @doc false
  def call(metadata, fun) do
    span = started(metadata)

    try do
      fun.()
    catch
      kind, reason ->
        raised(span, kind, reason, __STACKTRACE__)
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      result ->
        stopped(span, result)
        result
    end
  end

  # The same of a call whose end is elsewhere. What is nil is none.

  @doc false
  def started(metadata) do
    execute([:call, :start], %{system_time: System.system_time()}, metadata)
    {metadata, System.monotonic_time()}
  end

  @doc false
  def stopped(nil, _result), do: :ok

  def stopped({metadata, start}, result) do
    execute(
      [:call, :stop],
      %{duration: System.monotonic_time() - start},
      Map.merge(metadata, outcome(result))
    )

    rejected(result, metadata)
  end

  @doc false
  def raised(nil, _kind, _reason, _stack), do: :ok
  # What a call returns, a stream raises.
  def raised(span, :error, %Tether.Error{} = error, _stack), do: stopped(span, {:error, error})

  def raised({metadata, start}, kind, reason, stack) do
    told = Map.merge(metadata, %{kind: kind, reason: reason, stacktrace: stack})
    execute([:call, :exception], %{duration: System.monotonic_time() - start}, told)
  end

  defp outcome({:ok, _value}), do: %{outcome: :ok, reason: nil}
  defp outcome(:halted), do: %{outcome: :halted, reason: nil}
  defp outcome({:error, error}), do: %{outcome: error.outcome, reason: error.reason}

  defp rejected({:error, %{reason: :circuit_open} = error}, metadata) do
    execute([:circuit_breaker, :rejected], %{retry_after: error.retry_after_ms || 0}, metadata)
  end

  defp rejected(_result, _metadata), do: :ok
end
