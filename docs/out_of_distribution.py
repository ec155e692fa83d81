"""Do passes with dropout recognize inputs of unknown classes better than one pass without?

`PYTHONPATH=. .venv/bin/python docs/out_of_distribution.py 10` trains a perceptron with dropout on
the digits 0 to 4 with ten seeds. The score is the predictive entropy, which should be higher for
the digits 5 to 9 than for test images of the digits 0 to 4: the area under the ROC curve. Results:
results/effects/out-of-distribution.json.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import tasks
from tasks.run.environment import environment
from tasks.train import parse, train

RESULTS = Path(__file__).parent.parent / "results" / "effects" / "out-of-distribution.json"
PRESET = "configs/study/published/half.yaml"
KNOWN = 5
PASSES = 50


def write_images(folder: Path) -> dict[bool, list[np.ndarray]]:
    """Write the known digits as a data set; return the test images, known or not."""
    digits = load_digits()
    images = (255 * digits.images / 16).astype(np.uint8)
    # The later ones are by other writers.
    first_test = len(images) // 2
    tests: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for index, (image, label) in enumerate(zip(images, digits.target, strict=True)):
        split = "train" if index < first_test else "test"
        if split == "test":
            tests[bool(label < KNOWN)].append(image)
        if label < KNOWN:
            file = folder / split / str(label) / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return tests


def measure(seed: int) -> dict[str, float]:
    """Train with one seed; return the area under the curve with and without dropout, in points."""
    with tempfile.TemporaryDirectory() as made:
        data = Path(made, "digits")
        tests = write_images(data)
        run = ["--task", "vision", "--data", str(data), "--reg", PRESET, "--seed", str(seed)]
        run += ["--model.arch=mlp", "--no_test", f"--run_dir={made}/run"]
        with contextlib.redirect_stdout(io.StringIO()):
            train(*parse([*run, "--trainer.logger=false", "--trainer.accelerator=cpu"]))
        predictor = tasks.load(f"{made}/run")
    predictor.temperature = predictor.mc_temperature = 1.0
    unknown = [0] * len(tests[True]) + [1] * len(tests[False])
    found = {}
    for name, passes in (("none", 0), ("passes", PASSES)):
        made_of = predictor([*tests[True], *tests[False]], mc=passes)
        found[name] = 100 * float(roc_auc_score(unknown, [one.entropy for one in made_of]))
    return found


def main() -> None:
    """Measure with as many seeds as are asked for."""
    count = int(sys.argv[1])
    rows = [measure(seed) for seed in range(count)]
    made = {
        "command": f"PYTHONPATH=. .venv/bin/python docs/{Path(__file__).name} {count}",
        **environment(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
