defmodule Tether.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :tether,
      version: @version,
      elixir: "~> 1.14",
      elixirc_paths: elixirc_paths(Mix.env()),
      start_permanent: Mix.env() == :prod,
      description: "Python workers that live and die as the BEAM says, supervised from outside of it",
      package: [licenses: ["MIT", "Apache-2.0"], files: ~w(lib mix.exs README.md .formatter.exs)],
      docs: [main: "readme", extras: ["README.md"]],
      # Nothing is fetched: what is used when it is there (:telemetry) is found when it is used.
      deps: []
    ]
  end

  def application do
    [extra_applications: [:logger], mod: {Tether.Application, []}]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]
end
