# What a BEAM application does with ports. Says `r` when it is up and waits for a line; then either spawns for
# so many milliseconds with `count` under way at a time and says how many ended per second, or holds `count`
# ports open.
[kind, count, millis, program | args] = System.argv()
count = String.to_integer(count)
millis = String.to_integer(millis)
open = fn slot ->
  env = [{~c"TETHER_LISTEN", ~c"unix:/bench/sockets/#{slot}"}]
  Port.open({:spawn_executable, program}, [:exit_status, :binary, args: args, env: env])
end
IO.write("r")
IO.gets("")
case kind do
  "rate" ->
    stop = System.monotonic_time(:microsecond) + millis * 1000
    run = fn run, slot, done ->
      port = open.(slot)
      receive do {^port, {:exit_status, 0}} -> :ok end
      if System.monotonic_time(:microsecond) < stop, do: run.(run, slot, done + 1), else: done + 1
    end
    start = System.monotonic_time(:microsecond)
    tasks = for slot <- 1..count, do: Task.async(fn -> run.(run, slot, 0) end)
    total = tasks |> Task.await_many(:infinity) |> Enum.sum()
    elapsed = System.monotonic_time(:microsecond) - start
    IO.puts("#{total * 1_000_000 / elapsed}")
    IO.gets("")
  "hold" ->
    for slot <- 0..(count - 1), do: open.(slot)
    Process.sleep(:infinity)
end
