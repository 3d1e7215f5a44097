defmodule Tether.Pool.Spec do
  @moduledoc """
  A pool in OTP's words, as the tree that Tether's pool files have. Pure.

  | option | |
  | --- | --- |
  | `size` | number of workers; 1 |
  | `mode` | as `worker_lifecycle_mode`, which it is when absent |
  | `restart` | `:permanent`: after each death. `:transient`: after those that were neither an exit with code 0 nor ordered. `:temporary`: never |
  | `shutdown` | milliseconds between SIGTERM and SIGKILL, `:brutal_kill`, or `:infinity` (a day) |
  | `max_restarts` | `{count, milliseconds}`: more restarts than that are a crash loop, and the place is given up |
  | `depends_on` | pools that must have a ready worker first |
  | `spares`, `starts_per_second` | as in a pool file |
  | `placement`, `rollout`, `policy` | maps, as in a pool file |
  | `spec` | what to run, below |

  Of `spec`:

  | key | |
  | --- | --- |
  | `command` | `"program"` or `["program", "argument", ...]` |
  | `env` | map of strings |
  | `cwd` | working directory; that of this BEAM where it is relative |
  | `listen` | `:unix` (a socket of its own) or `:tcp`; its address is in TETHER_LISTEN |
  | `ready` | `:grpc` (health), `:connect`, `:notify`, `:started`, `{:http, path}`, `{:file, path}`, `{:log_line, text}` |
  | `ready_timeout` | milliseconds from start to ready |
  | `limits` | `memory: "4G"`, `cpus: 2`, `pids: 100`, and `gpus: 1`, which is a counted resource of the node |
  | `address` | instead of `command`: the workers are services of the `supervisor_type`, and listen there, as in `"unix:/run/worker-{instance}.sock"` |
  | `service` | their name there; `python_service_pattern` or `python_service_name` when absent |
  | `template` | map of anything else that a pool file's template may have |
  | `template_name` | a template that the arbiter knows, instead of all of these |
  """

  @pool_keys ~w(size mode restart shutdown max_restarts depends_on spares starts_per_second placement rollout policy spec)a
  @spec_keys ~w(command env cwd listen ready ready_timeout limits address service template template_name)a
  @limits ~w(memory cpus pids gpus)a
  @modes ~w(auto coupled supervised independent distributed)a
  @day 86_400_000

  @doc "Options of a pool that are not its process's."
  @spec keys :: [atom]
  def keys, do: @pool_keys

  @doc """
  The tree of a pool, or everything that is wrong with it.

      iex> config = Tether.Config.validate!(name: MyApp.Tether, worker_lifecycle_mode: :coupled)
      iex> {:ok, tree} = Tether.Pool.Spec.tree([size: 2, shutdown: 500, spec: [command: ["python3", "w.py"], cwd: "/srv"]], config)
      iex> {tree["size"], tree["mode"], tree["template"]["args"], tree["template"]["stop"]}
      {2, "coupled", ["w.py"], %{"grace" => "500ms"}}
      iex> Tether.Pool.Spec.tree([workers: 2, spec: []], config)
      {:error, ["`workers` is no option of a pool", "`spec` needs a `command`"]}
  """
  @spec tree(keyword, Tether.Config.t()) :: {:ok, map} | {:error, [String.t()]}
  def tree(opts, config) do
    spec = opts[:spec] || []

    with [] <- not_keywords(spec), [] <- problems(opts, spec, config) do
      {:ok, build(opts, spec, config)}
    else
      problems -> {:error, problems}
    end
  end

  defp not_keywords(spec) do
    cond do
      not Keyword.keyword?(spec) ->
        ["`spec` is #{inspect(spec)}: expected a keyword list"]

      not Keyword.keyword?(spec[:limits] || []) ->
        ["`limits` is #{inspect(spec[:limits])}: expected a keyword list"]

      true ->
        []
    end
  end

  defp problems(opts, spec, config) do
    mode = opts[:mode] || config.mode

    unknown(opts, @pool_keys, "is no option of a pool") ++
      unknown(spec, @spec_keys, "is no key of `spec`") ++
      unknown(spec[:limits] || [], @limits, "is no limit") ++
      Enum.flat_map(
        [
          {spec[:command] == nil and spec[:template_name] == nil and spec[:address] == nil and
             get_in(spec, [:template, "command"]) == nil, "`spec` needs a `command`"},
          {spec[:address] != nil and config.launcher == nil,
           "`address` is of services that a supervisor has: set `supervisor_type`"},
          {spec[:address] != nil and service_name(spec, config) == nil,
           "`address` needs the name of the services: `service`, `python_service_pattern` or `python_service_name`"},
          {spec[:address] == nil and spec[:service] != nil, "`service` needs an `address`: where it listens"},
          {spec[:address] != nil and spec[:command] != nil,
           "`spec` has both a `command` and an `address`: what a service runs is said where it is defined"},
          {not is_integer(opts[:size] || 1) or (opts[:size] || 1) < 0, "`size` is a number of workers"},
          {mode not in @modes,
           "`mode` is #{inspect(mode)}; there are #{Enum.map_join(@modes, ", ", &inspect/1)}"},
          {mode in [:supervised, :independent] and config.gateways == [],
           "mode `#{mode}` needs a `gateway`: the Tether in the Port ends with this BEAM, and its workers with it"},
          {grace(opts[:shutdown]) == :error, "`shutdown` is milliseconds, :brutal_kill or :infinity"},
          {restart(opts[:restart]) == :error, "`restart` is :permanent, :transient or :temporary"},
          {ready(spec[:ready]) == :error, "`ready` is #{inspect(spec[:ready])}, which is no way to be ready"},
          {not match?(
             {count, window} when is_integer(count) and is_integer(window),
             opts[:max_restarts] || {1, 1}
           ), "`max_restarts` is {count, milliseconds}"}
        ],
        fn {broken?, problem} -> if broken?, do: [problem], else: [] end
      )
  end

  defp unknown(opts, known, problem) do
    for key <- Keyword.keys(opts), key not in known, do: "`#{key}` #{problem}"
  end

  defp build(opts, spec, config) do
    mode = opts[:mode] || config.mode
    policy = put(config.policy, "launcher", launcher(mode, config.launcher))

    %{
      "mode" => to_string(mode),
      "size" => opts[:size] || 1,
      "policy" => Map.merge(policy, strings(opts[:policy] || %{}))
    }
    |> put("depends_on", opts[:depends_on] && Enum.map(opts[:depends_on], &to_string/1))
    |> put("spares", opts[:spares])
    |> put("starts_per_second", opts[:starts_per_second])
    |> put("placement", placement(opts[:placement], spec[:limits][:gpus]))
    |> put("rollout", opts[:rollout] && strings(opts[:rollout]))
    |> put("template", spec[:template_name] || template(opts, spec, config))
  end

  # Mode `supervised` would have systemd for an agent, where nothing else is said.
  defp launcher(:supervised, nil), do: "exec"
  defp launcher(_mode, launcher), do: launcher

  defp service_name(spec, config), do: spec[:service] || (config.service || %{})["name"]

  defp service(%{address: address} = spec, config) when is_binary(address) do
    Map.merge(config.service || %{}, %{"name" => service_name(spec, config), "address" => address})
  end

  defp service(_spec, _config), do: nil

  defp template(opts, spec, config) do
    {command, args} = command(spec[:command])

    %{}
    |> put("command", command)
    |> put("service", service(Map.new(spec), config))
    |> put("args", args)
    |> put(
      "env",
      spec[:env] && Map.new(spec[:env], fn {key, value} -> {to_string(key), to_string(value)} end)
    )
    |> put("cwd", spec[:cwd] && Path.expand(spec[:cwd]))
    |> put("listen", spec[:listen] && to_string(spec[:listen]))
    |> put("readiness", readiness(spec[:ready], spec[:ready_timeout]))
    |> put("stop", grace(opts[:shutdown]))
    |> put("restart", restarts(config.restart || restart(opts[:restart]), opts[:max_restarts]))
    |> put("limits", limits(spec[:limits]))
    |> put("liveness", config.liveness && %{"interval" => "#{config.liveness}ms"})
    |> Tether.Config.deep_merge(spec[:template] || %{})
  end

  defp command([command | args]), do: {command, args}
  defp command(command), do: {command, nil}

  defp readiness(nil, nil), do: nil
  defp readiness(ready, timeout), do: put(ready(ready) || %{}, "timeout", timeout && "#{timeout}ms")

  defp ready(nil), do: nil
  defp ready(kind) when kind in [:grpc, :connect, :notify, :started], do: %{"kind" => to_string(kind)}
  defp ready({:http, path}), do: %{"kind" => "http", "path" => path}
  defp ready({:file, path}), do: %{"kind" => "file", "file" => path}
  defp ready({:log_line, text}), do: %{"kind" => "log_line", "text" => text}
  defp ready(_other), do: :error

  defp grace(nil), do: nil
  defp grace(:brutal_kill), do: %{"grace" => "0ms"}
  defp grace(:infinity), do: %{"grace" => "#{@day}ms"}
  defp grace(ms) when is_integer(ms) and ms >= 0, do: %{"grace" => "#{ms}ms"}
  defp grace(_other), do: :error

  defp restart(nil), do: nil
  defp restart(:permanent), do: "always"
  defp restart(:transient), do: "transient"
  defp restart(:temporary), do: "never"
  defp restart(_other), do: :error

  defp restarts(nil, nil), do: nil

  defp restarts(mode, most) do
    {count, window} = most || {nil, nil}
    %{} |> put("mode", mode) |> put("max_restarts", count) |> put("window", window && "#{window}ms")
  end

  defp limits(nil), do: nil

  defp limits(limits) do
    case Keyword.delete(limits, :gpus) do
      [] -> nil
      limits -> Map.new(limits, fn {key, value} -> {to_string(key), limit(key, value)} end)
    end
  end

  # As OTP people and Kubernetes write it: "4G".
  defp limit(:memory, text) when is_binary(text),
    do: String.replace(text, ~r/^(\d+)([KMGT])i?B?$/, "\\1\\2iB")

  defp limit(:memory, bytes), do: "#{bytes}B"
  defp limit(:cpus, cpus), do: cpus / 1
  defp limit(_key, value), do: value

  defp placement(nil, nil), do: nil

  defp placement(placement, gpus) do
    placement = strings(placement || %{})
    if gpus, do: Tether.Config.deep_merge(placement, %{"resources" => %{"gpu" => gpus}}), else: placement
  end

  defp strings(map) when is_map(map) or is_list(map) do
    Map.new(map, fn
      {key, %{} = value} -> {to_string(key), strings(value)}
      {key, value} when is_atom(value) and not is_boolean(value) -> {to_string(key), to_string(value)}
      {key, value} -> {to_string(key), value}
    end)
  end

  defp put(map, _key, nil), do: map
  defp put(map, key, value), do: Map.put(map, key, value)
end
