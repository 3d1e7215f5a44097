defmodule Tether.BeatTest do
  use ExUnit.Case, async: true

  import Tether.Test.Processes

  test "a beat for which there was no room is tried again soon, and not a whole interval later" do
    tether = :"beat_#{System.unique_integer([:positive])}"
    beat = start_supervised!({Tether.Beat, %{name: tether, hung_after: 60_000}})
    port = Port.open({:spawn_executable, System.find_executable("cat")}, [:binary, packet: 4])
    {:os_pid, pid} = Port.info(port, :os_pid)
    kill(pid, "STOP")
    # Until then it reads on.
    eventually("it is stopped", fn -> File.read!("/proc/#{pid}/stat") =~ ") T " end)
    # It ends with its port, unless it is still stopped.
    on_exit(fn -> System.cmd("kill", ["-KILL", to_string(pid)], stderr_to_stdout: true) end)
    fill(port)

    Tether.Beat.into(tether, port)
    assert :erlang.read_timer(:sys.get_state(beat).timer) <= 20

    kill(pid, "CONT")
    eventually("a beat came through", fn -> beaten?(port) end)
  end

  defp fill(port), do: if(Port.command(port, <<0::size(80_000)>>, [:nosuspend]), do: fill(port))

  defp beaten?(port) do
    receive do
      {^port, {:data, frame}} -> match?({:ok, {:beat, _count}}, Tether.Protocol.decode(frame))
    after
      0 -> false
    end
  end
end
