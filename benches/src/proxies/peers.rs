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
    /// Its configuration, with `{port}`, `{dir}` and what stands for its workers to be filled in.
    pub(crate) configuration: &'static str,
    /// Its arguments, likewise; `{file}` is the configuration.
    pub(crate) arguments: &'static [&'static str],
}

impl Peer {
    /// Starts it before workers that are written `workers.1` where its configuration says `workers.0`.
    pub(crate) fn command(
        &self,
        program: &Path,
        dir: &Path,
        port: u16,
        workers: (&str, &str),
    ) -> std::io::Result<Command> {
        // Envoy tells by its ending what a file is.
        let file = dir.join("configuration.yaml");
        let fill = |text: &str| {
            text.replace("{port}", &port.to_string())
                .replace(workers.0, workers.1)
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
pub(super) const ALL: [&Peer; 4] = [&ENVOY, &HAPROXY, &NGINX, &NGHTTPX];

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
              routes: [{ match: { prefix: "/" }, route: { cluster: workers, timeout: 0s } }]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: workers
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options: { initial_stream_window_size: 1048576, initial_connection_window_size: 8388608 }
    circuit_breakers:
      thresholds: [{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }]
    load_assignment:
      cluster_name: workers
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: {worker} } } }
"#,
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
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend clients
    bind 127.0.0.1:{port} proto h2
    default_backend workers
backend workers
    http-reuse always
    server worker 127.0.0.1:{worker} proto h2
",
};

const NGINX: Peer = Peer {
    name: "nginx",
    arguments: &["-p", "{dir}", "-e", "stderr", "-c", "{file}"],
    configuration: "
daemon off;
user root;
worker_processes 1;
pid {dir}/nginx.pid;
error_log stderr error;
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
    upstream workers {
        server 127.0.0.1:{worker};
        keepalive 256;
        keepalive_requests 1000000000;
    }
    server {
        listen 127.0.0.1:{port} http2;
        location / {
            grpc_pass grpc://workers;
            grpc_read_timeout 1h;
            grpc_send_timeout 1h;
        }
    }
}
",
};

const NGHTTPX: Peer = Peer {
    name: "nghttpx",
    arguments: &["--conf={file}"],
    configuration: "
frontend=127.0.0.1,{port};no-tls
backend=127.0.0.1,{worker};;proto=h2
workers=1
errorlog-file=/dev/stderr
log-level=ERROR
frontend-http2-read-timeout=1h
frontend-read-timeout=1h
backend-read-timeout=1h
backend-write-timeout=1h
",
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
                .command(Path::new("proxy"), &dir, 4711, ("{worker}", "4712"))
                .unwrap();
            let text = std::fs::read_to_string(dir.join("configuration.yaml")).unwrap();
            let told: Vec<_> = command.get_args().collect();

            assert!(text.contains("4711") && text.contains("4712"), "{text}");
            for blank in ["{port}", "{worker}", "{dir}", "{file}"] {
                assert!(!text.contains(blank), "{text}");
                assert!(!format!("{told:?}").contains(blank), "{told:?}");
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
