defmodule Tether.Lists do
  @moduledoc false
  # Lists of workers that are asked for: until there is one, and of each pool in turn.

  alias Tether.{Request, Roster, Worker}

  @again 500

  # Those under way, and pools whose list is asked for again in a moment.
  defstruct [:tether, asked: %{}, again: MapSet.new()]

  @type t :: %__MODULE__{}

  @doc "Asks for that of a pool."
  @spec ask(t, String.t(), Roster.t()) :: t
  def ask(lists, pool, roster) do
    expected = Roster.expected(roster, pool)

    case Request.control(lists.tether, :worker_list, %{pool: pool}) do
      {:ok, request} -> put_in(lists.asked[request.ref], {pool, expected})
      {:error, _error} -> later(lists, pool)
    end
  end

  # Where the history is not followed by then, all lists are asked for once it is.
  @doc "Has whoever asks be sent `{:list, pool}` in a moment, once however often it is asked for."
  @spec later(t, String.t()) :: t
  def later(lists, pool) do
    if pool not in lists.again, do: Process.send_after(self(), {:list, pool}, @again)
    %{lists | again: MapSet.put(lists.again, pool)}
  end

  @doc "Such a moment is over."
  @spec due(t, String.t()) :: t
  def due(lists, pool), do: %{lists | again: MapSet.delete(lists.again, pool)}

  @doc "Nothing is under way any more."
  @spec drop(t) :: t
  def drop(lists), do: %{lists | asked: %{}}

  @doc "One has come, or never will: which pool it is of, and who was expected on it then."
  @spec pop(t, reference) :: {{String.t(), [Worker.t()]}, t}
  def pop(lists, ref) do
    {asked, rest} = Map.pop(lists.asked, ref)
    {asked, %{lists | asked: rest}}
  end

  @doc "Who lives by it, and what is known of each."
  @spec living(t, [map]) :: [{Worker.t(), Roster.known()}]
  def living(lists, list) do
    for %{phase: phase} = told <- list, phase in ["STARTING", "READY", "STOPPING"] do
      {Worker.from_port(told.worker, lists.tether),
       %{phase: phase(phase), node: told[:node], pid: told[:pid], address: told[:address]}}
    end
  end

  defp phase("READY"), do: :ready
  defp phase("STARTING"), do: :starting
  defp phase("STOPPING"), do: :ending
end
