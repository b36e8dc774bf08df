"""What makes a GPU deterministic, and which torch is let in."""

import os
import subprocess
import sys

import pytest

from pretrain.errors import UserError
from pretrain.versions import require_tested_torch

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
