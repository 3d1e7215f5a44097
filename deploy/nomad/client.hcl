# What a client of Nomad that runs agents needs in its own configuration, besides the programs in /usr/local/bin.
client {
  # The longest that a job may ask for: agent.nomad.hcl wants more than the usual 30s.
  max_kill_timeout = "5m"
}

plugin "raw_exec" {
  config {
    enabled = true
  }
}

plugin "docker" {
  config {
    allow_privileged = false
  }
}
