"""Plots of one run say what their lines are."""

import matplotlib.pyplot as plt

from pretrain.observe.plots import _losses


def test_every_line_of_losses_is_in_the_legend():
    rows = [{"step": step, "loss": 6.0} for step in range(1, 201)] + [{"step": 200, "eval_loss": 5.9}]
    figure, axes = plt.subplots()
    _losses(axes, rows, {step: step for step in range(1, 201)})
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    plt.close(figure)
    assert told == [
        "training (subnetwork), each step",
        "training (subnetwork), mean of 4 steps",
        "held out (all layers)",
    ]
    assert len(told) == len(axes.lines)
