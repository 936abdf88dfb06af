"""Which samples to train on: scores, selectors, samplers and policies."""

from fastqat.selection.averaging import average_scores
from fastqat.selection.batch_norm import reestimate_batch_norm
from fastqat.selection.folds import fold_indices, out_of_sample
from fastqat.selection.labels import LabelIssues, find_label_issues, label_quality, threshold_labels
from fastqat.selection.policies import RS2, RandomSubset, ScoredSubset, Scorer, SelectionPolicy, WholeSet
from fastqat.selection.recorder import DynamicsRecorder
from fastqat.selection.recording.dynamics import Dynamics, Transitions
from fastqat.selection.reweighting import reweighting_bound
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
    "Dynamics",
    "DynamicsRecorder",
    "IndexedDataset",
    "LabelIssues",
    "RandomSubset",
    "Score",
    "ScoreTable",
    "ScoredSubset",
    "Scorer",
    "Selection",
    "SelectionPolicy",
    "Selector",
    "TeacherCache",
    "Transitions",
    "WholeSet",
    "average_scores",
    "beta_at",
    "find_label_issues",
    "fold_indices",
    "get_score",
    "get_selector",
    "label_quality",
    "list_scores",
    "list_selectors",
    "out_of_sample",
    "reestimate_batch_norm",
    "register_score",
    "register_selector",
    "reweighting_bound",
    "score_dataset",
    "select",
    "threshold_labels",
]
