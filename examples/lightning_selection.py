"""ACS in Lightning: a callback selects, the trainer trains; a digits classifier in 2-bit weights on a tenth of the data.

    pip install fastqat[lightning] scikit-learn
    python examples/lightning_selection.py

Prints the accuracy of the float model, and of the 2-bit model after training on a random tenth and on the tenth that ACS chooses, from
the same start. Takes about twenty seconds.
"""

import copy
import logging
import warnings

import lightning.pytorch as pl
import torch
from acs_in_your_own_loop import accuracy, digits, network
from torch import nn
from torch.utils.data import DataLoader

import fastqat as fq
from fastqat.integrations.lightning import SelectionCallback
from fastqat.selection import RandomSubset

FLOAT_EPOCHS, EPOCHS = 12, 20


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module, lr: float, epochs: int):
        super().__init__()
        self.net, self.lr, self.epochs = net, lr, epochs

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(fq.param_groups(self.net, self.lr), momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)}


def fit(module: Classifier, loader: DataLoader, *callbacks: pl.Callback) -> None:
    pl.seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    pl.Trainer(max_epochs=module.epochs, callbacks=list(callbacks), accelerator="cpu", **quiet).fit(module, loader)


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    data, test = digits()
    teacher = network()
    fit(Classifier(teacher, 0.1, FLOAT_EPOCHS), DataLoader(data, 64, shuffle=True))
    print(f"float                  {100 * accuracy(teacher, test):.1f}%")

    for name in ("random", "ACS"):
        student = fq.calibrate(fq.quantize(copy.deepcopy(teacher), "w2a32"), [data.tensors[0][:256]])
        if name == "ACS":
            policy = fq.methods.ACS(data, student, teacher, fraction=0.1, epochs=EPOCHS, interval=5)
        else:
            policy = RandomSubset(data, fraction=0.1, interval=5)
        selection = SelectionCallback(policy)
        fit(Classifier(student, 0.01, EPOCHS), DataLoader(data, 32, sampler=selection.sampler), selection)
        print(f"2 bits, {name:<6} tenth   {100 * accuracy(student, test):.1f}%")


if __name__ == "__main__":
    main()
