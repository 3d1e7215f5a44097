defmodule Tether.Lease do
  @moduledoc """
  What this BEAM may believe of its own lease. Pure; times are milliseconds of the monotonic clock.

  The Port's program counts the lease while it runs. When it has ended, nobody beats, and this counts from its end, which is
  later than the last beat that was acknowledged: so no more is claimed than that the lease *may* hold, and nothing can be done
  under it meanwhile, as all calls go through the port.
  """

  @type state :: :none | :held | :doubtful | :lost
  @type t :: %__MODULE__{
          state: state,
          epoch: non_neg_integer | nil,
          ttl: non_neg_integer | nil,
          silent_since: integer | nil
        }

  defstruct state: :none, epoch: nil, ttl: nil, silent_since: nil

  @doc "A session was opened."
  @spec opened(t, non_neg_integer, non_neg_integer) :: t
  def opened(_lease, epoch, ttl), do: %__MODULE__{state: :held, epoch: epoch, ttl: ttl}

  @doc "Half of it has passed without an answer."
  @spec doubted(t) :: t
  def doubted(lease), do: %{lease | state: :doubtful}

  @doc "It was answered again."
  @spec renewed(t) :: t
  def renewed(lease), do: %{lease | state: :held}

  @doc "The port has ended."
  @spec silent(t, integer) :: t
  def silent(%{state: state} = lease, now) when state in [:held, :doubtful] do
    %{lease | silent_since: lease.silent_since || now}
  end

  def silent(lease, _now), do: lease

  @doc """
  What the time means while the port is away, and when to ask again.

      iex> lease = Tether.Lease.opened(%Tether.Lease{}, 1, 1000) |> Tether.Lease.silent(0)
      iex> Tether.Lease.check(lease, 100)
      {:wait, 400}
      iex> Tether.Lease.check(lease, 500)
      {:warn, 500}
      iex> Tether.Lease.check(Tether.Lease.doubted(lease), 500)
      {:wait, 500}
      iex> Tether.Lease.check(lease, 1000)
      :lost
  """
  @spec check(t, integer) :: {:wait, pos_integer} | {:warn, pos_integer} | :lost | :rest
  def check(%{silent_since: nil}, _now), do: :rest

  def check(%{silent_since: since, ttl: ttl, state: state}, now) do
    passed = now - since
    half = div(ttl, 2)

    cond do
      passed >= ttl -> :lost
      state == :held and passed >= half -> {:warn, ttl - passed}
      state == :held -> {:wait, half - passed}
      true -> {:wait, ttl - passed}
    end
  end
end
