# The agent as in agent.nomad.hcl, as a job of the type `service`, so that Nomad ends it on a client that has lost the
# servers: before the lease does (`lease.node_ttl`, 20s), as a belt to those braces. That costs workers that the arbiter
# still hears of. `machines` is how many clients there are.

variable "machines" {
  type    = number
  default = 3
}

job "tether-agent" {
  type = "service"

  update {
    max_parallel      = 1
    min_healthy_time  = "15s"
    healthy_deadline  = "5m"
    progress_deadline = "10m"
    auto_revert       = true
  }

  group "agent" {
    count = var.machines

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    disconnect {
      stop_on_client_after = "15s"
      replace              = false
      reconcile            = "keep_original"
    }

    # The place of one that is lost is the arbiter's to fill, on the clients that are there.
    reschedule {
      attempts  = 0
      unlimited = false
    }

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
