defmodule Tether.Roster do
  @moduledoc """
  Which workers of this owner live, and who waits for their deaths. Decides only: each function returns what is to be done.

  Invariants:

    * **R1** A worker that has died never lives again, but where a later event says that it was started: a list that was made before
      the death cannot bring it back.
    * **R2** Each watcher is told of a death exactly once, whatever tells of it: an event, a list, or the loss of all.
    * **R3** A revision that was seen changes nothing.
    * **R4** One death is one `:died`: what was lost dies no second time, but where it was seen at work since.
  """

  alias Tether.{Death, Event, Worker}

  # So many deaths are remembered, for R1 and for those who ask late.
  @remembered 1_024

  # Lost are those of whom it was told that they are, and who may live on.
  defstruct workers: %{}, lost: MapSet.new(), dead: %{}, order: :queue.new(), watchers: %{}, revision: 0

  @type known :: %{optional(atom) => term}
  @type action ::
          {:born, Worker.t(), known}
          | {:changed, Worker.t(), known}
          | {:died, Worker.t(), Death.reason()}
          | {:down, reference, Worker.t(), Death.reason()}
  @type t :: %__MODULE__{}
  @type kept :: %{revision: non_neg_integer, workers: %{Worker.t() => known}, lost: MapSet.t(Worker.t())}

  @doc "Nobody yet, or whom another roster knew."
  @spec new(kept | %{}) :: t
  def new(kept \\ %{}), do: struct!(__MODULE__, kept)

  @doc "What a later roster needs to go on where this one is. Who watches is kept elsewhere."
  @spec kept(t) :: kept
  def kept(roster), do: Map.take(roster, [:revision, :workers, :lost])

  @doc "Takes in an event; `:seen` when it was before."
  @spec event(t, Event.t()) :: {t, [action]} | :seen
  def event(%{revision: seen}, %Event{revision: revision}) when revision <= seen, do: :seen

  def event(roster, %Event{} = event) do
    roster = %{roster | revision: event.revision}

    case {event.type, event.worker} do
      {_type, nil} -> {roster, []}
      {:worker_up, worker} -> seen(anew(roster, worker), worker, %{phase: :starting, node: event.node})
      {:worker_ready, worker} -> seen(roster, worker, %{phase: :ready, node: event.node})
      {:worker_registered, worker} -> seen(roster, worker, %{phase: :ready, node: event.node})
      {:worker_deregistered, worker} -> died(roster, worker, :normal)
      {:worker_ending, worker} -> seen(roster, worker, %{phase: :ending})
      {type, worker} when type in [:worker_down, :worker_crash_loop] -> died(roster, worker, event.reason)
      {_other, _worker} -> {roster, []}
    end
  end

  # A store that began anew gives the numbers of workers again, and may have heard of the end of one with the same from its agent.
  defp anew(roster, worker) do
    %{roster | dead: Map.delete(roster.dead, worker), order: :queue.delete(worker, roster.order)}
  end

  @doc """
  Takes in the list of a pool's workers, asked for when `asked` were expected on it. Returns also those who lived, and are not:
  what became of them an event will say, or nobody. Of those who were only waited for nothing is known (`:noproc`).
  """
  @spec listed(t, [Worker.t()], [{Worker.t(), known}]) :: {t, [action], [Worker.t()]}
  def listed(roster, asked, list) do
    {roster, actions} =
      Enum.reduce(list, {roster, []}, fn {worker, known}, {roster, actions} ->
        {roster, more} = seen(roster, worker, known)
        {roster, actions ++ more}
      end)

    there = MapSet.new(list, fn {worker, _known} -> worker end)
    {missing, unknown} = asked |> Enum.reject(&(&1 in there)) |> Enum.split_with(&unsettled?(roster, &1))
    {roster, downs} = Enum.reduce(unknown, {roster, []}, &nobody/2)
    {roster, actions ++ downs, missing}
  end

  defp nobody(worker, {roster, actions}) do
    {refs, watchers} = Map.pop(roster.watchers, worker, [])
    downs = for ref <- refs, do: {:down, ref, worker, :noproc}
    {%{roster | watchers: watchers}, actions ++ downs}
  end

  defp seen(%{dead: dead} = roster, worker, _known) when is_map_key(dead, worker), do: {roster, []}

  defp seen(%{workers: workers} = roster, worker, known) do
    cond do
      is_map_key(workers, worker) ->
        before = Map.fetch!(workers, worker)
        now = Map.merge(before, known)
        actions = if now == before, do: [], else: [{:changed, worker, now}]
        {%{roster | workers: %{workers | worker => now}}, actions}

      # That it ends was told.
      known.phase == :ending and worker in roster.lost ->
        {roster, []}

      true ->
        roster = %{
          roster
          | workers: Map.put(workers, worker, known),
            lost: MapSet.delete(roster.lost, worker)
        }

        {roster, [{:born, worker, known}]}
    end
  end

  @doc "A worker is dead."
  @spec died(t, Worker.t(), Death.reason()) :: {t, [action]}
  def died(%{dead: dead} = roster, worker, _reason) when is_map_key(dead, worker), do: {roster, []}

  def died(roster, worker, reason) do
    {roster, actions} = gone(roster, worker, reason)
    {remember(roster, worker, reason), actions}
  end

  defp gone(roster, worker, reason) do
    {watchers, others} = Map.pop(roster.watchers, worker, [])
    downs = for ref <- watchers, do: {:down, ref, worker, reason}
    died = if worker in roster.lost, do: [], else: [{:died, worker, reason}]
    lost = MapSet.delete(roster.lost, worker)
    {%{roster | workers: Map.delete(roster.workers, worker), lost: lost, watchers: others}, died ++ downs}
  end

  defp remember(roster, worker, reason) do
    roster = %{roster | dead: Map.put(roster.dead, worker, reason), order: :queue.in(worker, roster.order)}

    if map_size(roster.dead) > @remembered do
      {{:value, oldest}, order} = :queue.out(roster.order)
      %{roster | dead: Map.delete(roster.dead, oldest), order: order}
    else
      roster
    end
  end

  @doc """
  All workers are lost, for one reason: who watches is told, but they may live on, and a list may bring them back. With `:forget` what comes is another cluster, whose workers and revisions begin anew.
  """
  @spec lose_all(t, Death.reason(), :keep | :forget) :: {t, [action]}
  def lose_all(roster, reason, keep) do
    all = Map.keys(Map.merge(roster.watchers, roster.workers))
    lost = MapSet.union(roster.lost, MapSet.new(all))

    {roster, actions} =
      Enum.reduce(all, {roster, []}, fn worker, {roster, actions} ->
        {roster, more} = gone(roster, worker, reason)
        {roster, more ++ actions}
      end)

    if keep == :forget, do: {new(), actions}, else: {%{roster | lost: lost}, actions}
  end

  @doc "Whether a worker's death was told, be it as a loss."
  @spec told?(t, Worker.t()) :: boolean
  def told?(roster, worker), do: is_map_key(roster.dead, worker) or worker in roster.lost

  @doc """
  Has somebody told of a worker's death: at once where it is known, else when it is. Of one that is not known at all a list has to
  tell whether it lives.
  """
  @spec watch(t, Worker.t(), reference) :: {t, [action]}
  def watch(%{dead: dead} = roster, worker, ref) when is_map_key(dead, worker) do
    {roster, [{:down, ref, worker, Map.fetch!(dead, worker)}]}
  end

  def watch(roster, worker, ref) do
    {%{roster | watchers: Map.update(roster.watchers, worker, [ref], &[ref | &1])}, []}
  end

  @doc "Whether a worker is known to live."
  @spec lives?(t, Worker.t()) :: boolean
  def lives?(roster, worker), do: is_map_key(roster.workers, worker)

  @doc "Whether its death is still to be heard of: it lives, or was lost."
  @spec unsettled?(t, Worker.t()) :: boolean
  def unsettled?(roster, worker), do: lives?(roster, worker) or worker in roster.lost

  @doc "Whether somebody has to do with this worker: it lives here, or its death is waited for."
  @spec concerns?(t, Worker.t()) :: boolean
  def concerns?(roster, worker), do: is_map_key(roster.workers, worker) or is_map_key(roster.watchers, worker)

  @doc "Pools of workers that are waited for or were lost, and are not known to live."
  @spec unknown_pools(t) :: [String.t()]
  def unknown_pools(roster) do
    waited_for = for {worker, _refs} <- roster.watchers, not lives?(roster, worker), do: worker.pool
    lost = for worker <- roster.lost, do: worker.pool
    Enum.uniq(waited_for ++ lost)
  end

  @doc "Who should be on a list of this pool: those who live, were lost, or are waited for."
  @spec expected(t, String.t()) :: [Worker.t()]
  def expected(roster, pool) do
    all = Map.keys(Map.merge(roster.watchers, roster.workers)) ++ MapSet.to_list(roster.lost)
    for worker <- Enum.uniq(all), worker.pool == pool, do: worker
  end

  @doc "Has nobody told by this reference."
  @spec unwatch(t, Worker.t(), reference) :: t
  def unwatch(roster, worker, ref) do
    case Map.get(roster.watchers, worker, []) -- [ref] do
      [] -> %{roster | watchers: Map.delete(roster.watchers, worker)}
      rest -> %{roster | watchers: Map.put(roster.watchers, worker, rest)}
    end
  end

  @doc "The workers of a pool, or all."
  @spec workers(t, String.t() | :all) :: [{Worker.t(), known}]
  def workers(roster, pool) do
    for {worker, known} <- roster.workers, pool in [:all, worker.pool], do: {worker, known}
  end

  @doc "How many of a pool's workers live, and how many are ready."
  @spec count(t, String.t()) :: %{live: non_neg_integer, ready: non_neg_integer}
  def count(roster, pool) do
    workers = workers(roster, pool)
    %{live: length(workers), ready: Enum.count(workers, fn {_worker, known} -> known[:phase] == :ready end)}
  end
end
