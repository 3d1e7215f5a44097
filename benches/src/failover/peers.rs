//! Other proxies in front of ten workers, set up as their users do so that a worker's death costs the least: health
//! checked each second, a worker that fails left alone, calls that it cannot have begun tried elsewhere.

use std::{path::Path, process::Command};

use crate::proxies::peers::Peer;

/// One of them.
#[derive(Debug)]
pub(super) struct Fronted {
    pub(super) peer: Peer,
    /// What its configuration says of each worker, with `{index}` and `{worker}`; all of them are `{workers}`.
    each: &'static str,
}

impl Fronted {
    pub(super) fn command(
        &self,
        program: &Path,
        dir: &Path,
        port: u16,
        workers: &[u16],
    ) -> std::io::Result<Command> {
        let each = workers.iter().enumerate().map(|(index, port)| {
            let line = self.each.replace("{index}", &index.to_string());
            line.replace("{worker}", &port.to_string())
        });
        let all: String = each.collect();
        self.peer.command(program, dir, port, ("{workers}", &all))
    }
}

/// All of them, in the order of the tables.
pub(super) const ALL: [&Fronted; 4] = [&ENVOY, &HAPROXY, &NGINX, &NGHTTPX];

const ENVOY: Fronted = Fronted {
    each: "
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: {worker} } } }",
    peer: Peer {
        name: "envoy",
        arguments: &[
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
            "-c",
            "{file}",
        ],
        configuration: r#"
static_resources:
  listeners:
  - address: { socket_address: { address: 127.0.0.1, port_value: {port} } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          codec_type: HTTP2
          stat_prefix: bench
          stream_idle_timeout: 0s
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: "/" }
                route:
                  cluster: workers
                  timeout: 0s
                  max_stream_duration: { grpc_timeout_header_max: 0s }
                  retry_policy:
                    retry_on: connect-failure,refused-stream,unavailable
                    num_retries: 3
                    retry_host_predicate:
                    - name: envoy.retry_host_predicates.previous_hosts
                      typed_config: { "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate }
                    host_selection_retry_max_attempts: 5
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: workers
    type: STATIC
    connect_timeout: 1s
    lb_policy: LEAST_REQUEST
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
    circuit_breakers:
      thresholds: [{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000, max_retries: 100000 }]
    health_checks:
    - { timeout: 1s, interval: 1s, no_traffic_interval: 1s, unhealthy_threshold: 2, healthy_threshold: 1, grpc_health_check: {} }
    outlier_detection: { interval: 1s, base_ejection_time: 2s, max_ejection_percent: 50 }
    load_assignment:
      cluster_name: workers
      endpoints:
      - lb_endpoints:{workers}
"#,
    },
};

const HAPROXY: Fronted = Fronted {
    each: "
    server worker-{index} 127.0.0.1:{worker}",
    peer: Peer {
        name: "haproxy",
        arguments: &["-db", "-f", "{file}"],
        configuration: "
global
    nbthread 1
    maxconn 8000
defaults
    mode http
    timeout connect 1s
    timeout client 1h
    timeout server 1h
    timeout queue 1h
    timeout check 1s
frontend clients
    bind 127.0.0.1:{port} proto h2
    default_backend workers
backend workers
    balance leastconn
    http-reuse always
    option httpchk GET /health
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response
    default-server proto h2 check check-proto h2 inter 1s fall 2 rise 1 observe layer7 error-limit 5 on-error mark-down maxconn 1{workers}
",
    },
};

const NGINX: Fronted = Fronted {
    each: "
        server 127.0.0.1:{worker} max_fails=1 fail_timeout=2s;",
    peer: Peer {
        name: "nginx",
        arguments: &["-p", "{dir}", "-e", "stderr", "-c", "{file}"],
        configuration: "
daemon off;
user root;
worker_processes 1;
pid {dir}/nginx.pid;
error_log stderr crit;
events { worker_connections 16384; }
http {
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    upstream workers {
        least_conn;{workers}
        keepalive 256;
        keepalive_requests 1000000000;
    }
    server {
        listen 127.0.0.1:{port} http2;
        location / {
            grpc_pass grpc://workers;
            grpc_connect_timeout 1s;
            grpc_read_timeout 1h;
            grpc_send_timeout 1h;
        }
    }
}
",
    },
};

const NGHTTPX: Fronted = Fronted {
    each: "
backend=127.0.0.1,{worker};;proto=h2;fall=1;rise=1",
    peer: Peer {
        name: "nghttpx",
        arguments: &["--conf={file}"],
        configuration: "
frontend=127.0.0.1,{port};no-tls{workers}
workers=1
errorlog-file=/dev/stderr
log-level=FATAL
frontend-http2-read-timeout=1h
frontend-read-timeout=1h
backend-read-timeout=1h
backend-write-timeout=1h
",
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_stands_in_the_configuration() {
        let dir = std::env::temp_dir().join(format!("fronted-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for fronted in ALL {
            let proxy = Path::new("proxy");
            fronted.command(proxy, &dir, 4711, &[4712, 4713]).unwrap();
            let text = std::fs::read_to_string(dir.join("configuration.yaml")).unwrap();

            for port in ["4711", "4712", "4713"] {
                assert!(text.contains(port), "{text}");
            }
            for blank in ["{port}", "{worker}", "{workers}", "{index}", "{dir}"] {
                assert!(!text.contains(blank), "{text}");
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
