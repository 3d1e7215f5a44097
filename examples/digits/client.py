"""A small client: asks a worker, or a pool of them behind Tether's gateway, from the command line.

    python client.py --target unix:/tmp/digits.sock predict 0 1 2
    python client.py --target 127.0.0.1:7400 --pool digits train night-run --epochs 60 --throttle-ms 500
"""

import argparse
import csv
import gzip
import sys
from pathlib import Path

import grpc

from digits.v1 import digits_pb2, digits_pb2_grpc

DATA = Path(__file__).parent / "data" / "digits.csv.gz"


def parser():
    """The command line of the client."""
    parser = argparse.ArgumentParser(description="Asks a digits worker.")
    parser.add_argument("--target", required=True, help="unix:/PATH or HOST:PORT of a worker or of a gateway")
    parser.add_argument("--pool", help="pool to ask, when the target is a gateway")
    commands = parser.add_subparsers(dest="command", required=True)

    predict = commands.add_parser("predict", help="recognise images of the data set")
    predict.add_argument("image", type=int, nargs="+", help="number of the image, from 0")

    train = commands.add_parser("train", help="start a training or attach to it, and show its progress")
    train.add_argument("job", help="name of the training")
    train.add_argument("--epochs", type=int, default=0)
    train.add_argument("--learning-rate", type=float, default=0)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--throttle-ms", type=int, default=0, help="pause after each epoch")
    return parser


def images():
    """Every image of the data set: its pixels and the digit it shows."""
    with gzip.open(DATA, "rt") as lines:
        for line in csv.reader(lines):
            *pixels, label = map(int, line)
            yield pixels, label


def predict(stub, options, metadata):
    """One line an image: what it shows and what the worker makes of it."""
    known = list(images())
    for number in options.image:
        pixels, label = known[number]
        answer = stub.Predict(digits_pb2.PredictRequest(pixels=pixels), metadata=metadata, timeout=10)
        print(
            f"image {number} shows {label}: {answer.label} ({answer.probability:.0%},"
            f" step {answer.model_step}, pid {answer.pid})",
            flush=True,
        )


def train(stub, options, metadata):
    """One line a message of the stream."""
    request = digits_pb2.TrainRequest(
        job=options.job,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        seed=options.seed,
        throttle_ms=options.throttle_ms,
    )
    for at in stub.Train(request, metadata=metadata):
        print(
            f"{at.job}: epoch {at.epoch} of {at.total}, loss {at.loss:.4f}, accuracy {at.accuracy:.3f}, pid {at.pid}"
            f"{', done' if at.done else ''}",
            flush=True,
        )


def main():
    """Runs the client as a program."""
    options = parser().parse_args()
    metadata = [("tether-pool", options.pool)] if options.pool else []
    with grpc.insecure_channel(options.target) as channel:
        stub = digits_pb2_grpc.DigitsServiceStub(channel)
        try:
            {"predict": predict, "train": train}[options.command](stub, options, metadata)
        except grpc.RpcError as error:
            print(f"digits: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
