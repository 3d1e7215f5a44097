defmodule Mix.Tasks.Tether.Doctor do
  @shortdoc "Prints the mode that Tether detects, why, and what is wrong"

  @moduledoc """
  Prints what the configuration of this project means here: the detected mode and why, the Port's program, every problem, and
  what that program sees of this machine: which mode an arbiter here would choose, what an agent could guarantee, and warnings.

      $ mix tether.doctor

  Ends with status 1 when a Tether would not start. No Tether is started.
  """

  use Mix.Task

  @impl true
  def run(_args) do
    Mix.Task.run("app.config")
    opts = Application.get_all_env(:tether)
    {verdict, lines} = Tether.Doctor.report(opts)
    Enum.each(lines ++ Tether.Doctor.machine(opts), &Mix.shell().info/1)
    if verdict == :error, do: exit({:shutdown, 1})
  end
end
