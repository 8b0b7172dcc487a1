"""The whole workflow in one run: `make demo`.

Learns three types one after another, once with plain fine-tuning and once with ner_cl's default, and prints both F1
matrices side by side. Then it teaches the finished model one more type and finds entities with it. Printed lines
that start with `$` are commands you can run.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ner_cl.evaluate.matrix import Matrix, render_side_by_side

RUNS = Path("runs/demo")
SHORT = ("--set", "training.epochs=4")
STREAM = ("configs/quickstart.yaml", "--set", "stream.steps=[[PERSON],[LOCATION],[DATE]]", *SHORT)
TEXTS = (
    "Priya Raman flew from Lisbon to Oslo on Friday.\n"
    "The pharmacist at Hallworth Clinic told Tom to stop ibuprofen before starting warfarin in March.\n"
    "Julia moved to Cork in 2019.\n"
)


def main() -> None:
    started = time.monotonic()
    shutil.rmtree(RUNS, ignore_errors=True)
    plain = ["train", *STREAM, "--set", "strategies=[finetune]", "--output", str(RUNS / "finetune")]
    ours = ["train", *STREAM, "--output", str(RUNS / "ner_cl")]
    print("Three types arrive one after another; each step sees sentences annotated for its own type only.\n")
    # Both run at once, with one thread each (see `_one_thread`).
    print(_shown(plain), flush=True)
    finetune = subprocess.Popen(_command([*plain, "--quiet"]), stdout=subprocess.DEVNULL, env=_one_thread())
    print(_shown(ours), flush=True)
    subprocess.run(_command(ours), check=True, stdout=subprocess.DEVNULL, env=_one_thread())
    if finetune.wait():
        sys.exit("the fine-tuning run failed; its message stands above")
    left, right = (Matrix.load(RUNS / name / "matrix.json") for name in ("finetune", "ner_cl"))
    print("\nF1 of every type on the whole test set, after each step:\n")
    print(render_side_by_side(left, right, ("plain fine-tuning", "ner_cl, its default")))

    model, grown = RUNS / "ner_cl" / "steps" / "03", RUNS / "with-medication"
    data = ["data/quickstart/train.jsonl", "--dev", "data/quickstart/dev.jsonl"]
    print("\nA fourth type arrives. Old types are measured before and after, on the dev sentences:\n")
    shorter = ["--set", "training.epochs=2"]
    _run(["learn", *data, "--model", str(model), "--types", "MEDICATION", *shorter, "--output", str(grown)])
    print("\nAll four types are found by one model:\n")
    _run(["predict", str(grown), "-"], text=TEXTS)
    print(f"\nThe runs and the model are in {RUNS}/. Done in {time.monotonic() - started:.0f} seconds.")


def _run(arguments: list[str], *, text: str | None = None) -> None:
    print(_shown(arguments), flush=True)
    subprocess.run(_command(arguments), check=True, input=text, text=True)


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "ner_cl", *arguments]


def _shown(arguments: list[str]) -> str:
    return "$ ner-cl " + shlex.join(arguments)


def _one_thread() -> dict[str, str]:
    """The environment for one thread per process: more would only wait for each other on shared cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
