# A port program that misbehaves as told, to show what the library does about it. What the real one does is tested with the real one.
#
#     elixir odd_port.exs SCENARIO FILE      FILE remembers how often it was started

[scenario, file, "port"] = System.argv()
# One that is started as its test ends finds no file any more.
if File.write(file, ".", [:append]) != :ok, do: System.halt(0)
starts = byte_size(File.read!(file))
port = Port.open({:fd, 0, 1}, [:binary, :eof, packet: 4])
say = fn term -> Port.command(port, :erlang.term_to_binary(term)) end
pools = if scenario in ["orphans", "meanwhile"], do: ["ml"], else: []
open = fn ttl -> say.({:session, :opened, %{epoch: starts, ttl: ttl, pools: pools}}) end

receive do
  {^port, {:data, hello}} -> {:hello, %{version: 1, owner: _, beam: _}} = :erlang.binary_to_term(hello)
end

say.({:welcome, %{version: 1, program: "odd", embedded: false, gateways: []}})

case {scenario, starts} do
  {"vanishes", 1} ->
    open.(1_000) && System.halt(3)

  {"vanishes", _again} ->
    System.halt(3)

  {"closes", 1} ->
    open.(60_000) && say.({:session, :lost, %{reason: :closed, message: "no session of that name"}})

  {"garbage", 1} ->
    open.(60_000) && Port.command(port, <<131, 119, 10, "never_seen">>)

  {"refuses", _any} ->
    say.({:refused, %{reason: "CONFIG_INVALID", message: "no such setting: `gatewy`"}})

  {_other, _any} ->
    open.(60_000)
end

somebody = %{"worker" => {"ml", 0, 1}, "phase" => "READY"}

# What has happened by the time of the second start, and one event of that.
meanwhile = [
  {1, "WORKER_READY", 1},
  {2, "WORKER_ENDING", 1},
  {3, "WORKER_DIED", 1},
  {4, "WORKER_STARTED", 2}
]

told = fn id, revision, kind, incarnation ->
  event = %{"revision" => revision, "kind" => kind, "worker" => {"ml", 0, incarnation}, "owner" => "odd"}
  death = if kind == "WORKER_DIED", do: %{"death" => %{"cause" => "SIGNALED", "signal" => 9}}, else: %{}
  say.({:item, id, Map.merge(event, death)})
end

