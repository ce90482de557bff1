"""layerbounds: how good any quantization or pruning of a layer can possibly be, with proof.

Examples
--------
The examples in all docstrings go on from here:

>>> import numpy as np
>>> import layerbounds as lb
>>> layer = lb.demo_layers()["conv1"]
>>> problem = lb.quantization_problem(layer, bits=2)
>>> solution = lb.solve(problem, channels=[0, 1])
>>> run = lb.run({"conv1": layer}, bits=[2, 3], channels=[0, 1], out="run", time_limit=1, parallel="threads")
"""

from layerbounds import theory, training
from layerbounds.allocation import Allocation
from layerbounds.capturing.entry import capture, capture_to_file
from layerbounds.capturing.onnx.entry import capture_onnx
from layerbounds.checkpoints.checkpoint import Checkpoint, load_checkpoint
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.comparison.compare import compare
from layerbounds.comparison.records import MethodComparison
from layerbounds.compression.compress import compress
from layerbounds.contests import Comparison, Rank, Standings, Verdict, versus
from layerbounds.contests.run import contest
from layerbounds.demo import demo_layers
from layerbounds.exceptions import LayerboundsError
from layerbounds.layers.files import load_layers, save_layers
from layerbounds.layers.im2col import im2col
from layerbounds.layers.layer import Layer
from layerbounds.methods.registry import heuristics, run_heuristic
from layerbounds.network.allocate import allocate, score_allocation
from layerbounds.network.result import NetworkRun, load_run
from layerbounds.network.run import run
from layerbounds.network.yardsticks import yardsticks
from layerbounds.orders.gap import OrderGap
from layerbounds.orders.run import order_gap
from layerbounds.problems.evaluation import Evaluation, evaluate
from layerbounds.problems.filters import FilterProblem
from layerbounds.problems.fitting import codebook_grid, uniform_grid
from layerbounds.problems.free_codebook import FreeCodebookProblem
from layerbounds.problems.free_scale import FreeScaleProblem
from layerbounds.problems.gram_range import gram_grid
from layerbounds.problems.grids import Grid
from layerbounds.problems.joint import JointProblem, joint_problem
from layerbounds.problems.output_metrics import next_layer_metric
from layerbounds.problems.problem_file import load_problem, save_problem
from layerbounds.problems.pruning import PruningProblem, pruning_problem
from layerbounds.problems.quantization import QuantizationProblem, quantization_problem
from layerbounds.proofs import BoundKind, Status
from layerbounds.report.network import write_report
from layerbounds.scoring.records import LayerScore, Scores
from layerbounds.scoring.score import score
from layerbounds.solution import Solution, load_solution
from layerbounds.solve import solve
from layerbounds.solvers.registry import backends
from layerbounds.version import __version__
from layerbounds_verify import Report, verify

__all__ = [
    "Allocation",
    "BoundKind",
    "Checkpoint",
    "Comparison",
    "Evaluation",
    "FilterProblem",
    "FreeCodebookProblem",
    "FreeScaleProblem",
    "Grid",
    "JointProblem",
    "Layer",
    "LayerScore",
    "LayerboundsError",
    "MethodComparison",
    "NetworkRun",
    "OrderGap",
    "PruningProblem",
    "QuantizationProblem",
    "QuantizedWeight",
    "Rank",
    "Report",
    "Scores",
    "Solution",
    "Standings",
    "Status",
    "Verdict",
    "__version__",
    "allocate",
    "backends",
    "capture",
    "capture_onnx",
    "capture_to_file",
    "codebook_grid",
    "compare",
    "compress",
    "contest",
    "demo_layers",
    "evaluate",
    "gram_grid",
    "heuristics",
    "im2col",
    "joint_problem",
    "load_checkpoint",
    "load_layers",
    "load_problem",
    "load_run",
    "load_solution",
    "next_layer_metric",
    "order_gap",
    "pruning_problem",
    "quantization_problem",
    "run",
    "run_heuristic",
    "save_layers",
    "save_problem",
    "score",
    "score_allocation",
    "solve",
    "theory",
    "training",
    "uniform_grid",
    "verify",
    "versus",
    "write_report",
    "yardsticks",
]
