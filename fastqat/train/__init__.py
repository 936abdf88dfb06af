"""The reference trainer: one call, or ``fastqat train``, from data to a quantized model and its report."""
