defmodule Tether.Program do
  @moduledoc """
  Where the Port's program is: `port_program` of the configuration, the variable TETHER_PORT_PROGRAM, or `tether` on the PATH.
  """

  @doc """
  Its path, or what to do about it.

      iex> {:error, why} = Tether.Program.find("/nowhere/tether")
      iex> why
      "`port_program` is \\"/nowhere/tether\\", and no program is there"
  """
  @spec find(Path.t() | nil) :: {:ok, Path.t()} | {:error, String.t()}
  def find(configured \\ nil) do
    case {configured, System.get_env("TETHER_PORT_PROGRAM")} do
      {nil, nil} -> on_path()
      {nil, told} -> named(told, "TETHER_PORT_PROGRAM")
      {configured, _told} -> named(configured, "`port_program`")
    end
  end

  defp named(path, by) do
    case System.find_executable(path) do
      nil -> {:error, "#{by} is #{inspect(path)}, and no program is there"}
      found -> {:ok, found}
    end
  end

  defp on_path do
    case System.find_executable("tether") do
      nil ->
        {:error,
         "there is no program `tether` on the PATH: install it, or name it with `config :tether, port_program: \"/path/to/tether\"` or the variable TETHER_PORT_PROGRAM"}

      found ->
        {:ok, found}
    end
  end
end
