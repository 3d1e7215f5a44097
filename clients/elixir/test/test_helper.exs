# What the programs log is of use only when a test has failed: `TETHER_LOG=info mix test`.
if System.get_env("TETHER_LOG") == nil, do: System.put_env("TETHER_LOG", "off")
ExUnit.start(capture_log: true)
