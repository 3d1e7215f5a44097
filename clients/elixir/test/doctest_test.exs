defmodule Tether.DoctestTest do
  use ExUnit.Case, async: true

  doctest Tether.Config
  doctest Tether.Death
  doctest Tether.Error
  doctest Tether.Event
  doctest Tether.Lease
  doctest Tether.Mode
  doctest Tether.Pool.Spec
  doctest Tether.Program
  doctest Tether.Protocol
  doctest Tether.Worker
end
