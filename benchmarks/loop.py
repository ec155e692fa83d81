"""A whole run against the loop that one would write by hand around the same layers."""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.data import images
from benchmarks.measure import Row, compare
from modules import Regularization, parameter_groups
from tasks.data import Batches
from tasks.optimization import Optimization
from tasks.train import parse, train
from tasks.vision.data import VisionData, VisionSpec
from tasks.vision.models import MODELS
