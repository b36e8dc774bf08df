"""A layer that sleeps costs nothing and changes nothing: bit for bit what a run gives in which no layer sleeps."""

import json
import random
from itertools import product

import pytest

from tests.support.before import BEFORE
from tests.support.launch import torchrun

pytestmark = pytest.mark.dist
RAPTR = {"method": "raptr", "path_lengths": "4-6-8", "balance_groups": 2}
METHODS = {
    "raptr": {**RAPTR, "paths_per_step": 1},
    "raptr on 2 paths": {**RAPTR, "paths_per_step": 2},
    "raptr on 4 paths": {**RAPTR, "paths_per_step": 4},
    "raptr on 8 paths": {**RAPTR, "paths_per_step": 8},
    "pld": {"method": "pld", "theta": 0.3, "gamma": 0.1},
    "stacking": {"method": "stacking", "path_lengths": "4-6-8"},
    "midas": {"method": "midas", "path_lengths": "4-8"},
    "parts": {"method": "raptr_parts", "path_lengths": "5-8", "group_lengths": "2-4", "ffn_lengths": "3-6", "paths_per_step": 2},
    "columns": {"method": "raptr_ffn", "ffn_lengths": "1-3"},
}


def case(seed: int, replicas: int, method: str | None = None, events: bool = True, **more) -> dict:
    """A random case: what is trained, and what happens in between."""
    draw = random.Random(seed)
    method = method or draw.choice(["raptr", "raptr on 8 paths"])
    seed_of_paths = {"path_seed": seed} if method in ("parts", "columns") or "raptr" in method else {}
    settings = {
        "ds.progressive_subnetwork": json.dumps(METHODS[method] | seed_of_paths),
        "steps": 24,
        "ds.train_batch_size": 16,
        "ds.train_micro_batch_size_per_gpu": 2
        if "paths" in method or method == "parts"
        else 16 // replicas // draw.choice([1, 2]),
        "ds.gradient_clipping": draw.choice([0.4, 0.0]),
        "ds.bf16.enabled": draw.random() < 0.3,
        "ds.zero_optimization.stage": draw.choice([1, 2, 3]),
        "ds.zero_optimization.overlap_comm": draw.random() < 0.7,
        "ds.zero_optimization.reduce_scatter": draw.random() < 0.8,
        "ds.zero_optimization.reduce_bucket_size": draw.choice([500_000_000, 5_000, 20_000]),
        "ds.zero_optimization.allgather_bucket_size": draw.choice([500_000_000, 5_000]),
        "ds.communication_data_type": draw.choice(["fp32", "fp32", "bf16"]),
        "ds.progressive_subnetwork.skipped_update": draw.choice(["exact", "none"]),
        **more,
    }
    return {
        "settings": {key: json.dumps(value) if isinstance(value, bool) else str(value) for key, value in settings.items()},
        "events": {str(step): draw.choice(["save", "evaluate", "part", "load"]) for step in draw.sample(range(1, 24), 6)}
        if events
        else {},
    }


def launch(project, folder, processes: int, cases: dict) -> dict:
    """What every rank found, by case."""
    out, file = folder / "out.json", folder / "cases.json"
    file.write_text(json.dumps(cases))
    process = torchrun(processes, "tests.support.lazy", project.recipe, project.ds, out, file)
    try:
        _, errors = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return json.loads(out.read_text())


def require_equal(results: dict) -> None:
    for name, ranks in results.items():
        for rank, found in enumerate(ranks):
            assert found["different"] == [], f"{name}, rank {rank}"
        assert ranks[0]["asleep"] or "8 paths" in name or "apart" in name, f"{name}: no layer ever slept"


