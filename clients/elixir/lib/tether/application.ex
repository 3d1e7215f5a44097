defmodule Tether.Application do
  @moduledoc false

  use Application

  @impl true
  def start(_type, _args) do
    Tether.Telemetry.look()

    children = [
      {Registry, keys: :unique, name: Tether.Registry},
      {Registry, keys: :duplicate, name: Tether.Subscribers}
    ]

    Supervisor.start_link(children, strategy: :one_for_one, name: Tether.Application)
  end
end
