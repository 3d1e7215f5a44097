//! Other proxies, set up as their users do for gRPC without TLS: one worker thread, HTTP/2 on both sides, no log of
//! calls. What is not written here is as each comes; limits on streams, calls and connections that would refuse the
//! load are raised.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// One of them.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Its configuration, with `{port}`, `{dir}`, `{workers}` and the places for a [`Care`] to be filled in.
    configuration: &'static str,
    /// What that says of each worker, with `{worker}`, its port, and `{index}`.
    worker: &'static str,
    /// Its arguments, likewise; `{file}` is the configuration.
    arguments: &'static [&'static str],
}

/// What a bench has a peer take care of beside forwarding: nothing by itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Care {
    /// With each call, `{call}`.
    pub(crate) call: &'static str,
    /// With its workers together, `{pool}`.
    pub(crate) pool: &'static str,
    /// With each of them, `{each}`.
    pub(crate) each: &'static str,
}

impl Peer {
    /// Starts it at this port before workers at those.
    pub(crate) fn command(
        &self,
        program: &Path,
        dir: &Path,
        port: u16,
        workers: &[u16],
        care: Care,
    ) -> std::io::Result<Command> {
        let each = workers.iter().enumerate().map(|(index, port)| {
            let line = self.worker.replace("{index}", &index.to_string());
            line.replace("{worker}", &port.to_string())
        });
        let each: String = each.collect();
        // Envoy tells by its ending what a file is.
        let file = dir.join("configuration.yaml");
        let fill = |text: &str| {
            text.replace("{workers}", &each)
                .replace("{call}", care.call)
                .replace("{pool}", care.pool)
                .replace("{each}", care.each)
                .replace("{port}", &port.to_string())
                .replace("{dir}", &dir.display().to_string())
                .replace("{file}", &file.display().to_string())
        };
        std::fs::write(&file, fill(self.configuration))?;
        let mut command = Command::new(program);
        command
            .args(self.arguments.iter().map(|argument| fill(argument)))
            .stdin(Stdio::null());
        Ok(command)
    }
}

/// All of them, in the order of the tables.
pub(crate) const ALL: [&Peer; 4] = [&ENVOY, &HAPROXY, &NGINX, &NGHTTPX];

const ENVOY: Peer = Peer {
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
          http2_protocol_options: { initial_stream_window_size: 1048576, initial_connection_window_size: 8388608 }
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: "/" }
                route:
                  cluster: workers
                  timeout: 0s{call}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: workers
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options: { initial_stream_window_size: 1048576, initial_connection_window_size: 8388608 }
    circuit_breakers:
      thresholds: [{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000, max_retries: 100000 }]{pool}
    load_assignment:
      cluster_name: workers
      endpoints:
      - lb_endpoints:{workers}
"#,
    worker: "
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: {worker} } } }",
};

const HAPROXY: Peer = Peer {
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
frontend clients
    bind 127.0.0.1:{port} proto h2
    default_backend workers
backend workers
    http-reuse always{pool}
    default-server proto h2{each}{workers}
",
    worker: "
    server worker-{index} 127.0.0.1:{worker}",
};

const NGINX: Peer = Peer {
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
    client_max_body_size 0;
    client_body_timeout 1h;
    send_timeout 1h;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    upstream workers {{pool}{workers}
        keepalive 256;
        keepalive_requests 1000000000;
    }
    server {
        listen 127.0.0.1:{port} http2;
        location / {
            grpc_pass grpc://workers;
            grpc_read_timeout 1h;
            grpc_send_timeout 1h;{call}
        }
    }
}
",
    worker: "
        server 127.0.0.1:{worker}{each};",
};

const NGHTTPX: Peer = Peer {
    name: "nghttpx",
    arguments: &["--conf={file}"],
    configuration: "
frontend=127.0.0.1,{port};no-tls{workers}
workers=1
errorlog-file=/dev/stderr
log-level=ERROR
frontend-http2-read-timeout=1h
frontend-read-timeout=1h
backend-read-timeout=1h
backend-write-timeout=1h
",
    worker: "
backend=127.0.0.1,{worker};;proto=h2{each}",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blank_of_a_configuration_is_filled_in() {
        let dir = std::env::temp_dir().join(format!("peers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for peer in ALL {
            let command = peer
                .command(
                    Path::new("proxy"),
                    &dir,
                    4711,
                    &[4712, 4713],
                    Care::default(),
                )
                .unwrap();
            let text = std::fs::read_to_string(dir.join("configuration.yaml")).unwrap();
            let told: Vec<_> = command.get_args().collect();

            for port in ["4711", "4712", "4713"] {
                assert!(text.contains(port), "{text}");
            }
            for blank in [
                "port", "worker", "workers", "index", "call", "pool", "each", "dir", "file",
            ] {
                let blank = format!("{{{blank}}}");
                assert!(!text.contains(&blank), "{text}");
                assert!(!format!("{told:?}").contains(&blank), "{told:?}");
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
