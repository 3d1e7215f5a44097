defmodule Tether.Doctor do
  @moduledoc """
  What a configuration means here: the mode and why, the problems, the Port's program, and what each key does. Pure but for
  looking for the program.
  """

  alias Tether.{Config, Mode, Program}

  @doc "Lines for people, and whether a Tether would start."
  @spec report(keyword, Mode.where()) :: {:ok | :error, [String.t()]}
  def report(opts, where \\ Mode.where()) do
    {config_ok, config} = config(opts, where)
    {program_ok, program} = program(opts[:port_program])
    keys = for {key, value, does} <- Config.explain(opts), do: "  #{key}: #{inspect(value)}\n    #{does}"
    keys = if keys == [], do: [], else: ["", "Keys that are set:" | keys]
    {if(config_ok and program_ok, do: :ok, else: :error), config ++ program ++ keys}
  end

  @doc "What the Port's program says of this machine, line by line; nothing where there is none."
  @spec machine(keyword) :: [String.t()]
  def machine(opts) do
    with {:ok, path} <- Program.find(opts[:port_program]),
         {said, 0} <- System.cmd(path, ["doctor"], stderr_to_stdout: true) do
      [
        "",
        "This machine, as `tether doctor` sees it:"
        | for(line <- String.split(said, "\n", trim: true), do: "  " <> line)
      ]
    else
      {:error, _why} -> []
      {said, status} -> ["", "`tether doctor` ends with status #{status}: #{said}"]
    end
  end

  defp config(opts, where) do
    case Config.validate(opts, where) do
      {:ok, config} -> {true, sound(config)}
      {:error, problems} -> {false, ["The configuration is refused:" | Enum.map(problems, &"  * #{&1}")]}
    end
  end

  defp sound(config) do
    gateways =
      case config.gateways do
        [] -> "none: the Port runs all of Tether for this BEAM alone, and it ends with it"
        gateways -> Enum.join(gateways, ", ")
      end

    [
      "mode:     #{config.mode}, because #{config.mode_why}",
      "owner:    #{config.owner}",
      "gateways: #{gateways}"
    ]
  end

  defp program(configured) do
    case Program.find(configured) do
      {:ok, path} -> {true, ["port:     #{path}"]}
      {:error, why} -> {false, ["port:     #{why}"]}
    end
  end
end
