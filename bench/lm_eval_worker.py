"""lm-eval's answers, from an environment of its own: python bench/lm_eval_worker.py ASKED.json OUT.json

ASKED has the folder of an exported model, a batch size, and tasks of lm-eval's with files of documents in place of their data; or
files of documents whose context and choices are put as they are.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

AS_THEY_ARE: dict = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
"""How lm-eval puts documents that are written out in full."""


def main(asked: Path, out: Path) -> None:
    facts = json.loads(asked.read_text())
    torch.set_num_threads(1)
    model = HFLM(pretrained=facts["model"], dtype="float32", device="cpu", batch_size=facts["batch_size"])
    seconds = [0.0]
    plain = model.loglikelihood

    def timed(requests: list, **how: bool) -> list:
        begin = time.process_time()
        found = plain(requests, **how)
        seconds[0] += time.process_time() - begin
        return found

    model.loglikelihood = timed
    with tempfile.TemporaryDirectory() as folder:
        shipped = Path(lm_eval.__file__).parent / "tasks"
        for name, task in facts["tasks"].items():
            data: dict = {
                "task": f"own_{name}", "dataset_path": "json", "dataset_name": None,
                "dataset_kwargs": {"data_files": {"test": task["file"]}},
                "test_split": "test", "validation_split": None, "training_split": None, "fewshot_split": None, "tag": None,
            }  # fmt: skip
            data |= {"include": str(shipped / task["yaml"])} if "yaml" in task else AS_THEY_ARE
            (Path(folder) / f"own_{name}.yaml").write_text(yaml.safe_dump(data))
        names = [f"own_{name}" for name in facts["tasks"]]
        manager = TaskManager(include_path=folder)
        found = lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0)
    samples = {
        name: [
            {
                "scores": [[float(one[0]), bool(one[1])] for one in sample["filtered_resps"]],
                "accuracy": float(sample["acc"]),
                "contexts": [argument[0] for argument in sample["arguments"].values()]
                if isinstance(sample["arguments"], dict)
                else [argument[0] for argument in sample["arguments"]],
            }
            for sample in sorted(found["samples"][f"own_{name}"], key=lambda sample: sample["doc_id"])
        ]
        for name in facts["tasks"]
    }
    out.write_text(json.dumps({"version": lm_eval.__version__, "seconds": seconds[0], "samples": samples}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
