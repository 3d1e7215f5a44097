# An agent on each client. Its workers are no tasks of Nomad, which would start them anew beside the arbiter's own
# restarts, and know nothing of leases.
#
# There is no `disconnect` block: Nomad refuses `stop_on_client_after` in a job of the type `system`. The lease ends
# workers that nobody hears of. Who wants Nomad to end them too takes agent-counted.nomad.hcl.

job "tether-agent" {
  type = "system"

  # One machine after the other, with time to drain it.
  update {
    max_parallel = 1
    stagger      = "3m"
  }

  group "agent" {
    network {
      port "grpc" {
        static = 7439
      }
      port "admin" {
        static = 9465
      }
      port "metrics" {
        static = 9464
      }
    }

    service {
      provider = "nomad"
      name     = "tether-agent"
      port     = "grpc"

      check {
        type     = "http"
        port     = "admin"
        path     = "/health/readiness"
        interval = "5s"
        timeout  = "2s"
      }
    }

    service {
      provider = "nomad"
      name     = "tether-agent-metrics"
      port     = "metrics"

      check {
        type     = "http"
        path     = "/metrics"
        interval = "15s"
        timeout  = "2s"
      }
    }

    restart {
      attempts = 10
      interval = "5m"
      delay    = "5s"
      mode     = "delay"
    }

    task "agent" {
      driver = "raw_exec"
      # For namespaces and cgroups; workers run as the `process.user` of their template.
      user = "root"
      # DRAIN_SECONDS, the longest grace of a worker, and a moment. See client.hcl.
      kill_timeout = "180s"

      config {
        command = "/bin/sh"
        args    = ["${NOMAD_TASK_DIR}/agent.sh"]
      }

      env {
        PATH                       = "/usr/local/bin:/usr/bin:/bin"
        TETHER_CONFIG              = "${NOMAD_TASK_DIR}/tether.toml"
        TETHER_RUNTIME_DIR         = "/run/tether-nomad"
        TETHER_LOG_FORMAT          = "json"
        TETHER_AGENT__NODE         = "${node.unique.name}"
        TETHER_LISTEN__AGENT       = "[\"${NOMAD_ADDR_grpc}\"]"
        TETHER_ADMIN__LISTEN       = "${NOMAD_ADDR_admin}"
        TETHER_AGENT__WORKER_HOST  = "${NOMAD_IP_grpc}"
        TETHER_AGENT__LABELS__ZONE = "${node.datacenter}"
        TETHER_METRICS__LISTEN     = "${NOMAD_ADDR_metrics}"
        DRAIN_SECONDS              = "120"
      }

      template {
        destination = "local/tether.toml"
        # A restart of this task ends the node's workers. It is started again while there are no arbiters.
        change_mode = "noop"
        data        = <<-EOT
          [listen]
          insecure = true

          [admin]
          insecure = true

          [connect]
          arbiter = [{{ range nomadService "tether-arbiter" }}"{{ .Address }}:{{ .Port }}", {{ else }}"nobody serves as tether-arbiter"{{ end }}]

          [metrics]
          insecure = true
        EOT
      }

      # The hooks ask whichever gateway there is then.
      template {
        destination = "local/gateway"
        change_mode = "noop"
        data        = <<-EOT
          {{ range nomadService 1 (env "NOMAD_ALLOC_ID") "tether-gateway" }}{{ .Address }}:{{ .Port }}{{ end }}
        EOT
      }

      template {
        destination = "local/agent.sh"
        change_mode = "noop"
        data        = file("agent.sh")
      }

      template {
        destination = "local/open.sh"
        change_mode = "noop"
        data        = file("../kubernetes/base/open.sh")
      }

      template {
        destination = "local/drain.sh"
        change_mode = "noop"
        data        = file("../kubernetes/base/drain.sh")
      }

      # What is asked for is for the agent and all of its workers.
      resources {
        cpu    = 2000
        memory = 8192
      }
    }
  }
}
