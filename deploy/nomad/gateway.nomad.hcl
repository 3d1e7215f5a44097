# The one address that applications need. A new one is started beside the old ones, which are then drained.

variable "image" {
  type    = string
  default = "registry.example/tether:0.1.0"
}

job "tether-gateway" {
  type = "service"

  update {
    max_parallel      = 1
    canary            = 1
    auto_promote      = true
    auto_revert       = true
    min_healthy_time  = "10s"
    healthy_deadline  = "2m"
    progress_deadline = "5m"
  }

  group "gateway" {
    count = 2

    # From its deregistration on nobody new comes; then it is told to stop.
    shutdown_delay = "5s"

    spread {
      attribute = "${node.unique.id}"
    }

    network {
      port "grpc" {}
      port "admin" {}
    }

    service {
      provider = "nomad"
      name     = "tether-gateway"
      port     = "grpc"

      check {
        type     = "http"
        port     = "admin"
        path     = "/health/readiness"
        interval = "5s"
        timeout  = "2s"
      }
    }

    restart {
      attempts = 10
      interval = "5m"
      delay    = "5s"
      mode     = "delay"
    }

    task "gateway" {
      driver = "docker"
      # Longer than `gateway.drain` below.
      kill_timeout = "30s"

      config {
        image           = var.image
        command         = "tether-gateway"
        network_mode    = "host"
        readonly_rootfs = true
        cap_drop        = ["all"]
      }

      env {
        TETHER_CONFIG          = "${NOMAD_TASK_DIR}/tether.toml"
        TETHER_RUNTIME_DIR     = "${NOMAD_ALLOC_DIR}/run"
        TETHER_LOG_FORMAT      = "json"
        TETHER_GATEWAY__ZONE   = "${node.datacenter}"
        TETHER_LISTEN__GATEWAY = "[\"unix:${NOMAD_ALLOC_DIR}/run/gateway.sock\", \"${NOMAD_ADDR_grpc}\"]"
        TETHER_ADMIN__LISTEN   = "${NOMAD_ADDR_admin}"
      }

      template {
        destination = "local/tether.toml"
        # It reads them when it starts, and is started again while there are none. Of arbiters that have moved, one that has
        # not tells who leads.
        change_mode = "noop"
        data        = <<-EOT
          [listen]
          insecure = true

          [admin]
          insecure = true

          [connect]
          arbiter = [{{ range nomadService "tether-arbiter" }}"{{ .Address }}:{{ .Port }}", {{ else }}"nobody serves as tether-arbiter"{{ end }}]
          {{ range nomadService 1 (env "NOMAD_ALLOC_ID") "tether-discovery" }}discovery = "{{ .Address }}:{{ .Port }}"{{ else }}discovery = "nobody serves as tether-discovery"{{ end }}

          [gateway]
          drain = "20s"
        EOT
      }

      resources {
        cpu    = 500
        memory = 1024
      }
    }
  }
}
