# Two of it, which tell the same.

variable "store" {
  type        = string
  description = "The arbiters'."
  default     = "etcd://etcd-1.example:2379,etcd-2.example:2379,etcd-3.example:2379"
}

variable "image" {
  type    = string
  default = "registry.example/tether:0.1.0"
}

job "tether-discovery" {
  type = "service"

  update {
    max_parallel      = 1
    min_healthy_time  = "10s"
    healthy_deadline  = "2m"
    progress_deadline = "5m"
    auto_revert       = true
  }

  group "discovery" {
    count = 2

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    network {
      port "grpc" {
        static = 7440
      }
      port "admin" {}
    }

    service {
      provider = "nomad"
      name     = "tether-discovery"
      port     = "grpc"

      check {
        type     = "http"
        port     = "admin"
        path     = "/health/readiness"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "discovery" {
      driver       = "docker"
      kill_timeout = "15s"

      config {
        image           = var.image
        command         = "tether-discovery"
        network_mode    = "host"
        readonly_rootfs = true
        cap_drop        = ["all"]
      }

      env {
        TETHER_CONFIG            = "${NOMAD_TASK_DIR}/tether.toml"
        TETHER_RUNTIME_DIR       = "${NOMAD_ALLOC_DIR}/run"
        TETHER_LOG_FORMAT        = "json"
        TETHER_LISTEN__DISCOVERY = "[\"${NOMAD_ADDR_grpc}\"]"
        TETHER_ADMIN__LISTEN     = "${NOMAD_ADDR_admin}"
      }

      template {
        destination = "local/tether.toml"
        change_mode = "restart"
        data        = <<-EOT
          store = "${var.store}"

          [listen]
          insecure = true

          [admin]
          insecure = true
        EOT
      }

      resources {
        cpu    = 100
        memory = 256
      }
    }
  }
}
