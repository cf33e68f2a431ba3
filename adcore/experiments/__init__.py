"""Experiments: what to run, how it is run once and stored, and its numbers beside the published ones.

    table = run(grid(UniAD, nma=[False, True], seeds=[0, 1, 2]))
    table.against("uniad2022.table_s2")
"""

from adcore.experiments.comparison import Comparison, compare_results, compare_values
from adcore.experiments.departures import departing
from adcore.experiments.evaluation import evaluate, predict_all
from adcore.experiments.experiment import Experiment, as_tuples, grid
from adcore.experiments.ordering import Claim, check_claims, rank_correlation
from adcore.experiments.predictions import save_predictions
from adcore.experiments.record import on_record, recorded
from adcore.experiments.runner import fitted, run
from adcore.experiments.store import Result, Store
from adcore.experiments.table import ResultTable
from adcore.experiments.tidy import load_results

__all__ = ["Claim", "Comparison", "Experiment", "Result", "ResultTable", "Store", "as_tuples", "check_claims",
           "compare_results", "compare_values", "departing", "evaluate", "fitted", "grid", "load_results", "on_record",
           "predict_all", "rank_correlation", "recorded", "run", "save_predictions"]
