"""A small neural network for 8x8 digits: 64 pixels, 32 hidden units, 10 digits.

Everything is a function of the seed: equal seeds give equal weights on the same machine.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

PIXELS = 64
INK_MAX = 16
DIGITS = 10
HIDDEN = 32
BATCH = 32

# One image in five is kept out of every training, so that accuracy is measured on images never learnt from.
HELD_OUT_EVERY = 5

DATA = Path(__file__).parent / "data" / "digits.csv.gz"


class Part(NamedTuple):
    """Images, one a row and scaled to 0..1, and the digit each of them shows."""

    images: np.ndarray
    labels: np.ndarray


class Digits(NamedTuple):
    """The data set in its two parts."""

    training: Part
    held_out: Part


class Model(NamedTuple):
    """Weights, and how they came about: `step` optimiser steps of the training `job`."""

    hidden: np.ndarray
    hidden_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray
    step: int
    job: str


def load_digits(path=DATA):
    """Reads the data set and splits it."""
    rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    part = Part(scaled(rows[:, :PIXELS]), rows[:, PIXELS])
    held_out = np.arange(len(rows)) % HELD_OUT_EVERY == 0
    return Digits(
        training=Part(part.images[~held_out], part.labels[~held_out]),
        held_out=Part(part.images[held_out], part.labels[held_out]),
    )


def scaled(pixels):
    """Brings pixels of 0..16 to the range the weights are made for."""
    return np.asarray(pixels, dtype=np.float32) / INK_MAX


def untrained(job, rng):
    """Random weights, scaled so that both layers start with outputs of about 1."""
    return Model(
        hidden=rng.normal(0, (2 / PIXELS) ** 0.5, (PIXELS, HIDDEN)).astype(np.float32),
        hidden_bias=np.zeros(HIDDEN, np.float32),
        output=rng.normal(0, (2 / HIDDEN) ** 0.5, (HIDDEN, DIGITS)).astype(np.float32),
        output_bias=np.zeros(DIGITS, np.float32),
        step=0,
        job=job,
    )


def probabilities(model, images):
    """How likely each digit is, one row an image."""
    return _forward(model, images)[1]


def loss_on(model, part):
    """Mean cross-entropy in nats."""
    shown = probabilities(model, part.images)[np.arange(len(part.labels)), part.labels]
    # A weight gone wild can make a probability 0; its logarithm must stay a number that protobuf and people can read.
    return float(-np.log(np.maximum(shown, 1e-30)).mean())


def accuracy_on(model, part):
    """Share of images recognised rightly."""
    return float((probabilities(model, part.images).argmax(axis=1) == part.labels).mean())


def trained_for_one_epoch(model, part, learning_rate, rng):
    """The model after one pass over `part` in an order drawn from `rng`."""
    order = rng.permutation(len(part.labels))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        model = _stepped(model, part.images[batch], part.labels[batch], learning_rate)
    return model


def _forward(model, images):
    hidden = np.maximum(images @ model.hidden + model.hidden_bias, 0)
    scores = hidden @ model.output + model.output_bias
    # Softmax does not change when a constant is taken off, and exp() overflows when none is.
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


def _stepped(model, images, labels, learning_rate):
    hidden, guess = _forward(model, images)
    error = guess
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    error_hidden = (error @ model.output.T) * (hidden > 0)
    return model._replace(
        hidden=model.hidden - learning_rate * (images.T @ error_hidden),
        hidden_bias=model.hidden_bias - learning_rate * error_hidden.sum(axis=0),
        output=model.output - learning_rate * (hidden.T @ error),
        output_bias=model.output_bias - learning_rate * error.sum(axis=0),
        step=model.step + 1,
    )
