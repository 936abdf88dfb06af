"""Every registered quantizer in every form that it has, as data for the tests."""

from fastqat.quantizers import QuantSpec, list_quantizers
from fastqat.quantizers.learned import Learned
from fastqat.quantizers.registry import quantizer_class

GROUP = 4
GRANULARITIES = {"tensor": "tensor", "channel": "channel", "group": ("group", GROUP)}


def weight_specs(names: list[str] | None = None, **fields: object) -> dict[str, QuantSpec]:
    """name → spec: each quantizer per tensor, channel and group as it serves them, with and without a zero point."""
    specs = {}
    for name in names or list_quantizers():
        cls = quantizer_class(name)
        for granularity in cls.granularities:
            for symmetric in (True, False) if cls.has_zero_point else (True,):
                label = f"{name}-{granularity}" + ("" if symmetric else "-asymmetric")
                specs[label] = QuantSpec(
                    **{"bits": 4, "quantizer": name, "granularity": GRANULARITIES[granularity], "symmetric": symmetric, **fields}
                )
    return specs


def activation_specs(**fields: object) -> dict[str, QuantSpec]:
    """The same for activations, which have no groups; signed by what is seen."""
    return {label: spec for label, spec in weight_specs(**{"signed": "auto", **fields}).items() if spec.group_size is None}


def finest_specs() -> dict[str, QuantSpec]:
    """Of each quantizer the form with most state: its finest granularity, with a zero point where it has one; and LSQ per channel."""
    every = weight_specs()
    finest = {spec.quantizer: label for label, spec in every.items()}  # the last of each
    return {label: every[label] for label in ("lsq-channel", *finest.values())}


LEARNED = [name for name in list_quantizers() if issubclass(quantizer_class(name), Learned)]
