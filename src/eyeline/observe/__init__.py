"""Seeing what a network shows: layers that are found, or named, and observed through forward hooks."""

from eyeline.observe.discover import named_pairs, pair_layers
from eyeline.observe.layer import Head, Layer, Part, Place
from eyeline.observe.observer import Observation, Observer
from eyeline.observe.passes import as_it_was, buffers_kept, evaluation_mode
from eyeline.observe.probe import Probe, find_layers, shared_input_shape

__all__ = [
    "Head",
    "Layer",
    "Observation",
    "Observer",
    "Part",
    "Place",
    "Probe",
    "as_it_was",
    "buffers_kept",
    "evaluation_mode",
    "find_layers",
    "named_pairs",
    "pair_layers",
    "shared_input_shape",
]
