defmodule Tether do
  @moduledoc """
  Python workers that live and die as you say, supervised from outside of the BEAM.

      children = [
        {Tether, name: MyApp.Tether},
        {Tether.Pool,
         name: :ml,
         tether: MyApp.Tether,
         size: 4,
         spec: [command: ["python3", "worker.py"], cwd: "/srv/ml"]}
      ]

      Supervisor.start_link(children, strategy: :rest_for_one)

      :ok = Tether.Pool.await_ready(:ml)
      {:ok, answer} = Tether.call(:ml, "my.v1.Service/Predict", request)

  A Tether is this BEAM's session: its lease, its connection, its events. It holds a Port, whose program `tether port` speaks gRPC,
  reconnects, counts leases, and in development runs all of Tether. See `Tether.Config` for its configuration and `Tether.Error`
  for what a failed call says of itself.

  **When the lease is lost**, the supervisor exits `{:shutdown, :lease_expired}`: workers may have been given to somebody else. As its
  child spec is `restart: :transient`, it stays down until something else starts it; with `{Tether, restart: :permanent}` it comes
  back at once under a new session. One that a later owner of the same name has fenced exits `{:shutdown, :fenced}`, and should stay
  down: give each BEAM an `owner` of its own.
  """

  alias Tether.{Config, Connection, Error, Events, Pool, Protocol, Request, Telemetry, Worker}

  @typedoc "A pool of this BEAM by its name, or any pool of a Tether's cluster."
  @type pool :: Pool.pool()

  @timeout 5_000
  @patience 30_000

  @doc """
  The child spec: `name`, `restart`, and any key of `Tether.Config`, on top of `config :tether`.
  """
  @spec child_spec(keyword) :: Supervisor.child_spec()
  def child_spec(opts) do
    {restart, opts} = Keyword.pop(opts, :restart, :transient)

    %{
      id: Keyword.get(opts, :name, __MODULE__),
      start: {__MODULE__, :start_link, [opts]},
      type: :supervisor,
      restart: restart
    }
  end

  @doc """
  Starts a Tether. It raises when the configuration is wrong, and does not wait for a connection.
  """
  @spec start_link(keyword) :: Supervisor.on_start()
  def start_link(opts \\ []) do
    :tether
    |> Application.get_all_env()
    |> Keyword.merge(opts)
    |> Config.validate!()
    |> Tether.Supervisor.start_link()
  end

  @doc "The configuration of a Tether that runs."
  @spec config(atom) :: {:ok, Config.t()} | {:error, Error.t()}
  def config(tether \\ __MODULE__) do
    case Registry.lookup(Tether.Registry, {:config, tether}) do
      [{_pid, config}] -> {:ok, config}
      [] -> {:error, Error.not_running(tether)}
    end
  end

  @doc """
  Calls a worker of a pool: one message there, one back.

  | option | |
  | --- | --- |
  | `timeout` | the deadline in milliseconds, or `:infinity`; #{@timeout} |
  | `session` | a key: calls with the same one go to the same worker |
  | `affinity` | what holds when that worker cannot take it: `:hint` (another one does), `:strict_queue` (it waits), `:strict_fail_fast` (`:session_lost` or `:overloaded` at once) |
  | `worker` | a `Tether.Worker` that is to have it, and no other |
  | `idempotency_key` | says that doing it twice does no harm beyond once |
  | `metadata` | map or list of what goes along; values of `-bin` keys are bytes |
  | `traceparent` | of W3C trace context |
  | `encode`, `decode` | functions from and to what you have; protobuf bytes where they are absent |
  | `full` | `true`: `{:ok, %{body, metadata, trailers, worker}}` rather than the body; the worker is told of calls with a `session` |
  """
  @spec call(pool, String.t(), term, keyword) :: {:ok, term} | {:error, Error.t()}
  def call(pool, method, request, opts \\ []) do
    opts = Keyword.put_new(opts, :timeout, @timeout)

    with {:ok, {tether, name}} <- Pool.address(pool) do
      Telemetry.call(%{tether: tether, pool: name, method: method}, fn ->
        body = IO.iodata_to_binary(encode(request, opts))
        call = name |> Protocol.call(method, opts) |> Map.put(:body, body)

        with {:ok, reply} <- Request.ask(tether, &{:call, &1, call}, opts[:timeout], opts[:owner]) do
          {:ok, answer(reply, tether, opts)}
        end
      end)
    end
  end

  defp encode(request, opts), do: Keyword.get(opts, :encode, & &1).(request)

  defp answer(reply, tether, opts) do
    body = Keyword.get(opts, :decode, & &1).(reply.body)

    if opts[:full],
      do: %{reply | body: body, worker: Worker.from_port(reply.worker, tether)},
      else: body
  end

  @doc """
  Calls a streaming method; `requests` is one message or an enumerable of them. See `Tether.Stream`.

  Options are those of `call/4` (there is no deadline where none is given), and `window`: how many answers may wait here.
  """
  @spec stream(pool, String.t(), term, keyword) :: Enumerable.t()
  def stream(pool, method, requests, opts \\ []) do
    case Pool.address(pool) do
      {:ok, {tether, name}} -> Tether.Stream.of(tether, Protocol.call(name, method, opts), requests, opts)
      {:error, error} -> raise error
    end
  end

  @doc """
  As `call/4`, in a task: the caller gets `{ref, result}`, or uses `Task.await/2` and its like. The call is cancelled when the caller
  ends, whatever for.
  """
  @spec async(pool, String.t(), term, keyword) :: Task.t()
  def async(pool, method, request, opts \\ []) do
    with {:ok, {tether, _name}} <- Pool.address(pool),
         {:ok, _config} <- config(tether) do
      opts = Keyword.put(opts, :owner, self())

      Task.Supervisor.async_nolink(Tether.Supervisor.tasks(tether), fn ->
        call(pool, method, request, opts)
      end)
    else
      {:error, error} -> raise error
    end
  end

  @doc "Cancels it; the worker is told at once. A result that is there already is returned."
  @spec cancel(Task.t()) :: {:ok, term} | {:exit, term} | nil
  def cancel(%Task{} = task), do: Task.shutdown(task, :brutal_kill)

  @doc """
  Has the caller told of a worker's death: `{:DOWN, ref, :tether_worker, worker, reason}`, exactly once.

  Also of one that happens while nothing is connected, as soon as something is again. For a worker that is dead already it comes at
  once; where nothing is known of it the arbiter is asked, and if it does not live either, the reason is `:noproc`. Whoever still
  waits when the Tether ends is told `:noconnection`. Reasons are those of `Tether.Death`.

  Of workers that run already (`python_pool_strategy: :connect`) nothing is known but where they are, so it is `:noproc` at once:
  nobody tells of their deaths. One that answers no more gets no calls, and those that it had fail.
  """
  @spec monitor(Worker.t()) :: reference
  defdelegate monitor(worker), to: Events

  @doc "Ends a monitor. No message of it arrives any more."
  @spec demonitor(atom, reference) :: :ok
  defdelegate demonitor(tether \\ __MODULE__, ref), to: Events

  @doc """
  Has the caller told of events, as `{:tether, name, %Tether.Event{}}`: of all, or of this type or these.
  """
  @spec subscribe(atom, :all | atom | [atom]) :: :ok
  def subscribe(tether \\ __MODULE__, topics \\ :all) do
    topics = List.wrap(topics)

    for topic <- topics, topic != :all and topic not in Tether.Event.types() do
      raise ArgumentError,
            "there is no event #{inspect(topic)}; there are #{Enum.map_join(Tether.Event.types(), ", ", &inspect/1)}"
    end

    topics = if :all in topics, do: :all, else: topics
    Registry.unregister(Tether.Subscribers, tether)
    {:ok, _owner} = Registry.register(Tether.Subscribers, tether, topics)
    :ok
  end

  @doc "Ends it."
  @spec unsubscribe(atom) :: :ok
  def unsubscribe(tether \\ __MODULE__), do: Registry.unregister(Tether.Subscribers, tether)

  @doc "The workers of a pool that this BEAM knows to live; asks nobody."
  @spec workers(pool) :: [Worker.t()]
  def workers(pool) do
    case Pool.address(pool) do
      {:ok, {tether, name}} -> for {worker, _known} <- Events.workers(tether, name), do: worker
      {:error, error} -> raise error
    end
  end

  @doc "The workers of a pool as the arbiter has them, dead places too: maps with `worker`, `phase`, `pid`, `node` and so on."
  @spec list_workers(pool) :: {:ok, [map]} | {:error, Error.t()}
  def list_workers(pool) do
    with {:ok, {tether, name}} <- Pool.address(pool),
         {:ok, list} <- control(tether, :worker_list, %{pool: name}) do
      {:ok, Enum.map(list, &with_worker(&1, tether))}
    end
  end

  @doc "One worker or pool, as the arbiter has it."
  @spec info(Worker.t() | pool) :: {:ok, map} | {:error, Error.t()}
  def info(%Worker{tether: tether} = worker) do
    with {:ok, told} <- control(tether, :worker_get, %{worker: Worker.to_port(worker)}) do
      {:ok, with_worker(told, tether)}
    end
  end

  def info(pool) do
    with {:ok, {tether, name}} <- Pool.address(pool), do: control(tether, :pool_get, %{name: name})
  end

  defp with_worker(%{worker: worker} = told, tether), do: %{told | worker: Worker.from_port(worker, tether)}

  @doc "One worker more in a pool of this BEAM."
  @spec start_worker(atom) :: {:ok, map} | {:error, Error.t()}
  def start_worker(pool), do: Pool.change_size(pool, &(&1 + 1))

  @doc """
  Ends a worker: `:shutdown` as its template says, milliseconds between SIGTERM and SIGKILL, or `:kill`. Whether another follows
  says the pool's `restart`; for fewer workers, `resize/2`.
  """
  @spec stop_worker(Worker.t(), :shutdown | :kill | non_neg_integer) :: :ok | {:error, Error.t()}
  def stop_worker(%Worker{} = worker, how \\ :shutdown) do
    grace = %{shutdown: nil, kill: 0}
    args = %{worker: Worker.to_port(worker), grace: Map.get(grace, how, how)}
    with {:ok, _done} <- control(worker.tether, :worker_stop, args), do: :ok
  end

  @doc "Changes the number of a pool's workers."
  @spec resize(atom, non_neg_integer) :: {:ok, map} | {:error, Error.t()}
  defdelegate resize(pool, size), to: Pool

  @doc "Takes a pool out of service without ending its workers; `undo: true` takes it back."
  @spec drain(pool, keyword) :: {:ok, map} | {:error, Error.t()}
  def drain(pool, opts \\ []) do
    with {:ok, {tether, name}} <- Pool.address(pool) do
      control(tether, :pool_drain, %{name: name, undrain: Keyword.get(opts, :undo, false)})
    end
  end

  @doc """
  What a worker wrote, as an enumerable of `{:stdout | :stderr, bytes}`. `follow: true` goes on; `tail_bytes` begins near the end.
  """
  @spec logs(Worker.t(), keyword) :: Enumerable.t()
  def logs(%Worker{} = worker, opts \\ []) do
    args = %{
      worker: Worker.to_port(worker),
      follow: Keyword.get(opts, :follow, false),
      tail_bytes: Keyword.get(opts, :tail_bytes, 0)
    }

    Tether.Stream.items(worker.tether, :logs, args, fn item ->
      %{stream: stream, data: data} = Protocol.fields(item)
      {if(stream == "STDERR", do: :stderr, else: :stdout), data}
    end)
  end

  @doc """
  Starts a job or finds the one of this key: the same for who begins, and for who comes back after a crash.

  `spec:` is what its worker is given, at most 64 KiB; `restarts:` how many attempts in a row may die without a checkpoint.
  Both count only where the job is started.
  """
  @spec job(pool, String.t(), keyword) :: {:ok, map} | {:error, Error.t()}
  def job(pool, key, opts \\ []),
    do: job_control(pool, :job_start, key, Map.new(Keyword.take(opts, [:spec, :restarts])))

  @doc "Where a job stands."
  @spec job_status(pool, String.t()) :: {:ok, map} | {:error, Error.t()}
  def job_status(pool, key), do: job_control(pool, :job_get, key)

  @doc """
  Follows a job: an enumerable of what `job_status/2` says, now and after each change, whatever breaks meanwhile. It ends when the job is
  forgotten; a job that there is not raises its `Tether.Error`.

      :trainer |> Tether.watch_job("night-run") |> Enum.find(&(&1.state == "DONE"))
  """
  @spec watch_job(pool, String.t()) :: Enumerable.t()
  def watch_job(pool, key) do
    case Pool.address(pool) do
      {:ok, {tether, name}} ->
        tether
        |> Tether.Stream.items(:job_watch, %{pool: name, key: key}, &Protocol.fields(&1).jobs)
        |> Stream.take_while(&(&1 != []))
        |> Stream.flat_map(fn jobs -> Enum.map(jobs, &with_job(&1, tether)) end)

      {:error, error} ->
        raise error
    end
  end

  @doc "Has another worker take over a lost job, from its last checkpoint."
  @spec adopt_job(pool, String.t()) :: {:ok, map} | {:error, Error.t()}
  def adopt_job(pool, key), do: job_control(pool, :job_adopt, key)

  @doc """
  Has a job end: its worker is told, and ended where it goes on for longer than `grace:` (milliseconds, 10 s).
  """
  @spec cancel_job(pool, String.t(), keyword) :: {:ok, map} | {:error, Error.t()}
  def cancel_job(pool, key, opts \\ []),
    do: job_control(pool, :job_cancel, key, Map.new(Keyword.take(opts, [:grace])))

  @doc "Lets the result of a job go."
  @spec acknowledge_job(pool, String.t()) :: :ok | {:error, Error.t()}
  def acknowledge_job(pool, key), do: with({:ok, _done} <- job_control(pool, :job_acknowledge, key), do: :ok)

  defp job_control(pool, op, key, more \\ %{}) do
    with {:ok, {tether, name}} <- Pool.address(pool),
         {:ok, told} <- control(tether, op, Map.merge(more, %{pool: name, key: key})) do
      {:ok, with_job(told, tether)}
    end
  end

  defp with_job(%{job: %{} = job} = told, tether), do: %{told | job: with_worker(job, tether)}
  defp with_job(%{worker: _worker} = job, tether), do: with_worker(job, tether)
  defp with_job(other, _tether), do: other

  @doc "This BEAM's own lease: `%{owner, epoch, ttl, state}`, where state is `:none`, `:held`, `:doubtful` or `:lost`."
  @spec owner_lease(atom) :: {:ok, map} | {:error, Error.t()}
  def owner_lease(tether \\ __MODULE__) do
    with {:ok, %{owner: owner, lease: lease}} <- Connection.info(tether) do
      {:ok, lease |> Map.take([:epoch, :ttl, :state]) |> Map.put(:owner, owner)}
    end
  end

  @doc """
  Any control operation of the port that has one answer, such as `:node_list` or `:session_list`. For `:logs`, `:job_watch` and
  `:events` there are `logs/2`, `watch_job/2` and `subscribe/2`.
  """
  @spec control(atom, atom, map) :: {:ok, term} | {:error, Error.t()}
  def control(tether, op, args \\ %{})

  def control(_tether, op, _args) when op in [:logs, :job_watch, :events] do
    message = "#{op} has many answers: use Tether.logs/2, Tether.watch_job/2 or Tether.subscribe/2"
    {:error, %Error{reason: :config_invalid, outcome: :not_sent, message: message}}
  end

  def control(tether, op, args) do
    with {:ok, answer} <- Request.ask(tether, &{:control, &1, op, args}, @patience),
         do: {:ok, Protocol.fields(answer)}
  end
end
