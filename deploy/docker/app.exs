# An application as small as can be: it owns the pool `digits`, and calls it ten times a second.

{:ok, _} = Application.ensure_all_started(:tether)

children = [
  {Tether, name: App.Tether, gateway: {:dns, "gateway", 7437}, owner: "app", restart: :permanent},
  {Tether.Pool,
   name: :digits,
   tether: App.Tether,
   mode: :distributed,
   size: 4,
   # As many of a node that is drained are replaced at a time.
   rollout: %{surge: 2},
   # How long those of a node that is cut off live on, without calls, after its lease: until then nobody takes their places.
   policy: %{partition_grace: "10s"},
   spec: [command: ["python3", "worker.py", "--insecure"], cwd: "/opt/digits", listen: :tcp]},
  # Says which of them died, and of what.
  Supervisor.child_spec(
    {Task,
     fn ->
       :ok = Tether.subscribe(App.Tether, :worker_down)
       events = Stream.repeatedly(fn -> receive(do: ({:tether, _name, event} -> event)) end)

       Enum.each(events, fn %{worker: worker, reason: reason} ->
         IO.puts("worker_down #{worker.pool}/#{worker.slot}.#{worker.incarnation} #{inspect(reason)}")
       end)
     end},
    restart: :permanent
  )
]

{:ok, _} = Supervisor.start_link(children, strategy: :rest_for_one)
:ok = Tether.Pool.await_ready(:digits, 120_000)

# PredictRequest in protobuf: field 1, 64 values of a byte each.
image = <<0x0A, 64, 0::size(512)>>
every = String.to_integer(System.get_env("CALL_EVERY_MS", "100"))

Stream.iterate({0, 0}, fn {made, failed} ->
  failed =
    case Tether.call(:digits, "digits.v1.DigitsService/Predict", image, timeout: 10_000) do
      {:ok, _answer} ->
        if made == failed, do: File.write!("/tmp/served", "")
        failed

      {:error, error} ->
        IO.puts("failed: #{inspect(error)}")
        failed + 1
    end

  # A line for each ten: how many were made and how many of them failed.
  if rem(made + 1, 10) == 0, do: IO.puts("calls #{made + 1} failed #{failed}")
  Process.sleep(every)
  {made + 1, failed}
end)
|> Stream.run()
