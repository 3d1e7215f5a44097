defmodule Tether.ConfigTest do
  use ExUnit.Case, async: true

  alias Tether.Config

  @nowhere %{env: %{}, socket: nil}

  defp valid(opts, where \\ @nowhere), do: Config.validate!([name: MyApp.Tether, owner: "me"] ++ opts, where)

  defp problems(opts) do
    {:error, problems} = opts |> Keyword.put_new(:owner, "me") |> Config.validate(@nowhere)
    problems
  end

  test "the first design's examples are taken as they were written" do
    development = [
      worker_lifecycle_mode: :coupled,
      use_erlexec: true,
      cleanup_strategy: :aggressive,
      orphan_detection: :enabled,
      dets_cleanup: :aggressive
    ]

    assert valid(development).mode == :coupled

    independent = [
      worker_lifecycle_mode: :independent,
      python_pool_strategy: :connect,
      python_pool_addresses: ["python-node-1:50051", "python-node-2:50052"],
      heartbeat_interval: 10_000,
      heartbeat_timeout: 60_000
    ]

    config = valid(independent)
    assert {config.mode, config.ttl, config.gateways} == {:independent, 60_000, []}
    assert config.policy["heartbeat_interval"] == "10000ms"

    assert config.settings["discovery"]["pools"][config.connect] == %{
             "source" => "static://python-node-1:50051,python-node-2:50052"
           }

    assert valid([gateway: "gw:7443"] ++ independent).connect == config.connect

    kubernetes = [
      worker_lifecycle_mode: :distributed,
      topology: :kubernetes,
      python_discovery: :dns,
      python_pool_strategy: :connect,
      python_service_name: "snakepit-python-workers",
      beam_crash_policy: :python_continues,
      python_crash_policy: :beam_notified,
      health_check_interval: 5_000,
      circuit_breaker: [failure_threshold: 5, timeout: 30_000]
    ]

    # As it was written, and with what that means said.
    assert valid(Keyword.drop(kubernetes, [:topology, :python_pool_strategy])) == valid(kubernetes)
    config = valid(kubernetes)
    assert config.connect == "snakepit-python-workers"

    assert config.settings["discovery"]["pools"]["snakepit-python-workers"] == %{
             "source" => "dns://snakepit-python-workers:50051",
             "health" => %{"check" => "grpc", "interval" => "5000ms"}
           }

    assert config.settings["gateway"]["breaker"] == %{"failure_threshold" => 5, "open_for" => "30000ms"}
    assert config.policy["on_owner_exit"] == "continue"

    production = [
      worker_lifecycle_mode: :supervised,
      supervisor_type: :systemd,
      python_service_pattern: "snakepit-python-worker@*.service",
      connection_mode: :connect,
      health_check_interval: 10_000
    ]

    at_hand = %{env: %{}, socket: "/run/tether/gateway.sock"}
    assert %{launcher: "systemd", service: service, liveness: 10_000} = valid(production, at_hand)
    assert service == %{"name" => "snakepit-python-worker@*.service", "connect_only" => true}

    monolith = [
      worker_lifecycle_mode: :supervised,
      supervisor_type: :systemd,
      python_service_name: "snakepit-python-pool"
    ]

    assert %{launcher: "systemd", service: service} = valid(monolith, at_hand)
    assert service == %{"name" => "snakepit-python-pool.service"}
  end

  test "a service is the one that is named, by the pattern first" do
    service = fn opts -> valid([gateway: "gw:1"] ++ opts).service["name"] end
    assert service.(supervisor_type: :runit, python_service_name: "digits:50051") == "digits"
    assert service.(supervisor_type: :systemd, python_service_name: "w@1.service") == "w@1.service"
    both = [python_service_name: "digits", python_service_pattern: "w@*.service"]
    assert service.([supervisor_type: :systemd] ++ both) == "w@*.service"
    # The default is of pools that discovery finds.
    assert service.(supervisor_type: :systemd) == nil
  end

  test "a pool of a supervisor's services is applied, whatever its name" do
    opts = [
      gateway: "gw:1",
      supervisor_type: :systemd,
      connection_mode: :connect,
      python_service_name: "digits"
    ]

    config = valid(opts)
    assert {config.connect, config.settings} == {nil, %{}}
    assert config.service == %{"name" => "digits.service", "connect_only" => true}
    assert [problem] = problems(opts ++ [python_pool_addresses: ["a:1"]])
    assert problem =~ "the `address` in the pool's `spec`"
  end

  test "a Tether at hand is not taken where the configuration finds the workers itself" do
    at_hand = %{env: %{}, socket: "/run/tether/gateway.sock"}
    static = [python_pool_strategy: :connect, python_pool_addresses: ["a:1"]]

    etcd = [
      python_pool_strategy: :connect,
      python_discovery: :etcd,
      settings: %{discovery: %{pools: %{"snakepit-python-workers": %{source: "etcd://e:2379/w/"}}}}
    ]

    for opts <- [[python_discovery: :dns], [python_discovery: :consul], static, etcd] do
      opts = [worker_lifecycle_mode: :distributed] ++ opts
      assert %{gateways: [], connect: "snakepit-python-workers"} = valid(opts, at_hand)
      assert valid(opts, at_hand) == valid(opts)
    end

    assert %{gateways: []} = valid([worker_lifecycle_mode: :independent] ++ static, at_hand)
    # What does not say enough needs it, and so do pools that are to be started.
    for opts <- [[python_pool_strategy: :connect], []] do
      assert %{gateways: [_at_hand]} = valid([worker_lifecycle_mode: :distributed] ++ opts, at_hand)
    end
  end

  test "how often workers are asked is said of those that discovery finds too" do
    found = fn opts ->
      config =
        valid([python_pool_strategy: :connect, python_service_name: "w:5", python_discovery: :dns] ++ opts)

      config.settings["discovery"]["pools"]["w"]
    end

    assert found.([]) == %{"source" => "dns://w:5"}
    assert found.(health_check_interval: 700)["health"] == %{"check" => "grpc", "interval" => "700ms"}
    tcp = %{"discovery" => %{"pools" => %{"w" => %{"health" => %{"check" => "tcp"}}}}}

    assert found.(health_check_interval: 700, settings: tcp)["health"] == %{
             "check" => "tcp",
             "interval" => "700ms"
           }

    assert valid(health_check_interval: 700).settings == %{}
  end

  test "what a gateway's discovery is to be told is said as it is written there" do
    advice = fn opts ->
      [gateway: ["gw-1:7443", "gw-2:7443"], python_pool_strategy: :connect]
      |> Kernel.++(opts)
      |> valid()
      |> Tether.Config.Discovery.advice()
    end

    text =
      advice.(python_pool_addresses: ["a:1", "b:2"], health_check_interval: 5_000, python_service_name: "ml")

    assert text =~ "no pool is named `ml` at gw-1:7443, gw-2:7443."
    assert text =~ ~s(\n    [discovery.pools.ml]\n    source = "static://a:1,b:2"\n)
    assert text =~ ~s(\n    health = { check = "grpc", interval = "5000ms" })

    assert advice.(python_service_name: "w.svc") =~
             ~s([discovery.pools."w.svc"]\n    source = "static://HOST:PORT")
  end

  test "one error lists every problem" do
    error =
      assert_raise Config.Error, fn ->
        valid(
          heartbeat_interval: 0,
          supervisor_type: :upstart,
          gateway: ["gw:0", "unix:/x"],
          circuit_breaker: [threshold: 1],
          python_discovery: {:static, ["nowhere"]},
          tls: [certfile: 1],
          bogus: 1
        )
      end

    message = Exception.message(error)
    assert length(error.problems) == 7
    assert message =~ "has 7 problems:"
    assert message =~ "`bogus` is no key"
    assert message =~ "`heartbeat_interval` is 0: expected milliseconds"
    assert message =~ "`supervisor_type` is :upstart: expected :agent, :systemd, :supervisord, :runit"
    assert message =~ ~s("gw:0" is no address)
    assert message =~ "has no `threshold`; it has `failure_threshold`"
  end

  test "a mode whose needs are not met is refused, with what would meet them" do
    assert [problem] = problems(worker_lifecycle_mode: :independent)
    assert problem =~ "run `tether up` and set `gateway:"
    assert [problem] = problems(worker_lifecycle_mode: :distributed)
    assert problem =~ "`python_discovery`"
    assert [problem] = problems(python_pool_strategy: :connect)
    assert problem =~ "`python_pool_addresses`"
    assert [problem] = problems(python_pool_addresses: ["a:1"])
    assert problem =~ "`python_pool_strategy: :connect`"
    assert [problem] = problems(heartbeat_interval: 10_000, heartbeat_timeout: 15_000)
    assert problem =~ "one lost beat"
    assert [problem] = problems(worker_lifecycle_mode: :coupled, beam_crash_policy: :python_continues)
    assert problem =~ "take `:independent`"
    assert [problem] = problems(gateway: "https://gw:1")
    assert problem =~ "`tls:"
    assert [problem] = problems(gateway: "gw:1", owner: nil)
    assert problem =~ "two BEAMs of one owner fence each other"
    assert valid(owner: nil).owner =~ "MyApp.Tether@"
  end

  test "auto says what it chose, and takes the Tether that is at hand" do
    config = valid([], %{env: %{}, socket: "/run/tether/gateway.sock"})
    assert {config.mode, config.gateways} == {:supervised, ["unix:/run/tether/gateway.sock"]}
    assert config.mode_why =~ "serves on this machine"
    assert valid([]).mode == :coupled

    assert {:error, [problem]} =
             Config.validate([], %{env: %{"NOMAD_ALLOC_ID" => "1"}, socket: nil, traces: [:alloc_dir]})

    assert problem =~ "mode `distributed` needs `gateway`"
  end

  test "a socket that nobody answers at is no Tether" do
    dir = Path.join(System.tmp_dir!(), "tether-#{System.unique_integer([:positive])}")
    File.mkdir_p!(dir)
    on_exit(fn -> File.rm_rf!(dir) end)
    path = Path.join(dir, "gateway.sock")
    where = fn -> Tether.Mode.where(%{"TETHER_RUNTIME_DIR" => dir}) end

    {:ok, listening} = :gen_tcp.listen(0, [:local, ifaddr: {:local, path}, active: false])
    assert where.().socket == path
    :gen_tcp.close(listening)

    assert File.exists?(path)
    refute where.().socket == path
  end

  test "the lease is as long as the mode has it, and as how long a BEAM may be silent" do
    assert %{ttl: 10_000, hung_after: 10_000} = valid(worker_lifecycle_mode: :coupled)

    assert %{ttl: 60_000, hung_after: 60_000} = valid(worker_lifecycle_mode: :independent, gateway: "gw:1")

    assert %{ttl: 4_000, hung_after: 4_000} = valid(heartbeat_timeout: 4_000)
  end

  test "addresses are taken as people write them" do
    config =
      valid(gateway: ["http://gw1:7443/", "[::1]:7", {:dns, "gw.svc", 7443}, "dns:gw.svc:1", "unix:/a"])

    assert config.gateways == ["gw1:7443", "[::1]:7", "dns:gw.svc:7443", "dns:gw.svc:1", "unix:/a"]
  end

  test "what a user sets for the port wins over what keys stand for" do
    config =
      valid(
        circuit_breaker: [failure_threshold: 5],
        settings: %{gateway: %{breaker: %{window: 9}, zone: "a"}}
      )

    assert config.settings == %{
             "gateway" => %{"breaker" => %{"failure_threshold" => 5, "window" => 9}, "zone" => "a"}
           }
  end

  test "the doctor says the mode, why, and what each key does" do
    where = %{env: %{"KUBERNETES_SERVICE_HOST" => "10.0.0.1"}, socket: nil, traces: [:kubelet]}
    program = System.find_executable("sh")

    assert {:ok, lines} =
             Tether.Doctor.report(
               [gateway: "gw:1", owner: "me", topology: :kubernetes, port_program: program],
               where
             )

    text = Enum.join(lines, "\n")
    assert text =~ "mode:     distributed, because this runs in Kubernetes"
    assert text =~ "gateways: gw:1"
    assert text =~ "topology: :kubernetes\n    no meaning: it is seen from the environment"

    assert {:error, lines} = Tether.Doctor.report([port_program: "/nowhere/tether"], where)
    text = Enum.join(lines, "\n")
    assert text =~ "The configuration is refused:"
    assert text =~ "no program is there"
  end
end
