defmodule Lab do
  @moduledoc """
  An application as a user has one: a Tether and a pool under a supervisor, configured by the environment.

  It is told what to do by lines on standard input, and tells by lines on standard output what it has seen (`Lab.Talk`).
  """

  use Application

  @impl true
  def start(_type, _args) do
    children = [{Tether, tether()}, {Tether.Pool, pool()}, Lab.Talk]
    Supervisor.start_link(children, strategy: :one_for_one, name: Lab.Supervisor)
  end

  defp tether do
    [
      name: Lab.Tether,
      owner: env("OWNER"),
      gateway: List.wrap(System.get_env("LAB_GATEWAY")),
      worker_lifecycle_mode: String.to_atom(env("MODE")),
      heartbeat_interval: String.to_integer(env("INTERVAL")),
      heartbeat_timeout: String.to_integer(env("TIMEOUT"))
    ] ++ supervisor(System.get_env("LAB_SUPERVISOR"))
  end

  defp supervisor(nil), do: []
  defp supervisor(name), do: [supervisor_type: String.to_atom(name)]

  defp pool do
    [
      name: :lab,
      tether: Lab.Tether,
      pool: env("POOL"),
      size: String.to_integer(env("SIZE")),
      policy: if(System.get_env("LAB_BOUND") == "true", do: %{bound: true}, else: %{}),
      spec: [
        command: [env("PYTHON"), env("WORKER")],
        env: %{"PYTHONPATH" => env("SDK"), "LAB_MARK" => env("MARK")},
        template: %{"stop" => %{"grace" => "500ms"}}
      ]
    ]
  end

  @doc "A variable of the environment that is to be there."
  def env(name), do: System.fetch_env!("LAB_" <> name)
end