def test_two_replicas(project, tmp_path):
    stages = {"ds.zero_optimization.stage": 1}, {"ds.zero_optimization.stage": 2}, {"ds.zero_optimization.stage": 3}
    cases = {
        f"{update}, stage {n}": case(seed, 2, "raptr", **{"ds.progressive_subnetwork.skipped_update": update}, **stage)
        for seed, (update, (n, stage)) in enumerate(product(("exact", "none"), enumerate(stages, start=1)))
    }
    cases["exact, stage 1"]["longest sleep"] = 3
    # Of eight paths each replica runs others, in stage 3 also the last layers on the way back.
    apart = {**RAPTR, "paths_per_step": 8, "fixed_layers": [], "path_lengths": "2-6-8"}
    cases["apart, exact, stage 3"] = case(
        6, 2, "raptr on 8 paths", **stages[2], **{"ds.progressive_subnetwork.skipped_update": "exact"}
    )
    cases["apart, exact, stage 3"]["settings"]["ds.progressive_subnetwork"] = json.dumps(apart)
    for update, stage in (("exact", 1), ("none", 3)):
        more = {"ds.progressive_subnetwork.skipped_update": update, "ds.zero_optimization.stage": stage}
        cases[f"{update}, parts, stage {stage}"] = case(20 + stage, 2, "parts", **more)
    results = launch(project, tmp_path, 2, cases)
    require_equal(results)
    for name, ranks in results.items():
        assert (min(ranks[0]["updates"]) == 24) == ("exact" in name)
    assert len(results["none, parts, stage 3"][0]["updates"]) == 8 * (1 + 4 + 6), "parts of layers have counts of their own"


def test_losses_and_norms_are_those_from_before_layers_slept(tmp_path):
    """The twin shares code with what it judges; this run was made when there was none of it."""
    process = torchrun(2, "tests.support.before", tmp_path / "rows.json")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found = json.loads((tmp_path / "rows.json").read_text())
    assert len(found) == len(BEFORE["rows"]) == 40
    for row, expected in zip(found, BEFORE["rows"]):
        assert row == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_what_messages_are_cut_into_changes_no_weight(project, tmp_path):
    """Of two replicas a sum is the same in any message, and a gather always; one micro-batch is one sum in stage 3, too."""
    of_twin = {"ds.zero_optimization.reduce_bucket_size": "500000000", "ds.zero_optimization.allgather_bucket_size": "500000000"}
    cases = {}
    for stage in (1, 3):
        more = {"ds.zero_optimization.stage": stage, "ds.zero_optimization.allgather_bucket_size": 3_000}
        more |= {"ds.train_micro_batch_size_per_gpu": 8, "ds.zero_optimization.reduce_bucket_size": 5_000}
        cases[f"stage {stage}"] = case(11 + stage, 2, "raptr", **more)
        cases[f"stage {stage}"]["settings of the twin"] = of_twin | {"ds.zero_optimization.stage": "1"}
    require_equal(launch(project, tmp_path, 2, cases))


@pytest.mark.long
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_any_method_any_settings_any_events(project, tmp_path, replicas):
    cases = {f"{seed}": case(100 * replicas + seed, replicas, "raptr") for seed in range(6)}
    cases |= {name: case(100 * replicas + n, replicas, name) for n, name in enumerate(METHODS, start=50)}
    require_equal(launch(project, tmp_path, replicas, cases))


BREAKS = {
    "rates_of_today": {},
    "not_caught_up": {"events": {"8": "load"}},
    "not_gathered_after_waking": {},
    "last_message_alone": {"ds.zero_optimization.allgather_bucket_size": 3_000},
    "no_decay_asleep": {},
    "unused_layers_do_not_send_zeros": {"method": "raptr on 8 paths"},
    "counts_not_restored": {"events": {"8": "load"}},
    "summed_too_early": {"ds.train_micro_batch_size_per_gpu": 2, "ds.zero_optimization.overlap_comm": True},
    "other_counts_on_rank_1": {},
}


