"""What makes a GPU deterministic, and which torch and DeepSpeed are let in."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pretrain.errors import UserError
from pretrain.versions import DEEPSPEED, require_known_deepspeed, require_tested_torch

CODE = """
import torch
from pretrain.ranks.libraries import prepare_libraries
prepare_libraries("cpu")
from pretrain.ranks.launch import _require_deterministic
_require_deterministic()
print(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
      torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cuda.flash_sdp_enabled(),
      torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
"""


def test_nothing_that_only_warns_or_fills_memory():
    """With warn_only torch takes backward passes that are not deterministic."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False", "False", "False", "True"]


@pytest.mark.parametrize("found", ["2.11.0", "2.12.1+cu130", "2.13.0", "2.13.0a0+nv26.01"])
def test_a_torch_that_was_tested_is_let_in(found):
    require_tested_torch(found)


@pytest.mark.parametrize("found", ["2.10.1", "2.14.0", "3.0.0"])
def test_another_is_refused(found):
    with pytest.raises(UserError, match=f"torch {found}: this program is tested with torch 2.11 to 2.13"):
        require_tested_torch(found)


def test_only_a_deepspeed_whose_insides_are_known_is_let_in():
    pinned = re.search(r"^deepspeed==(\S+)", Path("requirements/run.txt").read_text(), re.MULTILINE)
    assert pinned is not None and pinned[1] in DEEPSPEED
    require_known_deepspeed(version("deepspeed"))
    with pytest.raises(UserError, match=r"deepspeed 0\.20\.1: .* is known to work with 0\.19\.8; install deepspeed==0\.19\.8"):
        require_known_deepspeed("0.20.1")


def test_another_deepspeed_ends_a_command_before_anything_is_done(tmp_path):
    """In a folder before all others on the path lies what another version would say of itself."""
    (tmp_path / "deepspeed-0.20.1.dist-info").mkdir()
    (tmp_path / "deepspeed-0.20.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.20.1\n")
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", "plan", "ul2_tiny"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2 and done.stderr.startswith("error: deepspeed 0.20.1: ") and done.stderr.count("\n") == 1


def test_on_gpus_memory_may_be_had_in_segments_that_grow():
    """Set before torch first uses a GPU, unless the user has said otherwise."""
    code = (
        "import os; from pretrain.ranks.libraries import prepare_libraries;"
        " prepare_libraries('cuda'); print(os.environ.get('PYTORCH_ALLOC_CONF', ''))"
    )
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    cases = [({}, "expandable_segments:True"), ({"PYTORCH_ALLOC_CONF": "x:y"}, "x:y"), ({"PYTORCH_CUDA_ALLOC_CONF": "x:y"}, "")]
    for given, found in cases:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**environment, **given})
        assert done.stdout.strip() == found, done.stderr
