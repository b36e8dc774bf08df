"""The report: every number on it, and the page in a real browser."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pretrain.errors import UserError
from pretrain.study.page import estimate_text, write_page
from pretrain.study.row import Evaluated, Row, StageBoundary, read_table
from pretrain.study.statistics import Estimate


def made_row(method: str, seed: int, loss: float, size: str = "", **changes) -> Row:
    """A row of a run of 100 steps and 4 layers."""
    at = tuple(
        Evaluated(step=s, loss=loss + (100 - s) / 50, layer_flops=s * 1e12, model_flops=s * 2e12, seconds=s * 0.5)
        for s in (20, 40, 60, 80, 100)
    )
    row = Row(
        size=size,
        method=method,
        seed=seed,
        step=100,
        steps=100,
        tokens_per_step=2048,
        parameters=1_700_000,
        settings={},
        data={"tokenizer": "1"},
        made_with=(
            "torch 2.13.0",
            "megatron-core 0.16.1",
            "deepspeed 0.19.8",
            "commit 0123456789abcdef",
            "code 11",
            "device CPU",
        ),
        layout={"data": 1},
        losses={"all": loss, "causal": loss + 0.1, "source_docs": loss - 0.1},
        parts={},
        evaluations=at,
        training=((100, loss),),
        boundaries=(),
        layer_use=((1.0,),) * 4,
        step_seconds=((4.0, 100, 0.5),),
    )
    return row.model_copy(update=changes)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    spent = tuple(
        Evaluated(step=s, loss=5 + (100 - s) / 50, layer_flops=s * 6e11, model_flops=s * 2e12, seconds=s * 0.25)
        for s in (20, 40, 60, 80, 100)
    )
    quick = {
        "step_seconds": ((2.0, 100, 0.25),),
        "evaluations": spent,
        "settings": {"ds.optimizer.params.lr": 0.002, "ds.progressive_subnetwork.method": "raptr"},
    }
    return [
        *(made_row("full", seed, loss) for seed, loss in ((1, 5.0), (2, 5.2), (3, 5.4))),
        *(made_row("raptr <b>", seed, loss, **quick) for seed, loss in ((1, 5.1), (2, 5.3), (3, 5.5))),
        *(made_row("constant", seed, loss) for seed, loss in ((1, 4.9), (2, 5.3), (3, 5.4))),
    ]


def cells(page: str) -> list[list[str]]:
    lines = re.findall(r"<tr>(.*?)</tr>", page)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", line)] for line in lines]


def test_the_tables_say_what_the_rows_say(rows, tmp_path):
    table = cells(write_page(rows, tmp_path, None).read_text())
    full, raptr, constant = (
        next(line for line in table if line[0] == name) for name in ("full (baseline)", "raptr &lt;b&gt;", "constant")
    )
    error = (0.04 * 2 / 2 / 3) ** 0.5
    assert full == ["full (baseline)", "3", "100", f"5.2000 ± {error:.4f}", "", "0.0 %, 1.00", "0.0 %, 1.00", "1.00"]
    assert raptr == [
        "raptr &lt;b&gt;",
        "3",
        "100",
        f"5.3000 ± {error:.4f}",
        "+0.1000 [+0.1000, +0.1000]",
        "40.0 %, 1.67",
        "0.0 %, 1.00",
        "2.00 ± 0.00",
    ]
    assert constant[4] == estimate_text(Estimate.of([-0.1, 0.1, 0.0]), signed=True, interval=True) == "+0.0000 [-0.2484, +0.2484]"
    assert ["source docs", "5.1000 ± 0.1155", "5.2000 ± 0.1155", "5.1000 ± 0.1528"] in table
    assert ["raptr &lt;b&gt;", "0.002"] in table and ["full", "None"] in table  # the settings that differ


def test_what_stands_in_the_way_of_a_comparison_is_said(rows, tmp_path):
    def warning(*changed: Row) -> str:
        page = write_page([*rows, *changed], tmp_path, None).read_text()
        return "".join(re.findall(r'class="warning">(.*?)</p>', page))

    assert warning() == ""
    assert "different code" in warning(made_row("full", 4, 5.0, made_with=("code 22", "device CPU")))
    assert "different data" in warning(made_row("full", 4, 5.0, data={"tokenizer": "2"}))
    assert "full, seed 4 has come to step 60 of 100, and counts in curves alone" in warning(made_row("full", 4, 5.0, step=60))
    assert "different versions of packages" in warning(
        made_row("full", 4, 5.0, made_with=("code 11", "device CPU", "torch 1.0.0"))
    )
    assert "is not known of those that no study made" in warning(made_row("full", 4, 5.0, data={}))
    assert "not all were evaluated at the same steps" in warning(made_row("full", 4, 5.0, evaluations=rows[0].evaluations[1:]))
    other = made_row("full", 4, 5.0, made_with=("code 11", "device GPU"))
    assert "times are not compared" in warning(other)
    unknown, one, two = (
        made_row(name, 4, 5.0, data=data) for name, data in (("x", {}), ("y", {"tokenizer": "1"}), ("z", {"tokenizer": "2"}))
    )
    assert "different data" in "".join(
        re.findall(r'class="warning">(.*?)</p>', write_page([unknown, one, two], tmp_path, None).read_text())
    )
    odd = write_page([rows[0], made_row("full", 4, 5.0, settings={"ds.optimizer.params.lr": 0.1})], tmp_path, None).read_text()
    assert ["full", "0.1 and None"] in cells(odd)
    assert cells(write_page([*rows, other], tmp_path, None).read_text())[1][-1] == "–"


def test_runs_that_are_not_through_and_runs_without_others(rows, tmp_path):
    """None of these once ended in a traceback or drew what nobody measured."""
    boundary = {"step": 51, "steps": (10, 10), "layers_before": 2, "layers_after": 4, "before": 5.0, "after": 4.9}
    staged = made_row("raptr", 2, 5.0, boundaries=(StageBoundary(**boundary),))
    early = made_row("raptr", 1, 5.5, step=40, evaluations=rows[0].evaluations[:2])
    page = write_page([*rows[:3], early, staged], tmp_path / "a", None).read_text()
    raptr = next(line for line in cells(page) if line[0] == "raptr")
    assert raptr[1:4] == ["1 of 2", "40 to 100", "5.0000"] and raptr[4:6] == [
        "-0.2000 (one seed)",
        "0.0 %, 1.00",
    ], "of seed 2 alone"
    page = write_page([*rows[:3], early], tmp_path / "c", None).read_text()
    assert next(line for line in cells(page) if line[0] == "raptr")[3:] == ["–", "–", "–", "–", "–"]
    write_page(rows[:1], tmp_path / "b", None)
    assert not (tmp_path / "b/difference.png").exists() and (tmp_path / "b/loss_by_step.png").exists()


@pytest.mark.parametrize("count", range(1, 9))
def test_any_number_of_methods(count, tmp_path):
    page = write_page([made_row(f"method_{number}", 1, 5.0) for number in range(count)], tmp_path, None)
    assert (tmp_path / "layer_use.png").exists() and f"method_{count - 1}" in page.read_text()


@pytest.mark.parametrize("file", sorted(Path("bench/studies").rglob("*.rows.jsonl")), ids=str)
def test_the_committed_rows_have_their_page(file, tmp_path):
    rows = read_table(file)
    table = cells(write_page(rows, tmp_path, None).read_text())
    assert {row.method for row in rows} <= {line[0].removesuffix(" (baseline)") for line in table}


@pytest.mark.parametrize(
    "key, value", [("recipe.model.vocab_size", 1000), ("recipe.data.sequence_length", 64), ("data.docs.weight", 0.5)]
)
def test_losses_of_other_tokens_are_not_subtracted(rows, tmp_path, key, value):
    others = [made_row("other", seed, 4.0, settings={key: value}) for seed in (1, 2, 3)]
    page = write_page([*rows[:3], *others], tmp_path, None).read_text()
    other = next(line for line in cells(page) if line[0] == "other")
    assert other[3:] == ["4.0000 ± 0.0000", "–", "–", "–", "–"] and "different data, or other parts of it" in page


def test_a_baseline_that_is_not_there(rows, tmp_path):
    with pytest.raises(UserError, match='no method is called "ful"; did you mean "full"?'):
        write_page(rows, tmp_path, "ful")
    assert "minus constant, paired" in write_page(rows, tmp_path, "constant").read_text()


@pytest.fixture(scope="session")
def chromium() -> str:
    """A real browser; Debian's is installed where root can."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=300)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
            check=True,
            timeout=600,
            stdout=subprocess.DEVNULL,
        )
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("no Chromium here, and no way to install it")
    return found


