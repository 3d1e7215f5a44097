defmodule Tether.ReadmeTest do
  use ExUnit.Case, async: true

  @readme Path.expand("../README.md", __DIR__)

  test "the documented keys are those there are" do
    text = File.read!(@readme)
    wanted = "<!-- keys -->\n#{Tether.Config.Keys.table()}\n<!-- /keys -->"
    now = String.replace(text, ~r/<!-- keys -->.*<!-- \/keys -->/s, fn _old -> wanted end)
    if System.get_env("UPDATE_DOCS"), do: File.write!(@readme, now)
    assert File.read!(@readme) == now, "run `UPDATE_DOCS=1 mix test test/readme_test.exs`"
  end

  test "the doctor says what is shown of it" do
    [_all, shown] = Regex.run(~r/\$ mix tether\.doctor\n(.*?)\n\n/s, File.read!(@readme))
    where = %{env: %{}, socket: nil}
    {mode, why} = Tether.Mode.detect(where)
    [line | _rest] = shown = String.split(shown, "\n")
    assert line == "mode:     #{mode}, because #{why}"

    sh = System.find_executable("sh")
    {:ok, said} = Tether.Doctor.report([owner: "Tether@host-1", port_program: sh], where)
    said = Enum.map(said, &String.replace(&1, sh, "/usr/local/bin/tether"))
    assert shown == Enum.take(said, length(shown))
  end
end
