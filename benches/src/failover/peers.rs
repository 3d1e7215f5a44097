//! Other proxies in front of ten workers, set up as their users do so that a worker's death costs the least: health
//! checked each second, a worker that fails left alone, calls that it cannot have begun tried elsewhere.

use crate::proxies::peers::Care;

/// What a peer of this name takes care of.
pub(super) fn care(name: &str) -> Care {
    match name {
        "envoy" => ENVOY,
        "haproxy" => HAPROXY,
        "nginx" => NGINX,
        "nghttpx" => NGHTTPX,
        _ => Care::default(),
    }
}

const ENVOY: Care = Care {
    call: "
                  max_stream_duration: { grpc_timeout_header_max: 0s }
                  retry_policy:
                    retry_on: connect-failure,refused-stream,unavailable
                    num_retries: 3
                    retry_host_predicate:
                    - name: envoy.retry_host_predicates.previous_hosts
                      typed_config: { \"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate }
                    host_selection_retry_max_attempts: 5",
    pool: "
    lb_policy: LEAST_REQUEST
    health_checks:
    - { timeout: 1s, interval: 1s, no_traffic_interval: 1s, unhealthy_threshold: 2, healthy_threshold: 1, grpc_health_check: {} }
    outlier_detection: { interval: 1s, base_ejection_time: 2s, max_ejection_percent: 50 }",
    each: "",
};

const HAPROXY: Care = Care {
    call: "",
    pool: "
    balance leastconn
    timeout queue 1h
    timeout check 1s
    option httpchk GET /health
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response",
    each: " check check-proto h2 inter 1s fall 2 rise 1 observe layer7 error-limit 5 on-error mark-down maxconn 1",
};

const NGINX: Care = Care {
    call: "
            grpc_connect_timeout 1s;",
    pool: "
        least_conn;",
    each: " max_fails=1 fail_timeout=2s",
};

const NGHTTPX: Care = Care {
    call: "",
    pool: "",
    each: ";fall=1;rise=1",
};

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::proxies::peers::ALL;

    #[test]
    fn what_each_takes_care_of_stands_in_its_configuration() {
        let dir = std::env::temp_dir().join(format!("care-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for peer in ALL {
            let care = care(peer.name);
            let proxy = Path::new("proxy");
            peer.command(proxy, &dir, 4711, &[4712], care).unwrap();
            let text = std::fs::read_to_string(dir.join("configuration.yaml")).unwrap();

            let words = [care.call, care.pool, care.each];
            assert!(words.iter().any(|words| !words.is_empty()), "{}", peer.name);
            for words in words {
                assert!(text.contains(words), "{words} in {text}");
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
