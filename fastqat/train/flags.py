"""The settings of a training run as fields with their meaning: the flags of ``fastqat train`` and the keys of its YAML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastqat.train.setting_types import QuantizerName, RecipeName, ScoreName, SelectName


@dataclass(frozen=True)
class TrainFlags:
    """Train a float model, quantize it, and train it on with a chosen part of the data."""

    config: Path | None = None
    """YAML file with any of these settings; flags override it."""
    recipe: RecipeName | None = None
    """Settings of a paper by name, under those of config and of flags."""
    study: Path | None = None
    """YAML file of a grid of runs: run them all, or those that are left; other settings are in the file."""
    only: str | None = None
    """Run only the cells of a study whose names fit one of these patterns, with commas between: acs*,rs2."""
    results: Path | None = None
    """Folder of the rows of a study; default: results beside the folder studies that its file is in, else RUNS/STUDY."""
    jobs: int = 1
    """Runs of a study side by side."""
    minutes: float | None = None
    """Stop a study after so many minutes, at a place from which the same command goes on; 0: tell what is left, and how long it takes."""
    data: str = "digits"
    """digits, fashion-mnist, cifar10, cifar100, watch, imagefolder:PATH or npz:PATH."""
    data_root: Path | None = None
    """Folder of the named data sets. Default: environment FASTQAT_DATA, else ~/.cache/fastqat/data."""
    val_fraction: float = 0.1
    """Share of each class of the training set that is held out to choose the best checkpoint; 0 for none."""
    limit: int | None = None
    """Use only N training samples, the same share of each class (to try things out)."""
    label_noise: float = 0.0
    """Share of each class's training labels that are replaced by wrong ones, in the validation part too; the test set stays clean. Drawn
    from the seed of float training."""
    label_noise_type: Literal["symmetric", "asymmetric"] = "symmetric"
    """symmetric: any other class, all alike; asymmetric: the next class."""
    oracle_teacher: bool = False
    """The teacher learns from the labels before label_noise, as no user's can; the float model that the student starts from does not.
    Needed with weights that are given: then it says that they may have seen those labels."""
    augment: Literal["auto", "none"] = "auto"
    """auto: random crop and flip where the data set has them; none: the pictures as they are."""
    image_size: int = 224
    """Side of the pictures of imagefolder."""
    workers: int = 2
    """Processes that decode pictures of imagefolder; sets that fit into memory need none."""

    model: str = "resnet8"
    """resnet8, resnet20, resnet32, mobilenet_v2_half, resnet1d (series), or a classification model of torchvision by name."""
    teacher: str | None = None
    """Model that distillation and the scores compare with, of any architecture, trained as the float model is; default: the float model."""
    teacher_checkpoint: Path | None = None
    """Weights of the teacher (a state_dict saved by torch.save) instead of training it; without teacher they are of
    another model of the architecture MODEL."""
    float_checkpoint: Path | None = None
    """Start from these float weights (a state_dict saved by torch.save) instead of training them."""
    float_epochs: int = 20
    """Epochs of float training on the whole pool; the result is cached in float_cache and shared by all runs that agree."""
    float_lr: float = 0.1
    """Learning rate at the start of float training."""
    float_batch_size: int = 128
    """Samples per step of float training, dealt to all processes of torchrun."""
    float_seed: int | None = None
    """Seed of float training and of label noise; default: the run's seed."""

    qconfig: str = "w2a32"
    """Bits of weights and activations (w4a4, w2a32); :channel one scale per output channel, :group64 one per 64 inputs; none: float."""
    quantizer: QuantizerName = "lsq"
    """Quantizer of weights and activations; activations get a zero point where it has one (lsq_plus, minmax)."""
    grad_factor: Literal["paper", "per_scale", "range", "none"] = "paper"
    """Factor of the step sizes' gradients, for N weights of a layer or features of a sample: paper 1/sqrt(N qmax); range 1/sqrt(N (qmax -
    qmin)); per_scale as paper with the batch counted in N, as the released code of ACS does; none 1."""
    select: SelectName = "none"
    """Which samples to train on: none (all), random (a new draw every INTERVAL epochs), rs2 (every epoch), acs, quarc, or a selector by
    name."""
    fraction: float = 0.1
    """Share of the pool that is selected."""
    interval: int | None = 10
    """Epochs between two selections; None: one selection that stays."""
    score: ScoreName = "evs"
    """What a selector goes by, where it goes by scores; acs and quarc have their own."""
    features: str | None = None
    """What a selector compares samples by: embedding, error, gradient, scale_grads, probabilities, or the name of a module."""
    select_options: str = "{}"
    """Options of the selector, such as '{"strata": 20}'; in YAML also a mapping."""
    select_warmup: int = 0
    """Epochs at the start that train on all samples, before the first selection by scores."""
    select_anneal: int = 0
    """Epochs at the end that train on all samples."""
    score_source: Literal["pass", "train"] = "pass"
    """pass: a pass over the pool before each selection; train: the training forward gives the scores of the samples that it has seen."""
    score_max_age: int | None = 1
    """How many epochs old scores of the training forward may be; older ones come from a pass; None: any age, and no pass for them."""
    schedule: Literal["cosine", "half_cosine", "linear", "sqrt", "quadratic", "constant"] = "cosine"
    """How the weight of the error vector score falls in acs and quarc; half_cosine is that of the released code of ACS."""
    score_normalize: Literal["none", "rank", "zscore"] = "none"
    """How quarc puts its three scores on one scale before adding them."""
    balanced: bool = True
    """Select the same share of each class."""
    first_select: Literal["scores", "random"] = "scores"
    """What selections by scores start from in epoch 0, when quantization has just shaken the model."""
    bn_reestimate: int = 0
    """Batches of random samples that renew the batch-norm statistics before scoring, and after the last epoch whatever selects; 0: off."""

    loss: Literal["ce", "kd", "kd_clc"] = "ce"
    """ce: cross-entropy to the labels; kd: to the outputs of the teacher; kd_clc: kd with the cascaded layer correction of QuaRC."""
    clc_layers: str = "blocks"
    """Layers whose outputs are corrected: blocks, convs, or patterns of module names with commas between, such as layer1.*,layer2.0."""
    clc_distribution: Literal["channel", "spatial", "flat", "mse"] = "channel"
    """How an output becomes a distribution: channel: softmax over the channels of its spatial mean; spatial: over the positions of each
    channel; flat: over all values; mse: none, the mean squared error instead."""
    clc_reduction: Literal["elements", "rows"] = "elements"
    """Mean of the divergence over all elements of the distributions, or over the distributions."""
    clc_balance: Literal["auto", "fixed"] = "auto"
    """Weight of the correction beside kd: auto: one that keeps correction / kd near clc_ratio; fixed: clc_weight."""
    clc_ratio: float = 1.0
    """Ratio that clc_balance auto keeps."""
    clc_weight: float = 1e5
    """Weight for clc_balance fixed; the paper's, which states no normalisation: of use with channel and elements."""
    clc_block_input: Literal["own", "student"] = "own"
    """What each float layer is fed: own: the output of the float layer before it; student: that of the quantized one."""
    clc_grad: Literal["joint", "block"] = "joint"
    """joint: the correction of a layer reaches all layers before it; block: that block alone."""
    epochs: int = 20
    """Epochs of quantization-aware training."""
    batch_size: int = 128
    """Samples per step, dealt to all processes of torchrun."""
    sync_bn: bool = False
    """With several processes, each on its GPU: batch norm normalises by the whole batch instead of each process's part of it."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd with Nesterov momentum, or adam."""
    lr: float = 0.01
    """Learning rate at the start; it falls to 0 along a cosine, step by step."""
    scale_lr: float | None = None
    """Learning rate of the quantizers' step sizes; default: the same."""
    activation_scale_lr: float | None = None
    """Learning rate of the step sizes of activations; default: that of all step sizes."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """Decay of weights; never of step sizes, norms and biases."""
    amp: bool = False
    """bfloat16 autocast."""
    channels_last: bool = True
    """Channels-last memory layout: about a third faster on CPUs for these nets."""
    val_interval: int = 1
    """Validate every N epochs, and after the last."""

    seed: int = 0
    """Seed of orders, draws and augmentation; the same seed, thread and process count and machine give the same bits. With another number
    of processes the weights differ a little (batch norm sees parts of batches), and so do selections by scores."""
    threads: int | None = None
    """CPU threads of each process; default: torch's."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:1, ...; under torchrun auto and cuda give each process a GPU of its own."""
    name: str | None = None
    """Name of the run directory, a single folder name; default: made from the settings."""
    runs: Path = Path("runs")
    """Folder of the run directories."""
    float_cache: Path | None = None
    """Folder of the float weights that runs share; default: RUNS/.float."""
    checkpoint_seconds: float = 0.0
    """Least seconds between two checkpoints, and so what a kill may cost beside an epoch; 0: one after each epoch."""
    resume: bool = False
    """Go on where the run of this name stopped (with --name, its own settings are the defaults); starts it when there is none."""
    overwrite: bool = False
    """Delete a run of the same name first."""
    rho: bool = True
    """Tell before training what reweighting by gradient norms could gain at best."""
    report: bool = True
    """Write report.html at the end."""
    progress: bool = True
    """Show progress bars on a terminal."""
