defmodule Tether.Config.Keys do
  @moduledoc false
  # Every key there is: what it may be, and what it does. Validation, documentation and the doctor read this list.

  @modes [:auto, :coupled, :supervised, :independent, :distributed]

  @keys [
    # {key, kind, default, what it does}
    {:gateway, :addresses, [],
     "gateways to use: `\"host:port\"`, `\"http://host:port\"`, `\"unix:/path\"` or `{:dns, name, port}`. Without any, the Port runs all of Tether itself, for this BEAM alone"},
    {:owner, :string, nil,
     "the name under which this BEAM owns its workers, the same after a restart and no other BEAM's: the later of two with one name fences the earlier. Absent: the node's name; where it has none, needed with a `gateway`"},
    {:worker_lifecycle_mode, {:one_of, @modes}, :auto,
     "the mode of pools that name none; `:auto` looks where it is and says what it chose (`mix tether.doctor`)"},
    {:beam_crash_policy, {:one_of, [:python_continues, :python_terminates]}, nil,
     "what becomes of workers when this BEAM dies; absent: as the mode has it"},
    {:python_crash_policy, {:one_of, [:beam_notified, :restart, :restart_and_notify]}, :beam_notified,
     "`:beam_notified`: the pool's `restart` decides; the others start a dead worker again, whatever `restart` says. The BEAM is notified in all three. Of `:connect` pools it does nothing: who runs their workers starts them again, and nobody tells of their deaths"},
    {:heartbeat_interval, :time, nil,
     "this BEAM's session is renewed at least so often, once a pool is applied, and in any case six times in a lease; absent: as the mode has it. Workers of `:connect` pools are asked nothing by it"},
    {:heartbeat_timeout, :time, nil,
     "the length of this BEAM's lease, after how long without it workers end, and after how long without a beat from inside it counts as hung; absent: as the mode has it. Workers of `:connect` pools are never ended"},
    {:health_check_interval, :time, nil,
     "how often a ready worker is asked whether it still works; those of a `:connect` pool by `grpc.health.v1`, where another check is not in `settings`. With a `gateway`, these are asked as that one's `[discovery.pools.NAME.health]` says"},
    {:circuit_breaker, :breaker, nil,
     "`failure_threshold`, `timeout` and `half_open_max_calls` of the breaker of each worker; with a `gateway` it does nothing, as that one's own `[gateway.breaker]` holds"},
    {:python_pool_strategy, {:one_of, [:spawn, :connect]}, nil,
     "`:connect`: the workers of the pool `python_service_name` run already, and are found by `python_discovery`; absent: so in mode `:distributed` with `python_discovery` and no `gateway`, else `:spawn`"},
    {:connection_mode, {:one_of, [:spawn, :connect]}, nil,
     "another name of `python_pool_strategy`. With a `supervisor_type` both say that its services are neither started nor stopped, and nothing of discovery"},
    {:python_pool_addresses, {:list, :address}, [],
     "where those workers are, as `python_discovery: {:static, addresses}`. With a `gateway` they are not used: its own `[discovery.pools.NAME]` has them, and where it has no such pool an error says what to write there"},
    {:python_discovery, :discovery, nil,
     "where addresses come from: `:dns` asks for `python_service_name`, `:consul` its agent on this machine, `{:static, addresses}` nobody. `:etcd` is for `settings`. With a `gateway` it does nothing, as `python_pool_addresses`. In the modes `:independent` and `:distributed` a Tether that happens to serve on this machine is not used where this says enough"},
    {:python_service_name, :string, "snakepit-python-workers",
     "the name of that pool, and of the service that `python_discovery` asks for; a port behind a colon, or 50051. With a `supervisor_type`: the one service that is a pool's worker (of systemd also without `.service`), where this is set and `python_service_pattern` is not"},
    {:supervisor_type, {:one_of, [:agent, :systemd, :supervisord, :runit]}, :agent,
     "who has the workers as its children; an agent that does not offer it refuses the pool and says so"},
    {:python_service_pattern, :string, nil,
     "with a `supervisor_type`: the services that are a pool's workers where its `spec` has an `address`, as in `\"worker@*.service\"` or `\"worker@{1..10}.service\"`; absent: the one of `python_service_name`"},
    {:topology, {:one_of, [:kubernetes, :nomad, :custom]}, nil,
     "no meaning: it is seen from the environment"},
    {:cleanup_strategy, {:one_of, [:aggressive]}, :aggressive,
     "no meaning: a worker's whole tree is always ended, by its cgroup or namespace"},
    {:use_erlexec, :boolean, false, "no meaning: what erlexec was to guarantee holds in every mode"},
    {:dets_cleanup, {:one_of, [:aggressive]}, nil, "no meaning: nothing is kept on the BEAM's disk"},
    {:orphan_detection, {:one_of, [:enabled, :disabled]}, :enabled,
     "whether telemetry tells of workers of an earlier life; that there are no orphans does not depend on it"},
    {:on_partition, {:one_of, [:self_terminate, :keep_until_lease, :notify_only]}, :self_terminate,
     "what this BEAM does when its lease has run out: the first two stop the Tether with `{:shutdown, :lease_expired}` (before that, in no mode, is anything stopped); `:notify_only` opens another session"},
    {:on_lease_loss, {:one_of, [:stop, :halt]}, :stop,
     "`:halt` ends the VM, with status 70, where the Tether would stop"},
    {:tls, :tls, nil,
     "`cacertfile`, and `certfile` with `keyfile`; `server_name` where it is not the host's"},
    {:port_program, :string, nil,
     "the program of the Port; absent: TETHER_PORT_PROGRAM, else `tether` on the PATH"},
    {:settings, :map, %{},
     "more settings of a Tether in the Port, as its TOML file has them; with a `gateway` they do nothing"}
  ]

  @doc "All of them."
  def all, do: @keys

  @doc "One row of Markdown for each."
  def table do
    rows =
      for {key, kind, default, does} <- @keys,
          do: "| `#{key}` | #{words(kind)} | `#{inspect(default)}` | #{does} |"

    Enum.join(["| key | is | default | does |", "| --- | --- | --- | --- |" | rows], "\n")
  end

  @doc "What a value of this kind is, in words."
  def words({:one_of, some}), do: Enum.map_join(some, ", ", &"`#{inspect(&1)}`")
  def words({:list, :address}), do: "list of `\"host:port\"` or `\"unix:/path\"`"
  def words(:addresses), do: "an address or a list of them"
  def words(:string), do: "string"
  def words(:time), do: "milliseconds"
  def words(:boolean), do: "`true`, `false`"
  def words(:breaker), do: "keyword list"
  def words(:discovery), do: "`:dns`, `:etcd`, `:consul`, `{:static, addresses}`"
  def words(:tls), do: "keyword list"
  def words(:map), do: "map"
end
