# Three arbiters, of which one leads: run this job first. All listen at one port, each on a machine of its own.

variable "store" {
  type        = string
  description = "An etcd of yours, every member of it."
  default     = "etcd://etcd-1.example:2379,etcd-2.example:2379,etcd-3.example:2379"
}

variable "image" {
  type    = string
  default = "registry.example/tether:0.1.0"
}

job "tether-arbiter" {
  type = "service"

  update {
    max_parallel      = 1
    min_healthy_time  = "15s"
    healthy_deadline  = "2m"
    progress_deadline = "5m"
    auto_revert       = true
  }

  group "arbiter" {
    count = 3

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    network {
      port "grpc" {
        static = 7438
      }
      port "admin" {}
    }

    service {
      provider = "nomad"
      name     = "tether-arbiter"
      port     = "grpc"

      # Nomad's own services know no checks by gRPC. One that stands by is ready too.
      check {
        type     = "http"
        port     = "admin"
        path     = "/health/readiness"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "arbiter" {
      driver       = "docker"
      kill_timeout = "15s"

      config {
        image           = var.image
        command         = "tether-arbiter"
        network_mode    = "host"
        readonly_rootfs = true
        cap_drop        = ["all"]
      }

      env {
        TETHER_CONFIG                    = "${NOMAD_TASK_DIR}/tether.toml"
        TETHER_RUNTIME_DIR               = "${NOMAD_ALLOC_DIR}/run"
        TETHER_LOG_FORMAT                = "json"
        TETHER_LISTEN__ARBITER           = "[\"${NOMAD_ADDR_grpc}\"]"
        TETHER_LISTEN__ADVERTISE_ARBITER = "${NOMAD_ADDR_grpc}"
        TETHER_ADMIN__LISTEN             = "${NOMAD_ADDR_admin}"
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

          [lease]
          node_ttl = "20s"
        EOT
      }

      resources {
        cpu    = 200
        memory = 512
      }
    }
  }
}
