defmodule Lab.MixProject do
  use Mix.Project

  def project do
    [
      app: :lab,
      version: "0.1.0",
      elixir: "~> 1.14",
      start_permanent: true,
      deps: [{:tether, path: "../../../../clients/elixir"}]
    ]
  end

  def application, do: [extra_applications: [:logger], mod: {Lab, []}]
end
