defmodule Lab.Talk do
  @moduledoc """
  Does what lines on standard input say, and says what it sees, a line for each thing. The end of the input is the end.

  | line | what is said |
  | --- | --- |
  | | `up PID` of this BEAM, `ready` once the pool is, `event TYPE REASON`, `tether_down REASON` |
  | `serve` | `serves WHO` of the worker that answered, or `error REASON OUTCOME` |
  | `nap N S` | `napping N WHO` once the worker has begun with a call of S seconds, `nap N over` or its error |
  | `job KEY SPEC` | `job KEY begun` or `job KEY found`, and where it stands as below |
  | `status KEY` | `status KEY STATE PROGRESS ATTEMPT FENCE SAVED RESULT` |
  | `workers` | `workers PID ...` of those that live |
  | `lease` | `lease STATE EPOCH` |
  | `delete` | `deleted`, once the pool is |
  | `stop`, `leave`, `abort` | nothing: the system stops, or this application alone, or the emulator aborts |
  """

  use GenServer

  alias Tether.Error

  def start_link(_opts), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @impl true
  def init(nil) do
    :ok = Tether.subscribe(Lab.Tether)
    Process.monitor(Lab.Tether)
    say(["up", System.pid()])
    spawn_link(fn -> listen() end)
    spawn_link(fn -> await_ready() end)
    {:ok, nil}
  end

  @impl true
  def handle_info({:tether, _name, event}, state) do
    say(["event", event.type, inspect(event.reason)])
    {:noreply, state}
  end

  def handle_info({:DOWN, _ref, :process, _pid, reason}, state) do
    say(["tether_down", inspect(reason)])
    {:noreply, state}
  end

  defp await_ready do
    :ok = Tether.Pool.await_ready(:lab, :infinity)
    say(["ready"])
  end

  defp listen do
    case IO.gets("") do
      line when is_binary(line) ->
        words = String.split(line)
        spawn(fn -> answer(words) end)
        listen()

      _over ->
        System.halt(0)
    end
  end

  defp answer(["serve"]) do
    case Tether.call(:lab, "lab.Lab/Pid", "") do
      {:ok, pid} -> say(["serves", pid])
      {:error, error} -> say(["error" | why(error)])
    end
  end

  defp answer(["nap", number, seconds]) do
    :lab
    |> Tether.stream("lab.Lab/Nap", seconds)
    |> Enum.each(fn
      "over" -> say(["nap", number, "over"])
      pid -> say(["napping", number, pid])
    end)
  rescue
    error in [Error] -> say(["nap", number | why(error)])
  end

  defp answer(["job", key, spec]) do
    {:ok, %{found: found, job: job}} = Tether.job(:lab, key, spec: spec)
    say(["job", key, if(found, do: "found", else: "begun") | standing(job)])
  end

  defp answer(["status", key]) do
    case Tether.job_status(:lab, key) do
      {:ok, job} -> say(["status", key | standing(job)])
      {:error, error} -> say(["status", key, "unknown" | why(error)])
    end
  end

  defp answer(["workers"]) do
    {:ok, workers} = Tether.list_workers(:lab)
    say(["workers" | for(%{pid: pid} when pid > 0 <- workers, do: pid)])
  end

  defp answer(["lease"]) do
    case Tether.owner_lease(Lab.Tether) do
      {:ok, lease} -> say(["lease", lease.state, lease.epoch])
      {:error, error} -> say(["lease" | why(error)])
    end
  end

  defp answer(["delete"]) do
    {:ok, _done} = Tether.control(Lab.Tether, :pool_delete, %{name: Lab.env("POOL")})
    say(["deleted"])
  end

  defp answer(["stop"]), do: System.stop()
  defp answer(["leave"]), do: Application.stop(:lab)
  defp answer(["abort"]), do: :erlang.halt(:abort)

  defp standing(job) do
    saved = with %{seq: seq} <- job.checkpoint, do: seq
    result = job.result |> to_string() |> String.replace(" ", "")
    [job.state, job.progress, job.attempt, job.fence, saved || 0, result]
  end

  defp why(%Error{reason: reason, outcome: outcome}), do: [reason, outcome]

  # One write, or two lines could mix.
  defp say(words), do: IO.write([Enum.map_intersperse(words, " ", &to_string/1), "\n"])
end
