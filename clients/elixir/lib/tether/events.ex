defmodule Tether.Events do
  @moduledoc """
  Follows what happens: keeps a proxy for each worker, tells subscribers, sends the deaths that are waited for.

  When a session is opened, what happened since the last revision is asked for first, then what comes from there on, and the list of
  workers beside it: so nothing of an absence is lost, and nothing told twice. What decides is `Tether.Roster`.
  """

  use GenServer

  require Logger

  alias Tether.{Death, Event, Protocol, Request, Roster, Telemetry, Watchers, Worker}

  # How long to wait for the event that says why a worker is no longer on the list.
  @settle 2_000
  @again 500

  @doc false
  def start_link(config), do: GenServer.start_link(__MODULE__, config, name: via(config.name))

  defp via(tether), do: {:via, Registry, {Tether.Registry, {:events, tether}}}

  @doc false
  def tell(tether, what), do: GenServer.cast(via(tether), {:told, what})

  @doc "Has the caller told of a worker's death."
  @spec monitor(Worker.t()) :: reference
  def monitor(%Worker{} = worker) do
    ref = make_ref()

    if Watchers.keep(worker, ref, self()) do
      try do
        :ok = GenServer.call(via(worker.tether), {:monitor, worker, ref, self()}, :infinity)
      catch
        # Whoever follows the events next finds it there, and where nobody does it is told that.
        :exit, _reason -> :ok
      end
    else
      send(self(), {:DOWN, ref, :tether_worker, worker, :noproc})
    end

    ref
  end

  @doc "Ends that; a death that is in the mailbox already is taken out of it."
  @spec demonitor(atom, reference) :: :ok
  def demonitor(tether, ref) do
    Watchers.forget(tether, ref)

    try do
      GenServer.call(via(tether), {:demonitor, ref}, :infinity)
    catch
      :exit, _reason -> :ok
    end

    receive do
      {:DOWN, ^ref, :tether_worker, _worker, _reason} -> :ok
    after
      0 -> :ok
    end
  end

  @doc false
  def pool_started(tether, pool), do: GenServer.cast(via(tether), {:pool, pool, self()})

  @doc false
  def workers(tether, pool), do: GenServer.call(via(tether), {:workers, pool})

  @impl true
  def init(config) do
    end_proxies(config.name)

    state = %{
      config: config,
      roster: Roster.new(),
      # How far the history was read: :closed, {:catching_up, request}, {:following, request}.
      sync: :closed,
      session: nil,
      silent?: true,
      lists: %{},
      # Pools whose list is asked for again in a moment.
      again: MapSet.new(),
      watchers: %{},
      pools: %{},
      proxies: %{},
      # Of an earlier life: those that ended with it, before and since the last session was opened, while the history is read; and
      # those who live: pools whose list has not come yet, and who is on the others.
      reaped: {[], []},
      orphans: nil,
      suspected?: false
    }

    {:ok, _owner} = Registry.register(Tether.Registry, {:config, config.name}, config)
    {:ok, take_over(state), {:continue, :gather}}
  end

  # Those who wait since before this process. The history tells of their workers, but for those of a Tether in the Port, which has
  # ended too.
  defp take_over(%{config: %{name: name, gateways: gateways}} = state) do
    watchers = Watchers.all(name)

    if gateways == [] do
      for {ref, _pid, _worker} <- watchers, do: Watchers.tell(name, ref, :agent_lost)
      state
    else
      Enum.reduce(watchers, state, fn {ref, pid, worker}, state -> elem(watch(state, worker, ref, pid), 0) end)
    end
  end

  # Those of an earlier one of this process, of whose workers this one knows nothing yet.
  defp end_proxies(tether) do
    workers = Tether.Supervisor.workers(tether)

    for {_id, pid, _type, _modules} <- DynamicSupervisor.which_children(workers),
        is_pid(pid),
        do: DynamicSupervisor.terminate_child(workers, pid)
  end

  # Pools may have been there before: their supervisor kept them while this Tether was away.
  @impl true
  def handle_continue(:gather, %{config: %{name: name}} = state) do
    pools = Registry.select(Tether.Registry, [{{{:pool, :_}, :"$1", {name, :_}}, [], [:"$1"]}])
    for pid <- pools, do: send(pid, {:tether_joined, name})
    {:noreply, state}
  end

  # It was found in the table already.
  @impl true
  def handle_call({:monitor, _worker, ref, _pid}, _from, state) when is_map_key(state.watchers, ref),
    do: {:reply, :ok, state}

  def handle_call({:monitor, worker, ref, pid}, _from, state) do
    {state, actions} = watch(state, worker, ref, pid)
    state = act(state, actions)
    # Before the history is followed, the list that is asked for then will tell.
    ask? = actions == [] and open?(state) and not Roster.lives?(state.roster, worker)
    {:reply, :ok, if(ask?, do: list(state, worker.pool), else: state)}
  end

  def handle_call({:demonitor, ref}, _from, state), do: {:reply, :ok, forget_watcher(state, ref)}

  def handle_call({:workers, pool}, _from, state), do: {:reply, Roster.workers(state.roster, pool), state}

  @impl true
  def handle_cast({:pool, pool, pid}, state) do
    state = put_in(state.pools[pool], pid)
    if open?(state), do: send(pid, {:tether_session, :open, state.session})
    tell_pool(state, pool)
    # It may be one that somebody else applied.
    {:noreply, if(open?(state), do: list(state, pool), else: state)}
  end

  def handle_cast({:told, what}, state), do: told(what, state)

  @impl true
  def handle_info({ref, :item, item}, %{sync: {_stage, %{ref: ref}}} = state) do
    event = item |> Protocol.fields() |> Event.from_port(state.config.name)
    missed? = open?(state) and state.roster.revision > 0 and event.revision > state.roster.revision + 1
    state = if ours?(event, state), do: happened(event, state), else: skipped(event, state)
    # The history is not kept for ever; what became of everybody a list tells.
    {:noreply, if(missed?, do: list_all(state), else: state)}
  end

  def handle_info({ref, :reply, reply}, %{sync: {stage, %{ref: ref} = request}} = state) do
    Process.demonitor(request.ref, [:flush])

    case {stage, reply} do
      {:catching_up, {:ok, _value}} -> {:noreply, follow(state)}
      # No event has had this number: the store began anew, and with it all that is known.
      {_stage, {:error, %{code: 11}}} -> {:noreply, catch_up(lose_all(state, :unknown, :forget))}
      {_stage, _ended} -> {:noreply, later(%{state | sync: :closed})}
    end
  end

  def handle_info({ref, :reply, reply}, state) when is_map_key(state.lists, ref) do
    {{pool, asked}, lists} = Map.pop(state.lists, ref)
    Process.demonitor(ref, [:flush])
    state = %{state | lists: lists}

    case reply do
      {:ok, list} -> {:noreply, listed(Protocol.fields(list), asked, pool, state)}
      # Nobody is in a pool that there is not. One that comes later tells of itself.
      {:error, %{reason: "UNKNOWN_POOL"}} -> {:noreply, listed([], asked, pool, state)}
      {:error, _told} -> {:noreply, list_later(state, pool)}
    end
  end

  def handle_info({:list, pool}, state) do
    state = %{state | again: MapSet.delete(state.again, pool)}
    {:noreply, if(open?(state), do: list(state, pool), else: state)}
  end

  def handle_info({:settle, worker}, state) do
    if is_map_key(state.roster.workers, worker) do
      {roster, actions} = Roster.died(state.roster, worker, :unknown)
      {:noreply, act_alone(%{state | roster: roster}, actions)}
    else
      {:noreply, state}
    end
  end

  def handle_info(:again, %{sync: :closed, session: session} = state) when session != nil do
    {:noreply, catch_up(state)}
  end

  def handle_info({:DOWN, ref, :process, pid, _reason}, state) do
    cond do
      match?({_stage, %{ref: ^ref}}, state.sync) -> {:noreply, %{state | sync: :closed}}
      is_map_key(state.lists, ref) -> {:noreply, %{state | lists: Map.delete(state.lists, ref)}}
      is_map_key(state.proxies, pid) -> {:noreply, proxy_ended(pid, state)}
      true -> {:noreply, forget_watcher_of(state, ref)}
    end
  end

  def handle_info(_other, state), do: {:noreply, state}

  # What the connection tells.

  defp told({:opened, session, welcome}, state) do
    metadata = %{tether: state.config.name, owner: state.config.owner, epoch: session.epoch}
    Telemetry.execute([:lease, :granted], %{ttl: session.ttl}, metadata)
    embedded? = welcome != nil and welcome[:embedded] == true
    # Another cluster than the one that was known, where the connection itself was started anew.
    state = if embedded? and state.roster.revision > 0, do: lose_all(state, :agent_lost, :forget), else: state
    state = %{state | session: session}
    {:noreply, state |> local(:lease_granted, generation: session.epoch) |> catch_up()}
  end

  defp told({:renewed, ttl}, state) do
    Telemetry.execute([:lease, :renewed], %{ttl: ttl}, metadata(state))
    {:noreply, local(state, :lease_renewed)}
  end

  defp told({:warning, remaining}, state) do
    Telemetry.execute([:lease, :warning], %{remaining: remaining}, metadata(state))
    {:noreply, local(state, :lease_warning, text: "#{remaining} ms are left")}
  end

  defp told({:connection, :up, gateway, _up}, state) do
    Telemetry.execute([:connection, :up], %{count: 1}, Map.put(metadata(state), :gateway, gateway))
    state = local(state, :connection_up, text: gateway)
    {:noreply, if(state.suspected?, do: partition(state, :healed, false), else: state)}
  end

  defp told({:connection, :down, gateway, up}, state) do
    Telemetry.execute([:connection, :down], %{count: 1}, Map.put(metadata(state), :gateway, gateway))
    state = local(state, :connection_down, text: gateway)
    {:noreply, if(up == 0 and not state.suspected?, do: partition(state, :suspected, true), else: state)}
  end

  # The embedded cluster ends with the port, and what comes next is another one.
  defp told({:port_down, status, embedded?}, state) do
    Telemetry.execute([:port, :down], %{count: 1}, Map.put(metadata(state), :status, status))
    Logger.warning("Tether: the Port's program ended (#{inspect(status)}); it is started again")
    state = local(%{state | sync: :closed, lists: %{}}, :port_down, text: "status #{inspect(status)}")
    {:noreply, if(embedded?, do: lose_all(%{state | session: nil}, :agent_lost, :forget), else: state)}
  end

  defp told({:lost, reason, message}, state) do
    Telemetry.execute([:lease, :expired], %{remaining: 0}, Map.put(metadata(state), :reason, reason))
    Logger.error("Tether: #{state.config.owner} has lost its lease (#{reason}): #{message}")
    state = if state.suspected?, do: partition(state, :confirmed, false), else: state
    state = local(state, :lease_lost, reason: reason, text: message)
    state = lose_all(%{state | sync: :closed, lists: %{}, session: nil}, :lease_expired, :keep)
    after_loss(reason, state.config)
    {:noreply, state}
  end

  # One that was fenced must not come back by itself: two owners of one name would fence each other for ever.
  defp after_loss(reason, %{on_lease_loss: :reopen} = config) when reason != :fenced do
    spawn(fn -> GenServer.call({:via, Registry, {Tether.Registry, {:connection, config.name}}}, :reopen) end)
  end

  defp after_loss(_reason, %{on_lease_loss: :halt}), do: System.halt(70)
  defp after_loss(reason, config), do: Tether.Supervisor.stop(config.name, {:shutdown, reason})

  defp lose_all(state, reason, keep) do
    {roster, actions} = Roster.lose_all(state.roster, reason, keep)
    act_alone(%{state | roster: roster}, actions)
  end

  defp partition(state, stage, suspected?) do
    Telemetry.execute([:partition, stage], %{count: 1}, metadata(state))
    local(%{state | suspected?: suspected?}, :"partition_#{stage}")
  end

  # Reading the history.

  defp catch_up(state), do: request(state, :catching_up, false)

  defp follow(state) do
    first? = state.silent?
    if first?, do: reaped(state)
    state = request(%{state | silent?: false}, :following, true)
    state = if first?, do: %{state | orphans: {List.wrap(state.session[:pools]), []}}, else: state
    # Before anything is applied: whoever is on these lists was there when this life began.
    state = list_all(state)
    for {_pool, pid} <- state.pools, do: send(pid, {:tether_session, :open, state.session})
    state
  end

  defp request(state, stage, follow?) do
    args = %{after: state.roster.revision, follow: follow?, pool: nil}

    case Request.control(state.config.name, :events, args) do
      {:ok, request} -> %{state | sync: {stage, request}}
      {:error, _error} -> later(%{state | sync: :closed})
    end
  end

  defp later(state) do
    Process.send_after(self(), :again, @again)
    state
  end

  defp open?(state), do: match?({:following, _request}, state.sync)

  defp list_all(state) do
    pools = Map.keys(state.pools) ++ List.wrap(state.session[:pools]) ++ Roster.unknown_pools(state.roster)
    pools |> Enum.uniq() |> Enum.reduce(state, &list(&2, &1))
  end

  defp list(state, pool) do
    asked = Roster.expected(state.roster, pool)

    case Request.control(state.config.name, :worker_list, %{pool: pool}) do
      {:ok, request} -> put_in(state.lists[request.ref], {pool, asked})
      {:error, _error} -> list_later(state, pool)
    end
  end

  # Where the history is not followed by then, all lists are asked for once it is.
  defp list_later(state, pool) do
    if pool not in state.again, do: Process.send_after(self(), {:list, pool}, @again)
    %{state | again: MapSet.put(state.again, pool)}
  end

  defp listed(list, asked, pool, state) do
    living = for %{phase: phase} = told <- list, phase in ["STARTING", "READY", "STOPPING"], do: told

    known =
      for told <- living do
        {Worker.from_port(told.worker, state.config.name),
         %{phase: phase(told.phase), node: told[:node], pid: told[:pid], address: told[:address]}}
      end

    {roster, actions, missing} = Roster.listed(state.roster, asked, known)
    for worker <- missing, do: Process.send_after(self(), {:settle, worker}, @settle)
    found(%{state | roster: roster} |> act(actions), pool, for({worker, _about} <- known, do: worker))
  end

  defp phase("READY"), do: :ready
  defp phase("STARTING"), do: :starting
  defp phase("STOPPING"), do: :ending

  # Workers that an earlier life of this owner left behind, and that live.
  defp found(%{orphans: {waiting, found}} = state, pool, workers) do
    if pool in waiting,
      do: detected(%{state | orphans: {List.delete(waiting, pool), workers ++ found}}),
      else: state
  end

  defp found(state, _pool, _workers), do: state

  defp detected(%{orphans: {[], workers}} = state) do
    if workers != [] and state.config.orphan_detection do
      metadata = Map.put(metadata(state), :workers, workers)
      Telemetry.execute([:orphans, :detected], %{count: length(workers)}, metadata)
    end

    %{state | orphans: nil}
  end

  defp detected(state), do: state

  # Workers that ended with an earlier life of this owner, which was away then. Those of lives before that one were told.
  defp reap(%{reaped: {_before, since}} = state, %{type: :session_opened}), do: %{state | reaped: {since, []}}

  defp reap(%{reaped: {before, since}} = state, %{type: :worker_down, reason: :owner_gone} = event),
    do: %{state | reaped: {before, [event | since]}}

  defp reap(state, _event), do: state

  defp reaped(%{reaped: {before, since}} = state) do
    for event <- Enum.reverse(since ++ before), do: measure_reaped(about(event, state), state)
  end

  # What concerns other owners is not for this BEAM, but for its pools and what it waits for; what concerns a node is for all.
  defp ours?(%{worker: worker} = event, state) do
    event.owner in [state.config.owner, "", nil] or
      (worker != nil and
         (is_map_key(state.pools, worker.pool) or Roster.concerns?(state.roster, worker)))
  end

  defp skipped(event, state), do: put_in(state.roster.revision, max(event.revision, state.roster.revision))

  defp happened(event, state) do
    case Roster.event(state.roster, event) do
      :seen ->
        state

      {roster, actions} ->
        told? = event.type == :worker_down and Roster.dead?(state.roster, event.worker)
        state = act(%{state | roster: roster}, actions)
        state = if state.silent? and event.owner == state.config.owner, do: reap(state, event), else: state
        if not state.silent? and not told?, do: publish(event, state)
        if not told?, do: measure(event, state)
        if event.type == :worker_crash_loop, do: tell_crash_loop(event, state)
        state
    end
  end

  defp tell_crash_loop(event, state) do
    with pid when pid != nil <- state.pools[event.worker.pool], do: send(pid, {:tether_crash_loop, event})
  end

  # What the roster decided.

  defp act(state, actions) do
    state = Enum.reduce(actions, state, &carry_out/2)
    for pool <- actions |> Enum.map(&elem_pool/1) |> Enum.uniq(), do: tell_pool(state, pool)
    state
  end

  # Of deaths of which no event tells.
  defp act_alone(state, actions) do
    state = act(state, actions)

    for {:died, worker, reason} <- actions do
      fields = [worker: worker, generation: worker.incarnation, reason: reason]
      event = struct!(local_event(state, :worker_down), fields)
      publish(event, state)
      measure(event, state)
    end

    state
  end

  defp elem_pool({:down, _ref, worker, _reason}), do: worker.pool
  defp elem_pool({_what, worker, _more}), do: worker.pool

  defp carry_out({:born, worker, known}, state), do: start_proxy(worker, known, state)

  defp carry_out({:changed, worker, known}, state) do
    with pid when pid != nil <- Worker.whereis(worker), do: Worker.changed(pid, known)
    state
  end

  defp carry_out({:died, worker, reason}, state) do
    case Worker.whereis(worker) do
      nil ->
        state

      pid ->
        Worker.ended(pid, reason)
        %{state | proxies: Map.delete(state.proxies, pid)}
    end
  end

  defp carry_out({:down, ref, worker, reason}, state) do
    Watchers.tell(worker.tether, ref, reason)
    forget_watcher(state, ref)
  end

  defp start_proxy(worker, known, state) do
    case DynamicSupervisor.start_child(
           Tether.Supervisor.workers(state.config.name),
           {Worker, {worker, known}}
         ) do
      {:ok, pid} ->
        Process.monitor(pid)
        put_in(state.proxies[pid], worker)

      {:error, why} ->
        Logger.error("Tether: no proxy for #{worker}: #{inspect(why)}")
        state
    end
  end

  # Somebody ended a proxy; its worker lives.
  defp proxy_ended(pid, state) do
    {worker, proxies} = Map.pop(state.proxies, pid)
    state = %{state | proxies: proxies}

    case state.roster.workers do
      %{^worker => known} -> start_proxy(worker, known, state)
      _gone -> state
    end
  end

  defp tell_pool(state, pool) do
    with pid when pid != nil <- state.pools[pool] do
      send(pid, {:tether_workers, Roster.count(state.roster, pool)})
    end
  end

  # Watchers.

  defp watch(state, worker, ref, pid) do
    {roster, actions} = Roster.watch(state.roster, worker, ref)
    watchers = Map.put(state.watchers, ref, {worker, Process.monitor(pid)})
    {%{state | roster: roster, watchers: watchers}, actions}
  end

  defp forget_watcher(state, ref) do
    Watchers.forget(state.config.name, ref)

    case Map.pop(state.watchers, ref) do
      {nil, _watchers} ->
        state

      {{worker, monitor}, watchers} ->
        Process.demonitor(monitor, [:flush])
        %{state | watchers: watchers, roster: Roster.unwatch(state.roster, worker, ref)}
    end
  end

  defp forget_watcher_of(state, monitor) do
    case Enum.find(state.watchers, fn {_ref, {_worker, theirs}} -> theirs == monitor end) do
      {ref, _watcher} -> forget_watcher(state, ref)
      nil -> state
    end
  end

  # Telling.

  defp local(state, type, fields \\ []) do
    publish(struct!(local_event(state, type), fields), state)
    state
  end

  defp local_event(state, type), do: %Event{type: type, owner: state.config.owner, at: DateTime.utc_now()}

  defp publish(event, %{config: %{name: name}}) do
    Registry.dispatch(Tether.Subscribers, name, fn subscribers ->
      for {pid, topics} <- subscribers, topics == :all or event.type in topics do
        send(pid, {:tether, name, event})
      end
    end)
  end

  defp metadata(state) do
    %{tether: state.config.name, owner: state.config.owner, epoch: state.session && state.session.epoch}
  end

  @worker_events %{
    worker_up: [:worker, :spawn],
    worker_ready: [:worker, :ready],
    worker_adopted: [:worker, :adopted],
    worker_down: [:worker, :down]
  }

  defp measure(%{type: type} = event, %{silent?: false} = state) when is_map_key(@worker_events, type) do
    metadata = about(event, state)
    Telemetry.execute(Map.fetch!(@worker_events, type), %{count: 1}, metadata)
    if type == :worker_down, do: measure_death(event.reason, metadata, state)
  end

  defp measure(_event, _state), do: :ok

  defp measure_death(reason, metadata, state) do
    if Death.crash?(reason), do: Telemetry.execute([:worker, :crash], %{count: 1}, metadata)
    if reason == :recycled, do: Telemetry.execute([:worker, :recycled], %{count: 1}, metadata)

    if reason == :owner_gone, do: measure_reaped(metadata, state)
  end

  defp measure_reaped(metadata, %{config: %{orphan_detection: on?}}) do
    if on?, do: Telemetry.execute([:orphans, :reaped], %{count: 1}, metadata)
  end

  defp about(event, state) do
    %{tether: state.config.name, worker: event.worker, node: event.node, reason: event.reason}
  end
end
