"""Makes one call through the gateway, and prints the answer."""

import grpc

with grpc.insecure_channel("unix:/run/tether/gateway.sock") as channel:
    call = channel.unary_unary("/ground.Ground/Call")
    answer = call(b"", timeout=30, wait_for_ready=True, metadata=[("tether-pool", "w")])
    print(answer.decode())
