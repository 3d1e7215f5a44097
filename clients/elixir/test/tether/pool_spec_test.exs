defmodule Tether.Pool.SpecTest do
  use ExUnit.Case, async: true

  alias Tether.Pool.Spec

  defp config(opts \\ []) do
    Tether.Config.validate!([worker_lifecycle_mode: :coupled, owner: "me"] ++ opts, %{env: %{}, socket: nil})
  end

  test "OTP's words become those of a pool file" do
    opts = [
      size: 4,
      restart: :transient,
      shutdown: :brutal_kill,
      max_restarts: {3, 5_000},
      depends_on: [:db],
      policy: %{heartbeat_timeout: "4s"},
      spec: [
        command: ["python3", "-u", "w.py"],
        env: %{A: 1},
        cwd: "/srv",
        listen: :tcp,
        ready: {:log_line, "up"},
        ready_timeout: 5_000,
        limits: [memory: "4G", cpus: 2, pids: 10, gpus: 1],
        template: %{capacity: 8, stop: %{signal: "SIGINT"}}
      ]
    ]

    assert {:ok, tree} = Spec.tree(opts, config())

    assert tree == %{
             "mode" => "coupled",
             "size" => 4,
             "depends_on" => ["db"],
             "policy" => %{"heartbeat_timeout" => "4s"},
             "placement" => %{"resources" => %{"gpu" => 1}},
             "template" => %{
               "command" => "python3",
               "args" => ["-u", "w.py"],
               "env" => %{"A" => "1"},
               "cwd" => "/srv",
               "listen" => "tcp",
               "readiness" => %{"kind" => "log_line", "text" => "up", "timeout" => "5000ms"},
               "stop" => %{"grace" => "0ms", "signal" => "SIGINT"},
               "restart" => %{"mode" => "transient", "max_restarts" => 3, "window" => "5000ms"},
               "limits" => %{"memory" => "4GiB", "cpus" => 2.0, "pids" => 10},
               "capacity" => 8
             }
           }
  end

  test "workers that a supervisor has are named by the pattern, and listen where the pool says" do
    supervised = [supervisor_type: :systemd, python_service_pattern: "worker@*.service"]
    spec = [address: "unix:/run/worker-{instance}.sock"]
    address = %{"address" => "unix:/run/worker-{instance}.sock"}

    assert {:ok, tree} = Spec.tree([spec: spec], config(supervised))
    assert tree["template"] == %{"service" => Map.put(address, "name", "worker@*.service")}
    assert tree["policy"]["launcher"] == "systemd"

    connect = config(supervised ++ [connection_mode: :connect, gateway: "unix:/x"])
    assert {:ok, tree} = Spec.tree([spec: [service: "w.service"] ++ spec], connect)
    assert tree["template"]["service"] == Map.merge(address, %{"name" => "w.service", "connect_only" => true})

    assert {:error, [problem]} = Spec.tree([spec: spec ++ [service: "w"]], config())
    assert problem =~ "set `supervisor_type`"
    assert {:error, [problem]} = Spec.tree([spec: spec], config(supervisor_type: :runit))
    assert problem =~ "`python_service_pattern`"
    named = config(supervisor_type: :runit, python_service_name: "digits")
    assert {:ok, tree} = Spec.tree([spec: spec], named)
    assert tree["template"]["service"] == Map.put(address, "name", "digits")
    assert {:error, [problem]} = Spec.tree([spec: [command: "w"] ++ spec], config(supervised))
    assert problem =~ "both a `command` and an `address`"
  end

  test "what the configuration says of all pools holds for each" do
    config = config(health_check_interval: 5_000, python_crash_policy: :restart, heartbeat_timeout: 60_000)
    assert {:ok, tree} = Spec.tree([restart: :temporary, spec: [command: "w"]], config)
    assert tree["template"]["restart"]["mode"] == "always"
    assert tree["template"]["liveness"] == %{"interval" => "5000ms"}
    assert tree["policy"] == %{"heartbeat_timeout" => "60000ms"}
  end

  test "a supervised pool is the agent's, where nobody else is named" do
    launcher = fn opts ->
      {:ok, tree} = Spec.tree([mode: :supervised, spec: [command: "w"]], config([gateway: "gw:1"] ++ opts))
      tree["policy"]["launcher"]
    end

    assert launcher.([]) == "exec"
    assert launcher.(supervisor_type: :systemd) == "systemd"
  end

  test "everything that is wrong is said at once" do
    opts = [
      size: -1,
      mode: :independent,
      restart: :sometimes,
      shutdown: "1s",
      spec: [command: "w", ready: :soon, limit: []]
    ]

    assert {:error, problems} = Spec.tree(opts, config())
    text = Enum.join(problems, "\n")
    assert length(problems) == 6
    assert text =~ "`limit` is no key of `spec`"
    assert text =~ "mode `independent` needs a `gateway`"
    assert text =~ "`ready` is :soon"
  end

  test "a map where keywords are wanted is refused in words" do
    assert {:error, ["`spec` is %{command: \"w\"}: expected a keyword list"]} =
             Spec.tree([spec: %{command: "w"}], config())

    assert {:error, ["`limits` is %{cpus: 1}: expected a keyword list"]} =
             Spec.tree([spec: [command: "w", limits: %{cpus: 1}]], config())
  end
end
