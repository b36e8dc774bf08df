"""Deliberate breaks of what lets layers sleep (tests/support/lazy.py), each as a context in which it holds."""

from dataclasses import replace
from unittest.mock import patch

import torch.distributed as dist

from pretrain.optim import layerwise
from pretrain.optim.layerwise import LayerwiseOptimizer
from pretrain.optim.sleep import Sleepers


def rates_of_today():
    """Missed updates are made with the present learning rate."""
    missed = Sleepers.missed
    return patch.object(Sleepers, "missed", lambda self, layer: [self._rates[self.step] for _ in missed(self, layer)])


def not_caught_up():
    """A checkpoint is written while layers are behind."""
    return patch.object(LayerwiseOptimizer, "catch_up", lambda self: None)


def not_gathered_after_waking():
    make_up = LayerwiseOptimizer._make_up

    def without(self, layer):
        before = [group.stale for group in self.groups]
        make_up(self, layer)
        for group, stale in zip(self.groups, before):
            group.stale = stale

    return patch.object(LayerwiseOptimizer, "_make_up", without)


def last_message_alone():
    """Of a gather in several messages, the last one alone is put where it belongs."""
    arrived = LayerwiseOptimizer._arrived

    def late(self, groups):
        groups = list(groups)
        for group in groups:
            self._gathers[group] = self._gathers.get(group, [])[-1:]
        arrived(self, groups)

    return patch.object(LayerwiseOptimizer, "_arrived", late)


def no_decay_asleep():
    make_up = layerwise.make_up
    return patch.object(layerwise, "make_up", lambda a, group, *rest: make_up(a, {**group, "weight_decay": 0.0}, *rest))


def unused_layers_do_not_send_zeros():
    """A replica sends something else of a layer that only another one ran."""
    begin = LayerwiseOptimizer.begin

    def filled(self, ran):
        begin(self, ran)
        for group in self._awake:
            if group.unit is not None and ran.here[group.unit] == 0:
                group.need_gradients().fill_(1e-3)

    return patch.object(LayerwiseOptimizer, "begin", filled)


def counts_not_restored():
    return patch.object(Sleepers, "restored", lambda self, step, updates: None)


def summed_too_early():
    """A layer counts as final when its first micro-batch is through."""
    begin = LayerwiseOptimizer.begin

    def early(self, ran):
        begin(self, replace(ran, here=tuple(min(1, count) for count in ran.here)))

    return patch.object(LayerwiseOptimizer, "begin", early)


def other_counts_on_rank_1():
    stepped = Sleepers.stepped

    def more(self, awake, rate):
        stepped(self, awake, rate)
        self.updates[1] += dist.get_rank() == 1 and self.step == 3

    return patch.object(Sleepers, "stepped", more)


BREAKS = {
    f.__name__: f
    for f in (
        rates_of_today,
        not_caught_up,
        not_gathered_after_waking,
        last_message_alone,
        no_decay_asleep,
        unused_layers_do_not_send_zeros,
        counts_not_restored,
        summed_too_early,
        other_counts_on_rank_1,
    )
}
