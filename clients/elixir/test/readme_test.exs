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
end
