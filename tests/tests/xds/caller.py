"""Asks `worker.py` who it is, again and again, at the target that is given; a line an answer: a slot, or a code."""

import sys
import time

import grpc

channel = grpc.insecure_channel(sys.argv[1])
ask = channel.unary_unary("/who.v1.Who/Are")
while True:
    try:
        print(ask(b"", timeout=10).decode(), flush=True)
    except grpc.RpcError as error:
        print(error.code().name, error.details(), flush=True)
    time.sleep(0.01)
