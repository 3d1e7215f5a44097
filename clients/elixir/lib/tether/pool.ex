defmodule Tether.Pool do
  @moduledoc """
  A pool of workers under your supervisor.

      {Tether.Pool,
       name: :ml,
       tether: MyApp.Tether,
       size: 4,
       min_ready: 2,
       spec: [command: ["python3", "worker.py"], cwd: "/srv/ml", limits: [memory: "4G"]],
       restart: :transient,
       shutdown: 30_000,
       max_restarts: {3, 5_000}}

  Starting does not block: `await_ready/2` does. What a pool may have is in `Tether.Pool.Spec`; beside that:

  | option | |
  | --- | --- |
  | `name` | by which it is called, an atom, unique in this BEAM |
  | `tether` | the Tether it belongs to; `Tether` |
  | `pool` | its name in the cluster; that of `name` |
  | `min_ready` | so many ready workers make it ready; all |
  | `on_stop` | what becomes of it when this process is ended in order: `:delete` (of a `:coupled` pool) or `:keep` (of others) |
  | `apply` | `false`: somebody else applies it, here it is only called; so it is with workers that run already (`python_pool_strategy: :connect`) |

  The pool is applied whenever a session is opened: after a restart of the Port's program, and after a lost lease. Where its
  workers live already they are found again, and nothing is started. One that is refused ends this process with everything that is
  wrong with it.
  """

  use GenServer

  require Logger

  alias Tether.{Config.Discovery, Error, Events, Pool.Spec, Protocol, Request}

  @own [:name, :tether, :pool, :min_ready, :on_stop, :apply]
  @patience 30_000
  @again 500
  @glance 1_000
  @glance_again 10
  # `HealthCheckResponse`, with status NOT_SERVING.
  @not_serving <<8, 2>>
  # A gateway may hear of a pool later than this BEAM has a session there.
  @unheard 5_000

  @type pool :: atom | {tether :: atom, pool :: String.t()}

  @doc false
  def child_spec(opts) do
    %{
      id: {__MODULE__, Keyword.fetch!(opts, :name)},
      start: {__MODULE__, :start_link, [opts]},
      shutdown: 10_000
    }
  end

  @doc "Starts the process of a pool; the pool is made when there is a session."
  @spec start_link(keyword) :: GenServer.on_start()
  def start_link(opts) do
    name = Keyword.fetch!(opts, :name)
    tether = Keyword.get(opts, :tether, Tether)
    address = {tether, opts |> Keyword.get(:pool, name) |> to_string()}

    GenServer.start_link(__MODULE__, {address, opts},
      name: {:via, Registry, {Tether.Registry, {:pool, name}, address}}
    )
  end

  @doc """
  Waits until the pool is ready, so that a call right after it finds a worker: `:ok`, or why it is not.

  At the end the workers are asked for their health once, by way of the gateway; whatever they answer shows the way. Those of a
  `:connect` pool are asked until one answers anything but that it does not serve yet.
  """
  @spec await_ready(atom, timeout) :: :ok | {:error, Error.t()}
  def await_ready(pool, timeout \\ 60_000) do
    since = System.monotonic_time(:millisecond)

    with {:ok, pid} <- process(pool),
         {:ok, {tether, name} = address} <- address(pool) do
      if config = found(tether, name) do
        with {:error, %Error{reason: :unknown_pool} = error} <-
               await_gateway(address, since, timeout, &found_ready/1),
             do: {:error, %{error | message: Discovery.advice(config)}}
      else
        with {:ok, ready} <- GenServer.call(pid, {:await_ready, timeout}, Request.patience(timeout)) do
          # A gateway hears of workers by another way than this BEAM does, and may hear a moment later.
          if ready == 0,
            do: :ok,
            else: await_gateway(address, since, timeout, &heard_of/1)
        end
      end
    end
  end

  # The configuration of a pool whose workers run already.
  defp found(tether, name) do
    case Tether.config(tether) do
      {:ok, %{connect: ^name} = config} -> config
      _other -> nil
    end
  end

  defp await_gateway({tether, name} = address, since, timeout, judge) do
    with {:error, error} <- tether |> Request.ask(&glance(&1, name), @glance) |> judge.() do
      if timeout == :infinity or System.monotonic_time(:millisecond) - since < timeout,
        do: receive(after: (@glance_again -> await_gateway(address, since, timeout, judge))),
        else: {:error, error}
    end
  end

  defp heard_of({:error, %{reason: reason} = error}) when reason in [:no_worker, :unknown_pool],
    do: {:error, error}

  defp heard_of(_answer), do: :ok

  # They are on no list of workers: one that answers is the sign, where it does not say that it cannot serve yet.
  defp found_ready({:ok, %{body: @not_serving}}) do
    message = "the worker that was asked answers that it does not serve yet"
    {:error, %Error{reason: :no_worker, outcome: :not_sent, message: message}}
  end

  defp found_ready({:error, %{outcome: :not_sent} = error}), do: {:error, error}
  defp found_ready(_answer), do: :ok

  defp glance(id, pool) do
    call = pool |> Protocol.call("grpc.health.v1.Health/Check", timeout: @glance) |> Map.put(:body, "")
    {:call, id, call}
  end

  @doc "Changes the number of workers."
  @spec resize(atom, non_neg_integer) :: {:ok, map} | {:error, Error.t()}
  def resize(pool, size) when is_integer(size) and size >= 0, do: change_size(pool, fn _before -> size end)

  @doc "Changes the number of workers by a function of it. One change after the other."
  @spec change_size(atom, (non_neg_integer -> non_neg_integer)) :: {:ok, map} | {:error, Error.t()}
  def change_size(pool, change) do
    with {:ok, pid} <- process(pool),
         do: GenServer.call(pid, {:change_size, change, now() + @patience}, Request.patience(@patience))
  end

  @doc "Where a pool is: its Tether, and its name in the cluster."
  @spec address(pool) :: {:ok, {atom, String.t()}} | {:error, Error.t()}
  def address({tether, pool}) when is_atom(tether) and is_binary(pool), do: {:ok, {tether, pool}}

  def address(pool) do
    case Registry.lookup(Tether.Registry, {:pool, pool}) do
      [{_pid, address}] -> {:ok, address}
      [] -> {:error, unknown(pool)}
    end
  end

  defp process(pool) do
    case Registry.lookup(Tether.Registry, {:pool, pool}) do
      [{pid, _address}] -> {:ok, pid}
      [] -> {:error, unknown(pool)}
    end
  end

  defp unknown(pool) do
    %Error{
      reason: :unknown_pool,
      outcome: :not_sent,
      message:
        "no pool #{inspect(pool)} runs here; put {Tether.Pool, name: #{inspect(pool)}, ...} under a supervisor, or call {tether, \"name\"}"
    }
  end

  @impl true
  def init({{tether, pool}, opts}) do
    # So that `terminate/2` is reached when the supervisor ends it.
    Process.flag(:trap_exit, true)
    {own, spec} = Keyword.split(opts, @own)

    state = %{
      tether: tether,
      pool: pool,
      spec: spec,
      # Absent: it is. `:found` where the configuration says that its workers run already.
      apply?: Keyword.get(own, :apply),
      size: spec[:size] || 1,
      min_ready: own[:min_ready],
      on_stop: own[:on_stop],
      tree: nil,
      # Why it could not be applied so far.
      problem: nil,
      ready: 0,
      request: nil,
      changes: :queue.new(),
      waiting: %{}
    }

    {:ok, state, {:continue, :join}}
  end

  # A Tether that is started later, or again, looks for the pools that wait for it.
  @impl true
  def handle_continue(:join, state) do
    Events.pool_started(state.tether, state.pool)
    {:noreply, state}
  end

  @impl true
  def handle_call({:await_ready, timeout}, from, state) do
    timer = if timeout != :infinity, do: :erlang.start_timer(timeout, self(), {:waited, from})
    {:noreply, look(put_in(state.waiting[from], timer))}
  end

  def handle_call({:change_size, change, deadline}, from, state) do
    {:noreply, next(%{state | changes: :queue.in({from, change, deadline}, state.changes)})}
  end

  @impl true
  def handle_info({:tether_session, :open, _session}, %{apply?: apply?} = state) when apply? != false,
    do: apply_pool(state)

  def handle_info({:tether_joined, _tether}, state), do: {:noreply, state, {:continue, :join}}
  def handle_info({:tether_workers, %{ready: ready}}, state), do: {:noreply, look(%{state | ready: ready})}

  def handle_info({:tether_crash_loop, event}, state) do
    error = %Error{
      reason: :crash_loop,
      outcome: :not_sent,
      worker: event.worker,
      message: "#{event.worker} was given up: #{event.text}#{stderr(event.death)}"
    }

    {:noreply, answer_all(state, {:error, error})}
  end

  def handle_info({ref, :reply, reply}, %{request: {%{ref: ref}, what}} = state) do
    Process.demonitor(ref, [:flush])
    answered(what, Request.result(reply, state.tether), %{state | request: nil})
  end

  def handle_info({:DOWN, ref, :process, _pid, _reason}, %{request: {%{ref: ref}, what}} = state) do
    answered(what, {:error, Request.gone(state.tether)}, %{state | request: nil})
  end

  def handle_info(:again, state), do: apply_pool(state)
  def handle_info({:find, since}, %{request: nil} = state), do: {:noreply, find(state, since)}
  def handle_info({:find, since}, state), do: {:noreply, find_later(state, since)}

  def handle_info({:timeout, _timer, {:waited, from}}, state) do
    error = %Error{
      reason: :deadline,
      outcome: :not_sent,
      message:
        state.problem || "pool #{state.pool} has #{state.ready} ready workers of #{wanted(state)} wanted"
    }

    {:noreply, answer(state, from, {:error, error})}
  end

  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}
  def handle_info(_other, state), do: {:noreply, state}

  @impl true
  def terminate({:shutdown, _why}, state), do: terminate(:shutdown, state)

  def terminate(:shutdown, %{tree: %{} = tree} = state) do
    delete? = state.on_stop == :delete or (state.on_stop == nil and tree["mode"] == "coupled")
    if delete?, do: Request.ask(state.tether, &{:control, &1, :pool_delete, %{name: state.pool}}, 5_000)
    :ok
  end

  def terminate(_reason, _state), do: :ok

  # One request at a time: what is applied last is what was said last.
  defp apply_pool(%{request: {_request, _what}} = state), do: {:noreply, again(state)}

  defp apply_pool(state) do
    with {:ok, config} <- Tether.config(state.tether),
         {:applied, _gateways} <- {whose(state, config), config.gateways},
         {:ok, tree} <- Spec.tree(Keyword.put(state.spec, :size, state.size), config) do
      {:noreply, request(%{state | tree: tree}, :pool_apply, %{pool: state.pool, spec: tree}, :applied)}
    else
      # A discovery in the Port was told of it.
      {:found, []} -> {:noreply, look(%{state | apply?: :found})}
      {:found, _gateways} -> {:noreply, find(%{state | apply?: :found}, now())}
      {:error, %Error{}} -> {:noreply, state}
      {:error, problems} -> refused(Enum.join(problems, "; "), state)
    end
  end

  defp whose(%{apply?: true}, _config), do: :applied
  defp whose(%{pool: pool}, %{connect: pool}), do: :found
  defp whose(_state, _config), do: :applied

  # Asks whether the gateway knows of a pool that is not applied from here.
  defp find(state, since) do
    case Request.open(state.tether, &glance(&1, state.pool), nil, @glance) do
      {:ok, request} -> %{state | request: {request, {:found, since}}}
      {:error, _not_running} -> state
    end
  end

  defp find_later(state, since) do
    Process.send_after(self(), {:find, since}, @again)
    state
  end

  defp refused(why, state) do
    error = %Error{reason: :config_invalid, outcome: :not_sent, message: why}
    {:stop, {:refused, why}, answer_all(state, {:error, error})}
  end

  defp request(state, op, args, what) do
    case Request.control(state.tether, op, args) do
      {:ok, request} -> %{state | request: {request, what}}
      {:error, error} -> elem(answered(what, {:error, error}, state), 1)
    end
  end

  defp answered(:applied, {:ok, _pool}, state), do: {:noreply, %{state | problem: nil} |> look() |> next()}

  # What another try would not change.
  @final [
    :config_invalid,
    :mode_forbids,
    :not_owner,
    :unknown_template,
    :invalid_argument,
    :fenced
  ]

  defp answered(:applied, {:error, %{reason: reason} = error}, state) when reason in @final do
    Logger.error("Tether: pool #{state.pool} is refused: #{error.message}")
    {:stop, {:refused, error.message}, answer_all(state, {:error, error})}
  end

  # The next session will bring it.
  defp answered(:applied, {:error, %{reason: :not_running}}, state), do: {:noreply, next(state)}

  # One that it depends on may come later.
  defp answered(:applied, {:error, %{message: why}}, state) do
    if why != state.problem, do: Logger.warning("Tether: pool #{state.pool} is not applied yet: #{why}")
    {:noreply, %{state | problem: why} |> again() |> next()}
  end

  defp answered({:sized, from, size}, result, state) do
    GenServer.reply(from, with({:ok, pool} <- result, do: {:ok, Tether.Protocol.fields(pool)}))
    state = if match?({:ok, _pool}, result), do: %{state | size: size}, else: state
    {:noreply, state |> look() |> next()}
  end

  defp answered({:found, since}, {:error, %{reason: :unknown_pool}}, state) do
    config = found(state.tether, state.pool)
    why = config && Discovery.advice(config)

    cond do
      now() - since < @unheard ->
        {:noreply, state |> find_later(since) |> look() |> next()}

      why == nil or why == state.problem ->
        {:noreply, state |> look() |> next()}

      true ->
        Logger.error("Tether: pool #{state.pool} gets no calls: #{why}")
        {:noreply, %{state | problem: why} |> look() |> next()}
    end
  end

  defp answered({:found, _since}, _known, state), do: {:noreply, %{state | problem: nil} |> look() |> next()}

  defp again(state) do
    Process.send_after(self(), :again, @again)
    state
  end

  defp next(%{request: nil} = state) do
    case :queue.out(state.changes) do
      {:empty, _changes} ->
        state

      {{:value, {{caller, _tag} = from, change, deadline}}, changes} ->
        state = %{state | changes: changes}
        left = deadline - now()

        # What nobody waits for any more is not done.
        if left > 0 and Process.alive?(caller) do
          size = max(change.(state.size), 0)
          request(state, :pool_scale, %{name: state.pool, size: size, timeout: left}, {:sized, from, size})
        else
          next(state)
        end
    end
  end

  defp next(state), do: state

  # Those who wait for it to be ready. Before it was applied, workers of an earlier life may already be ready.
  defp look(%{request: nil} = state) do
    if state.ready >= wanted(state) and (state.tree != nil or state.apply? in [false, :found]),
      do: answer_all(state, {:ok, state.ready}),
      else: state
  end

  defp look(state), do: state

  defp wanted(state), do: min(state.min_ready || state.size, state.size)

  defp answer_all(state, answer), do: Enum.reduce(Map.keys(state.waiting), state, &answer(&2, &1, answer))

  defp answer(state, from, answer) do
    {timer, waiting} = Map.pop(state.waiting, from)
    if timer, do: :erlang.cancel_timer(timer)
    GenServer.reply(from, answer)
    %{state | waiting: waiting}
  end

  defp now, do: System.monotonic_time(:millisecond)

  defp stderr(%{stderr_tail: tail}) when is_binary(tail) and tail != "", do: "\n" <> tail
  defp stderr(_death), do: ""
end
