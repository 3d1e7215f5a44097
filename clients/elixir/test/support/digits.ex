defmodule Tether.Test.Digits do
  @moduledoc false
  # The real Python gRPC worker of examples/digits, and its messages by hand.

  import Bitwise

  alias Tether.Test.Processes

  @root Path.expand("../../../..", __DIR__)

  @predict "digits.v1.DigitsService/Predict"
  @train "digits.v1.DigitsService/Train"

  def predict, do: @predict
  def train, do: @train

  def program do
    built = Path.join(@root, "target/debug/tether")

    cond do
      told = System.get_env("TETHER_PORT_PROGRAM") -> told
      File.exists?(built) -> built
      true -> raise "`tether` is not built: run `cargo build --workspace --bins`, or `cargo xtask test`"
    end
  end

  @doc "What to run: the worker, or the unruly one with flags; `marker` is how its processes are found."
  def spec(marker, opts \\ []) do
    python = Path.join(@root, "target/venv/digits/bin/python")

    File.exists?(python) ||
      raise "there is no Python environment: run `tools/python-env.sh`, or `cargo xtask test`"

    [
      command: [python | Keyword.get(opts, :script, ["worker.py"])],
      cwd: Path.join(@root, "examples/digits"),
      env: %{"TETHER_TEST" => marker, "OPENBLAS_NUM_THREADS" => "1"},
      template: Keyword.get(opts, :template, %{})
    ]
  end

  @doc "Has one serve that nobody supervises, and says where. It ends with its test."
  def serve(marker) do
    address = free_address()
    [command: [python, worker], cwd: cwd, env: env, template: _] = spec(marker)
    script = ~S(cd "$1" && exec setpriv --pdeathsig KILL "$2" "$3" --listen "$4" </dev/null >/dev/null 2>&1)

    Port.open({:spawn_executable, "/bin/sh"}, [
      :exit_status,
      args: ["-c", script, "sh", cwd, python, worker, address],
      env: for({key, value} <- env, do: {to_charlist(key), to_charlist(value)})
    ])

    ExUnit.Callbacks.on_exit(fn -> for pid <- Processes.with_marker(marker), do: Processes.kill(pid) end)
    address
  end

  @doc "Where nobody listens yet."
  def free_address do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)
    "127.0.0.1:#{port}"
  end

  @doc "An image of nothing."
  def image, do: <<0x0A, 64>> <> :binary.copy(<<0>>, 64)

  @doc "A training of so many epochs with a pause after each."
  def training(job, epochs, throttle_ms) do
    <<0x0A, byte_size(job)>> <> job <> <<0x10>> <> varint(epochs) <> <<0x28>> <> varint(throttle_ms)
  end

  @doc "The fields of a message by number."
  def fields(message), do: fields(message, %{})

  defp fields("", found), do: found

  defp fields(message, found) do
    {tag, rest} = read(message)

    {value, rest} =
      case tag &&& 7 do
        0 ->
          read(rest)

        1 ->
          <<value::little-float, rest::binary>> = rest
          {value, rest}

        2 ->
          {size, rest} = read(rest)
          <<value::binary-size(size), rest::binary>> = rest
          {value, rest}
      end

    fields(rest, Map.put(found, tag >>> 3, value))
  end

  defp varint(n) when n < 128, do: <<n>>
  defp varint(n), do: <<1::1, n &&& 127::7>> <> varint(n >>> 7)

  defp read(<<0::1, n::7, rest::binary>>), do: {n, rest}

  defp read(<<1::1, low::7, rest::binary>>) do
    {high, rest} = read(rest)
    {high <<< 7 ||| low, rest}
  end
end
