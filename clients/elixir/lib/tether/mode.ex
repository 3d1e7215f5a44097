defmodule Tether.Mode do
  @moduledoc """
  The lifecycle mode that `:auto` chooses, and why.

  A scheduler wins over everything; a Tether that serves on this machine means that it is to be used; without either, workers
  live and die with this BEAM. Neither `Mix.env/0` (which a release has not got) nor `Node.alive?/0` (which has nothing to do with
  it) is looked at.
  """

  @type t :: :coupled | :supervised | :independent | :distributed
  @type where :: %{optional(:env) => %{String.t() => String.t()}, optional(:socket) => Path.t() | nil}

  @doc "Every mode."
  @spec all :: [t]
  def all, do: [:coupled, :supervised, :independent, :distributed]

  @doc "Where this BEAM finds itself."
  @spec where :: where
  def where do
    %{
      env: System.get_env() |> Map.take(["KUBERNETES_SERVICE_HOST", "NOMAD_ALLOC_ID"]),
      socket: System.get_env() |> sockets() |> Enum.find(&File.exists?/1)
    }
  end

  @doc """
  Where the socket of a Tether on this machine may be: in its runtime directory.

      iex> Tether.Mode.sockets(%{"XDG_RUNTIME_DIR" => "/run/user/1"})
      ["/run/tether/gateway.sock", "/run/user/1/tether/gateway.sock"]
  """
  @spec sockets(%{String.t() => String.t()}) :: [Path.t()]
  def sockets(env) do
    user = env["XDG_RUNTIME_DIR"] && Path.join(env["XDG_RUNTIME_DIR"], "tether")

    for dir <- [env["TETHER_RUNTIME_DIR"], "/run/tether", user],
        dir != nil,
        do: Path.join(dir, "gateway.sock")
  end

  @doc """
  The mode for a place, and the reason.

      iex> Tether.Mode.detect(%{env: %{"KUBERNETES_SERVICE_HOST" => "10.0.0.1"}, socket: nil})
      {:distributed, "this runs in Kubernetes (KUBERNETES_SERVICE_HOST is set)"}
      iex> Tether.Mode.detect(%{env: %{}, socket: "/run/tether/gateway.sock"})
      {:supervised, "a Tether serves on this machine (/run/tether/gateway.sock is there)"}
      iex> Tether.Mode.detect(%{env: %{}, socket: nil})
      {:coupled, "there is no Kubernetes, no Nomad, and no Tether on this machine"}
  """
  @spec detect(where) :: {t, String.t()}
  def detect(%{env: env, socket: socket}) do
    cond do
      env["KUBERNETES_SERVICE_HOST"] ->
        {:distributed, "this runs in Kubernetes (KUBERNETES_SERVICE_HOST is set)"}

      env["NOMAD_ALLOC_ID"] ->
        {:distributed, "this runs in Nomad (NOMAD_ALLOC_ID is set)"}

      socket ->
        {:supervised, "a Tether serves on this machine (#{socket} is there)"}

      true ->
        {:coupled, "there is no Kubernetes, no Nomad, and no Tether on this machine"}
    end
  end
end
