"""Calibrated probabilities: temperature scaling, and how far off they are."""

import math

import numpy as np
from jaxtyping import Float, Int

BINS = 15


def softmax(logits: Float[np.ndarray, "N C"], temperature: float = 1.0) -> Float[np.ndarray, "N C"]:
    """Probabilities of logits / temperature, in float64."""
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(1, keepdims=True))
    probs: np.ndarray = scaled / scaled.sum(1, keepdims=True)
    return probs


def fit_temperature(logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> float:
    """The temperature in 0.1..10 of the least cross entropy (Guo et al. 2017), by golden section on its logarithm.

    The cross entropy is convex in 1/T, so there is one valley; a perfect or hopeless split ends at the bounds.
    """

    def cross_entropy(log_t: float) -> float:
        scaled = logits.astype(np.float64) / math.exp(log_t)
        scaled -= scaled.max(1, keepdims=True)
        picked = scaled[np.arange(len(labels)), labels]
        return float(np.mean(np.log(np.exp(scaled).sum(1)) - picked))

    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(0.1), math.log(10)
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = cross_entropy(a), cross_entropy(b)
    for _ in range(40):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = cross_entropy(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = cross_entropy(b)
    return math.exp((low + high) / 2)


def calibration_error(probs: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> float:
    """Expected calibration error: mean |confidence - accuracy| over 15 equal bins of the likeliest class's probability,
    weighted by their windows (Naeini et al. 2015).
    """
    confidence, right = probs.max(1), probs.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence, BINS) - np.bincount(bins, right, BINS)
    return float(np.abs(gaps).sum() / len(labels))
