defmodule Mix.Tasks.Tether.Doctor do
  @shortdoc "Prints the mode that Tether detects, why, and what is wrong"

  @moduledoc """
  Prints what the configuration of this project means here: the detected mode and why, the Port's program, every problem.

      $ mix tether.doctor

  Ends with status 1 when a Tether would not start. Nothing is started.
  """

  use Mix.Task

  @impl true
  def run(_args) do
    Mix.Task.run("app.config")
    {verdict, lines} = :tether |> Application.get_all_env() |> Tether.Doctor.report()
    Enum.each(lines, &Mix.shell().info/1)
    if verdict == :error, do: exit({:shutdown, 1})
  end
end