answer = fn answer ->
  applied = Process.get(:applied, %{})

  receive do
    {^port, :eof} ->
      System.halt(0)

    {^port, {:data, frame}} ->
      case {scenario, :erlang.binary_to_term(frame)} do
        {_any, {:bye, id}} ->
          say.({:reply, id, {:ok, %{}}}) && System.halt(0)

        {"depends", {:control, id, :pool_apply, %{pool: "web"}}} when not is_map_key(applied, "db") ->
          error = %{reason: "UNKNOWN_POOL", code: 5, outcome: :failed, message: "there is no pool `db`"}
          say.({:reply, id, {:error, error}})

        {"depends", {:control, id, :pool_apply, %{pool: pool}}} ->
          say.({:reply, id, {:ok, %{}}}) && Process.put(:applied, Map.put(applied, pool, true))

        {"stalls", {:control, id, :pool_apply, _args}} ->
          Process.put(:apply, id)

        {"stalls", {:call, id, _call}} ->
          say.({:reply, id, {:ok, %{body: "", metadata: [], trailers: [], worker: nil}}})
          error = %{reason: "UNKNOWN_POOL", code: 5, outcome: :not_sent, message: "not yet"}
          say.({:reply, Process.get(:apply), {:error, error}})

        {_any, {:control, id, :pool_scale, args}} ->
          File.write(file <> ".scaled", "#{args.size} ", [:append])
          say.({:reply, id, {:ok, %{"size" => args.size}}})

        {_any, {:control, id, :pool_apply, _args}} ->
          File.write(file <> ".applied", ".", [:append])
          say.({:reply, id, {:ok, %{}}})

        {"mumbles", {:control, id, :ping, _args}} when starts == 1 ->
          File.write(file <> ".pings", ".", [:append])
          # The first answer makes its time for further ones short.
          if File.read!(file <> ".pings") == ".", do: say.({:reply, id, {:ok, %{}}})

        {"gap", {:control, id, :events, %{follow: true}}} ->
          Process.put(:follow, id)

        {"gap", {:control, id, :worker_list, _args}} ->
          # Nobody, then no answer, then somebody.
          case Process.get(:gap, 0) do
            0 -> say.({:reply, id, {:ok, []}})
            1 -> say.({:reply, id, {:error, %{reason: "", code: 14, outcome: :failed, message: "odd"}}})
            _more -> say.({:reply, id, {:ok, [somebody]}})
          end

          if Process.get(:gap), do: Process.put(:gap, Process.get(:gap) + 1)

        {"gap", {:call, id, _call}} ->
          Process.put(:gap, 1)

          for n <- [1, 5],
              do: say.({:item, Process.get(:follow), %{"revision" => n, "kind" => "POOL_CHANGED"}})

          say.({:reply, id, {:ok, %{body: "", metadata: [], trailers: [], worker: nil}}})

        {"nobody", {:control, id, :worker_list, _args}} ->
          File.write(file <> ".lists", ".", [:append])
          error = %{reason: "UNKNOWN_POOL", code: 5, outcome: :not_sent, message: "there is no pool"}
          say.({:reply, id, {:error, error}})

        {"dies unseen", {:control, id, :worker_list, _args}} ->
          say.({:reply, id, {:ok, if(starts == 1, do: [somebody], else: [])}})

        {"dies unseen", {:control, id, :events, %{follow: false}}} ->
          death = %{"cause" => "SIGNALED", "signal" => 9}
          died = %{"revision" => 3, "kind" => "WORKER_DIED", "worker" => {"ml", 0, 1}, "death" => death}
          if starts > 1, do: say.({:item, id, died})
          say.({:reply, id, {:ok, %{}}})

        {"meanwhile", {:control, id, :worker_list, _args}} ->
          say.({:reply, id, {:ok, [%{somebody | "worker" => {"ml", 0, min(starts, 2)}}]}})

        {"meanwhile", {:control, id, :events, %{follow: false, after: seen}}} ->
          for {n, kind, incarnation} <- meanwhile, starts > 1, n > seen, do: told.(id, n, kind, incarnation)
          say.({:reply, id, {:ok, %{}}})

        {"meanwhile", {:control, id, :events, %{follow: true}}} ->
          Process.put(:follow, id)

        {"meanwhile", {:call, _id, %{body: "lose"}}} ->
          say.({:session, :lost, %{reason: :lease_expired, message: "odd"}})

        {"meanwhile", {:call, id, _call}} ->
          if starts == 1,
            do: told.(Process.get(:follow), 1, "WORKER_READY", 1),
            else: told.(Process.get(:follow), 5, "WORKER_READY", 2)

          say.({:reply, id, {:ok, %{body: "", metadata: [], trailers: [], worker: nil}}})

        {"no lists", {:control, id, :worker_list, _args}} ->
          File.write(file <> ".lists", ".", [:append])
          say.({:reply, id, {:error, %{reason: "", code: 14, outcome: :unknown, message: "odd"}}})

        {"orphans", {:control, id, :events, %{follow: false}}} ->
          # A life, what ended with it, another one, what ended with that, and this one.
          for {n, kind} <-
                Enum.with_index(["SESSION_OPENED", 1, "SESSION_OPENED", 2, "SESSION_OPENED"])
                |> Enum.map(fn {k, n} -> {n + 1, k} end) do
            event = %{"revision" => n, "owner" => "odd"}

            more =
              if is_integer(kind),
                do: %{
                  "kind" => "WORKER_DIED",
                  "worker" => {"ml", 1, kind},
                  "death" => %{"cause" => "OWNER_GONE"}
                },
                else: %{"kind" => kind}

            say.({:item, id, Map.merge(event, more)})
          end

          say.({:reply, id, {:ok, %{}}})

        {odd, {:control, id, :worker_list, _args}} when odd in ["lists", "orphans"] ->
          say.({:reply, id, {:ok, [somebody]}})

        {odd, {:control, _id, :events, %{follow: true}}}
        when odd in ["lists", "nobody", "no lists", "dies unseen", "orphans"] ->
          :ok

        {_any, {:control, id, _op, _args}} ->
          say.({:reply, id, {:ok, []}})

        {"hangs", _frame} ->
          :ok

        {"open breaker", {:call, id, _call}} ->
          error = %{reason: "BREAKER_OPEN", code: 14, outcome: :not_sent, retry_after: 70, message: "odd"}
          say.({:reply, id, {:error, error}})

        {"open breaker", {:stream, id, _call}} ->
          error = %{reason: "BREAKER_OPEN", code: 14, outcome: :not_sent, retry_after: 70, message: "odd"}
          say.({:reply, id, {:error, error}})

        {"loses", {:call, _id, _call}} when starts == 1 ->
          say.({:session, :lost, %{reason: :lease_expired, message: "odd"}})

        {_any, {:call, id, call}} ->
          File.write(file <> ".calls", ".", [:append])
          say.({:reply, id, {:ok, %{body: call.body, metadata: [], trailers: [], worker: nil}}})

        {_any, {:close_send, id}} ->
          say.({:reply, id, {:ok, %{trailers: [], worker: nil}}})

        {"slow", {:send, id, _body}} ->
          say.({:sent, id, 1}) && say.({:message, id, "got one"})

        _other ->
          :ok
      end

      answer.(answer)
  after
    100 ->
      if scenario == "mumbles", do: say.({:item, 1_000_000, "something"})
      answer.(answer)
  end
end

answer.(answer)