def browse(chromium: str, page: Path, tmp_path: Path) -> tuple[str, str, set[str]]:
    """Load a page: its document after scripts and pictures, what the console said, and addresses that were asked for."""
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={log}",
            "--enable-logging=stderr",
            "--window-size=1200,2000",
            f"--screenshot={tmp_path / 'page.png'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    events = json.loads(log.read_text())["events"]
    facts = [event["params"] for event in events if "params" in event]
    by_page = {
        fact["url"] for fact in facts if fact.get("initiator", "not an origin") != "not an origin"
    }  # the browser asks for things of its own, too
    return done.stdout, console, {url for url in by_page if not url.startswith(("file:", "data:"))}


@pytest.mark.long
def test_the_browser_shows_it_without_errors_and_without_the_network(rows, chromium, finished, tmp_path):
    pages = {
        "made": write_page(rows, tmp_path / "made", None),
        "real": write_page(read_table(finished[0].with_name("study.rows.jsonl")), tmp_path / "real", None),
    }
    for name, page in pages.items():
        folder = tmp_path / f"browser_{name}"
        folder.mkdir()
        document, console, asked = browse(chromium, page, folder)
        pictures = len(list((tmp_path / name).glob("*.png")))
        assert document.count("<figure>") == pictures >= 6
        assert console == "" and asked == set()
        assert (folder / "page.png").stat().st_size > 20_000


@pytest.mark.long
def test_the_browser_test_would_notice(chromium, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<html><body><img src="http://127.0.0.1:9/missing.png"><script>undefined_function()</script></body></html>')
    _, console, asked = browse(chromium, page, tmp_path)
    assert "undefined_function" in console and asked == {"http://127.0.0.1:9/missing.png"}
