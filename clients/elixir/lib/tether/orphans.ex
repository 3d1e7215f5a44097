defmodule Tether.Orphans do
  @moduledoc false
  # Workers of an earlier life of this owner, as they are found while the next one begins: the history tells of those that ended
  # with it, the first lists of those who live. Decides only.

  alias Tether.{Event, Worker}

  # Those that ended before and since the last session was opened; pools whose list has not come yet, and who is on the others.
  defstruct before: [], since: [], waiting: [], found: []

  @type t :: %__MODULE__{}

  @doc "Takes in an event of the history of this owner."
  @spec event(t, Event.t()) :: t
  # Those of lives before that one were told.
  def event(orphans, %{type: :session_opened}), do: %{orphans | before: orphans.since, since: []}

  def event(orphans, %{type: :worker_down, reason: :owner_gone} = event),
    do: %{orphans | since: [event | orphans.since]}

  def event(orphans, _event), do: orphans

  @doc "The deaths of those that ended, once all of the history was taken in."
  @spec reaped(t) :: [Event.t()]
  def reaped(orphans), do: Enum.reverse(orphans.since ++ orphans.before)

  @doc "Waits for the lists of these pools."
  @spec wait(t, [String.t()]) :: t
  def wait(orphans, pools), do: %{orphans | waiting: pools}

  @doc "Takes in a list; all who live, once it was the last."
  @spec listed(t, String.t(), [Worker.t()]) :: {:waiting, t} | {:found, [Worker.t()]}
  def listed(orphans, pool, workers) do
    case {pool in orphans.waiting, List.delete(orphans.waiting, pool)} do
      {false, _waiting} -> {:waiting, orphans}
      {true, []} -> {:found, workers ++ orphans.found}
      {true, rest} -> {:waiting, %{orphans | waiting: rest, found: workers ++ orphans.found}}
    end
  end
end
