"""Which samples to train on: scores, selectors, samplers and policies."""

from fastqat.selection.batch_norm import reestimate_batch_norm
from fastqat.selection.policies import RS2, RandomSubset, SelectionPolicy, WholeSet
from fastqat.selection.sampler import CoresetSampler, IndexedDataset
from fastqat.selection.schedules import SCHEDULES, beta_at
from fastqat.selection.scorer import score_dataset
from fastqat.selection.scores import Score, get_score, list_scores, register_score
from fastqat.selection.selecting import select
from fastqat.selection.selectors import Selection, Selector, get_selector, list_selectors, register_selector
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache

__all__ = [
    "RS2",
    "SCHEDULES",
    "CoresetSampler",
    "IndexedDataset",
    "RandomSubset",
    "Score",
    "ScoreTable",
    "Selection",
    "SelectionPolicy",
    "Selector",
    "TeacherCache",
    "WholeSet",
    "beta_at",
    "get_score",
    "get_selector",
    "list_scores",
    "list_selectors",
    "reestimate_batch_norm",
    "register_score",
    "register_selector",
    "score_dataset",
    "select",
]
