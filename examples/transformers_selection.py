"""ACS in Hugging Face's Trainer: a mixin selects; a small vision transformer in 3-bit weights on a tenth of the digits.

    pip install fastqat[transformers] scikit-learn
    python examples/transformers_selection.py

Prints the accuracy of the float model, and of the 3-bit model after training on a random tenth and on the tenth that ACS chooses, from
the same start. Takes about half a minute.
"""

import copy
import os
import tempfile

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers
from acs_in_your_own_loop import digits
from torch.utils.data import Dataset, TensorDataset

import fastqat as fq
from fastqat.integrations.transformers import SelectionMixin, dict_forward
from fastqat.selection import RandomSubset

FLOAT_EPOCHS, EPOCHS = 12, 20


class Pictures(Dataset):
    """What the model takes, by name."""

    def __init__(self, data: TensorDataset):
        self.pictures, self.labels = data.tensors

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pictures[index], "labels": self.labels[index]}


class SelectiveTrainer(SelectionMixin, transformers.Trainer):
    pass


def settings(folder: str, epochs: int, lr: float) -> transformers.TrainingArguments:
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    return transformers.TrainingArguments(
        folder, num_train_epochs=epochs, learning_rate=lr, per_device_train_batch_size=32, use_cpu=True, seed=0, **quiet
    )


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: Pictures) -> float:
    return (model.eval()(pixel_values=data.pictures).logits.argmax(1) == data.labels).float().mean().item()


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.set_seed(0)
    data, test = (Pictures(part) for part in digits())
    config = transformers.ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=10,
    )  # fmt: skip
    teacher = transformers.ViTForImageClassification(config)
    with tempfile.TemporaryDirectory() as folder:
        transformers.Trainer(model=teacher, args=settings(folder, FLOAT_EPOCHS, 2e-3), train_dataset=data).train()
        print(f"float                  {100 * accuracy(teacher, test):.1f}%")

        for name in ("random", "ACS"):
            student = fq.quantize(copy.deepcopy(teacher), "w3a32")
            if name == "ACS":
                policy = fq.methods.ACS(data, student, teacher, fraction=0.1, epochs=EPOCHS, interval=5, forward=dict_forward)
            else:
                policy = RandomSubset(data, fraction=0.1, interval=5, labels=data.labels)
            SelectiveTrainer(model=student, args=settings(folder, EPOCHS, 1e-3), train_dataset=data, policy=policy).train()
            print(f"3 bits, {name:<6} tenth   {100 * accuracy(student, test):.1f}%")


if __name__ == "__main__":
    main()
