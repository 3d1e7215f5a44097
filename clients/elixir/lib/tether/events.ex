defmodule Tether.Events do
  @moduledoc """
  Follows what happens: keeps a proxy for each worker, tells subscribers, sends the deaths that are waited for.

  When a session is opened, what happened since the last revision is asked for first, then what comes from there on, and the list of
  workers beside it: so nothing of an absence is lost, and nothing told twice. What decides is `Tether.Roster`. An absence is also that of
  this process itself: the next one goes on where what was told is kept, with `Tether.Watchers`.
  """

  use GenServer

  alias Tether.{Event, Lists, Orphans, Protocol, Proxies, Request, Roster, Teller, Watchers, Worker}

  # How long to wait for the event that says why a worker is no longer on the list.
  @settle 2_000
  @again 500

  @doc false
  def start_link(config), do: GenServer.start_link(__MODULE__, config, name: via(config.name))

  defp via(tether), do: {:via, Registry, {Tether.Registry, {:events, tether}}}

  @doc false
  def tell(tether, what), do: GenServer.cast(via(tether), {:told, what})

  @doc false
  def watch(%Worker{} = worker, ref, pid),
    do: GenServer.call(via(worker.tether), {:watch, worker, ref, pid}, :infinity)

  @doc false
  def unwatch(tether, ref), do: GenServer.call(via(tether), {:unwatch, ref}, :infinity)

  @doc false
  def pool_started(tether, pool), do: GenServer.cast(via(tether), {:pool, pool, self()})

  @doc false
  def workers(tether, pool), do: GenServer.call(via(tether), {:workers, pool})

  @impl true
  def init(%{name: name} = config) do
    Proxies.end_all(name)
    kept = Watchers.told(name)

    state = %{
      config: config,
      roster: Roster.new(kept || %{}),
      # How far the history was read: :closed, {:catching_up, request}, {:following, request}.
      sync: :closed,
      session: nil,
      # What was before the first life of this Tether is told to nobody.
      silent?: kept == nil,
      orphans: if(kept == nil, do: %Orphans{}),
      lists: %Lists{tether: name},
      watchers: %{},
      # Those that are there already will tell of themselves.
      pools: for({_pid, pool} <- pools(name), into: %{}, do: {pool, nil}),
      proxies: %{},
      suspected?: false
    }

    {:ok, _owner} = Registry.register(Tether.Registry, {:config, name}, config)
    {:ok, state |> take_over() |> go_on(), {:continue, :gather}}
  end

  defp pools(tether) do
    Registry.select(Tether.Registry, [{{{:pool, :_}, :"$1", {tether, :"$2"}}, [], [{{:"$1", :"$2"}}]}])
  end

  # Those who wait since before this process.
  defp take_over(%{config: %{name: name}} = state) do
    Enum.reduce(Watchers.all(name), state, fn {ref, pid, worker}, state ->
      elem(watch(state, worker, ref, pid), 0)
    end)
  end

  # A Tether in the Port has ended with what followed it.
  defp go_on(%{config: %{gateways: []}} = state), do: lose_all(state, :agent_lost, :forget)

  defp go_on(state) do
    for {worker, known} <- Roster.workers(state.roster, :all),
        reduce: state,
        do: (state -> carry_out({:born, worker, known}, state))
  end

  # Pools may have been there before: their supervisor kept them while this Tether was away.
  @impl true
  def handle_continue(:gather, %{config: %{name: name}} = state) do
    for {pid, _pool} <- pools(name), do: send(pid, {:tether_joined, name})
    {:noreply, state}
  end

  # It was found in the table already.
  @impl true
  def handle_call({:watch, _worker, ref, _pid}, _from, state) when is_map_key(state.watchers, ref),
    do: {:reply, :ok, state}

  def handle_call({:watch, worker, ref, pid}, _from, state) do
    {state, actions} = watch(state, worker, ref, pid)
    state = act(state, actions)
    # Before the history is followed, the list that is asked for then will tell.
    ask? = actions == [] and open?(state) and not Roster.lives?(state.roster, worker)
    {:reply, :ok, if(ask?, do: list(state, worker.pool), else: state)}
  end

  def handle_call({:unwatch, ref}, _from, state), do: {:reply, :ok, forget_watcher(state, ref)}

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
    {:noreply, keep(if(missed?, do: list_all(state), else: state))}
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

  def handle_info({ref, :reply, reply}, state) when is_map_key(state.lists.asked, ref) do
    {{pool, asked}, lists} = Lists.pop(state.lists, ref)
    Process.demonitor(ref, [:flush])
    state = %{state | lists: lists}

    case reply do
      {:ok, list} -> {:noreply, listed(Protocol.fields(list), asked, pool, state)}
      # Nobody is in a pool that there is not. One that comes later tells of itself.
      {:error, %{reason: "UNKNOWN_POOL"}} -> {:noreply, listed([], asked, pool, state)}
      {:error, _told} -> {:noreply, %{state | lists: Lists.later(lists, pool)}}
    end
  end

  def handle_info({:list, pool}, state) do
    state = %{state | lists: Lists.due(state.lists, pool)}
    {:noreply, if(open?(state), do: list(state, pool), else: state)}
  end

  def handle_info({:settle, worker}, state) do
    if Roster.unsettled?(state.roster, worker) do
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
      is_map_key(state.lists.asked, ref) -> {:noreply, %{state | lists: elem(Lists.pop(state.lists, ref), 1)}}
      is_map_key(state.proxies, pid) -> {:noreply, proxy_ended(pid, state)}
      true -> {:noreply, forget_watcher_of(state, ref)}
    end
  end

  def handle_info(_other, state), do: {:noreply, state}

  # What the connection tells.

  defp told({:opened, session, welcome} = what, state) do
    embedded? = welcome != nil and welcome[:embedded] == true
    # Another cluster than the one that was known, where the connection itself was started anew.
    state = if embedded? and state.roster.revision > 0, do: lose_all(state, :agent_lost, :forget), else: state
    {:noreply, %{state | session: session} |> heard(what) |> catch_up()}
  end

  defp told({:connection, :up, _gateway, _up} = what, state), do: {:noreply, state |> heard(what) |> healed()}

  defp told({:connection, :down, _gateway, up} = what, state) do
    state = heard(state, what)
    {:noreply, if(up == 0 and not state.suspected?, do: partition(state, :suspected, true), else: state)}
  end

  # The embedded cluster ends with the port, and what comes next is another one.
  defp told({:port_down, _status, embedded?} = what, state) do
    state = state |> closed() |> heard(what)
    {:noreply, if(embedded?, do: lose_all(%{state | session: nil}, :agent_lost, :forget), else: state)}
  end

  defp told({:lost, reason, _message} = what, state) do
    state = if state.suspected?, do: partition(state, :confirmed, false), else: state
    state = state |> heard(what) |> closed()
    state = lose_all(%{state | session: nil}, :lease_expired, :keep)
    after_loss(reason, state.config)
    {:noreply, state}
  end

  defp told(what, state), do: {:noreply, heard(state, what)}

  defp heard(state, what) do
    Teller.heard(what, state.config, metadata(state))
    state
  end

  defp closed(state), do: %{state | sync: :closed, lists: Lists.drop(state.lists)}

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

  defp healed(state), do: if(state.suspected?, do: partition(state, :healed, false), else: state)

  defp partition(state, stage, suspected?), do: heard(%{state | suspected?: suspected?}, {:partition, stage})

  # Reading the history.

  defp catch_up(state), do: request(state, :catching_up, false)

  defp follow(state) do
    state = request(first_told(state), :following, true)
    # Before anything is applied: whoever is on these lists was there when this life began.
    state = list_all(state)
    for {_pool, pid} <- state.pools, pid != nil, do: send(pid, {:tether_session, :open, state.session})
    state
  end

  defp first_told(%{silent?: true} = state) do
    for event <- Orphans.reaped(state.orphans), do: Teller.reaped(event, state.config)
    orphans = Orphans.wait(state.orphans, List.wrap(state.session[:pools]))
    keep(%{state | silent?: false, orphans: orphans})
  end

  defp first_told(state), do: state

  # Of this the next life goes on, if this one ends.
  defp keep(%{silent?: true} = state), do: state

  defp keep(state) do
    Watchers.keep_told(state.config.name, Roster.kept(state.roster))
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

  defp list(state, pool), do: %{state | lists: Lists.ask(state.lists, pool, state.roster)}

  defp listed(list, asked, pool, state) do
    living = Lists.living(state.lists, list)
    {roster, actions, missing} = Roster.listed(state.roster, asked, living)
    for worker <- missing, do: Process.send_after(self(), {:settle, worker}, @settle)
    state = keep(act(%{state | roster: roster}, actions))
    found(state, pool, for({worker, _known} <- living, do: worker))
  end

  # Workers that an earlier life of this owner left behind, and that live.
  defp found(%{orphans: nil} = state, _pool, _workers), do: state

  defp found(%{orphans: orphans} = state, pool, workers) do
    case Orphans.listed(orphans, pool, workers) do
      {:waiting, orphans} -> %{state | orphans: orphans}
      {:found, workers} -> heard(%{state | orphans: nil}, {:orphans, workers})
    end
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
        told? = event.type == :worker_down and Roster.told?(state.roster, event.worker)
        state = act(%{state | roster: roster}, actions)
        state = if state.silent?, do: remember(event, state), else: state
        if not state.silent? and not told?, do: Teller.tell(event, state.config)
        if event.type == :worker_crash_loop, do: tell_crash_loop(event, state)
        state
    end
  end

  defp remember(%{owner: owner} = event, %{config: %{owner: owner}} = state),
    do: %{state | orphans: Orphans.event(state.orphans, event)}

  defp remember(_event, state), do: state

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
      Teller.local(state.config, :worker_down, fields)
    end

    keep(state)
  end

  defp elem_pool({:down, _ref, worker, _reason}), do: worker.pool
  defp elem_pool({_what, worker, _more}), do: worker.pool

  defp carry_out({:born, worker, known}, state),
    do: %{state | proxies: Proxies.start(state.proxies, worker, known)}

  defp carry_out({:changed, worker, known}, state) do
    Proxies.changed(worker, known)
    state
  end

  defp carry_out({:died, worker, reason}, state),
    do: %{state | proxies: Proxies.stop(state.proxies, worker, reason)}

  defp carry_out({:down, ref, worker, reason}, state) do
    Watchers.tell(worker.tether, ref, reason)
    forget_watcher(state, ref)
  end

  # Somebody ended a proxy; its worker lives.
  defp proxy_ended(pid, state) do
    {worker, proxies} = Map.pop(state.proxies, pid)
    state = %{state | proxies: proxies}

    case state.roster.workers do
      %{^worker => known} -> carry_out({:born, worker, known}, state)
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

  defp metadata(state) do
    %{tether: state.config.name, owner: state.config.owner, epoch: state.session && state.session.epoch}
  end
end