def test_every_break_is_noticed(project, tmp_path):
    cases = {}
    for name, how in BREAKS.items():
        how = dict(how)
        events = how.pop("events", {})
        exact = {"ds.progressive_subnetwork.skipped_update": "exact", "ds.bf16.enabled": False, "ds.zero_optimization.stage": 1}
        cases[name] = {**case(7, 2, how.pop("method", "raptr"), events=False, **exact, **how), "events": events, "break": name}
    whole = {**cases["rates_of_today"], "break": None}
    results = launch(project, tmp_path, 2, {**cases, "whole": whole})
    require_equal({"whole": results.pop("whole")})
    for name, ranks in results.items():
        assert all(found["different"] for found in ranks), f"{name} is not noticed"
    for found in results["other_counts_on_rank_1"]:
        assert "step 4: the ranks updated different layers: 0 against 1" in found["different"][0]


PARTS_OF_HALF = (
    '{"method": "raptr_parts", "path_lengths": "4-8", "group_lengths": "1-4", "ffn_lengths": "3-6", "skipped_update": "exact"}'
)


@pytest.mark.parametrize("bf16", [False, True])
def test_bytes_follow_the_layers_that_run_and_waiting_for_them_is_not_own_time(project, tmp_path, bf16):
    """Each collective is given what is active once; nothing large is summed to all, nothing of a sleeping layer is touched. In
    the last step one rank gathers late: the other waits, and does not count it."""
    settings = {"ds.progressive_subnetwork.path_lengths": "4", "ds.progressive_subnetwork.paths_per_step": 1}
    cases = {
        name: {**case(1, 2, "raptr", events=False, **settings, **more), "bytes": True}
        for name, more in {
            "exact": {"ds.progressive_subnetwork.skipped_update": "exact"},
            "none": {"ds.progressive_subnetwork.skipped_update": "none"},
            "full": {"ds.progressive_subnetwork.method": "full"},
            "stage 3": {"ds.zero_optimization.stage": "3"},
            "full in stage 3": {"ds.zero_optimization.stage": "3", "ds.progressive_subnetwork.method": "full"},
            "parts": {},
            "parts in stage 3": {"ds.zero_optimization.stage": "3"},
        }.items()
    }
    for name, one in cases.items():
        one["settings"] |= {
            "ds.bf16.enabled": json.dumps(bf16),
            "ds.train_micro_batch_size_per_gpu": "4",
            "ds.zero_optimization.reduce_scatter": "true",
            "ds.zero_optimization.stage": "3" if "stage 3" in name else "1",
            "ds.communication_data_type": "fp32",
        }
        if "parts" in name:
            kept = {key: value for key, value in one["settings"].items() if not key.startswith("ds.progressive_subnetwork.")}
            one["settings"] = kept | {"ds.progressive_subnetwork": PARTS_OF_HALF}
    micro_batches, weight = 2, 2 if bf16 else 4
    for name, ranks in launch(project, tmp_path, 2, cases).items():
        for found in ranks:
            assert found["alone"] and found["waiting is not own time"]
            for step, row in enumerate(found["rows"], start=1):
                if "parts" in name:  # a layer itself, a group of heads, three blocks of columns; the first has vectors alone
                    assert row["union"] == 4 * 5 and len(row["lent"]) in (0, 4 * 4)
                else:
                    assert row["union"] == len(row["lent"] or range(row["union"])) == (8 if "full" in name else 4)
                passes = micro_batches * sum(row["lent"])  # in stage 3, of which only the layers' matrices are lent
                assert sum(row["reduce_scatter_tensor"]) == 4 * (row["elements"] + passes)
                assert max(row["all_reduce"]) < 64 * 1024
                assert sum(row["all_gather_into_tensor"]) == weight * (row["changed"] + 2 * passes), "once, where it has changed"
                assert (row["changed"] > 0) == (step > 1), "the first has the weights that it began with"
                two = 2 * 4 if "parts" in name else 2
                assert row["most weights"] <= weight * (found["resident"] + sum(sorted(row["lent"])[-two:])), "of two layers"
                assert ("stage 3" in name) == (found["resident"] < found["all"])
            assert (found["rows"][-1]["elements"] + sum(found["rows"][-1]["lent"]) == found["all"]) == ("full" in name)
