defmodule Tether.Mode do
  @moduledoc """
  The lifecycle mode that `:auto` chooses, and why.

  A scheduler wins over everything: it is known by two of three traces, as a variable alone is inherited by every shell in a
  container. A Tether that answers on this machine means that it is to be used; without either, workers live and die with this
  BEAM. Neither `Mix.env/0` (which a release has not got) nor `Node.alive?/0` (which has nothing to do with it) is looked at.
  """

  @type t :: :coupled | :supervised | :independent | :distributed
  @type trace :: :service_account | :kubelet | :alloc_dir | :alloc_cgroup
  @type where :: %{
          optional(:env) => %{String.t() => String.t()},
          optional(:socket) => Path.t() | nil,
          optional(:traces) => [trace]
        }

  @service_account "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
  @patience 500

  @schedulers [
    {"Kubernetes", "KUBERNETES_SERVICE_HOST",
     service_account: "there is a service account", kubelet: "the cgroup or the mounts are a kubelet's"},
    {"Nomad", "NOMAD_ALLOC_ID",
     alloc_dir: "there is an allocation's directory", alloc_cgroup: "the cgroup is an allocation's"}
  ]

  @doc "Every mode."
  @spec all :: [t]
  def all, do: [:coupled, :supervised, :independent, :distributed]

  @doc "Where a BEAM with this environment finds itself."
  @spec where(%{String.t() => String.t()}) :: where
  def where(env \\ System.get_env()) do
    told = Map.take(env, ["KUBERNETES_SERVICE_HOST", "NOMAD_ALLOC_ID", "NOMAD_ALLOC_DIR"])
    %{env: told, socket: env |> sockets() |> Enum.find(&answers?/1), traces: traces(told)}
  end

  defp traces(env) do
    [cgroup, mounts] = for file <- ["cgroup", "mountinfo"], do: read("/proc/self/" <> file)
    alloc = env["NOMAD_ALLOC_ID"] || ""

    [
      service_account: File.exists?(@service_account),
      kubelet: String.contains?(cgroup, "kubepods") or String.contains?(mounts, "/etc-hosts /etc/hosts "),
      alloc_dir: File.dir?(env["NOMAD_ALLOC_DIR"] || ""),
      alloc_cgroup: alloc != "" and String.contains?(cgroup, alloc)
    ]
    |> Enum.flat_map(fn {trace, seen?} -> if seen?, do: [trace], else: [] end)
  end

  defp read(path) do
    case File.read(path) do
      {:ok, text} -> text
      {:error, _why} -> ""
    end
  end

  # A socket that is there may be one that a Tether left behind.
  defp answers?(path) do
    case :gen_tcp.connect({:local, path}, 0, [:local, active: false], @patience) do
      {:ok, socket} -> :gen_tcp.close(socket) == :ok
      {:error, _why} -> false
    end
  end

  @doc """
  Where the socket of a Tether on this machine may be: in its runtime directory.

      iex> Tether.Mode.sockets(%{"XDG_RUNTIME_DIR" => "/run/user/1"})
      ["/run/tether/gateway.sock", "/run/user/1/tether/gateway.sock"]
  """
  @spec sockets(%{String.t() => String.t()}) :: [Path.t()]
  def sockets(env) do
    user = env["XDG_RUNTIME_DIR"] && Path.join(env["XDG_RUNTIME_DIR"], "tether")

    for dir <- [env["TETHER_RUNTIME_DIR"], "/run/tether", user],
        dir != nil,
        do: Path.join(dir, "gateway.sock")
  end

  @doc """
  The mode for a place, and the reason.

      iex> pod = %{env: %{"KUBERNETES_SERVICE_HOST" => "10.0.0.1"}, socket: nil, traces: [:kubelet]}
      iex> Tether.Mode.detect(pod)
      {:distributed, "this runs in Kubernetes (KUBERNETES_SERVICE_HOST is set, the cgroup or the mounts are a kubelet's)"}
      iex> Tether.Mode.detect(%{pod | traces: []})
      {:coupled, "no Tether answers on this machine; of Kubernetes there is only one trace (KUBERNETES_SERVICE_HOST is set), and two are needed"}
      iex> Tether.Mode.detect(%{env: %{}, socket: "/run/tether/gateway.sock"})
      {:supervised, "a Tether serves on this machine (/run/tether/gateway.sock answers)"}
      iex> Tether.Mode.detect(%{env: %{}, socket: nil})
      {:coupled, "no Tether answers on this machine"}
  """
  @spec detect(where) :: {t, String.t()}
  def detect(where) do
    seen = for scheduler <- @schedulers, do: {elem(scheduler, 0), seen(scheduler, where)}

    case {Enum.find(seen, fn {_name, traces} -> length(traces) > 1 end), where[:socket]} do
      {{name, traces}, _socket} ->
        {:distributed, "this runs in #{name} (#{Enum.join(traces, ", ")})"}

      {nil, socket} when is_binary(socket) ->
        {:supervised, "a Tether serves on this machine (#{socket} answers)"}

      {nil, nil} ->
        single =
          for {name, [trace]} <- seen, do: "of #{name} there is only one trace (#{trace}), and two are needed"

        {:coupled, Enum.join(["no Tether answers on this machine" | single], "; ")}
    end
  end

  # What was seen of a scheduler, in words.
  defp seen({_name, variable, traces}, where) do
    claimed = if where[:env][variable] in [nil, ""], do: [], else: ["#{variable} is set"]
    claimed ++ for {trace, text} <- traces, trace in (where[:traces] || []), do: text
  end
end
