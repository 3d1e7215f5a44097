defmodule Tether.Config do
  @moduledoc """
  The configuration of a Tether: read once, when it starts, and refused as a whole with every problem in one error.

  Keys stand under `config :tether`, or are options of `{Tether, ...}`, which win. Those of the first design text are taken as
  they were written there; what has no meaning in Tether says so.

  #{Tether.Config.Keys.table()}

  The modes:

  | | `:coupled` | `:supervised` | `:independent` | `:distributed` |
  | --- | --- | --- | --- | --- |
  | for | development, short work | one production server | long jobs | many nodes |
  | needs a `gateway` | no | yes | yes, but for workers that are found | yes, but for workers that are found |
  | this BEAM is killed | workers die at once | they go on | they go on for `heartbeat_timeout` | as `beam_crash_policy` says |
  | this BEAM is back | new workers | the same workers | the same workers | the same workers |

  Workers that are found (`python_pool_strategy: :connect`) run already, as something else's children: in no mode does Tether start
  or end them, whatever becomes of this BEAM, and nobody tells of their deaths. One that does not answer gets no calls.
  """

  alias Tether.Config.{Check, Discovery, Keys}
  alias Tether.Mode

  @type t :: %__MODULE__{
          name: atom,
          owner: String.t(),
          mode: Mode.t(),
          mode_why: String.t(),
          gateways: [String.t()],
          ttl: pos_integer,
          hung_after: pos_integer,
          tls: map | nil,
          settings: map,
          policy: map,
          launcher: String.t() | nil,
          service: %{String.t() => term} | nil,
          restart: String.t() | nil,
          liveness: pos_integer | nil,
          port_program: Path.t() | nil,
          connect: String.t() | nil,
          orphan_detection: boolean,
          on_lease_loss: :stop | :halt | :reopen
        }

  @enforce_keys [:name, :owner, :mode, :mode_why]
  defstruct [
    :name,
    :owner,
    :mode,
    :mode_why,
    :launcher,
    :service,
    :restart,
    :liveness,
    :port_program,
    :connect,
    :tls,
    gateways: [],
    ttl: 10_000,
    hung_after: 10_000,
    settings: %{},
    policy: %{},
    orphan_detection: true,
    on_lease_loss: :stop
  ]

  defmodule Error do
    @moduledoc "A configuration that is refused, with everything that is wrong with it."
    defexception problems: []

    @impl true
    def message(%{problems: problems}) do
      count = if length(problems) == 1, do: "1 problem", else: "#{length(problems)} problems"
      lines = Enum.map(problems, &["\n  * ", &1])
      IO.iodata_to_binary(["the configuration of Tether has #{count}:" | lines])
    end
  end

  @doc """
  The configuration of these keys, or an error that lists every problem.

      iex> Tether.Config.validate!(name: MyApp.Tether, worker_lifecycle_mode: :coupled, owner: "me").mode
      :coupled
      iex> Tether.Config.validate!(name: MyApp.Tether, heartbeat_timeout: "60s", worker_mode: :coupled)
      ** (Tether.Config.Error) the configuration of Tether has 2 problems:
        * `worker_mode` is no key; did you mean `worker_lifecycle_mode`?
        * `heartbeat_timeout` is "60s": expected milliseconds
  """
  @spec validate!(keyword, Mode.where()) :: t
  def validate!(opts, where \\ Mode.where()) do
    case validate(opts, where) do
      {:ok, config} -> config
      {:error, problems} -> raise Error, problems: problems
    end
  end

  @doc "As `validate!/2`, with the problems as a list."
  @spec validate(keyword, Mode.where()) :: {:ok, t} | {:error, [String.t()]}
  def validate(opts, where \\ Mode.where()) do
    {name, opts} = Keyword.pop(opts, :name, Tether)

    with [] <- unknown(opts) ++ wrong(opts),
         values = Map.new(Keys.all(), fn {key, _kind, default, _does} -> {key, default} end),
         values = opts |> Map.new() |> then(&Map.merge(values, &1)),
         {mode, why} = mode(values, where),
         values = values |> services(opts) |> at_hand(mode, where) |> strategy(mode),
         [] <- needs(values, mode) do
      {:ok, build(name, values, mode, why)}
    else
      problems -> {:error, problems}
    end
  end

  @doc "What each key that is set does, and what it does not."
  @spec explain(keyword) :: [{atom, term, String.t()}]
  def explain(opts) do
    for {key, _kind, _default, does} <- Keys.all(), Keyword.has_key?(opts, key), do: {key, opts[key], does}
  end

  defp unknown(opts) do
    known = for {key, _kind, _default, _does} <- Keys.all(), do: key
    for key <- Keyword.keys(opts), key not in known, do: "`#{key}` is no key; #{nearest(key, known)}"
  end

  defp nearest(key, known) do
    near = Enum.max_by(known, &String.jaro_distance(to_string(key), to_string(&1)))
    "did you mean `#{near}`?"
  end

  defp wrong(opts) do
    for {key, kind, default, _does} <- Keys.all(),
        {:ok, value} <- [Keyword.fetch(opts, key)],
        value != default,
        {:error, why} <- [Check.kind(kind, value)],
        do: "`#{key}` is #{inspect(value)}: #{why}"
  end

  defp mode(%{worker_lifecycle_mode: :auto}, where), do: Mode.detect(where)
  defp mode(%{worker_lifecycle_mode: mode}, _where), do: {mode, "`worker_lifecycle_mode` says so"}

  # The services of a supervisor are those of the pattern, or else the one of that name. The default names none.
  defp services(%{supervisor_type: type, python_service_pattern: nil} = values, opts) when type != :agent do
    %{values | python_service_pattern: opts[:python_service_name] && unit(Discovery.pool(values), type)}
  end

  defp services(values, _opts), do: values

  # As systemctl completes it.
  defp unit(name, :systemd), do: if(String.ends_with?(name, ".service"), do: name, else: name <> ".service")
  defp unit(name, _type), do: name

  # A Tether that serves on this machine is what a mode that needs one means, where no other is named. It would not know
  # of workers that this configuration says how to find, and these need none.
  defp at_hand(%{gateway: []} = values, mode, %{socket: socket})
       when mode != :coupled and is_binary(socket) do
    needs_none? = mode in [:independent, :distributed] and values |> strategy(mode) |> sourced?()
    if needs_none?, do: values, else: %{values | gateway: ["unix:" <> socket]}
  end

  defp at_hand(values, _mode, _where), do: values

  # In mode `distributed` without a gateway there is nobody here who would start workers: those that discovery finds run already.
  defp strategy(%{python_pool_strategy: nil} = values, mode) do
    agent? = values.supervisor_type == :agent
    found? = mode == :distributed and agent? and embedded?(values) and values.python_discovery != nil
    %{values | python_pool_strategy: if(found?, do: :connect, else: :spawn)}
  end

  defp strategy(values, _mode), do: values

  defp needs(values, mode) do
    finds? = Discovery.finds?(values)
    addresses? = values.python_pool_addresses != []

    [
      {(mode == :supervised or (mode == :independent and not finds?)) and embedded?(values),
       "mode `#{mode}` needs a Tether that outlives this BEAM: run `tether up` and set `gateway: \"unix:/run/tether/gateway.sock\"`, or take `worker_lifecycle_mode: :coupled`"},
      {mode == :distributed and embedded?(values) and not finds?,
       "mode `distributed` needs `gateway`, or workers that run already and can be found: `python_discovery` with `python_pool_strategy: :connect`"},
      {not embedded?(values) and owner(values) == nil,
       "`owner` is needed with a `gateway` where the node has no name: two BEAMs of one owner fence each other, so set one that is the same after a restart and no other BEAM's"},
      {finds? and embedded?(values) and not sourced?(values),
       "`python_pool_strategy: :connect` needs `python_pool_addresses`, or `python_discovery` other than `:etcd` (for which `settings` name the source, or a `gateway` knows it)"},
      {addresses? and values.supervisor_type == :agent and not finds?,
       "`python_pool_addresses` are of workers that run already: set `python_pool_strategy: :connect`"},
      {addresses? and values.supervisor_type != :agent,
       "`python_pool_addresses` would do nothing: where the services of a `supervisor_type` listen is the `address` in the pool's `spec`"},
      {values.heartbeat_interval && values.heartbeat_timeout &&
         values.heartbeat_interval * 2 > values.heartbeat_timeout,
       "`heartbeat_timeout` is less than two of `heartbeat_interval`: one lost beat would end everything"},
      {mode == :coupled and values.beam_crash_policy == :python_continues,
       "`beam_crash_policy: :python_continues` is not mode `coupled`, in which workers end with the BEAM: take `:independent`"},
      {secure?(values) and values.tls == nil, "`gateway` has an https address: set `tls: [cacertfile: ...]`"},
      {values.tls != nil and values.tls[:certfile] == nil != (values.tls[:keyfile] == nil),
       "`tls` needs both of `certfile` and `keyfile`, or neither"}
    ]
    |> Enum.flat_map(fn {broken?, problem} -> if broken?, do: [problem], else: [] end)
  end

  defp embedded?(values), do: List.wrap(values.gateway) == []

  defp sourced?(values),
    do: Discovery.finds?(values) and Discovery.sourced?(settings(values), Discovery.pool(values))

  defp secure?(values), do: Enum.any?(List.wrap(values.gateway), &match?("https://" <> _rest, &1))

  defp build(name, values, mode, why) do
    silence = values.heartbeat_timeout || if(mode == :coupled, do: 10_000, else: 60_000)

    %__MODULE__{
      name: name,
      owner: owner(values) || alone(name),
      mode: mode,
      mode_why: why,
      gateways:
        for(gateway <- List.wrap(values.gateway), {:ok, address} <- [Check.gateway(gateway)], do: address),
      ttl: silence,
      hung_after: silence,
      tls: tls(values.tls),
      settings: settings(values),
      policy: policy(values),
      launcher: if(values.supervisor_type != :agent, do: to_string(values.supervisor_type)),
      service: service(values),
      restart: if(values.python_crash_policy == :beam_notified, do: nil, else: "always"),
      liveness: values.health_check_interval,
      port_program: values.port_program,
      connect: if(Discovery.finds?(values), do: Discovery.pool(values)),
      orphan_detection: values.orphan_detection == :enabled,
      on_lease_loss: on_lease_loss(values)
    }
  end

  # What a pool's template says of services that a supervisor has; the pool says where they listen.
  defp service(%{supervisor_type: :agent}), do: nil

  defp service(values) do
    connect = if Discovery.connect?(values), do: %{"connect_only" => true}, else: %{}
    put_some(connect, ["name"], values.python_service_pattern)
  end

  defp on_lease_loss(%{on_partition: :notify_only}), do: :reopen
  defp on_lease_loss(values), do: values.on_lease_loss

  defp owner(%{owner: nil}), do: if(node() != :nonode@nohost, do: to_string(node()))
  defp owner(%{owner: owner}), do: owner

  # Of a Tether in the Port, which nobody else asks.
  defp alone(name) do
    {:ok, host} = :inet.gethostname()
    "#{short(name)}@#{host}"
  end

  defp short(name), do: name |> inspect() |> String.replace(~r/[^A-Za-z0-9._-]/, "")

  defp tls(nil), do: nil

  defp tls(tls) do
    %{ca: tls[:cacertfile], cert: tls[:certfile], key: tls[:keyfile], name: tls[:server_name]}
  end

  # The policy of a pool: what this configuration changes in the preset of its mode.
  defp policy(values) do
    [
      {"heartbeat_interval", values.heartbeat_interval && "#{values.heartbeat_interval}ms"},
      {"heartbeat_timeout", values.heartbeat_timeout && "#{values.heartbeat_timeout}ms"},
      {"on_owner_exit", crash(values.beam_crash_policy)},
      {"on_owner_silent", crash(values.beam_crash_policy)}
    ]
    |> Enum.filter(fn {_key, value} -> value end)
    |> Map.new()
  end

  defp crash(nil), do: nil
  defp crash(:python_continues), do: "continue"
  defp crash(:python_terminates), do: "kill"

  defp settings(values) do
    %{}
    |> put_some(["gateway", "breaker"], breaker(values.circuit_breaker))
    |> deep_merge(Discovery.settings(values))
    |> deep_merge(values.settings)
  end

  defp breaker(nil), do: nil

  defp breaker(breaker) do
    [
      {"failure_threshold", breaker[:failure_threshold]},
      {"open_for", breaker[:timeout] && "#{breaker[:timeout]}ms"},
      {"half_open_probes", breaker[:half_open_max_calls]}
    ]
    |> Enum.filter(fn {_key, value} -> value end)
    |> Map.new()
  end

  defp put_some(tree, _path, nil), do: tree
  defp put_some(tree, [key], value), do: Map.put(tree, key, value)

  defp put_some(tree, [key | rest], value),
    do: Map.put(tree, key, put_some(Map.get(tree, key, %{}), rest, value))

  @doc false
  def deep_merge(left, right) do
    right = for {key, value} <- right, into: %{}, do: {to_string(key), value}

    Map.merge(left, right, fn
      _key, %{} = left, %{} = right -> deep_merge(left, right)
      _key, _left, right -> right
    end)
  end
end
