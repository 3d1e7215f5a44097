defmodule Tether.Protocol do
  @moduledoc """
  What the BEAM and `tether port` say to each other, as frames of one external term each.

  Only terms in, terms out: whoever owns the Port is `Tether.Connection`. What comes in is decoded with `:safe`, so that a program
  gone wrong makes no atoms; those it may use are named here, which is what makes them exist.
  """

  @version 1
  @max_frame 128 * 1024 * 1024

  # Every atom that the port may send.
  @atoms ~w(
    welcome refused session opened warning renewed lost connection up down reply ok error headers message item sent
    version program embedded gateways reason epoch ttl pools remaining lease_expired fenced closed gateway
    body metadata trailers worker code retry_after outcome not_sent unknown failed attempts details true false nil
  )a

  # Fields of answers, which come with binary keys. Others stay binaries.
  @fields ~w(
    revision kind unix_ms worker death text owner node stream data
    cause exit_code signal detail stderr_tail measures core_dumped max_rss_kib peak_memory_bytes cpu_ms reaped
    gone_unix_ms proof epoch phase pid address uptime_ms restarts last_death status disabled resources
    spec mode mode_why ready live draining ending waits_for stale rollout_waits_for name size template
    template_name policy depends_on spares starts_per_second placement rollout job key pool state progress message
    result fence attempt checkpoint found adopted seq uri sha256 bytes jobs up guarantee guarantee_by not_covered
    launchers workers lost held_ms labels resources_used held_up_by awaited remaining_ms why
  )a
  @field_of Map.new(@fields, &{Atom.to_string(&1), &1})

  # What is in them is a user's words, not fields.
  @free ~w(env labels resources resources_used)

  @doc "The atoms that a port may send."
  @spec atoms :: [atom]
  def atoms, do: @atoms

  @doc "The longest frame."
  @spec max_frame :: pos_integer
  def max_frame, do: @max_frame

  @doc """
  An answer with atoms for the fields that are known.

      iex> Tether.Protocol.fields(%{"name" => "ml", "labels" => %{"name" => "a"}, "new_one" => [%{"size" => 1}]})
      %{:name => "ml", :labels => %{"name" => "a"}, "new_one" => [%{size: 1}]}
  """
  @spec fields(term) :: term
  def fields(%{} = answer) do
    for {key, value} <- answer, into: %{} do
      {Map.get(@field_of, key, key), if(key in @free, do: value, else: fields(value))}
    end
  end

  def fields(list) when is_list(list), do: Enum.map(list, &fields/1)
  def fields(other), do: other

  @doc "The first frame: who this is, and how it wants to be served."
  @spec hello(Tether.Config.t()) :: tuple
  def hello(config) do
    {:hello,
     %{
       version: @version,
       gateways: config.gateways,
       owner: config.owner,
       ttl: config.ttl,
       heartbeat_timeout: config.hung_after,
       config: config.settings,
       tls: config.tls,
       beam: String.to_integer(System.pid()),
       beats: true
     }}
  end

  @doc """
  The call as the port wants it.

      iex> Tether.Protocol.call("ml", "pkg.Svc/M", timeout: 100, session: "a", metadata: %{"k" => "v"})
      %{affinity: :hint, metadata: [{"k", "v"}], method: "/pkg.Svc/M", pool: "ml", session: "a", timeout: 100}
  """
  @spec call(String.t(), String.t(), keyword) :: map
  def call(pool, method, opts) do
    %{pool: pool, method: path(method), timeout: timeout(opts[:timeout]), metadata: pairs(opts[:metadata])}
    |> with_session(opts[:session], opts[:affinity] || :hint)
    |> with_some(:worker, opts[:worker] && Tether.Worker.to_port(opts[:worker]))
    |> with_some(:idempotency_key, opts[:idempotency_key])
    |> with_some(:traceparent, opts[:traceparent])
  end

  defp path("/" <> _rest = method), do: method
  defp path(method), do: "/" <> method

  defp timeout(:infinity), do: nil
  defp timeout(timeout), do: timeout

  defp pairs(nil), do: []
  defp pairs(metadata), do: for({key, value} <- metadata, do: {to_string(key), to_string(value)})

  defp with_session(call, nil, _affinity), do: call
  defp with_session(call, key, affinity), do: Map.merge(call, %{session: to_string(key), affinity: affinity})

  defp with_some(call, _key, nil), do: call
  defp with_some(call, key, value), do: Map.put(call, key, value)

  @doc """
  A frame of this term, or that it is too large for one.

      iex> {:ok, frame} = Tether.Protocol.encode({:beat, 1})
      iex> Tether.Protocol.decode(IO.iodata_to_binary(frame))
      {:ok, {:beat, 1}}
  """
  @spec encode(term) :: {:ok, iodata} | {:error, :too_large}
  def encode(term) do
    frame = :erlang.term_to_iovec(term)
    if IO.iodata_length(frame) > @max_frame, do: {:error, :too_large}, else: {:ok, frame}
  end

  @doc """
  The term of a frame. One with an atom that nobody here knows is no term of this protocol.

      iex> Tether.Protocol.decode(<<131, 119, 9, "no_atom_x">>)
      {:error, :malformed}
  """
  @spec decode(binary) :: {:ok, term} | {:error, :malformed}
  def decode(frame) do
    {:ok, :erlang.binary_to_term(frame, [:safe])}
  rescue
    ArgumentError -> {:error, :malformed}
  end

  @doc "The error of a call that was under way, or could not begin, when the port's program ended."
  @spec port_down(:not_sent | :unknown, non_neg_integer | nil) :: map
  def port_down(outcome, retry_after) do
    %{
      reason: "PORT_DOWN",
      code: 14,
      outcome: outcome,
      retry_after: retry_after,
      message: "the Port's program ended; it is started again"
    }
  end

  @doc "The error of a call that the port left without an answer beyond its deadline, or that it was never given."
  @spec deadline(:not_sent | :unknown) :: map
  def deadline(outcome) do
    %{
      reason: "DEADLINE_EXCEEDED",
      code: 4,
      outcome: outcome,
      message: "the deadline passed without any answer"
    }
  end

  @doc "The error of a call that was cancelled here."
  @spec cancelled :: map
  def cancelled, do: %{reason: "", code: 1, outcome: :unknown, message: "the caller is gone"}

  @doc "The error of a frame that is too large to send."
  @spec too_large :: map
  def too_large do
    %{
      reason: "MESSAGE_TOO_LARGE",
      code: 8,
      outcome: :not_sent,
      message: "a message may have #{div(@max_frame, 1024 * 1024)} MiB at most"
    }
  end
end
