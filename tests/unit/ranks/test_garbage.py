"""Collections come between steps, and the collector is as it was afterwards."""

import gc

from pretrain.ranks.garbage import EVERY, collected_between_steps


def test_garbage_is_collected_after_the_first_step_and_every_so_often():
    collections = []
    note = lambda phase, info: collections.append(phase)
    with collected_between_steps() as collect:
        assert not gc.isenabled()
        gc.callbacks.append(note)
        counts = {}
        for step in (7, 8, EVERY, EVERY + 1, 2 * EVERY):
            cycle = []
            cycle.append(cycle)
            del cycle
            collect(step)
            counts[step] = collections.count("stop")
        gc.callbacks.remove(note)
        assert gc.get_freeze_count() > 0
    assert counts == {7: 1, 8: 1, EVERY: 2, EVERY + 1: 2, 2 * EVERY: 3}
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_the_collector_comes_back_after_a_failure():
    try:
        with collected_between_steps():
            raise RuntimeError
    except RuntimeError:
        pass
    assert gc.isenabled()
