defmodule Tether.Death do
  @moduledoc """
  The reason of a worker's death as OTP would say it, made from what was recorded of it.

  | reason | the worker |
  | --- | --- |
  | `:normal` | ended by itself with exit code 0 |
  | `{:exit, code}` | ended by itself with another one |
  | `{:signal, name}` | was ended by a signal that Tether did not send, such as `{:signal, :sigkill}` |
  | `:oom` | was killed by the kernel for want of memory |
  | `:lease_expired` | lost its permission to live: its node's lease, or this owner's |
  | `:owner_gone` | was ended because its owner was gone |
  | `:agent_lost` | ended with its agent |
  | `{:ordered, :operator}`, `{:ordered, :owner}`, `{:ordered, :agent}` | was stopped by somebody's order |
  | `:drained` | was stopped as its pool was made smaller or deleted |
  | `:recycled` | was replaced for its age, its calls or its memory |
  | `:never_ready`, `:unhealthy`, `:spawn_failed` | did not become ready, answered no more, could not be started |
  | `:unknown` | is gone, and nobody could find out why |
  | `:noproc` | was not known when it was asked for |
  | `:noconnection` | may live on: this BEAM's Tether has ended, and hears of it no more |
  """

  @type reason :: atom | {:exit, integer} | {:signal, atom | integer} | {:ordered, atom}

  # Of Linux, for the signals that end processes.
  @signals %{
    1 => :sighup,
    2 => :sigint,
    3 => :sigquit,
    4 => :sigill,
    5 => :sigtrap,
    6 => :sigabrt,
    7 => :sigbus,
    8 => :sigfpe,
    9 => :sigkill,
    10 => :sigusr1,
    11 => :sigsegv,
    12 => :sigusr2,
    13 => :sigpipe,
    14 => :sigalrm,
    15 => :sigterm,
    24 => :sigxcpu,
    25 => :sigxfsz,
    31 => :sigsys
  }

  @causes %{
    "OUT_OF_MEMORY" => :oom,
    "LEASE_EXPIRED" => :lease_expired,
    "OWNER_GONE" => :owner_gone,
    "AGENT_GONE" => :agent_lost,
    "ORDERED_BY_OPERATOR" => {:ordered, :operator},
    "ORDERED_BY_SCALE" => :drained,
    "ORDERED_BY_OWNER" => {:ordered, :owner},
    "ORDERED_BY_AGENT" => {:ordered, :agent},
    "NEVER_READY" => :never_ready,
    "SPAWN_FAILED" => :spawn_failed,
    "UNHEALTHY" => :unhealthy,
    "RECYCLED" => :recycled
  }

  @doc """
  The reason of a death.

      iex> Tether.Death.reason(%{cause: "EXITED", exit_code: 0})
      :normal
      iex> Tether.Death.reason(%{cause: "EXITED", exit_code: 3})
      {:exit, 3}
      iex> Tether.Death.reason(%{cause: "SIGNALED", signal: 9})
      {:signal, :sigkill}
      iex> Tether.Death.reason(%{cause: "OUT_OF_MEMORY"})
      :oom
      iex> Tether.Death.reason(nil)
      :unknown
  """
  @spec reason(map | nil) :: reason
  def reason(%{cause: "EXITED", exit_code: 0}), do: :normal
  def reason(%{cause: "EXITED"} = death), do: {:exit, Map.get(death, :exit_code)}
  def reason(%{cause: "SIGNALED", signal: signal}), do: {:signal, Map.get(@signals, signal, signal)}
  def reason(%{cause: cause}), do: Map.get(@causes, cause, :unknown)
  def reason(_nothing), do: :unknown

  @doc """
  Whether nobody asked for it.

      iex> Tether.Death.crash?({:signal, :sigsegv})
      true
      iex> Tether.Death.crash?(:drained)
      false
  """
  @spec crash?(reason) :: boolean
  def crash?({:exit, _code}), do: true
  def crash?({:signal, _name}), do: true
  def crash?(reason), do: reason in [:oom, :never_ready, :unhealthy, :spawn_failed, :unknown]
end
